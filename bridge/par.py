"""PAR's language models of image codes (Parallelized Autoregressive Visual Generation, https://arxiv.org/abs/2412.15119;
Epiphqny/PAR, no licence stated).

LlamaGen's models that write far-apart positions at a time, with learned vectors between the first group and the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from ..generation.orders import Grouped
from ..generation.sampler import Condition
from ..lm.model import SharedLM
from ..tokenizers.codes import CodeLayout
from . import llamagen_lm
from .forced import Forced
from .golden import Golden
from .keymap import Copy, Rule
from .llamagen_lm import code_model

#: Width of a released size -> guidance that its FID was measured with; 1.5 for the others.
GUIDANCE: Mapping[int, float] = {1536: 1.435, 3200: 1.345}

#: Learned vectors between the first group and the others.
_SPECIAL = "spe_tok_embeddings.special_embeddings.weight"

#: Configuration of PAR-XL-4X for classes of ImageNet at 384 px; at 256 px ``grid`` is 16.
C2I: Mapping[str, Any] = {
    **llamagen_lm.C2I,
    "dim": 1280,
    "n_layer": 36,
    "ffn_hidden": 3584,
    "grid": 24,
    "regions_per_side": 2,
}


def class_model(config: Mapping[str, Any]) -> SharedLM:
    """An untrained model of a reference configuration for classes; see :data:`C2I`, otherwise as LlamaGen's.

    Raises:
        ValueError: a grid that does not divide into the regions.
    """
    order = Grouped(config["regions_per_side"])
    plan = order.plan(CodeLayout("grid", (config["grid"], config["grid"])))
    sampling = {"guidance": GUIDANCE.get(config["dim"], 1.5)}
    parts = {"sampling": sampling, "order": order.fields(), "queries": plan.queries}
    return code_model(config, 1, classes=config["num_classes"], **parts)


def shown(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """As :func:`smalti.bridge.llamagen_lm.shown`, and the regions: one learned vector for each but the last."""
    found, special = llamagen_lm.shown(weights), weights.get(_SPECIAL)
    return found if special is None or not special.ndim else found | {"regions_per_side": isqrt(len(special) + 1)}


def rules(model: SharedLM) -> list[Rule]:
    """Reference names of the whole model."""
    return [Copy(re.escape(_SPECIAL), "queries.weight"), *llamagen_lm.rules(model)]


def replay(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``par`` files; their logits and some tokens are in the order of generation."""
    teacher = Forced.of(golden, class_model(golden.config), rules)
    classes: list[Condition] = golden.inputs["class_ids"].tolist()
    passes, order = len(teacher.plan.sizes), teacher.plan.positions
    runs = {"greedy": (1.0, 0)}
    runs |= {f"greedy_cfg{at}": (scale, passes) for at, scale in enumerate(golden.config["cfg_scales"])}
    found = teacher.learned(classes) | teacher.greedy(classes, runs)
    turned = {name: value[:, order] if name.endswith("logits") else value for name, value in found.items()}
    written = {f"{name}_generation_order": value[:, order] for name, value in found.items() if name.endswith("tokens")}
    return {"order": order, **turned, **written}
