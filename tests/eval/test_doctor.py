"""Findings in curves and tokenizers that are ill in known ways, and none in healthy ones."""

from __future__ import annotations

import math

import pytest
import torch

from smalti.eval.doctor import examine_curves, examine_tokenizer
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

HEALTHY = {
    "train/l1": [0.5 * 0.95**step + 0.05 for step in range(50)],
    "train/quantizer": [0.3 * 0.97**step + 0.02 for step in range(50)],
    "train/discriminator": [1 - 0.01 * step for step in range(50)],
    "usage/pixel": [0.9] * 50,
    "perplexity/pixel": [60.0 + step for step in range(50)],
    "val/psnr": [20.0, 22.0, 22.5],
    "guard/skipped": [0.0] * 50,
    "guard/rollbacks": [0.0] * 50,
}


def curves(**changed):
    """The healthy run with some curves exchanged; keys name curves with ``__`` for the slash."""
    values = HEALTHY | {name.replace("__", "/"): value for name, value in changed.items()}
    return {name: list(enumerate(value)) for name, value in values.items()}


def test_a_healthy_run_has_no_findings():
    assert examine_curves(curves()) == []


@pytest.mark.parametrize(
    ("name", "values", "where", "what"),
    [
        ("usage__pixel", [0.3] * 10 + [0.04] * 40, "pixel", "4.0% of its codes are in use"),
        ("usage__pixel", [0.9] * 25 + [0.3] * 25, "pixel", "usage fell from 90.0% to 30.0%"),
        ("perplexity__pixel", [1.2] * 50, "pixel", "perplexity 1.20 (under 2)"),
        ("perplexity__pixel", [100.0] * 25 + [20.0] * 25, "pixel", "perplexity fell from 100.0 to 20.0"),
        ("train__quantizer", [0.1] * 25 + [2.0] * 25, "train/quantizer", "grew from 0.1 to 2 (20 times)"),
        ("train__discriminator", [0.5] * 25 + [0.001] * 25, "discriminator", "it tells every reconstruction"),
        ("train__l1", [0.5, 0.1, 0.1] * 10 + [0.6] * 20, "train/l1", "the run has diverged"),
        ("train__l1", [0.5] * 49 + [math.nan], "train/l1", "not finite"),
        ("guard__rollbacks", [0.0] * 49 + [2.0], "guard", "rolled back 2 times"),
        ("guard__skipped", [0.0] * 40 + [9.0] * 10, "guard", "9 of 50 steps were skipped"),
        ("val__psnr", [20.0, 24.0, 21.0], "val/psnr", "fell from 24.0 to 21.0 dB"),
    ],
)
def test_known_troubles_are_named(name, values, where, what):
    (found,) = examine_curves(curves(**{name: values}))
    assert (found.kind, found.where) == ("problem", where)
    assert what in found.what
    assert found.remedy


def test_a_discriminator_at_chance_is_a_remark():
    (found,) = examine_curves(curves(train__discriminator=[1.0] * 50))
    assert (found.kind, found.where) == ("remark", "discriminator")
    assert "tells nothing apart" in found.what


def test_single_spikes_are_no_trouble():
    spiked = list(HEALTHY["train/l1"])
    spiked[30] = 5.0
    assert examine_curves(curves(train__l1=spiked, data__skipped=[2.0, 1.0]))[0].what == (
        "3 unreadable pictures were replaced"
    )


def tokenizer(codes: int = 32) -> VQTokenizer:
    torch.manual_seed(0)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    built = VQTokenizer(ConvEncoder(**parts), VectorQuantizer(4, codes), ConvDecoder(**parts), 16).train()
    built.training_step_terms(pictures())  # k-means
    return built.eval()


def pictures() -> torch.Tensor:
    return torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_weights_that_are_not_finite():
    ill = tokenizer()
    with torch.no_grad():
        ill.decoder.last_layer[0] = torch.nan
    (found,) = examine_tokenizer(ill, pictures())
    assert "not finite" in found.what


def test_copied_codes_and_a_collapsed_encoder():
    ill = tokenizer()
    ill.quantizer.table.layers[0]._codebook.embed[0, 1:] = 50.0
    ill.quantizer.table.layers[0]._codebook.embed[0, 0] = 0.0
    wrong = {finding.what.split(",")[0] for finding in examine_tokenizer(ill, pictures()) if finding.kind == "problem"}
    assert {"30 of 32 codes are copies of others", "1024 positions share 1 codes"} <= wrong


def test_two_value_ranges(monkeypatch):
    well, images = tokenizer(), pictures()
    monkeypatch.setattr(well, "decode", lambda codes: images)
    assert [finding for finding in examine_tokenizer(well, images) if finding.where == "pixels"] == []
    monkeypatch.setattr(well, "decode", lambda codes: (images + 1) / 2)
    (found,) = (finding for finding in examine_tokenizer(well, images) if finding.where == "pixels")
    assert "x -> 2.00 x -1.00" in found.what
