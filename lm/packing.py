"""Weights laid out for products with few rows, on CPUs: what sampling is made of.

A product of a few rows with a matrix that lies row by row runs at a fraction of the speed at which memory can be read.
oneDNN keeps matrices in blocks for it; frozen graphs of ``torch.compile`` do the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import ATTENTION, attend
from .heads import CodeHead
from .tables import Table


class PackedLinear(nn.Module):
    """An affine map whose matrix lies in oneDNN's blocks. It cannot be trained or moved; its state is a plain matrix's.

    Args:
        weight: ``[out, in]``, on a CPU in float32 or bfloat16; it is copied.
        bias: ``[out]``.

    Raises:
        ValueError: a matrix on another device or of another type.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        weight = weight.detach()
        if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(
                f"weights are packed on a CPU in float32 or bfloat16, got {weight.dtype} on {weight.device}; move the "
                "model there first"
            )
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else bias.detach()
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)

    @property
    def weight(self) -> Tensor:
        """``[out, in]``, a copy that lies row by row."""
        return self._packed.to_dense()

    def forward(self, states: Tensor, onto: Tensor | None = None) -> Tensor:
        """``[..., in]`` to ``[..., out]``, added to ``onto`` where it is given."""
        if onto is None:
            return torch.ops.mkldnn._linear_pointwise(states, self._packed, self.bias, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(states, onto, self._packed, self.bias, "add")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        probe = fn(torch.empty(0, dtype=self._packed.dtype))
        if probe.device.type != "cpu" or probe.dtype != self._packed.dtype:
            raise RuntimeError(
                f"packed weights stay on the CPU in {self._packed.dtype}, got {probe.dtype} on {probe.device}; load "
                "the model again, move it and pack it then"
            )
        return self


class PackedBlock(nn.Module):
    """A block like Llama's whose matrices are packed, without what its class spends on single steps: half as many small
    operations for the same sums. Its state is the plain block's.

    Args:
        block: see :meth:`fits`.
    """

    @staticmethod
    def fits(block: Any) -> bool:
        """Whether a block is of a kind like Llama's, with all of its matrices packed and this package's attention."""
        if type(block).__name__ not in _BLOCKS or block.self_attn.config.hidden_act != "silu":
            return False
        attention, mlp = block.self_attn, block.mlp
        parts = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        matrices = (*parts, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        return attention.config._attn_implementation == ATTENTION and all(type(m) is PackedLinear for m in matrices)

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.self_attn, self.mlp = block.self_attn, block.mlp
        self.input_layernorm, self.post_attention_layernorm = block.input_layernorm, block.post_attention_layernorm
        self.shape = (-1, block.self_attn.head_dim)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> Tensor:
        """As ``transformers`` calls its blocks: states ``[B, T, C]``, cosine and sine ``[B, T, head_dim]``."""
        assert position_embeddings is not None
        attention, mlp = self.self_attn, self.mlp
        cosine, sine = (part[:, :, None] for part in position_embeddings)
        half = self.shape[1] // 2
        sine = torch.cat([-sine[..., :half], sine[..., half:]], dim=-1)
        normed = _normed(self.input_layernorm, hidden_states)
        query, key, value = (
            part(normed).unflatten(-1, self.shape) for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = (torch.addcmul(part * cosine, part.roll(half, -1), sine) for part in (query, key))
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, attention.layer_idx)
        mixed, _ = attend(attention, query, key, value, attention_mask, scaling=attention.scaling)
        states = attention.o_proj(mixed.flatten(2), hidden_states)
        normed = _normed(self.post_attention_layernorm, states)
        return mlp.down_proj(F.silu(mlp.gate_proj(normed)).mul_(mlp.up_proj(normed)), states)


#: Blocks of ``transformers`` that compute what :class:`PackedBlock` does.
_BLOCKS = ("LlamaDecoderLayer", "Qwen2DecoderLayer", "MistralDecoderLayer")


class PackedRows(nn.Module):
    """The output rows of the blocks of codes that a head classifies by, packed. They are copies: the state has none.

    Args:
        table: output rows, on a CPU in float32 or bfloat16.
        head: that chooses from the blocks.

    Raises:
        ValueError: rows on another device or of another type.
    """

    def __init__(self, table: Table, head: CodeHead) -> None:
        super().__init__()
        blocks = {block.ids for column, block in enumerate(head.blocks) if head.classifier(column) is None}
        if not torch.backends.mkldnn.is_available():
            blocks = set[range]()
        self.products: dict[range, PackedLinear] = {ids: PackedLinear(torch.cat(table.parts(ids))) for ids in blocks}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedRows:
        for product in self.products.values():
            product._apply(fn, recurse)
        return self


def _normed(norm: Any, states: Tensor) -> Tensor:
    return F.rms_norm(states, (states.shape[-1],), norm.weight, norm.variance_epsilon)


def packed(module: nn.Module) -> nn.Module:
    """Replace every plain linear layer within a module, one by one, so that no two copies of all are kept, and blocks
    that :class:`PackedBlock` fits.

    Args:
        module: in evaluation mode, on a CPU.

    Returns:
        The same module, or what stands for it. Unchanged where torch was built without oneDNN.

    Raises:
        ValueError: weights on another device or of another type.
    """
    if not torch.backends.mkldnn.is_available():
        return module
    if type(module) is nn.Linear:
        return PackedLinear(module.weight, module.bias)
    for name, child in list(module.named_children()):
        setattr(module, name, packed(child))
    return PackedBlock(module) if PackedBlock.fits(module) else module
