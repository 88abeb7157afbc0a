"""PAR's language models: sizes, passes, the place of the learned vectors, and what is said of bad checkpoints."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from smalti.bridge.formats import import_checkpoint
from smalti.bridge.golden import Golden
from smalti.bridge.keymap import fill
from smalti.bridge.llamagen_lm import shown as shown_of_llamagen
from smalti.bridge.par import C2I, class_model, rules, shown
from smalti.cli.main import main
from smalti.generation.orders import Grouped, order_parts
from smalti.generation.sampler import model_order, sample_codes
from smalti.generation.sampling import Sampling, model_sampling
from smalti.lm.model import SharedLM
from smalti.lm.sequences import CLASS, EXTRA
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / ".." / "shared" / "golden"
SPECIAL = "spe_tok_embeddings.special_embeddings.weight"

WIDTH, LAYERS, HIDDEN, CODES, HEADS, GRID = 16, 2, 24, 12, 2, 4
TINY = {"n_head": HEADS, "grid": GRID}
SHOWN = {"dim": WIDTH, "n_layer": LAYERS, "ffn_hidden": HIDDEN, "vocab_size": CODES, "num_classes": 5}


def millions(model):
    return round(sum(weight.numel() for weight in model.parameters()) / 1e6, 2)


def reference_weights(special=3):
    """A state dict with PAR's names and tiny shapes, written out from its module structure."""
    shapes = {"tok_embeddings.weight": (CODES, WIDTH), "norm.weight": (WIDTH,), "output.weight": (CODES, WIDTH)}
    shapes |= {"cls_embedding.embedding_table.weight": (6, WIDTH), SPECIAL: (special, WIDTH)}
    for layer in (f"layers.{number}" for number in range(LAYERS)):
        shapes[f"{layer}.attention.wqkv.weight"] = (3 * WIDTH, WIDTH)
        shapes[f"{layer}.attention.wo.weight"] = (WIDTH, WIDTH)
        shapes[f"{layer}.feed_forward.w1.weight"] = shapes[f"{layer}.feed_forward.w3.weight"] = (HIDDEN, WIDTH)
        shapes[f"{layer}.feed_forward.w2.weight"] = (WIDTH, HIDDEN)
        shapes[f"{layer}.attention_norm.weight"] = shapes[f"{layer}.ffn_norm.weight"] = (WIDTH,)
    return {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}


def test_the_size_is_the_published_one_and_the_one_that_is_imported():
    arguments = yaml.safe_load((ROOT / "configs" / "lm" / "par-xl-4x.yaml").read_text())["model"]["init_args"]
    backbone, spec = arguments["backbone"], CodeSpec(CodeLayout("grid", (24, 24)), (Codebook("pixel", 16384),))
    assert arguments["order"] == {"class_path": "Grouped", "init_args": {"regions": C2I["regions_per_side"]}}
    parts = {name: arguments[name] for name in ("embedding", "rotary", "classes")} | order_parts(Grouped(2), spec)
    with torch.device("meta"):
        imported, trained = class_model(C2I), SharedLM.build(backbone, Vocabulary(), spec, "", **parts)
    assert millions(imported) == millions(trained) == 774.70
    assert imported.queries.weight.shape == (3, 1280)
    assert imported.backbone.config.to_dict() == trained.backbone.config.to_dict()
    for name in ("spec", "head", "embedding", "rotary", "classes", "vectors", "order", "directions", "queries"):
        assert getattr(imported.config, name) == getattr(trained.config, name)
    assert model_sampling(imported).guidance == arguments["sampling"]["guidance"]


@pytest.mark.parametrize(("width", "guidance"), [(1024, 1.5), (1280, 1.5), (1536, 1.435), (3200, 1.345)])
def test_guidance_is_that_of_the_size(width, guidance):
    with torch.device("meta"):
        model = class_model({**C2I, "dim": width, "n_layer": 1})
    assert model_sampling(model) == Sampling(guidance=guidance)


@pytest.mark.parametrize(("side", "regions", "passes"), [(16, 2, 67), (24, 2, 147), (24, 4, 51)])
def test_published_numbers_of_passes(side, regions, passes):
    assert len(Grouped(regions).steps(CodeLayout("grid", (side, side)))) == passes


