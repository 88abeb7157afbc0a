"""ENAT's networks: where every weight goes, and what is said of weights that do not fit."""

from pathlib import Path

import pytest
import torch

from smalti.bridge.enat import B, build, replay, rules
from smalti.bridge.golden import Golden
from smalti.bridge.keymap import fill, translate
from smalti.bridge.replay import _delta

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden"

WIDTH, CODES = 8, 12
TINY = {**B, "grid": 2, "codebook_size": CODES, "num_classes": 3, "dim": WIDTH, "heads": 2, "encoder_blocks": 2}


def reference_weights():
    """A state dict with ENAT's names and tiny shapes, written out from its module structure."""
    shapes = {
        "x_embedder.word_embeddings.weight": (CODES + 1, WIDTH),
        "x_embedder.position_embeddings.weight": (4, WIDTH),
        "y_embedder.embedding_table.weight": (4, WIDTH),
        "mlm_layer.bias": (1, 1, CODES + 1),
    }
    linear = {"mlm_layer.fc": (WIDTH, WIDTH)}
    for part in ("prev_embedder", "prev_proj.mlp", *(f"blocks.{number}.mlp" for number in range(3))):
        linear |= {f"{part}.fc1": (4 * WIDTH, WIDTH), f"{part}.fc2": (WIDTH, 4 * WIDTH)}
    for number in range(3):
        linear |= {f"blocks.{number}.attn.{name}": (WIDTH, WIDTH) for name in ("q", "proj")}
        linear |= {f"blocks.{number}.attn.kv.{name}": (2 * WIDTH, WIDTH) for name in "AB"}
        linear[f"blocks.{number}.adaLN_modulation.1"] = (8 * WIDTH, WIDTH)
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in ("x_embedder.LayerNorm", "prev_proj.norm", "norm", "mlm_layer.ln"):
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_published_outputs():
    path = next(GOLDEN.glob("*/enat.safetensors"), None)
    if path is None:
        pytest.skip(f"golden data of enat expected beside the checkout, in a folder of {GOLDEN}")
    golden = Golden.load(path)
    found = replay(golden)
    assert set(found) >= set(golden.outputs)
    assert all(_delta(name, found[name], golden.outputs[name], golden.tolerance).within for name in golden.outputs)
    golden.weights["prev_proj.mlp.fc2.weight"].mul_(1.01)
    found = replay(golden)
    beyond = {
        name for name in golden.outputs if not _delta(name, found[name], golden.outputs[name], golden.tolerance).within
    }
    assert beyond == {f"reuse{step}.{kind}" for step in (2, 3) for kind in ("feat", "logits")}


def test_every_weight_finds_its_place():
    weights, model = reference_weights(), build(TINY)
    state = translate(weights, rules(model), model, "enat")
    fill(model, weights, rules(model), "enat")
    pairs = {
        "encoder.0.own.weight": "blocks.0.attn.kv.B.weight",
        "encoder.1.context.bias": "blocks.1.attn.kv.A.bias",
        "decoder.0.modulation.weight": "blocks.2.adaLN_modulation.1.weight",
        "decoder.0.mlp.2.weight": "blocks.2.mlp.fc2.weight",
        "renewal.mlp.0.bias": "prev_proj.mlp.fc1.bias",
        "head.2.weight": "mlm_layer.ln.weight",
        "conditions.table.weight": "y_embedder.embedding_table.weight",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(state[ours], weights[theirs])
        assert torch.equal(model.state_dict()[ours], weights[theirs])
    assert torch.equal(model.biases[0], weights["mlm_layer.bias"][0, 0, :CODES])
    assert torch.equal(model.words[0].weight[-1], weights["x_embedder.word_embeddings.weight"][CODES])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"blocks.1.attn.kv.A.bias": None}, r"missing: encoder\.1\.context\.bias; use the configuration"),
        ({"prev_embedder.norm.weight": torch.ones(8)}, r"not used: prev_embedder\.norm\.weight"),
        ({"blocks.3.attn.q.bias": torch.ones(8)}, r"not used: decoder\.1\.query\.bias \(nothing of that name here\)"),
        ({"mlm_layer.bias": torch.ones(1, 1, 9)}, r"of another shape: biases\.0 \[8\] for \[12\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(changes, told):
    weights, model = reference_weights() | changes, build(TINY)
    given = {name: weight for name, weight in weights.items() if weight is not None}
    with pytest.raises(ValueError, match="weights of enat must match key by key, got " + told):
        fill(model, given, rules(model), "enat")


def test_weights_that_are_never_used_may_be_absent():
    weights, model = reference_weights(), build(TINY)
    unused = [name for name in weights if name.startswith("prev_embedder.")]
    assert len(unused) == 4
    fill(model, {name: weight for name, weight in weights.items() if name not in unused}, rules(model), "enat")
