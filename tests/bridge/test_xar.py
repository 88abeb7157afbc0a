"""xAR's released models: the published numbers, sizes, names, and what is said of bad configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from smalti.bridge.golden import Golden
from smalti.bridge.keymap import fill, translate
from smalti.bridge.xar import C2I, SIZES, class_model, replay, rules, shown
from smalti.generation.xar import XARSampling, model_sampling

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "generation" / "xar.safetensors"

#: Millions of weights as the reference counts them.
MILLIONS = {768: 172.6, 1024: 608.4}
TINY = {"dim": 16, "heads": 2, "encoder_depth": 1, "decoder_depth": 2, "num_classes": 5, "latent_channels": 3}
TINY |= {"latent_grid": 4, "cells_per_side": 2}


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file():
        pytest.skip(f"golden data of xar expected beside the checkout, at {GOLDEN}")
    return Golden.load(GOLDEN)


@pytest.fixture(scope="module")
def found(golden):
    return replay(golden)


def reference_weights() -> dict[str, torch.Tensor]:
    """A state dict with the reference's names and tiny shapes, written out from its module structure."""
    shapes: dict[str, tuple[int, ...]] = {
        "class_emb.weight": (6, 16),
        "z_proj.weight": (16, 3),
        "z_proj.bias": (16,),
        "z_proj_ln.weight": (16,),
        "time_embed.mlp.0.weight": (16, 256),
        "time_embed.mlp.2.weight": (16, 16),
        "decoder_embed.weight": (16, 16),
        "pred.weight": (3, 16),
    }
    for stack, depth in (("encoder", 1), ("decoder", 2)):
        shapes |= {f"{stack}_pos_embed_learned": (1, 16, 16), f"{stack}_norm.weight": (16,)}
        for block in (f"{stack}_blocks.{number}" for number in range(depth)):
            shapes |= {f"{block}.ada_lin.1.weight": (96, 16), f"{block}.mlp.fc2.weight": (16, 42)}
            shapes |= {f"{block}.attn.qkv.weight": (48, 16), f"{block}.attn.proj.weight": (16, 16)}
            shapes |= {f"{block}.mlp.fc1_g.weight": (42, 16), f"{block}.mlp.fc1_x.weight": (42, 16)}
    matrices = [
        name for name in shapes if any(part in name for part in (".mlp.", ".attn.", "ada_lin", "_embed.", "pred"))
    ]
    shapes |= {name.replace(".weight", ".bias"): shapes[name][:1] for name in matrices}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", ["latent_cells", "velocity", "loss", "sample.latents"])
def test_published_outputs(golden, found, name):
    assert set(found) == set(golden.outputs)
    limits = golden.tolerance.get(name, {"atol": 0.0, "rtol": 0.0})
    torch.testing.assert_close(found[name], golden.outputs[name], **limits)


@pytest.mark.parametrize("name", ["decoder_blocks.1.attn.qkv.weight", "time_embed.mlp.0.weight", "z_proj_ln.weight"])
def test_weights_of_other_values_are_seen(golden, name):
    weights = {key: 1.01 * tensor if key == name else tensor for key, tensor in golden.weights.items()}
    changed = replay(Golden(golden.system, golden.config, golden.tolerance, weights, golden.inputs, golden.outputs))
    assert not torch.allclose(changed["velocity"], golden.outputs["velocity"], atol=5e-4, rtol=2e-4)
    assert not torch.allclose(changed["sample.latents"], golden.outputs["sample.latents"], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("width", MILLIONS)
def test_sizes_are_the_published_ones(width):
    depth = {768: 8, 1024: 16}[width]
    with torch.device("meta"):
        model = class_model({**C2I, "dim": width, "encoder_depth": depth, "decoder_depth": depth})
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e6, 1) == MILLIONS[width]
    heads, steps, guidance = SIZES[width]
    assert model.config.heads == heads
    assert model_sampling(model) == XARSampling(steps, guidance)


def test_every_weight_has_its_place():
    weights = reference_weights()
    model = class_model(TINY)
    fill(model, weights, rules(model), "here")
    assert torch.equal(model.decoder.positions, weights["decoder_pos_embed_learned"][0])
    assert torch.equal(model.decoder.blocks[1].feed.gate.weight, weights["decoder_blocks.1.mlp.fc1_g.weight"])
    assert set(translate(weights, rules(model), model, "here")) == set(model.state_dict())


def test_what_weights_show():
    told = shown(reference_weights())
    assert told == {name: TINY[name] for name in set(TINY) - {"heads", "latent_grid", "cells_per_side"}}
    assert shown({}) == {}


def test_heads_of_a_width_that_was_not_released():
    with pytest.raises(ValueError, match=r"xAR's models are 768, 1024, 1280 channels wide, got 640, .*; give heads"):
        class_model({**C2I, "dim": 640})
