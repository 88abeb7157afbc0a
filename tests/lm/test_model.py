"""The shared language model: its loss, what it saves, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from smalti.generation.orders import Masked, order_parts
from smalti.lm.config import SharedLMConfig
from smalti.lm.layout import SequenceLayout
from smalti.lm.model import SharedLM
from smalti.lm.sequences import TEXT, Batch, Label, Picture, Vectors
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.lookup import looked_up
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

SPEC = CodeSpec(CodeLayout("grid", (2, 2)), (Codebook("semantic", 5), Codebook("pixel", 7, 2)))
TEXTS = ("a red circle", "how many ? two")
WIDTHS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
LLAMA = {"model_type": "llama", **WIDTHS, **HEADS, "max_position_embeddings": 64}
BACKBONES = {
    "llama": LLAMA,
    "qwen2": {"model_type": "qwen2", **WIDTHS, **HEADS},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
}


def model(backbone=LLAMA, fingerprint="f00d", head=None, **parts) -> SharedLM:
    kind = head or {"kind": "flat"}
    built = SharedLM.build(backbone, Vocabulary.train(TEXTS), SPEC, fingerprint, kind, **parts).eval()
    with torch.no_grad():  # far from uniform predictions
        built.outputs.pieces[-1].mul_(20)
    return built


def batch(lm: SharedLM) -> Batch:
    ids = torch.randint(0, 5, (2, 4, 3))
    written = lm.layout.text_to_image("a red circle", ids[0])
    read = lm.layout.image_to_text(ids[1], "a circle", [("how many ?", "two")])
    return lm.layout.collate([written, read])


def test_queries_have_unit_scale_and_are_told_apart_by_their_places():
    rows = Masked(2).plan(SPEC.layout, torch.Generator().manual_seed(0)).rows()
    lm = model(head={"kind": "depth"}, **order_parts(Masked(2), SPEC))
    found = lm.layout.collate([lm.layout.text_to_image("a", torch.zeros(4, 3, dtype=torch.int64), rows=rows)])
    with torch.no_grad():
        embedded, asked = lm.embed(found), found.ordering.asked
        torch.testing.assert_close(embedded[asked].square().mean(-1), torch.ones(4))
        assert float(embedded[~asked].square().mean()) < 0.01
        wanted = lm.queries.weight[0] + lm.positions(found.slots)[asked]
        torch.testing.assert_close(
            embedded[asked] / wanted, (1 / wanted.square().mean(-1).sqrt())[:, None].expand(4, 16)
        )


@pytest.mark.parametrize("kind", list(BACKBONES))
def test_loss_equals_full_logits_restricted_to_the_block(kind):
    lm = model(BACKBONES[kind])
    found = batch(lm)
    totals = {"text": [], "semantic": [], "pixel": []}
    for row in range(2):
        tokens, slots = found.tokens[row, :, 0], found.slots[row]
        places = slots.clamp_min(0)
        where = lm.positions.position.weight[places // 3] + lm.positions.column.weight[places % 3]
        embedded = lm.backbone.get_input_embeddings().weight[tokens] + where * (slots >= 0)[:, None]
        logits = lm.backbone(inputs_embeds=embedded[None]).logits[0]
        for place in range(1, len(tokens)):
            if found.learned[row, place]:
                slot = int(slots[place])
                name = "text" if slot == TEXT else ("semantic", "pixel", "pixel")[slot % 3]
                ids = list(range(lm.vocabulary.text_size + 8) if slot == TEXT else lm.vocabulary.block(name))
                chosen = ids.index(int(tokens[place]))
                totals[name].append(-logits[place - 1, ids].log_softmax(0)[chosen])
    output = lm(found)
    for name, values in totals.items():
        torch.testing.assert_close(output.blocks[name].mean, torch.stack(values).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, sum(block.mean for block in output.blocks.values()))


def test_weights_scale_their_block():
    lm = model()
    found = batch(lm)
    blocks = lm(found).blocks
    weighted = lm(found, {"text": 0.0, "pixel": 2.0}).loss
    torch.testing.assert_close(weighted, blocks["semantic"].mean + 2 * blocks["pixel"].mean)


@pytest.mark.parametrize("kind", list(BACKBONES))
def test_padding_changes_nothing(kind):
    lm = model(BACKBONES[kind])
    together = batch(lm)
    lengths = [int((together.tokens[row, :, 0] != lm.vocabulary.special("<pad>")).sum()) for row in range(2)]
    assert lengths[0] != lengths[1]
    parts = [(slice(row, row + 1), slice(length)) for row, length in enumerate(lengths)]
    alone = [lm(Batch(together.tokens[p], together.slots[p], together.learned[p])).blocks for p in parts]
    for name, block in lm(together).blocks.items():
        counts = torch.stack([single[name].tokens for single in alone])
        means = torch.stack([single[name].mean for single in alone])
        assert int(block.tokens) == int(counts.sum())
        torch.testing.assert_close(block.mean, (means * counts).sum() / counts.sum(), rtol=1e-5, atol=1e-5)


def test_several_batches_count_as_one():
    lm = model()
    together = batch(lm)
    parts = [
        Batch(together.tokens[i : i + 1], together.slots[i : i + 1], together.learned[i : i + 1]) for i in range(2)
    ]
    torch.testing.assert_close(lm(parts).loss, lm(together).loss)


@pytest.mark.parametrize("head", [None, {"kind": "depth", "heads": 2}])
@pytest.mark.parametrize("kind", list(BACKBONES))
def test_gradients_reach_every_parameter(kind, head):
    lm = model(BACKBONES[kind], head=head)
    lm(batch(lm)).loss.backward()
    silent = [name for name, p in lm.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []


@pytest.mark.parametrize(
    ("head", "parts"),
    [
        ("parallel", {}),
        ("apart", {"embedding": {"kind": "concat"}}),
        ("depth", {"embedding": {"kind": "codebook", "dims": {"semantic": 3, "pixel": 4}}, "rotary": "axial"}),
        ("depth", {"embedding": {"places": False}, "new_rows": True}),
    ],
)
def test_every_way_in_and_out_is_trained_saved_and_loaded(tmp_path, head, parts):
    lm = model({**LLAMA, "num_attention_heads": 4}, head={"kind": head}, **parts)
    found = batch(lm)
    loss = lm(found).loss
    loss.backward()
    silent = {name for name, p in lm.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert silent == set()
    lm.save_pretrained(tmp_path / "lm")
    torch.testing.assert_close(SharedLM.from_pretrained(tmp_path / "lm")(found).loss, loss, rtol=0, atol=0)


def test_the_head_follows_from_the_codes():
    vocabulary = Vocabulary.train(TEXTS)
    assert SharedLM.build(LLAMA, vocabulary, SPEC, "f00d").config.head == {"kind": "depth"}
    flat = CodeSpec(SPEC.layout, SPEC.codebooks[:1])
    assert SharedLM.build(LLAMA, vocabulary, flat, "f00d").config.head == {"kind": "flat"}


def test_learned_places_may_be_left_out():
    lm = model(embedding={"places": False})
    assert not [name for name, _ in lm.named_parameters() if name.startswith("positions")]
    found = batch(lm)
    expected = lm.backbone.get_input_embeddings().weight[found.tokens[..., 0]]
    assert torch.equal(lm.embed(found), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rotary", ["sequence", "axial"])
@pytest.mark.parametrize("head", ["flat", "depth"])
def test_packed_documents_are_as_if_alone(head, rotary, attention):
    lm = model({**LLAMA, "num_attention_heads": 4}, head={"kind": head}, rotary=rotary)
    lm.set_attn_implementation(attention)
    ids = torch.randint(0, 5, (3, 4, 3))
    read = lm.layout.image_to_text(ids[0], "a circle", [("how many ?", "two")])
    examples = [read, lm.layout.text_to_image("a red circle", ids[1]), lm.layout.document(["two", ids[2], "red"])]
    packed = lm.layout.pack(examples, 64)
    assert len(packed.tokens) == 1
    with torch.no_grad():
        hidden, start = lm.hidden(packed)[0], 0
        for example in sorted(examples, key=len, reverse=True):
            alone = lm.hidden(lm.layout.collate([example]))[0]
            torch.testing.assert_close(hidden[start : start + len(example)], alone, rtol=1e-5, atol=1e-5)
            start += len(example)
    together = lm.layout.collate(examples)
    torch.testing.assert_close(lm(packed).loss, lm(together).loss, rtol=1e-5, atol=1e-5)


def test_packing_needs_an_attention_that_takes_masks():
    lm = model()
    packed = lm.layout.pack([lm.layout.text_to_image("a", torch.zeros(4, 3).long())], 64)
    lm.backbone.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="need attention sdpa or eager, got flash_attention_2; set attn_"):
        lm(packed)


def test_classes_and_vectors_condition_a_model():
    spec = CodeSpec(CodeLayout("grid", (2, 2)), (Codebook("pixel", 7),))
    lm = SharedLM.build(LLAMA, Vocabulary(None), spec, "f00d", classes=3, vectors={"dim": 5, "null": 2}).eval()
    ids, values = torch.randint(0, 7, (4, 1)), torch.randn(2, 5)
    examples = [lm.layout.class_to_image(2, ids), lm.layout.build([Vectors(values), Picture(ids)])]
    embedded = lm.embed(lm.layout.collate(examples))
    assert torch.equal(embedded[0, 0], lm.classes.weight[2])
    torch.testing.assert_close(embedded[1, :2], lm.vectors(values))
    assert torch.equal(lm.unconditional(1).rows, lm.layout.prompt(3).rows)
    assert torch.equal(lm.unconditional(values[:1]).vectors, lm.vectors.null[1:])
    lm(lm.layout.collate(examples)).loss.backward()
    assert lm.classes.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [2]
    with pytest.raises(ValueError, match="stand for none, 3 of them here, got a model with 2; sample with"):
        lm.unconditional(torch.zeros(3, 5))


@pytest.mark.parametrize(("part", "kind"), [(Label(0), "classes"), (Vectors(torch.ones(1, 2)), "vectors")])
def test_conditions_of_another_model_are_an_error(part, kind):
    spec = CodeSpec(CodeLayout("grid", (2, 2)), (Codebook("pixel", 7),))
    other = SequenceLayout(Vocabulary(None, spec.codebooks), spec, classes=3)
    lm = SharedLM.build(LLAMA, Vocabulary(None), spec, "f00d")
    with pytest.raises(ValueError, match=f"this model has no {kind} to be conditioned on; build it with {kind}"):
        lm(other.collate([other.build([part, Picture(torch.zeros(4, 1).long())])]))


def test_vectors_for_codes_are_read_in_their_place():
    lm = model(head={"kind": "depth"}, embedding={"kind": "codebook", "dims": {"semantic": 3, "pixel": 4}})
    lm.start_from_codebooks({"semantic": torch.randn(5, 3), "pixel": torch.randn(7, 4)})
    ids = torch.randint(0, 5, (4, 3))
    looked = looked_up(lm.embedding.vectors(), ids[None], SPEC)[0].requires_grad_()
    plain = lm.layout.collate([lm.layout.text_to_image("a", ids)])
    given = lm.layout.collate([lm.layout.text_to_image("a", ids, read_as=looked)])
    assert torch.equal(lm.embed(plain), lm.embed(given))
    lm(given).loss.backward()
    assert bool((looked.grad.abs().sum(1)[:3] > 0).all())  # the last position predicts nothing
    with pytest.raises(ValueError, match="codes by their ids, got vectors for them; build it with embedding kind"):
        model(head={"kind": "depth"}).embed(given)


def test_bfloat16_autocast_stays_close():
    lm = model()
    found = batch(lm)
    with torch.autocast("cpu", torch.bfloat16):
        half = lm(found).loss
    half.backward()
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(lm(found).loss.item(), rel=0.02)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in lm.parameters())


def test_same_seed_builds_the_same_model():
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(model().state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("head", [None, {"kind": "depth", "layers": 2, "heads": 2}])
@pytest.mark.parametrize("kind", list(BACKBONES))
def test_saved_and_loaded_is_bit_equal(tmp_path, kind, head):
    lm = model(BACKBONES[kind], head=head)
    lm.save_pretrained(tmp_path / "lm")
    loaded = SharedLM.from_pretrained(tmp_path / "lm")
    before, after = lm.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (loaded.spec, loaded.config.tokenizer_fingerprint) == (SPEC, "f00d")
    assert loaded.vocabulary.model == lm.vocabulary.model
    assert not loaded.training
    found = batch(lm)
    assert torch.equal(lm(found).loss, loaded(found).loss)
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]


def test_half_precision_files_are_read_as_float32(tmp_path):
    lm = model().to(torch.bfloat16)
    lm.save_pretrained(tmp_path / "lm")
    loaded = SharedLM.from_pretrained(tmp_path / "lm")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(torch.equal(value.float(), loaded.state_dict()[name]) for name, value in lm.state_dict().items())
    assert next(SharedLM.from_pretrained(tmp_path / "lm", dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks config.json, model.safetensors, vocabulary.model, "):
        SharedLM.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocabulary.model", "vocabulary.json"])
def test_a_missing_file_is_named(tmp_path, name):
    model().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"should hold a language model but lacks {name}; save or train it again"
    ):
        SharedLM.from_pretrained(tmp_path)


def test_truncated_weights_are_an_error(tmp_path):
    model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"does not hold a readable language model .*; save it again"):
        SharedLM.from_pretrained(tmp_path)


def test_a_missing_key_is_an_error(tmp_path):
    model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["positions.position.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"key by key, got .*missing_keys.*positions\.position\.weight"):
        SharedLM.from_pretrained(tmp_path)


def test_an_unknown_key_is_an_error(tmp_path):
    model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"extra": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"key by key, got .*unexpected_keys.*extra"):
        SharedLM.from_pretrained(tmp_path)


def test_weights_of_another_shape_are_an_error(tmp_path):
    model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["positions.column.weight"] = torch.zeros(9, 16)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"key by key, got .*mismatched_keys.*positions.column.weight"):
        SharedLM.from_pretrained(tmp_path)


def test_another_vocabulary_is_an_error(tmp_path):
    lm = model()
    lm.save_pretrained(tmp_path)
    Vocabulary.train(["one more word"]).with_codebooks(SPEC.codebooks).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"built for {lm.vocabulary.size} ids, its vocabulary has 24; load both"):
        SharedLM.from_pretrained(tmp_path)


def test_check_tokenizer_names_both():
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    tokenizer = VQTokenizer(ConvEncoder(**parts), VectorQuantizer(dim=4, codebook_size=16), ConvDecoder(**parts), 8)
    vocabulary = Vocabulary.train(TEXTS)
    SharedLM.build(LLAMA, vocabulary, tokenizer.spec, tokenizer.fingerprint()).check_tokenizer(tokenizer)
    message = (
        r"trained with tokenizer f00d \(grid 2x2: semantic 5x1, pixel 7x2\), got tokenizer "
        rf"{tokenizer.fingerprint()} \(grid 4x4: pixel 16x1\); load the tokenizer"
    )
    with pytest.raises(ValueError, match=message):
        model().check_tokenizer(tokenizer)


def test_unknown_model_type_names_near_ones():
    with pytest.raises(ValueError, match=r"model_type that transformers knows, got 'lama'; near are .*llama"):
        model({**LLAMA, "model_type": "lama"})
    with pytest.raises(ValueError, match="got 'None'; near are"):
        model({})


def test_misspelt_field_names_near_ones():
    with pytest.raises(ValueError, match=r"llama backbone must have fields .*, got 'hiden_size'; near are hidden_size"):
        model({**LLAMA, "hiden_size": 8})


def test_fields_that_transformers_renames_are_taken():
    assert model({**LLAMA, "rope_theta": 123.0}).backbone.config.rope_parameters["rope_theta"] == 123.0
    gpt2 = {"model_type": "gpt2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert model(gpt2).positions.position.weight.shape == (4, 16)


def test_too_long_sequences_are_an_error():
    lm = model({**LLAMA, "max_position_embeddings": 20})
    with pytest.raises(ValueError, match="have at most 20 tokens, got 26; raise max_position_embeddings"):
        lm(batch(lm))


def test_configuration_survives_json():
    config = model(head={"kind": "depth", "heads": 2}).config
    config.sampling = {"guidance": 1.5}
    again = SharedLMConfig.from_dict(json.loads(config.to_json_string()))
    assert (again.backbone, again.spec) == (LLAMA, SPEC.to_dict())
    assert (again.head, again.sampling) == ({"kind": "depth", "heads": 2}, {"guidance": 1.5})
    assert (again.vocabulary_size, again.tokenizer_fingerprint) == (config.vocabulary_size, "f00d")
