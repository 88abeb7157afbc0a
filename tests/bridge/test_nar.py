"""NAR's language models: sizes, passes, the place of every weight, and what is said of bad checkpoints."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from smalti.bridge import nar
from smalti.bridge.formats import FORMATS, import_checkpoint
from smalti.bridge.golden import Golden
from smalti.bridge.keymap import fill
from smalti.bridge.llamagen_lm import half_split
from smalti.cli.main import main
from smalti.generation.orders import Neighbouring, order_parts
from smalti.generation.sampler import model_order, sample_codes
from smalti.generation.sampling import Sampling, model_sampling
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / ".." / "shared" / "golden"
IMAGENET = CodeSpec(CodeLayout("grid", (16, 16)), (Codebook("pixel", 16384),))

#: Millions of weights as the reference counts them, by the file of the size.
MILLIONS = {"b": 130.55, "m": 295.45, "l": 372.54, "xl": 815.99, "xxl": 1464.45}
LP = {"dim": 1280, "n_layer": 30, "ffn_hidden": 3584}

WIDTH, LAYERS, HIDDEN, CODES, HEADS, GRID = 16, 2, 24, 12, 2, 2
SHOWN = {"dim": WIDTH, "n_layer": LAYERS, "ffn_hidden": HIDDEN, "vocab_size": CODES}
OPTIONS = {
    "nar-c2i": {"n_head": HEADS, "grid": GRID},
    "nar-t2i": {"n_head": HEADS, "grid": GRID},
    "nar-video": {"n_head": HEADS, "latent_shape": [2, 2, 3]},
}


def millions(model):
    return round(sum(weight.numel() for weight in model.parameters()) / 1e6, 2)


def reference_weights(kind):
    """A state dict with NAR's names and tiny shapes, written out from its module structure."""
    heads = {"norm": "output", "medusa_norm": "medusa_output"}
    if kind == "nar-video":
        heads = {f"norm_{way}": f"output_{way}" for way in "RDB"}
    shapes = {"tok_embeddings.weight": (CODES, WIDTH)}
    for norm, output in heads.items():
        shapes |= {f"{norm}.weight": (WIDTH,), f"{output}.weight": (CODES, WIDTH)}
    for layer in (f"layers.{number}" for number in range(LAYERS + len(heads) - 1)):
        shapes[f"{layer}.attention.wqkv.weight"] = (3 * WIDTH, WIDTH)
        shapes[f"{layer}.attention.wo.weight"] = (WIDTH, WIDTH)
        shapes[f"{layer}.feed_forward.w1.weight"] = shapes[f"{layer}.feed_forward.w3.weight"] = (HIDDEN, WIDTH)
        shapes[f"{layer}.feed_forward.w2.weight"] = (WIDTH, HIDDEN)
        shapes[f"{layer}.attention_norm.weight"] = shapes[f"{layer}.ffn_norm.weight"] = (WIDTH,)
    if kind == "nar-t2i":
        shapes["cls_embedding.cap_proj.fc1.weight"] = (WIDTH, 7)
        shapes["cls_embedding.cap_proj.fc2.weight"] = (WIDTH, WIDTH)
        shapes["cls_embedding.uncond_embedding"] = (3, 7)
    else:
        shapes["cls_embedding.embedding_table.weight"] = (6, WIDTH)
    if kind == "nar-video":
        shapes["abs_pe"] = (1, 1 + 2 * 2 * 3, WIDTH)
    return {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}


def filled(kind, weights):
    """A model of a tiny configuration with all of these weights."""
    chosen = FORMATS[kind]
    made = chosen.build({**chosen.default, **chosen.shown(weights), **OPTIONS[kind]})
    fill(made, chosen.prepare(weights), chosen.rules(made), "theirs")
    return made.eval()


