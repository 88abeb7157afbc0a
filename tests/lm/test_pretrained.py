"""A shared model on a pretrained backbone: its logits, its new rows, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from smalti.lm.embedding import CodebookEmbedding
from smalti.lm.model import SharedLM
from smalti.lm.pretrained import from_backbone, logit_gap, start_rows
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

SPEC = CodeSpec(CodeLayout("grid", (2, 2)), (Codebook("semantic", 50), Codebook("pixel", 70)))
PIECES = ("[UNK]", "a", "red", "circle", "blue", "square")
ROWS = 10  # of the embedding, 6 of them with a piece
TEXT, USED = range(ROWS), range(6)
WIDTHS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {"vocab_size": ROWS, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
BACKBONES = {
    "llama": {"model_type": "llama", **WIDTHS, **SIZES, "rope_theta": 123.0, "rms_norm_eps": 1e-3},
    "qwen2": {"model_type": "qwen2", **WIDTHS, **SIZES, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, **SIZES},
    "gemma2": {"model_type": "gemma2", **WIDTHS, **SIZES, "head_dim": 8, "num_key_value_heads": 1},
}


def checkpoint(folder: Path, kind: str = "llama", **fields) -> Path:
    """A model with large weights and its tokenizer, as another project saved them."""
    options = {**BACKBONES[kind], **fields}
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**options))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    plain.save_pretrained(folder)
    model = Tokenizer(models.WordLevel({name: i for i, name in enumerate(PIECES)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]").save_pretrained(folder)
    return folder


def vectors() -> dict[str, torch.Tensor]:
    """Of every code; the first two of the first book are the same."""
    found = {book.name: torch.randn(book.size, 5) * 7 + 3 for book in SPEC.codebooks}
    found["semantic"][1] = found["semantic"][0]
    return found


def made(folder: Path, **options) -> SharedLM:
    return from_backbone(folder, None, SPEC, "f00d", {"kind": "flat"}, **options)


def batch(lm: SharedLM):
    ids = torch.randint(0, 50, (2, 4, 2))
    return lm.layout.collate([lm.layout.text_to_image("a red circle", ids[0]), lm.layout.image_to_text(ids[1], "a")])


def rows_of(table, ids: range) -> torch.Tensor:
    return torch.cat(table.parts(ids)).detach()


@pytest.mark.parametrize("rows", ["apart", "joined"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_text_logits_are_those_of_the_checkpoint(tmp_path, kind, rows):
    plain = AutoModelForCausalLM.from_pretrained(checkpoint(tmp_path, kind)).eval()
    lm = made(tmp_path, rows=rows)
    ids = torch.tensor([lm.vocabulary.encode("a red circle")])
    states = lm.backbone.base_model(inputs_embeds=lm.inputs.embed(ids)).last_hidden_state
    torch.testing.assert_close(lm.outputs.logits(states, TEXT), plain(ids).logits)
    assert logit_gap(lm, plain) == 0
    assert (type(lm.backbone), lm.training) == (type(plain), False)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_rows_apart_leave_the_backbone_as_it_was(tmp_path, kind):
    plain = AutoModelForCausalLM.from_pretrained(checkpoint(tmp_path, kind)).state_dict()
    lm = made(tmp_path)
    found = lm.backbone.state_dict()
    assert plain.keys() == found.keys()
    assert all(torch.equal(plain[name], found[name]) for name in plain)
    assert lm.new_inputs.shape == lm.new_outputs.shape == (8 + 50 + 70, 16)
    assert not torch.equal(lm.new_inputs, lm.new_outputs)
    assert lm.vocabulary.size == ROWS + 8 + 50 + 70


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("qwen2", True)])
def test_joined_rows_are_one_matrix(tmp_path, kind, tied):
    plain = AutoModelForCausalLM.from_pretrained(checkpoint(tmp_path, kind))
    lm = made(tmp_path, rows="joined")
    assert not hasattr(lm, "new_inputs")
    for own, old in (
        (lm.inputs, plain.get_input_embeddings().weight),
        (lm.outputs, plain.get_output_embeddings().weight),
    ):
        assert own.pieces[0].shape == (lm.vocabulary.size, 16)
        assert torch.equal(own.pieces[0][:ROWS], old)
    assert (lm.inputs.pieces[0] is lm.outputs.pieces[0]) == tied


@pytest.mark.parametrize("rows", ["apart", "joined"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_saved_and_loaded_is_bit_equal(tmp_path, kind, rows):
    lm = made(checkpoint(tmp_path / "plain", kind), rows=rows)
    lm.save_pretrained(tmp_path / "lm")
    loaded = SharedLM.from_pretrained(tmp_path / "lm")
    before, after = lm.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    found = batch(lm)
    assert torch.equal(lm(found).loss, loaded(found).loss)
    assert loaded.backbone.config.vocab_size == (ROWS if rows == "apart" else lm.vocabulary.size)


def test_the_whole_configuration_is_kept_and_no_path(tmp_path):
    fields = made(checkpoint(tmp_path)).config.backbone
    assert (fields["rope_parameters"]["rope_theta"], fields["rms_norm_eps"]) == (123.0, 1e-3)
    assert fields["hidden_act"] == "silu"  # a default, which a later release may change
    assert not {"_name_or_path", "dtype", "architectures", "transformers_version"} & set(fields)
    assert str(tmp_path) not in str(fields)


@pytest.mark.parametrize("rows", ["apart", "joined"])
def test_mean_rows_are_near_the_mean_and_differ(tmp_path, rows):
    lm = made(checkpoint(tmp_path), rows=rows)
    for table in (lm.inputs, lm.outputs):
        old, new = rows_of(table, USED), rows_of(table, range(ROWS, lm.vocabulary.size))
        deviation = (new - old.mean(0)) / old.std(0, correction=0)
        assert deviation.std().item() == pytest.approx(1e-5**0.5, rel=0.1)
        assert len(new.unique(dim=0)) == len(new) == 128


def test_rows_that_no_piece_has_do_not_count(tmp_path):
    folder = checkpoint(tmp_path)
    weights = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name][USED.stop :] = 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    lm = made(folder)
    assert float(lm.new_inputs.detach().abs().max()) < 10
    assert float(lm.new_outputs.detach().abs().max()) < 10


@pytest.mark.parametrize("rows", ["apart", "joined"])
def test_random_rows_have_the_spread_of_a_new_backbone(tmp_path, rows):
    lm = made(checkpoint(tmp_path, initializer_range=0.5), rows=rows, start="random")
    for table in (lm.inputs, lm.outputs):
        new = rows_of(table, range(ROWS, lm.vocabulary.size))
        assert new.mean().item() == pytest.approx(0, abs=0.05)
        assert new.std().item() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("rows", ["apart", "joined"])
def test_codebook_rows_show_what_looks_alike(tmp_path, rows):
    given = vectors()
    lm = made(checkpoint(tmp_path), rows=rows, start="codebook", vectors=given)
    for table in (lm.inputs, lm.outputs):
        old = rows_of(table, USED)
        for name, points in given.items():
            unit = (rows_of(table, lm.vocabulary.block(name)) - old.mean(0)) / old.std(0, correction=0)
            torch.testing.assert_close(unit.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
            assert unit.std().item() == pytest.approx(1, rel=0.35)  # 5 directions drawn
            assert torch.linalg.matrix_rank(unit, rtol=1e-3) == points.shape[1]  # a projection, no more
        twins = rows_of(table, lm.vocabulary.block("semantic"))
        torch.testing.assert_close(twins[0], twins[1])
        assert not torch.allclose(twins[0], twins[2], atol=0.01)
        specials = rows_of(table, range(ROWS, ROWS + 8))
        assert float(((specials - old.mean(0)) / old.std(0)).abs().max()) < 0.02


def test_codes_may_enter_by_the_vectors(tmp_path):
    given = vectors()
    options = {"embedding": {"kind": "codebook", "dims": {"semantic": 5, "pixel": 5}}}
    parts = (checkpoint(tmp_path), None, SPEC, "f00d", {"kind": "depth", "heads": 2})
    lm = from_backbone(*parts, vectors=given, **options)
    assert isinstance(lm.embedding, CodebookEmbedding)
    assert all(torch.equal(table, given[name]) for name, table in lm.embedding.vectors().items())
    with pytest.raises(
        ValueError, match=r"enter by codebook need a vector of every code \(semantic 50, pixel 70\), go"
    ):
        from_backbone(*parts, **options)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, "None"),
        ({"pixel": torch.ones(70, 5)}, "{'pixel'"),
        ({"pixel": torch.ones(70, 5), "semantic": torch.ones(49, 5)}, r".*\[49, 5\]"),
    ],
)
def test_codebook_rows_need_the_vectors(tmp_path, given, found):
    message = rf"start as codebook need a vector of every code \(semantic 50, pixel 70\), got {found}.*; give the token"
    with pytest.raises(ValueError, match=message):
        made(checkpoint(tmp_path), start="codebook", vectors=given)


def test_unknown_start_is_an_error(tmp_path):
    lm = made(checkpoint(tmp_path))
    with pytest.raises(ValueError, match="mean, random or codebook, got 'zero'; choose one"):
        start_rows(lm, "zero")


def test_a_model_from_scratch_has_rows_apart_too():
    fields = {**BACKBONES["llama"], "initializer_range": 0.5}
    vocabulary = Vocabulary.train(["a red circle"])
    lm = SharedLM.build(fields, vocabulary, SPEC, "f00d", new_rows=True)
    for rows in (lm.new_inputs, lm.new_outputs):
        assert rows.std().item() == pytest.approx(0.5, rel=0.1)
    assert lm.backbone.config.vocab_size == vocabulary.text_size


def test_another_number_of_rows_is_an_error(tmp_path):
    folder = checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"as the embedding in .* has rows, 10, got 6; make it with .* and rows 10"):
        from_backbone(folder, Vocabulary.from_tokenizer(str(folder)), SPEC, "f00d")


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"expected in the folder .*nowhere, got no such folder; nothing is down"
    ):
        made(tmp_path / "nowhere")


def test_a_folder_of_something_else_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"does not hold a readable causal language model \(.*\); save one there"):
        made(tmp_path)
    (checkpoint(tmp_path) / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"does not hold a readable causal language model \(.*\); save one there"):
        made(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), r"of a LlamaForCausalLM key by key, got .*missing.*lm_head\.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "unexpected_keys.*extra"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(3)}), "mismatched_keys.*model.norm.weight"),
    ],
)
def test_weights_that_do_not_fit_are_an_error(tmp_path, change, message):
    folder = checkpoint(tmp_path)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        made(folder)


def test_logits_that_are_no_plain_products_are_an_error(tmp_path):
    folder = checkpoint(tmp_path, "gemma2")  # which scales what it reads
    with pytest.raises(
        ValueError, match=r"products of its states .*, got a gemma2 whose own differ by .*%, because it"
    ):
        made(folder)


def test_comparing_logits_leaves_dropout_as_it_was(tmp_path):
    lm = made(checkpoint(tmp_path, "gpt2")).train()
    lm.backbone.transformer.drop.eval()
    modes = [module.training for module in lm.modules()]
    assert logit_gap(lm, lm.backbone) == 0
    assert [module.training for module in lm.modules()] == modes


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_checkpointing_gives_the_same_gradients(tmp_path, kind):
    lm = made(
        checkpoint(tmp_path, kind, **({"attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0} if kind == "gpt2" else {}))
    ).train()
    found = batch(lm)
    gradients = []
    for enable in (lm.gradient_checkpointing_disable, lm.gradient_checkpointing_enable):
        enable()
        lm.zero_grad()
        lm(found).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in lm.named_parameters()})
    assert lm.backbone.is_gradient_checkpointing
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_checkpointing_runs_layers_twice(tmp_path):
    lm = made(checkpoint(tmp_path)).train()
    lm.gradient_checkpointing_enable()
    calls = []
    lm.backbone.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    lm(batch(lm)).loss.backward()
    assert len(calls) == 2


@pytest.mark.parametrize("rows", ["apart", "joined"])
def test_a_model_in_bfloat16_learns(tmp_path, rows):
    lm = made(checkpoint(tmp_path), rows=rows, dtype=torch.bfloat16).train()
    assert {p.dtype for p in lm.parameters()} == {torch.bfloat16}
    assert lm.backbone.model.rotary_emb.inv_freq.dtype == torch.float32
    found = batch(lm)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=0.02)
    losses = []
    for _ in range(4):
        loss = lm(found).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
