"""What is known to go wrong between a generator and a discriminator, read off their curves.

Thresholds are rules of thumb and are named in every finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

from .findings import Finding, last_third, present, problem
from .plots import Curve

#: What a discriminator's loss is at chance, by the kind of loss; about 0 when it errs nowhere.
CHANCE = {"hinge": 1.0, "leaky-hinge": 1.0, "non-saturating": log(2)}

SPLIT = 0.05  #: share of chance below which a discriminator's loss says that it has won
BLIND = 0.97  #: share above which it tells nothing apart
GAP = 4.0  #: distance of the mean logits of real and reconstructed pictures from which the discriminator has won
LASTING = 0.9  #: share of the last third of a curve from which something counts as lasting

_LOSS, _CLAMP = "adversarial.loss", "adversarial.clamp"


def examine_adversarial(curves: Mapping[str, Curve], settings: Mapping[str, Any] | None = None) -> list[Finding]:
    """Findings in the adversarial curves of one run; none where there are none.

    Args:
        curves: (step, value) points by the name they are logged under, finite.
        settings: of the run, by dotted name: ``adversarial.loss`` (hinge where nothing is said) and
            ``adversarial.clamp`` (without it the adaptive weight is not judged).
    """
    known, values = settings or {}, {name: [value for _, value in curve] for name, curve in curves.items()}
    found = list[Finding]()
    if losses := values.get("train/discriminator"):
        found += _loss(losses, str(known.get(_LOSS, "hinge")))
    found += _gap(curves.get("train/logits_real", ()), curves.get("train/logits_fake", ()))
    if (weights := values.get("train/adaptive_weight")) and (clamp := known.get(_CLAMP)):
        found += _clamped(weights, float(clamp[0]), float(clamp[1]))
    return found


def _loss(values: Sequence[float], kind: str) -> list[Finding]:
    now, chance = present(values), CHANCE.get(kind, CHANCE["hinge"])
    if now < SPLIT * chance:
        return [
            problem(
                "discriminator",
                f"its {kind} loss is {now:.3f} (under {SPLIT:.0%} of {chance:.3g}, chance): it tells every "
                "reconstruction from an original, and the decoder learns noise from it",
                "a lower learning rate for the discriminator, a later start, a smaller network, or augmentation",
            )
        ]
    if now > BLIND * chance and len(values) > 10:
        return [
            Finding(
                "remark",  # two networks in balance look the same: the shipped recipe of scenes does
                "discriminator",
                f"its {kind} loss stays at {now:.3f} (chance is {chance:.3g}): it tells nothing apart",
                "where the run gains nothing from it, a higher learning rate for it, or an earlier start",
            )
        ]
    return []


def _gap(real: Curve, fake: Curve) -> list[Finding]:
    """Whether the logits of originals and reconstructions stay far apart, at the steps that both have."""
    others = dict(fake)
    gaps = [value - others[step] for step, value in real if step in others]
    late = last_third(gaps)
    if not gaps or sum(gap > GAP for gap in late) < LASTING * len(late):
        return []
    return [
        problem(
            "discriminator",
            f"its logits of originals and reconstructions lie {present(gaps):.1f} apart (over {GAP:g} for the last "
            f"third; {gaps[0]:.1f} at first): it wins",
            "a lower learning rate for the discriminator, R1 or LeCAM, augmentation, or a later start",
        )
    ]


def _clamped(values: Sequence[float], low: float, high: float) -> list[Finding]:
    late = last_third(values)
    for bound, name, meaning, remedy in (
        (low, "smallest", "outweighs that of the pixels", "a lower weight, or a lower end of the clamp"),
        (high, "largest", "hardly reaches the decoder", "a weaker or regularized discriminator, or a shorter ramp"),
    ):
        close = 1e-3 * max(abs(bound), 1e-6)
        if sum(abs(value - bound) <= close for value in late) >= LASTING * len(late):
            what = (
                f"the {name} that its clamp allows, {bound:g}, for the last third: the adversarial gradient {meaning}"
            )
            return [problem("train/adaptive_weight", what, remedy)]
    return []
