"""Slot-MLLM's adapters: transformers between the blocks of a frozen UNet, which attend to slots.

Letters: B batch, Q slots, W width that the UNet attends to. Knows no tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any, Self

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from .loading import LocalModel


class SlotAdapters(LocalModel):
    """One transformer behind each cross-attention of a UNet (Slot-MLLM, https://arxiv.org/abs/2505.17726).

    An adapter is a ``Transformer2DModel`` of the shape of the one that it follows. It attends to the slots; the UNet's
    own cross-attention attends to their mean alone. Neither the class nor the weights of the UNet change: adapters are
    attached for as long as they are needed and have a folder of their own. New ones end in zeros and leave the UNet as
    it is, so that training starts from it. ::

        adapters = SlotAdapters.for_unet(unet)
        with adapters.attached(unet):
            unet(noisy, timesteps, encoder_hidden_states=adapters.condition(slots), class_labels=labels)

    With gradient checkpointing the backward pass must run inside ``attached`` too.

    Args:
        places: arguments of the adapters, as ``Transformer2DModel`` takes them, by the names of the modules of the UNet
            that they follow; :meth:`for_unet` finds them.

    Raises:
        ValueError: no place.
    """

    @register_to_config
    def __init__(self, places: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        if not places:
            raise ValueError("adapters need a UNet with cross-attention, got no place for any; take another UNet")
        self._places = {name: dict(options) for name, options in places.items()}
        self.blocks = nn.ModuleDict({_key(name): Transformer2DModel(**each) for name, each in self._places.items()})
        for name in self._places:
            last: Any = self.blocks[_key(name)].get_submodule("proj_out")
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    @classmethod
    def for_unet(cls, unet: UNet2DConditionModel) -> Self:
        """New adapters for all cross-attentions of a UNet.

        Raises:
            ValueError: a UNet without any.
        """
        return cls(_places(unet))

    @staticmethod
    def condition(slots: Tensor) -> Tensor:
        """What an adapted UNet takes as ``encoder_hidden_states``: slots ``[B, Q, W]`` behind their mean."""
        return torch.cat([slots.mean(1, keepdim=True), slots], dim=1)  # [B, 1 + Q, W]

    @contextmanager
    def attached(self, unet: UNet2DConditionModel) -> Generator[None]:
        """Let the adapters run inside a UNet, which then reads what :meth:`condition` gives.

        Raises:
            ValueError: a UNet of another shape, or in its forward pass no slots behind the first position.
        """
        self.check_unet(unet)
        slots: list[Tensor] = []
        behind = {name: _following(self.blocks[_key(name)], slots) for name in self._places}
        hooks = [unet.get_submodule(name).register_forward_hook(hook) for name, hook in behind.items()]
        hooks.append(unet.register_forward_pre_hook(_parting(unet, slots), with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def load_released(self, weights: Mapping[str, Tensor], prefix: str = "unet.") -> None:
        """Take the weights of a released checkpoint, which keeps them inside the UNet.

        There, ``adapter.1`` of a block stands behind ``attentions.1``. These names are those of the released code; the
        file itself was not at hand.

        Args:
            weights: the ``state_dict`` of Slot-MLLM's training module; what belongs to no adapter is not read.
            prefix: of the UNet in it.

        Raises:
            ValueError: adapters that are missing, more, or of another shape.
        """
        named = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        own, found = self.state_dict(), dict[str, Tensor]()
        for name, weight in named.items():
            block, adapter, rest = name.partition(".adapter.")
            if adapter:
                number, _, inside = rest.partition(".")
                found[f"blocks.{_key(f'{block}.attentions.{number}')}.{inside}"] = weight
        differing = sorted({name for name in own | found if name not in own or name not in found})
        differing += [name for name in own if name in found and own[name].shape != found[name].shape]
        if differing:
            raise ValueError(
                f"released adapters must match this UNet's weight by weight, got {len(found)} for {len(own)}, of which "
                f"{differing[0]} is the first to differ; make them with for_unet of the released UNet"
            )
        self.load_state_dict(found)

    def check_unet(self, unet: UNet2DConditionModel) -> None:
        """Raise ``ValueError`` unless these adapters fit a UNet."""
        found = _places(unet)
        differing = sorted(name for name in found | self._places if found.get(name) != self._places.get(name))
        if differing:
            raise ValueError(
                f"these adapters were made for a UNet with cross-attention in {len(self._places)} places, got one with "
                f"{len(found)}, of which {differing[0]} is the first to differ; take the UNet they were made for"
            )


def _places(unet: UNet2DConditionModel) -> dict[str, dict[str, Any]]:
    """What the transformers of a UNet were built with, where it is not the default, by their names."""
    defaults = signature(Transformer2DModel).parameters
    return {
        name: {key: part.config[key] for key, usual in defaults.items() if part.config[key] != usual.default}
        for name, part in unet.named_modules()
        if isinstance(part, Transformer2DModel)
    }


def _key(name: str) -> str:
    """A name without dots, which names of parameters keep for themselves."""
    return name.replace(".", "-")


def _parting(unet: UNet2DConditionModel, slots: list[Tensor]) -> Callable[..., tuple[tuple[()], Mapping[str, Any]]]:
    """A hook that keeps the slots and lets the UNet see their mean."""
    takes = signature(unet.forward)

    def part(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], Mapping[str, Any]]:
        given = takes.bind(*args, **kwargs).arguments
        states: Tensor = given["encoder_hidden_states"]
        if states.shape[1] < 2:
            raise ValueError(
                f"an adapted UNet reads a mean and the slots behind it, got {list(states.shape)}; pass condition(slots)"
            )
        slots[:] = [states[:, 1:]]
        return (), {**given, "encoder_hidden_states": states[:, :1].contiguous()}

    return part


def _following(block: nn.Module, slots: list[Tensor]) -> Callable[..., tuple[Tensor]]:
    """A hook that hands what a transformer gives on to its adapter."""

    def follow(_: nn.Module, args: tuple[Any, ...], output: Any) -> tuple[Tensor]:
        hidden: Tensor = output[0]
        return block(hidden, encoder_hidden_states=slots[0], return_dict=False)

    return follow
