"""``python -m smalti.bridge.replay FILE...``: rebuild a published module from a file of its weights, and compare.

A file holds ``weights.*``, ``in.*`` and ``out.*`` tensors, and under the metadata key ``golden`` or ``json`` the
system, its configuration and the tolerance. Every output is computed again from the inputs; the largest difference of
each is printed. Exit code 0 when all are within the tolerance, 1 when one is not, 2 when a file cannot be replayed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import (
    ait,
    dualtoken,
    enat,
    filters,
    ibq,
    lavit,
    llamagen,
    llamagen_lm,
    nar,
    par,
    seed,
    slot,
    tokenflow,
    unitok,
    var,
    xar,
)
from .golden import Golden

#: System -> the function that computes the outputs of its files.
SYSTEMS: dict[str, Callable[[Golden], dict[str, Tensor]]] = {
    "ait_soft": ait.replay,
    "dualtoken_proj": dualtoken.replay_projections,
    "dualtoken_rq": dualtoken.replay_residual,
    "enat": enat.replay,
    "ibq": ibq.replay,
    "lavit_tok": lavit.replay,
    "llamagen_c2i": llamagen_lm.replay_classes,
    "llamagen_t2i": llamagen_lm.replay_captions,
    "llamagen_vq": llamagen.replay_vq,
    "nar_c2i": nar.replay_classes,
    "nar_t2i": nar.replay_captions,
    "nar_video": nar.replay_video,
    "par": par.replay,
    "sampling_filter": filters.replay,
    "seed_qformer": seed.replay_qformer,
    "seed_tokenizer": seed.replay_tokenizer,
    "seed_vq": seed.replay_vq,
    "slot_gru": slot.replay_gru,
    "slot_morph": slot.replay_morph,
    "tokenflow_msvq": tokenflow.replay_msvq,
    "tokenflow_vq": tokenflow.replay_vq,
    "unitok_mcq": unitok.replay_mcq,
    "unitok_proj": unitok.replay_projections,
    "var": var.replay,
    "xar": xar.replay,
}

#: Outputs that are inputs in another arrangement; files state no tolerance for them, and none is needed.
REARRANGED = frozenset({"latent_cells"})


@dataclass(frozen=True)
class Delta:
    """How far one output is from the published one."""

    name: str  #: of the output
    largest: float  #: largest absolute difference; infinite where shapes or kinds differ
    allowed: float  #: absolute tolerance; the relative one is allowed beside it
    within: bool  #: whether every element is within both together


def replay(golden: Golden) -> list[Delta]:
    """Compute every output again and compare.

    Raises:
        ValueError: an unknown system, weights that do not fit it, or an output that is not computed here.
    """
    if golden.system not in SYSTEMS:
        raise ValueError(f"system must be one of {', '.join(SYSTEMS)}, got {golden.system!r}; it is not rebuilt here")
    torch.manual_seed(0)
    found = SYSTEMS[golden.system](golden)
    absent = sorted(set(golden.outputs) - set(found))
    if absent:
        raise ValueError(f"outputs of {golden.system} must all be computed here, got none for {', '.join(absent)}")
    return [_delta(name, found[name].detach(), expected, golden.tolerance) for name, expected in golden.outputs.items()]


def main(paths: Sequence[str]) -> int:
    """Replay files and print one line per output; see the module's own text for the exit code."""
    if not paths:
        sys.stderr.write("usage: python -m smalti.bridge.replay FILE.safetensors ...\n")
        return 2
    worst = 0
    for path in paths:
        try:
            golden = Golden.load(path)
            deltas = replay(golden)
        except (FileNotFoundError, ValueError) as error:
            sys.stderr.write(f"error: {error}\n")
            worst = 2
            continue
        sys.stdout.write(f"{path}: {golden.system}\n")
        for delta in deltas:
            verdict = "ok" if delta.within else "BEYOND"
            sys.stdout.write(f"  {delta.name:32} {delta.largest:9.2e}  of {delta.allowed:.1e}  {verdict}\n")
        worst = max(worst, int(not all(delta.within for delta in deltas)))
    return worst


def _delta(name: str, found: Tensor, expected: Tensor, tolerance: Mapping[str, Any]) -> Delta:
    if found.shape != expected.shape or found.is_floating_point() != expected.is_floating_point():
        return Delta(name, float("inf"), 0.0, within=False)
    apart = (found.double() - expected.double()).abs()
    largest = float(apart.max()) if apart.numel() else 0.0
    if not expected.is_floating_point():
        return Delta(name, largest, 0.0, within=largest == 0)
    absolute, relative = _limits(name, tolerance)
    within = bool((apart <= absolute + relative * expected.double().abs()).all())
    return Delta(name, largest, absolute, within)


def _limits(name: str, tolerance: Mapping[str, Any]) -> tuple[float, float]:
    """Absolute and relative tolerance of an output: of its kind, where the file has one for each, or of all floats.

    The kind is what the output's name, or the last of its parts, begins with; ``head_`` are logits of one head.
    """
    for kind, limits in tolerance.items():
        begins = ("logits", "head_") if kind == "logits" else (kind,)
        if isinstance(limits, Mapping) and any(f".{word}" in f".{name}" for word in begins):
            return float(limits["atol"]), float(limits["rtol"])
    if name in REARRANGED:
        return 0.0, 0.0
    if "float_atol" not in tolerance:
        raise ValueError(
            f"the tolerance must say how close {name} has to be, got {', '.join(tolerance)}; name its kind"
        )
    absolute = float(tolerance.get(f"{name}_atol", tolerance["float_atol"]))
    if "grad" in name and "1e-4" in str(tolerance.get("note", "")):
        absolute = max(absolute, 1e-4)
    return absolute, float(tolerance["float_rtol"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
