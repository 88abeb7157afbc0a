"""The layers of xAR: attention that is turned by row and column, adaptive norms, and what they share in a pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Added to the mean square of every root mean square norm.
EPSILON = 1e-6
#: Slowest of the waves that turn queries and keys, and of those that tell times apart.
BASE = 10000.0


@dataclass(frozen=True)
class Memory:
    """Keys and values of the tokens seen so far, each in the place of its token; whoever makes one drops it."""

    keys: Tensor  #: [layers, B, heads, L, d]
    values: Tensor  #: [layers, B, heads, L, d]


@dataclass(frozen=True)
class Pass:
    """What all blocks of one pass share."""

    condition: Tensor  #: [B, E, W], of each entity
    repeats: Tensor | None  #: [E], tokens of each; None for one entity
    cosine: Tensor  #: [T, d / 2]
    sine: Tensor
    mask: Tensor | None  #: [T, S], row may attend column; None where it may attend all
    tokens: slice  #: the places of the T tokens


class Silent(nn.Linear):
    """A linear layer that gives nothing at first."""


class Attention(nn.Module):
    """Attention with queries and keys that are turned by row and column.

    Args:
        width: W.
        heads: that divide it.
        dropout: of weights and result.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.leave = nn.Linear(width, width)

    def forward(self, states: Tensor, at: Pass, memory: tuple[Tensor, Tensor] | None) -> Tensor:
        """``[B, T, W]`` of states; keys and values are those of these tokens, or all up to them in the memory."""
        parts = self.qkv(states).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, heads, T, d]
        queries, keys, values = turned(parts[0], at), turned(parts[1], at), parts[2]
        if memory is not None:
            rows = len(states)
            memory[0][:rows, :, at.tokens], memory[1][:rows, :, at.tokens] = keys, values
            keys, values = (part[:rows, :, : at.tokens.stop] for part in memory)
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(queries, keys, values, at.mask, dropout)
        return F.dropout(self.leave(found.transpose(1, 2).flatten(2)), dropout)


class GatedFeedForward(nn.Module):
    """``leave(gelu(gate(x)) * value(x))``: the reference's SwiGLU is built with GELU.

    Args:
        width: W; the hidden width is ``int(8 W / 3)``.
        dropout: of the result.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        hidden = int(width * 8 / 3)
        self.gate, self.value = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.leave = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """``[..., W]`` to ``[..., W]``."""
        return self.dropout(self.leave(F.gelu(self.gate(states)) * self.value(states)))


class Block(nn.Module):
    """Attention and feed-forward layer, both scaled, shifted and weighted by what the condition says (adaLN, DiT,
    https://arxiv.org/abs/2212.09748), after a norm without parameters.

    Args:
        width: W.
        heads: of the attention.
        dropout: of attention and feed-forward layer.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.modulation = Silent(width, 6 * width)
        self.attention = Attention(width, heads, dropout)
        self.feed = GatedFeedForward(width, dropout)

    def forward(self, states: Tensor, at: Pass, memory: tuple[Tensor, Tensor] | None) -> Tensor:
        """``[B, T, W]`` to ``[B, T, W]``."""
        modulation = self.modulation(F.silu(at.condition))  # [B, E, 6 W]
        if at.repeats is not None:
            modulation = modulation.repeat_interleave(at.repeats, dim=1, output_size=states.shape[1])
        weight1, weight2, scale1, scale2, shift1, shift2 = modulation.chunk(6, dim=-1)
        states = states + weight1 * self.attention(normed(states) * (1 + scale1) + shift1, at, memory)
        return states + weight2 * self.feed(normed(states) * (1 + scale2) + shift2)


class Stack(nn.Module):
    """Learned places, blocks, and a norm behind them.

    Args:
        layers: number of blocks.
        tokens: L.
        width: W.
        heads: of the attention.
        dropout: of the blocks.
        entry: what states go through behind their places.
    """

    def __init__(self, layers: int, tokens: int, width: int, heads: int, dropout: float, entry: nn.Module) -> None:
        super().__init__()
        self.entry = entry
        self.positions = nn.Parameter(torch.zeros(tokens, width))
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(width, EPSILON)

    def forward(self, states: Tensor, at: Pass, memory: Memory | None, before: int) -> Tensor:
        """``[B, T, W]`` to ``[B, T, W]``.

        Args:
            states: of the tokens.
            at: what the blocks share.
            memory: of all blocks of the network.
            before: number of blocks before these.
        """
        states = self.entry(states + self.positions[at.tokens])
        for layer, block in enumerate(self.blocks, before):
            states = block(states, at, None if memory is None else (memory.keys[layer], memory.values[layer]))
        return self.norm(states)


class TimeEmbedding(nn.Module):
    """Vectors of times, through waves of the integer part of ``1000 t``.

    Args:
        width: W.
        waves: half of them cosines, half sines.
    """

    def __init__(self, width: int, waves: int = 256) -> None:
        super().__init__()
        self.waves = waves
        self.first, self.second = nn.Linear(waves, width), nn.Linear(width, width)

    def forward(self, times: Tensor) -> Tensor:
        """``[...]`` float in [0, 1] to ``[..., W]``."""
        half = self.waves // 2
        frequencies = torch.exp(torch.arange(half, device=times.device) * (-math.log(BASE) / half))
        angles = (times.float() * 1000).floor()[..., None] * frequencies
        found = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.first.weight.dtype)
        return self.second(F.silu(self.first(found)))


def normed(states: Tensor) -> Tensor:
    return F.rms_norm(states, states.shape[-1:], eps=EPSILON)


def angles_of(places: Tensor, width: int) -> Tensor:
    """``[T, d / 2]`` of rows and columns ``[T, 2]``: half of the pairs of channels turn by row, half by column."""
    quarter = width // 4
    frequencies = BASE ** -(torch.arange(quarter, device=places.device) / quarter)
    return (places[..., None] * frequencies).flatten(1)


def turned(heads: Tensor, at: Pass) -> Tensor:
    """``[B, heads, T, d]`` with the channels 2i and 2i + 1 turned together."""
    even, odd = heads.float().unflatten(-1, (-1, 2)).unbind(-1)
    found = torch.stack([even * at.cosine - odd * at.sine, odd * at.cosine + even * at.sine], dim=-1)
    return found.flatten(-2).to(heads.dtype)