@pytest.mark.parametrize("size", MILLIONS)
def test_sizes_are_the_published_ones_and_those_that_are_imported(size):
    arguments = yaml.safe_load((ROOT / "configs" / "lm" / f"nar-{size}.yaml").read_text())["model"]["init_args"]
    backbone = arguments["backbone"]
    numbers = {"dim": backbone["hidden_size"], "n_layer": 1, "ffn_hidden": backbone["intermediate_size"]}
    assert arguments["order"] == {"class_path": "Neighbouring"}
    parts = {name: arguments[name] for name in ("embedding", "rotary", "classes")}
    parts |= order_parts(Neighbouring(), IMAGENET)
    with torch.device("meta"):
        trained = SharedLM.build(backbone, Vocabulary(), IMAGENET, "", **parts)
        imported = nar.class_model({**nar.C2I, **numbers})
    assert millions(trained) == MILLIONS[size]
    fields = imported.backbone.config.to_dict() | {"num_hidden_layers": backbone["num_hidden_layers"]}
    assert fields == trained.backbone.config.to_dict()
    for name in ("spec", "head", "embedding", "rotary", "classes", "vectors", "order", "directions", "queries"):
        assert getattr(imported.config, name) == getattr(trained.config, name)
    assert model_sampling(imported).guidance == arguments["sampling"]["guidance"] == 2.0


def test_the_other_sizes_are_the_published_ones():
    with torch.device("meta"):
        captions, video = nar.caption_model(nar.T2I), nar.video_model(nar.VIDEO)
        plus = nar.video_model({**nar.VIDEO, **LP})
    assert millions(captions) == 818.97
    assert round(millions(video), 1) == 368.7
    assert round(millions(plus), 1) == 693.6
    assert [model.backbone.config.num_attention_heads for model in (captions, video, plus)] == [20, 16, 20]
    assert model_sampling(captions) == Sampling(guidance=7.5)
    assert model_sampling(video) == Sampling(guidance=1.25)
    assert [model.config.directions for model in (captions, video)] == [2, 3]


def test_the_video_that_is_trained_is_the_one_that_is_imported():
    arguments = yaml.safe_load((ROOT / "configs" / "lm" / "nar-video-l.yaml").read_text())["model"]["init_args"]
    backbone = {**arguments["backbone"], "num_hidden_layers": 1}
    spec = CodeSpec(CodeLayout("grid", (4, 16, 16)), (Codebook("pixel", 8192),))
    parts = {name: arguments[name] for name in ("rotary", "classes")} | order_parts(Neighbouring(), spec)
    with torch.device("meta"):
        imported = nar.video_model({**nar.VIDEO, "n_layer": 1})
        trained = SharedLM.build(backbone, Vocabulary(), spec, "", **parts)
    shapes = [{name: weight.shape for name, weight in each.state_dict().items()} for each in (imported, trained)]
    assert shapes[0] == shapes[1]
    assert imported.spec == spec
    assert arguments["backbone"]["num_hidden_layers"] == nar.VIDEO["n_layer"]
    assert imported.backbone.config.to_dict() == trained.backbone.config.to_dict()


@pytest.mark.parametrize(("shape", "passes"), [((16, 16), 31), ((24, 24), 47), ((32, 32), 63), ((4, 16, 16), 34)])
def test_published_numbers_of_passes(shape, passes):
    assert len(Neighbouring().steps(CodeLayout("grid", shape))) == passes


@pytest.mark.parametrize("system", ["nar_c2i", "nar_t2i", "nar_video"])
def test_the_sampler_takes_as_many_passes_as_the_reference(system):
    path = next(GOLDEN.glob(f"*/{system}.safetensors"), None)
    if path is None:
        pytest.skip(f"golden data of {system} expected beside the checkout, in a folder of {GOLDEN}")
    golden, chosen = Golden.load(path), FORMATS[system.replace("_", "-")]
    model = chosen.build(golden.config).eval()
    calls = []
    model.backbone.base_model.register_forward_hook(lambda *_: calls.append(1))
    caption = golden.inputs["caption"][0] if "caption" in golden.inputs else 0
    for guidance in (1.0, golden.config["cfg_scales"][0]):
        calls.clear()
        sample_codes(model, [caption], [torch.Generator()], Sampling(guidance=guidance))
        assert len(calls) == golden.config["forwards"]


