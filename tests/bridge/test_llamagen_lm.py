"""LlamaGen's language models: sizes, order of channels, places of conditions, and what is said of bad checkpoints."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from smalti.bridge.formats import FORMATS, import_checkpoint
from smalti.bridge.keymap import fill
from smalti.bridge.llamagen_lm import C2I, T2I, caption_model, class_model, half_split, rules, shown
from smalti.cli.main import main
from smalti.generation.sampler import sample_codes
from smalti.generation.sampling import Sampling, model_sampling
from smalti.lm.model import SharedLM
from smalti.lm.positions import AXIS, NOWHERE, AxialRotary
from smalti.lm.sequences import CLASS
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "lm"
IMAGENET = CodeSpec(CodeLayout("grid", (16, 16)), (Codebook("pixel", 16384),))

#: Millions of weights as the reference counts them, by the file of the size.
MILLIONS = {"b": 110.89, "l": 342.91, "xl": 774.70, "xxl": 1410.97, "3b": 3096.66}

WIDTH, LAYERS, HIDDEN, CODES, HEADS, GRID = 16, 2, 24, 12, 2, 2
TINY = {"dim": WIDTH, "n_layer": LAYERS, "ffn_hidden": HIDDEN, "vocab_size": CODES, "n_head": HEADS, "grid": GRID}


def millions(model):
    return round(sum(weight.numel() for weight in model.parameters()) / 1e6, 2)


def reference_weights(kind, keys=HEADS):
    """A state dict with LlamaGen's names and tiny shapes, written out from its module structure."""
    rows = (HEADS + 2 * keys) * (WIDTH // HEADS)
    shapes = {"tok_embeddings.weight": (CODES, WIDTH), "norm.weight": (WIDTH,), "output.weight": (CODES, WIDTH)}
    for layer in (f"layers.{number}" for number in range(LAYERS)):
        shapes[f"{layer}.attention.wqkv.weight"] = (rows, WIDTH)
        shapes[f"{layer}.attention.wo.weight"] = (WIDTH, WIDTH)
        shapes[f"{layer}.feed_forward.w1.weight"] = shapes[f"{layer}.feed_forward.w3.weight"] = (HIDDEN, WIDTH)
        shapes[f"{layer}.feed_forward.w2.weight"] = (WIDTH, HIDDEN)
        shapes[f"{layer}.attention_norm.weight"] = shapes[f"{layer}.ffn_norm.weight"] = (WIDTH,)
    if kind == "llamagen-c2i":
        shapes["cls_embedding.embedding_table.weight"] = (6, WIDTH)
    else:
        shapes["cls_embedding.cap_proj.fc1.weight"] = (WIDTH, 7)
        shapes["cls_embedding.cap_proj.fc2.weight"] = (WIDTH, WIDTH)
        shapes["cls_embedding.uncond_embedding"] = (3, 7)
    return {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture
def config(tmp_path):
    """What weights do not show."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"n_head": HEADS}))
    return path


@pytest.mark.parametrize("size", MILLIONS)
def test_sizes_are_the_published_ones_and_those_that_are_imported(size):
    arguments = yaml.safe_load((CONFIGS / f"llamagen-{size}.yaml").read_text())["model"]["init_args"]
    backbone = arguments["backbone"]
    numbers = {"dim": backbone["hidden_size"], "n_layer": 1, "ffn_hidden": backbone["intermediate_size"]}
    with torch.device("meta"):
        parts = {name: arguments[name] for name in ("embedding", "rotary", "classes")}
        trained = SharedLM.build(backbone, Vocabulary(), IMAGENET, "", **parts)
        imported = class_model({**C2I, **numbers})
    assert millions(trained) == MILLIONS[size]
    fields = imported.backbone.config.to_dict() | {"num_hidden_layers": backbone["num_hidden_layers"]}
    assert fields == trained.backbone.config.to_dict()
    for name in ("spec", "head", "embedding", "rotary", "classes", "vectors"):
        assert getattr(imported.config, name) == getattr(trained.config, name)
    assert model_sampling(imported).guidance == arguments["sampling"]["guidance"]


def test_the_size_for_captions_is_the_published_one():
    with torch.device("meta"):
        model = FORMATS["llamagen-t2i"].build(T2I)
    assert millions(model) == 777.68
    assert model.vectors.null.shape == (120, 2048)
    assert model_sampling(model) == Sampling(guidance=7.5, top_k=1000)


def test_half_split_by_hand():
    rows = torch.arange(8.0)[:, None] * torch.tensor([1.0, 10.0])
    assert half_split(rows, 4)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(half_split(rows, 4)[:, 1], 10 * half_split(rows, 4)[:, 0])


def test_a_rotated_vector_by_hand():
    """At row 1 and column 2, channels (0, 1) turn by 1 and (2, 3) by 2; ours are 0, 2, 1, 3 of theirs."""
    given = torch.tensor([1.0, 0.0, 0.0, 1.0])
    turned = [math.cos(1), math.sin(1), -math.sin(2), math.cos(2)]
    cosine, sine = AxialRotary(4)(given, torch.tensor([[AXIS + 2]]))
    ours = half_split(given, 4).view(1, 1, 1, 4)
    found, _ = apply_rotary_pos_emb(ours, ours, cosine, sine)
    torch.testing.assert_close(found.flatten(), half_split(torch.tensor(turned), 4))


def test_products_of_rotated_channels_do_not_know_their_order():
    """Interleaved pairs as complex numbers, as LlamaGen turns them, against halves in the order of ``half_split``."""
    queries, keys = torch.randn(2, 3, 16)  # three places of one head
    rows, columns = torch.tensor([0, 1, 5]), torch.tensor([3, 0, 2])
    frequencies = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=1)
    turns = torch.polar(torch.ones(3, 8), angles)
    theirs = [torch.view_as_real(torch.view_as_complex(part.view(3, 8, 2)) * turns) for part in (queries, keys)]
    expected = theirs[0].flatten(1) @ theirs[1].flatten(1).T
    cosine, sine = AxialRotary(16)(queries, (rows * AXIS + columns)[None])
    ours = [half_split(part.T, 16).T[None, None] for part in (queries, keys)]
    found = apply_rotary_pos_emb(*ours, cosine, sine)
    torch.testing.assert_close((found[0] @ found[1].mT)[0, 0], expected)


def test_conditions_stand_nowhere_and_codes_in_their_own_cell():
    model = class_model({**C2I, **TINY, "rope_base": 100})
    batch = model.layout.collate([model.layout.class_to_image(3, torch.zeros(4, 1, dtype=torch.int64))])
    assert batch.slots.tolist() == [[CLASS, 0, 1, 2, 3]]
    places = model.places(batch.slots, torch.ones_like(batch.slots, dtype=torch.bool))
    assert places.tolist() == [[NOWHERE, 0, 1, AXIS, AXIS + 1]]
    cosine, sine = model.backbone.model.rotary_emb(torch.zeros(1), places)
    assert not cosine[0, 0].any()
    assert not sine[0, 0].any()
    angles = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0.1], [1, 0.1, 0, 0], [1, 0.1, 1, 0.1]]).repeat(1, 2)
    torch.testing.assert_close(cosine[0, 1:], angles.cos())
    torch.testing.assert_close(sine[0, 1:], angles.sin())


@pytest.mark.parametrize("form", ["safetensors", "bare", "model", "module", "state_dict"])
def test_a_checkpoint_becomes_a_model_of_classes(tmp_path, config, capsys, form):
    weights, path = reference_weights("llamagen-c2i"), tmp_path / "c2i.pt"
    if form == "safetensors":
        path = tmp_path / "c2i.safetensors"
        save_file(weights, path)
    else:
        torch.save(weights if form == "bare" else {form: weights, "steps": 7}, path)
    arguments = ["import", "llamagen-c2i", str(path), "--config", str(config), "--grid", str(GRID)]
    assert main([*arguments, "--out", str(tmp_path / "model")]) == 0
    said = capsys.readouterr().out
    count = sum(value.numel() for value in weights.values())
    assert f"SharedLM of {count / 1e6:.2f} M weights, for codes of a tokenizer not named; see --tokenizer" in said
    assert "LlamaGen (https://arxiv.org/abs/2406.06525), licence: MIT" in said
    assert json.loads((tmp_path / "model" / "weights.json").read_text())["licence"] == "MIT"
    model = SharedLM.from_pretrained(tmp_path / "model")
    assert (model.config.classes, model.config.tokenizer_fingerprint) == (5, "")
    assert (model.spec.layout.shape, model.spec.codebooks) == ((GRID, GRID), (Codebook("pixel", CODES),))
    assert torch.equal(model.classes.weight, weights["cls_embedding.embedding_table.weight"])
    assert torch.equal(model.backbone.lm_head.weight, weights["output.weight"])
    codes = sample_codes(model, [0, 4], [torch.Generator(), torch.Generator()])
    assert codes.ids.shape == (2, GRID * GRID, 1)


def test_every_weight_of_a_block_has_its_place_also_where_keys_are_shared():
    weights = reference_weights("llamagen-c2i", keys=1)
    model = class_model({**C2I, **TINY, "num_classes": 5, "n_kv_head": 1})
    fill(model, weights, rules(model), "theirs")
    layer, given = model.backbone.model.layers[1], "layers.1"
    queries, keys, values = weights[f"{given}.attention.wqkv.weight"].split([16, 8, 8])
    assert torch.equal(layer.self_attn.q_proj.weight, half_split(queries, 8))
    assert torch.equal(layer.self_attn.k_proj.weight, keys[[0, 2, 4, 6, 1, 3, 5, 7]])
    assert torch.equal(layer.self_attn.v_proj.weight, values)
    assert torch.equal(layer.mlp.gate_proj.weight, weights[f"{given}.feed_forward.w1.weight"])
    assert torch.equal(layer.mlp.up_proj.weight, weights[f"{given}.feed_forward.w3.weight"])
    assert torch.equal(layer.mlp.down_proj.weight, weights[f"{given}.feed_forward.w2.weight"])
    assert torch.equal(layer.input_layernorm.weight, weights[f"{given}.attention_norm.weight"])
    assert torch.equal(layer.post_attention_layernorm.weight, weights[f"{given}.ffn_norm.weight"])


def test_a_checkpoint_becomes_a_model_of_captions(tmp_path):
    weights = reference_weights("llamagen-t2i")
    torch.save({"model": weights}, tmp_path / "t2i.pt")
    options = {"n_head": HEADS, "grid": GRID}
    import_checkpoint("llamagen-t2i", tmp_path / "t2i.pt", tmp_path / "model", options)
    model = SharedLM.from_pretrained(tmp_path / "model")
    assert model.backbone.config.max_position_embeddings == 3 + GRID * GRID
    assert torch.equal(model.vectors.first.weight, weights["cls_embedding.cap_proj.fc1.weight"])
    assert torch.equal(model.vectors.second.weight, weights["cls_embedding.cap_proj.fc2.weight"])
    features = torch.randn(2, 7)
    free = model.unconditional(features)  # a padded caption hides the first rows of what stands for none, too
    assert torch.equal(free.vectors, weights["cls_embedding.uncond_embedding"][1:])
    codes = sample_codes(model, [features, torch.randn(3, 7)], [torch.Generator(), torch.Generator()])
    assert codes.ids.shape == (2, GRID * GRID, 1)


def test_shapes_show_the_configuration():
    kept = {"dim": WIDTH, "n_layer": LAYERS, "ffn_hidden": HIDDEN, "vocab_size": CODES}
    assert shown(reference_weights("llamagen-c2i")) == kept | {"num_classes": 5}
    assert shown(reference_weights("llamagen-t2i")) == kept | {"caption_dim": 7, "cls_token_num": 3}
    assert shown(reference_weights("llamagen-c2i") | {"output.weight": torch.zeros(CODES, 99)})["dim"] == WIDTH
    assert shown({"norm.weight": torch.zeros(8)}) == {"dim": 8}
    assert shown({}) == {}


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("llamagen-c2i", {"output.weight": "head.weight"}, "not used: head.weight; missing: backbone.lm_head.weight"),
        (
            "llamagen-c2i",
            {"layers.1.attention.wqkv.weight": None},
            r"got missing: .*layers.1.self_attn.q_proj.weight, .*k_proj.weight, .*layers.1.self_attn.v_proj.weight;",
        ),
        (
            "llamagen-c2i",
            {"layers.1.attention.wqkv.weight": torch.zeros(47, WIDTH)},
            r"got of another shape: layers.1.attention.wqkv.weight \[47, 16\] for q and k and v of 16, 16, 16 rows;",
        ),
        (
            "llamagen-c2i",
            {"layers.0.feed_forward.w2.weight": torch.zeros(WIDTH, 3)},
            r"of another shape: backbone.model.layers.0.mlp.down_proj.weight \[16, 3\] for \[16, 24\]",
        ),
        (
            "llamagen-c2i",
            {"cls_embedding.embedding_table.weight": None},
            r"got missing: classes.weight;",
        ),
        ("llamagen-t2i", {"cls_embedding.uncond_embedding": None}, "got missing: vectors.null;"),
        (
            "llamagen-t2i",
            {"cls_embedding.cap_proj.fc1.weight": "cls_embedding.cap_proj.fc3.weight"},
            "not used: cls_embedding.cap_proj.fc3.weight; missing: vectors.first.weight",
        ),
    ],
)
def test_weights_that_do_not_match_are_named_and_nothing_is_written(tmp_path, config, capsys, kind, change, said):
    weights, ((name, new),) = reference_weights(kind), change.items()
    old = weights.pop(name)
    weights |= {} if new is None else {name: new} if isinstance(new, torch.Tensor) else {new: old}
    path, out = tmp_path / "weights.safetensors", tmp_path / "model"
    save_file(weights, path)
    with pytest.raises(SystemExit, match="2"):
        main(["import", kind, str(path), "--config", str(config), "--grid", str(GRID), "--out", str(out)])
    assert "must match key by key" in capsys.readouterr().err
    with pytest.raises(ValueError, match=said):
        import_checkpoint(kind, path, out, {"n_head": HEADS, "grid": GRID})
    assert not out.exists()


def test_a_checkpoint_of_the_other_kind_is_refused(tmp_path):
    save_file(reference_weights("llamagen-t2i"), tmp_path / "t2i.safetensors")
    said = r"not used: .*vectors.first.weight \(nothing of that name here\).*; missing: classes.weight"
    with pytest.raises(ValueError, match=said):
        import_checkpoint("llamagen-c2i", tmp_path / "t2i.safetensors", tmp_path / "out", {"n_head": HEADS})


def test_a_width_that_was_not_released_does_not_tell_the_heads(tmp_path):
    save_file(reference_weights("llamagen-c2i"), tmp_path / "c2i.safetensors")
    said = "models are 768, 1024, 1280, 1536, 3200 channels wide, got 16, .* the number of heads; give n_head"
    with pytest.raises(ValueError, match=said):
        import_checkpoint("llamagen-c2i", tmp_path / "c2i.safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match="give n_head"):
        caption_model({**T2I, "dim": 16})


def tokenizer(size=8, codes=CODES):
    return VQTokenizer(
        ConvEncoder(4, 4, (1, 1, 1), 1), VectorQuantizer(4, codes), ConvDecoder(4, 4, (1, 1, 1), 1), size
    ).eval()


def test_a_model_remembers_the_tokenizer_it_is_imported_with(tmp_path, config, capsys):
    made = tokenizer()
    assert made.spec.layout.shape == (GRID, GRID)
    made.save_pretrained(tmp_path / "tokenizer")
    save_file(reference_weights("llamagen-c2i"), tmp_path / "c2i.safetensors")
    arguments = ["import", "llamagen-c2i", str(tmp_path / "c2i.safetensors"), "--config", str(config)]
    arguments += ["--grid", str(GRID), "--tokenizer", str(tmp_path / "tokenizer"), "--out", str(tmp_path / "model")]
    assert main(arguments) == 0
    assert f"for codes of {made.fingerprint()}" in capsys.readouterr().out
    SharedLM.from_pretrained(tmp_path / "model").check_tokenizer(made)


def test_a_tokenizer_of_other_codes_is_refused(tmp_path):
    save_file(reference_weights("llamagen-c2i"), tmp_path / "c2i.safetensors")
    options = {"n_head": HEADS, "grid": GRID}
    for other, told in ((tokenizer(16), "4x4 with 1 of 12"), (tokenizer(codes=8), "2x2 with 1 of 8")):
        said = f"writes, a grid of 2x2 with 1 of 12 pixel codes, got a grid of {told} pixel codes; import both for"
        with pytest.raises(ValueError, match=said):
            import_checkpoint("llamagen-c2i", tmp_path / "c2i.safetensors", tmp_path / "out", options, other)
    assert not (tmp_path / "out").exists()


def test_options_of_language_models_are_refused_for_tokenizers(tmp_path, capsys):
    torch.save({"quant_conv.weight": torch.zeros(1)}, tmp_path / "vq.pt")
    arguments = ["import", "llamagen-vq", str(tmp_path / "vq.pt"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--grid", "24"])
    assert "llamagen-vq has the fields ch, " in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--grid", "0"])
    assert "--grid must be a whole number, at least 1, got '0'" in capsys.readouterr().err
    tiny = {"ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 8, "codebook_size": 16, "resolution": 16}
    with pytest.raises(ValueError, match="got one beside a checkpoint of a VQTokenizer; leave it out"):
        import_checkpoint("llamagen-vq", tmp_path / "vq.pt", tmp_path / "out", tiny, tokenizer())
