"""PAR's language models of image codes (Parallelized Autoregressive Visual Generation, https://arxiv.org/abs/2412.15119;
Epiphqny/PAR, no licence stated).

LlamaGen's models that write far-apart positions at a time, with learned vectors between the first group and the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..generation.orders import Grouped
from ..generation.sampler import Condition
from ..lm.model import SharedLM
from . import llamagen_lm
from .forced import Forced
from .golden import Golden
from .keymap import Copy, Rule
from .llamagen_lm import code_model

#: Configuration of PAR-XL-4X for classes of ImageNet at 384 px.
C2I: Mapping[str, Any] = {
    **llamagen_lm.C2I,
    "dim": 1280,
    "n_layer": 36,
    "ffn_hidden": 3584,
    "grid": 24,
    "regions_per_side": 2,
}


def class_model(config: Mapping[str, Any]) -> SharedLM:
    """An untrained model of a reference configuration for classes; see :data:`C2I`, otherwise as LlamaGen's."""
    regions = config["regions_per_side"]
    order = {"order": Grouped(regions).fields(), "queries": regions**2 - 1}
    return code_model(config, 1, classes=config["num_classes"], sampling={"guidance": 1.5}, **order)


def rules(model: SharedLM) -> list[Rule]:
    """Reference names of the whole model."""
    special = Copy(r"spe_tok_embeddings\.special_embeddings\.weight", "queries.weight")
    return [special, *llamagen_lm.rules(model)]


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