@pytest.mark.parametrize("form", ["safetensors", "bare", "model", "module", "state_dict"])
def test_a_checkpoint_becomes_a_model_of_classes(tmp_path, capsys, form):
    weights, path = reference_weights("nar-c2i"), tmp_path / "c2i.pt"
    if form == "safetensors":
        path = tmp_path / "c2i.safetensors"
        save_file(weights, path)
    else:
        torch.save(weights if form == "bare" else {form: weights, "steps": 7}, path)
    (tmp_path / "config.json").write_text(json.dumps({"n_head": HEADS}))
    arguments = ["import", "nar-c2i", str(path), "--config", str(tmp_path / "config.json"), "--grid", str(GRID)]
    assert main([*arguments, "--out", str(tmp_path / "model")]) == 0
    said = capsys.readouterr().out
    count = sum(value.numel() for value in weights.values())
    assert f"SharedLM of {count / 1e6:.2f} M weights, for codes of a tokenizer not named; see --tokenizer" in said
    assert "NAR (https://arxiv.org/abs/2503.10696), licence: none stated; made from LlamaGen, MIT" in said
    model = SharedLM.from_pretrained(tmp_path / "model")
    assert (model.config.classes, model_order(model).fields()) == (5, {"kind": "neighbouring"})
    assert torch.equal(model.backbone.lm_head.weight, weights["output.weight"])
    assert torch.equal(model.directions.parts[0].rows, weights["medusa_output.weight"])
    codes = sample_codes(model, [0, 4], [torch.Generator(), torch.Generator()])
    assert codes.ids.shape == (2, GRID * GRID, 1)


