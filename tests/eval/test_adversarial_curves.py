"""Known troubles between generator and discriminator, and none in healthy curves."""

from __future__ import annotations

from math import log

import pytest
import torch

from smalti.eval.adversarial_curves import CHANCE, examine_adversarial
from smalti.eval.doctor import examine_curves
from smalti.tokenizers.losses import discriminator_loss

HEALTHY = {
    "train/discriminator": [1 - 0.004 * step for step in range(60)],
    "train/logits_real": [0.01 * step for step in range(60)],
    "train/logits_fake": [-0.01 * step for step in range(60)],
    "train/adaptive_weight": [1.0 + 0.1 * (step % 3) for step in range(60)],
    "train/loss": [0.5] * 20 + [1.5] * 40,
}
HINGE = {"adversarial.loss": "hinge", "adversarial.clamp": [0.3, 10.0]}
SOFT = HINGE | {"adversarial.loss": "non-saturating"}


def curves(**changed):
    values = HEALTHY | {f"train/{name}": value for name, value in changed.items()}
    return {name: list(enumerate(value)) for name, value in values.items()}


def test_a_healthy_run_has_no_findings():
    assert examine_adversarial(curves(), HINGE) == []
    assert examine_adversarial({}, HINGE) == []
    assert examine_curves(curves(), HINGE) == []  # a sum of two opponents may rise


@pytest.mark.parametrize(
    ("settings", "changed", "where", "what"),
    [
        (HINGE, {"discriminator": [0.04] * 60}, "discriminator", "hinge loss is 0.040 (under 5% of 1, chance)"),
        (SOFT, {"discriminator": [0.03] * 60}, "discriminator", "non-saturating loss is 0.030 (under 5% of 0.693"),
        (SOFT, {"discriminator": [log(2)] * 60}, "discriminator", "stays at 0.693 (chance is 0.693): it tells nothing"),
        (HINGE, {"discriminator": [0.99] * 60}, "discriminator", "stays at 0.990 (chance is 1): it tells nothing"),
        (
            HINGE,
            {"logits_real": [0.1 * at for at in range(60)], "logits_fake": [-0.05 * at for at in range(60)]},
            "discriminator",
            "lie 8.5 apart (over 4 for the last third; 0.0 at first): it wins",
        ),
        (HINGE, {"adaptive_weight": [1.0] * 20 + [10.0] * 40}, "train/adaptive_weight", "the largest that its clamp"),
        (HINGE, {"adaptive_weight": [0.3] * 60}, "train/adaptive_weight", "the smallest that its clamp allows, 0.3"),
    ],
)
def test_known_troubles_are_named(settings, changed, where, what):
    (found,) = examine_adversarial(curves(**changed), settings)
    kind = "remark" if "tells nothing" in what else "problem"
    assert (found.kind, found.where) == (kind, where)
    assert what in found.what
    assert found.remedy


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        (SOFT, {"discriminator": [0.04] * 60}),  # little of ln 2, but not under 5 % of it
        (HINGE, {"discriminator": [log(2)] * 60}),
        (HINGE, {"logits_real": [9.0] * 30 + [1.0] * 30}),  # wide at first only
        (HINGE, {"adaptive_weight": [10.0] * 30 + [2.0] * 30}),
        ({}, {"adaptive_weight": [10.0] * 60}),  # the clamp is not known
    ],
)
def test_what_is_no_trouble(settings, changed):
    assert examine_adversarial(curves(**changed), settings) == []


def test_logits_are_compared_at_the_steps_that_both_have():
    given = curves(logits_real=[9.0] * 60)
    given["train/logits_fake"] = [(step, 0.0) for step in range(100, 160)]
    assert examine_adversarial(given, HINGE) == []


@pytest.mark.parametrize("kind", CHANCE)
def test_chance_is_the_loss_of_a_discriminator_that_knows_nothing(kind):
    nothing = [torch.zeros(4)]
    assert float(discriminator_loss(kind, nothing, nothing)) == pytest.approx(CHANCE[kind])