def test_the_sampler_takes_as_many_passes_as_the_reference():
    path = next(GOLDEN.glob("*/par.safetensors"), None)
    if path is None:
        pytest.skip(f"golden data of par expected beside the checkout, in a folder of {GOLDEN}")
    golden, calls = Golden.load(path), []
    model = class_model(golden.config).eval()
    model.backbone.base_model.register_forward_hook(lambda *_: calls.append(1))
    sample_codes(model, [0], [torch.Generator()], Sampling(guidance=golden.config["cfg_scales"][0]))
    assert len(calls) == golden.config["forwards"]


@pytest.mark.parametrize(("special", "regions"), [(3, 2), (15, 4)])
def test_a_checkpoint_becomes_a_model_in_the_order_that_its_weights_show(tmp_path, capsys, special, regions):
    weights = reference_weights(special)
    torch.save({"model": weights, "steps": 7}, tmp_path / "par.pt")
    (tmp_path / "config.json").write_text(json.dumps({"n_head": HEADS}))
    arguments = ["import", "par-c2i", str(tmp_path / "par.pt"), "--config", str(tmp_path / "config.json")]
    assert main([*arguments, "--grid", "8", "--out", str(tmp_path / "model")]) == 0
    said = capsys.readouterr().out
    assert "PAR (https://arxiv.org/abs/2412.15119), licence: none stated; made from LlamaGen, MIT" in said
    model = SharedLM.from_pretrained(tmp_path / "model")
    assert model_order(model).fields() == {"kind": "grouped", "regions": regions}
    assert torch.equal(model.queries.weight, weights[SPECIAL])
    assert torch.equal(model.classes.weight, weights["cls_embedding.embedding_table.weight"])
    codes = sample_codes(model, [0, 4], [torch.Generator(), torch.Generator()])
    assert codes.ids.shape == (2, 64, 1)


def test_learned_vectors_follow_the_first_group():
    model, weights = class_model({**C2I, **SHOWN, **TINY}), reference_weights()
    fill(model, weights, rules(model), "theirs")
    ids, rows = torch.arange(CODES).repeat(2)[: GRID * GRID], model_order(model).plan(model.spec.layout).rows()
    batch = model.layout.collate([model.layout.class_to_image(3, ids[:, None], rows)])
    assert batch.slots[0, :8].tolist() == [CLASS, 0, 2, 8, 10, EXTRA, EXTRA, EXTRA]
    found = model.embed(batch)[0]
    assert torch.equal(found[5:8], weights[SPECIAL])
    assert torch.equal(found[8], weights["tok_embeddings.weight"][ids[1]])


def test_shapes_show_the_configuration():
    assert shown(reference_weights()) == SHOWN | {"regions_per_side": 2}
    assert shown(reference_weights(15))["regions_per_side"] == 4
    assert shown({}) == {}
    assert shown_of_llamagen(reference_weights()) == SHOWN


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({SPECIAL: "spe_tok_embeddings.weight"}, "not used: spe_tok_embeddings.weight; missing: queries.weight;"),
        ({SPECIAL: None}, "missing: queries.weight;"),
        ({SPECIAL: torch.zeros(4, WIDTH)}, r"of another shape: queries.weight \[4, 16\] for \[3, 16\];"),
        ({"norm.weight": None}, "missing: backbone.model.norm.weight;"),
    ],
)
def test_weights_that_do_not_match_are_named_and_nothing_is_written(tmp_path, change, said):
    weights, ((name, new),) = reference_weights(), change.items()
    old = weights.pop(name)
    weights |= {} if new is None else {name: new} if isinstance(new, torch.Tensor) else {new: old}
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=f"must match key by key, got {said}"):
        import_checkpoint("par-c2i", tmp_path / "weights.safetensors", tmp_path / "model", TINY)
    assert not (tmp_path / "model").exists()


def test_a_grid_that_does_not_divide_into_the_regions(tmp_path):
    save_file(reference_weights(15), tmp_path / "par.safetensors")
    said = r"cuts a grid of \(h, w\) into 4 x 4 regions, got \(6, 6\); choose regions that divide both"
    with pytest.raises(ValueError, match=said):
        import_checkpoint("par-c2i", tmp_path / "par.safetensors", tmp_path / "model", {"n_head": HEADS, "grid": 6})
    assert not (tmp_path / "model").exists()