@pytest.mark.parametrize("kind", ["nar-t2i", "nar-video"])
def test_the_other_checkpoints_become_models(tmp_path, kind):
    weights = reference_weights(kind)
    torch.save({"model": {"name": "llama", "sd": weights}} if kind == "nar-video" else weights, tmp_path / "it.pt")
    made = import_checkpoint(kind, tmp_path / "it.pt", tmp_path / "model", OPTIONS[kind])
    model = SharedLM.from_pretrained(tmp_path / "model")
    assert model.config.directions == (3 if kind == "nar-video" else 2)
    conditions = [2, 4] if kind == "nar-video" else [torch.randn(2, 7), torch.randn(3, 7)]
    drawn = [
        sample_codes(each, conditions, [torch.Generator(), torch.Generator()]).ids for each in (made.eval(), model)
    ]
    assert drawn[0].shape == (2, model.spec.positions, 1)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_weight_of_the_directions_has_its_place(kind):
    weights, ways = reference_weights(kind), [("medusa_norm", "medusa_output")]
    if kind == "nar-video":
        ways = [("norm_D", "output_D"), ("norm_B", "output_B")]  # below first, then what comes next
    model = filled(kind, weights)
    assert len(model.backbone.model.layers) == LAYERS
    assert len(model.directions.parts) == len(ways)
    for number, (norm, output) in enumerate(ways):
        part, given = model.directions.parts[number], f"layers.{LAYERS + number}"
        queries, _, values = weights[f"{given}.attention.wqkv.weight"].split(WIDTH)
        assert torch.equal(part.block.self_attn.q_proj.weight, half_split(queries, WIDTH // HEADS))
        assert torch.equal(part.block.self_attn.v_proj.weight, values)
        assert torch.equal(part.block.mlp.down_proj.weight, weights[f"{given}.feed_forward.w2.weight"])
        assert torch.equal(part.norm.weight, weights[f"{norm}.weight"])
        assert torch.equal(part.rows, weights[f"{output}.weight"])
    first = "norm_R.weight" if kind == "nar-video" else "norm.weight"
    assert torch.equal(model.backbone.model.norm.norm.weight, weights[first])


def test_what_stands_where_in_a_video_reads_as_in_the_reference():
    """The row of a class or of a code, and the row of its place, the first of which is that of the class."""
    weights = reference_weights("nar-video")
    model = filled("nar-video", weights)
    ids = torch.randint(CODES, (12,))
    found = model.embed(model.layout.collate([model.layout.class_to_image(3, ids[:, None])]))[0]
    rows = torch.cat([weights["cls_embedding.embedding_table.weight"][3:4], weights["tok_embeddings.weight"][ids]])
    torch.testing.assert_close(found, rows + weights["abs_pe"][0])


@pytest.mark.parametrize("kind", OPTIONS)
def test_shapes_show_the_configuration(kind):
    more = {"caption_dim": 7, "cls_token_num": 3} if kind == "nar-t2i" else {"num_classes": 5}
    assert FORMATS[kind].shown(reference_weights(kind)) == SHOWN | more
    assert FORMATS[kind].shown({}) == {}


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (
            "nar-c2i",
            {"medusa_output.weight": "below.weight"},
            r"not used: below.weight; missing: directions.parts.0.rows",
        ),
        ("nar-c2i", {"medusa_norm.weight": None}, "got missing: directions.parts.0.norm.weight;"),
        (
            "nar-c2i",
            {"layers.2.attention.wqkv.weight": torch.zeros(47, WIDTH)},
            r"of another shape: layers.2.attention.wqkv.weight \[47, 16\] for q and k and v of 16, 16, 16 rows;",
        ),
        ("nar-t2i", {"cls_embedding.uncond_embedding": None}, "got missing: vectors.null;"),
        ("nar-video", {"output_B.weight": None}, "got missing: directions.parts.1.rows;"),
        (
            "nar-video",
            {"abs_pe": None},
            "got missing: positions.position.weight, positions.column.weight;",
        ),
        ("nar-video", {"abs_pe": "pos_emb"}, "not used: pos_emb; missing: positions.position.weight, "),
        (
            "nar-video",
            {"abs_pe": torch.zeros(1, 9, WIDTH)},
            r"of another shape: positions.position.weight \[8, 16\] for \[12, 16\];",
        ),
        (
            "nar-video",
            {"cls_embedding.embedding_table.weight": torch.zeros(6, 3)},
            r"of another shape: classes.weight \[6, 3\] for \[6, 16\];",
        ),
    ],
)
def test_weights_that_do_not_match_are_named_and_nothing_is_written(tmp_path, kind, change, said):
    weights, ((name, new),) = reference_weights(kind), change.items()
    old = weights.pop(name)
    weights |= {} if new is None else {name: new} if isinstance(new, torch.Tensor) else {new: old}
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=f"must match key by key, got .*{said.removeprefix('got ')}"):
        import_checkpoint(kind, tmp_path / "weights.safetensors", tmp_path / "model", OPTIONS[kind])
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_of_llamagen_is_none_of_nar(tmp_path):
    """The release's link to the first stage for captions leads to LlamaGen's."""
    weights = {name: weight for name, weight in reference_weights("nar-c2i").items() if not name.startswith("medusa_")}
    save_file(weights, tmp_path / "c2i.safetensors")
    save_file(reference_weights("nar-c2i"), tmp_path / "nar.safetensors")
    with pytest.raises(ValueError, match=r"missing: directions.parts.0.rows, directions.parts.0.norm.weight"):
        import_checkpoint("nar-c2i", tmp_path / "c2i.safetensors", tmp_path / "out", OPTIONS["nar-c2i"])
    with pytest.raises(ValueError, match=r"not used: medusa_norm.weight, medusa_output.weight"):
        import_checkpoint("llamagen-c2i", tmp_path / "nar.safetensors", tmp_path / "out", OPTIONS["nar-c2i"])


def test_a_width_that_was_not_released_does_not_tell_the_heads():
    with pytest.raises(ValueError, match=r"1024 \(L\) and 1280 \(LP\) channels wide, got 16, .* give n_head"):
        nar.video_model({**nar.VIDEO, "dim": 16})
    with pytest.raises(ValueError, match="got 16, which does not tell the number of heads; give n_head"):
        nar.class_model({**nar.C2I, "dim": 16})


def test_a_model_remembers_the_tokenizer_it_is_imported_with(tmp_path):
    parts = ConvEncoder(4, 4, (1, 1, 1), 1), VectorQuantizer(4, CODES), ConvDecoder(4, 4, (1, 1, 1), 1)
    tokenizer = VQTokenizer(*parts, 8).eval()
    save_file(reference_weights("nar-c2i"), tmp_path / "c2i.safetensors")
    given = tmp_path / "c2i.safetensors", tmp_path / "model", OPTIONS["nar-c2i"], tokenizer
    import_checkpoint("nar-c2i", *given)
    SharedLM.from_pretrained(tmp_path / "model").check_tokenizer(tokenizer)
