"""Which part of a shared language model trains: all of it, what stands beside the backbone, or that and adapters.

LoRA (https://arxiv.org/abs/2106.09685) comes from ``peft``, whose layers take the place of single linear layers; the
backbone stays the class of ``transformers`` that it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from .model import SharedLM

_ADAPTER = "default"  # peft's own name for the only one


@dataclass(frozen=True)
class Lora:
    """Adapters of low rank beside the linear layers of a backbone.

    Args:
        rank: of each, >= 1.
        alpha: the adapters are scaled by ``alpha / rank``.
        dropout: of what they read, in [0, 1).
        targets: names, or ends of dotted names, of the layers inside the backbone that get one. The default are those
            of Llama, Qwen and Mistral.

    Raises:
        ValueError: a number out of range, or no targets.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be >= 1, got {self.rank}; 8 to 64 is usual")
        if self.alpha <= 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}; twice the rank is usual")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}; 0 to 0.1 is usual")
        if not self.targets:
            raise ValueError("targets must name layers of the backbone, got none; train frozen to have no adapters")


def train_part(model: SharedLM, part: Literal["full", "frozen"] | Lora) -> None:
    """Say what trains, in place, by ``requires_grad``.

    Args:
        model: a language model without adapters.
        part: ``full``: everything. ``frozen``: everything beside the backbone, whose weights rest: the rows of specials
            and codes, the code head, and what embeds codes, positions, classes and vectors. :class:`Lora`: the same,
            and new adapters inside the backbone, which change nothing before they are trained.

    Raises:
        ValueError: an unknown part, a model that has adapters already or whose new rows would rest with the backbone,
            or targets that the backbone lacks.
        ImportError: LoRA without peft.
    """
    if not isinstance(part, Lora) and part not in ("full", "frozen"):
        raise ValueError(f"what trains must be full, frozen or a Lora, got {part!r}; choose one of them")
    if has_adapters(model):
        raise ValueError("a model whose part to train is chosen must be without adapters, got some; merge them first")
    if part == "full":
        model.requires_grad_(True)
        return
    if not model.config.new_rows:
        raise ValueError(
            "a backbone can rest where the rows of specials and codes stand apart from its own, got one matrix for all "
            "that would rest too; make the model with rows apart"
        )
    if isinstance(part, Lora):
        _inject(model.backbone, part)
    model.requires_grad_(True)
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def has_adapters(model: nn.Module) -> bool:
    """Whether adapters stand beside any of its layers."""
    return any(True for _ in _adapted(model))


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Fold the adapters into the weights that they stand beside and remove them, in place.

    What the model computes stays the same up to rounding; what trains is left as it is.
    """
    for name, layer in list(_adapted(model)):
        plain = layer.get_base_layer()
        plain.weight.copy_(_merged_weight(layer))
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, plain)


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model as :func:`merge` would leave it, without changing the model."""
    state: dict[str, Tensor] = model.state_dict()
    for name, layer in _adapted(model):
        for key in [key for key in state if key.startswith(f"{name}.")]:
            value, inner = state.pop(key), key.removeprefix(f"{name}.")
            if inner.startswith("base_layer."):
                state[f"{name}.{inner.removeprefix('base_layer.')}"] = value
        state[f"{name}.weight"] = _merged_weight(layer)
    return state


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))


@torch.no_grad()
def _merged_weight(layer: Any) -> Tensor:
    weight = layer.get_base_layer().weight
    return weight + layer.get_delta_weight(_ADAPTER).to(weight.dtype)


def _inject(backbone: PreTrainedModel, lora: Lora) -> None:
    layers = {name: m for name, m in backbone.base_model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    for target in lora.targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            own = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
            near = get_close_matches(target, own, 3) or own
            raise ValueError(
                f"LoRA targets must be linear layers inside the {backbone.config.model_type} backbone, got {target!r}; "
                f"near are {', '.join(near)}"
            )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs peft, which is not installed; pip install 'smalti[lora]'") from error
    transposed = all(isinstance(layer, Conv1D) for layer in layers.values())
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]: any number
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        fan_in_fan_out=transposed,
    )
    inject_adapter_in_model(config, backbone, _ADAPTER)
    del backbone.peft_config  # transformers would take it for an adapter of its own making
