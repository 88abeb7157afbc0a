"""The filters that LlamaGen, NAR and PAR put between logits and draws."""

from __future__ import annotations

from torch import Tensor

from ..generation.filters import filtered
from .golden import Golden


def replay(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``sampling_filter`` files: which ids stay, and their probabilities."""
    found = dict[str, Tensor]()
    for number, setting in enumerate(golden.config["settings"]):
        logits = filtered(golden.inputs["logits"], **setting)
        found |= {f"keep{number}": logits.isfinite().byte(), f"probs{number}": logits.softmax(-1)}
    for number, top_k in enumerate(golden.config["tie_top_k"]):
        found[f"ties.keep{number}"] = filtered(golden.inputs["tied_logits"], top_k=top_k).isfinite().byte()
    return found
