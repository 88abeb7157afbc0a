"""What training of a language model with sharded weights needs on every GPU, reckoned before there is any GPU."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod
from typing import Any

import torch
from torch import nn

from ..lm.model import SharedLM
from .optimizer import OptimizerSettings, Trained, parameter_groups
from .sharding import blocks

_FULL = 4  #: bytes of a float32


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes at the peak of a training step on the process that holds most: the first."""

    weights: int  #: parts of the weights in float32; they are what the optimizer moves, and no second copy is kept
    gradients: int  #: parts of the gradients in float32
    moments: int  #: parts of what the optimizer remembers, in float32: two numbers a weight for AdamW, one for Muon
    gathered: int  #: whole weights and gradients of the units at work
    activations: int  #: of the backbone, with checkpointing of its blocks
    logits: int  #: of all steps, if all of them chose from the largest block of the vocabulary

    @property
    def total(self) -> int:
        """Bytes in all; what torch, NCCL and fragmented memory take comes on top."""
        return sum(getattr(self, field.name) for field in fields(self))


def memory_plan(
    model: SharedLM,
    world: int,
    batch: int,
    length: int,
    half: torch.dtype | None = torch.bfloat16,
    optimizer: OptimizerSettings | None = None,
) -> MemoryPlan:
    """Memory of a training step under FSDP2, see ``sharding.py``.

    A part has ``ceil(rows / world)`` rows. At work are the unit of all that is no block, weights and gradients whole in
    float32 for a whole step, and of the largest block: its weights and those of the next, its gradient in ``half``, and
    that gradient in float32 to be summed. Of activations, every block keeps its input, ``B T C`` in float32, and one at
    a time computes the rest anew: for every step ``16 C`` bytes of two norms and residuals in float32 and, in ``half``,
    2 C of results, 2 (A + 2 K) numbers of queries, keys and values before and after rotation, A of attention and 4 I of
    a gated feed-forward layer. Logits are kept in ``half`` and in float32, as log-probabilities and as gradients.

    Args:
        model: with a backbone like llama; on the meta device it takes no memory.
        world: number of processes.
        batch: B, sequences of each.
        length: T, steps of a sequence.
        half: type of ``bf16-mixed`` training; None for float32.
        optimizer: whether Muon takes the matrices; AdamW for all by default.
    """
    size = _FULL if half is None else half.itemsize
    parts = {parameter: _part(parameter, world) for parameter in model.parameters()}
    learned = [parameter for parameter in parts if parameter.requires_grad]
    groups = parameter_groups("model", Trained(model, 1.0), optimizer or OptimizerSettings())
    units = [sum(p.numel() for p in block.parameters()) for block in blocks(model)]
    rest = sum(parameter.numel() for parameter in parts) - sum(units)
    steps, config = batch * length, model.backbone.config
    choices = max(map(len, (model.head.text, *model.head.blocks)))
    return MemoryPlan(
        weights=_FULL * sum(parts.values()),
        gradients=_FULL * sum(parts[parameter] for parameter in learned),
        moments=sum(_FULL * (1 if group["muon"] else 2) * parts[p] for group in groups for p in group["params"]),
        gathered=2 * _FULL * rest + (3 * size + _FULL) * max(units, default=0),
        activations=steps * (_FULL * config.hidden_size * config.num_hidden_layers + _in_block(config, size)),
        logits=steps * choices * (size + 3 * _FULL),
    )


def whole_memory(model: nn.Module, half: torch.dtype | None = torch.bfloat16) -> int:
    """Bytes of all weights whole on every process, as a validation gathers them; beside them are parts and moments.

    Args:
        model: that is trained; on the meta device it takes no memory.
        half: type in which blocks are gathered; None for float32.
    """
    size = _FULL if half is None else half.itemsize
    in_blocks = sum(parameter.numel() for block in blocks(model) for parameter in block.parameters())
    rest = sum(parameter.numel() for parameter in model.parameters()) - in_blocks
    return size * in_blocks + _FULL * rest


def _part(parameter: nn.Parameter, world: int) -> int:
    """Numbers of a parameter on the first process."""
    rows, *rest = parameter.shape
    return -(-rows // world) * prod(rest)


def _in_block(config: Any, size: int) -> int:
    """Bytes that a block like llama's keeps of one step to be differentiated."""
    width, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    asked, told = head * config.num_attention_heads, head * config.num_key_value_heads
    return 4 * _FULL * width + size * (2 * width + 3 * asked + 4 * told + 4 * config.intermediate_size)
