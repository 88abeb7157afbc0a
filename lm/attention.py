"""Attention of the shared model's backbones: a pass over an empty cache is causal, a later one sees all that is cached.

``transformers`` makes a mask of its own for passes of several new steps, causal among them. Steps that are written
together see each other, so here a pass without a mask has none: keys and values lie in the order of generation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

#: Name of this attention among those of ``transformers``.
ATTENTION = "smalti"


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot products, as ``transformers`` calls them.

    Args:
        module: the attention layer.
        query: ``[B, H, T, D]``.
        key: ``[B, H', S, D]``, where H' divides H.
        value: ``[B, H', S, D]``.
        attention_mask: bool or additive, broadcast to ``[B, H, T, S]``. None is causal where ``T == S`` and lets every
            step see all others elsewhere.
        dropout: of the attention weights.
        scaling: of the products.
        kwargs: not used here.

    Returns:
        ``[B, T, H, D]``, and no weights.
    """
    alone = attention_mask is None and query.shape[2] == key.shape[2] and query.shape[2] > 1
    options: dict[str, Any] = {"is_causal": alone, "scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    found = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout, **options)
    return found.transpose(1, 2).contiguous(), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """No mask is made where none is given."""


def use_attention(backbone: PreTrainedModel) -> None:
    """Give a backbone with plain attention this one; eager and flash attention stay."""
    if backbone.config._attn_implementation in (None, "sdpa"):
        backbone.set_attn_implementation(ATTENTION)


def attention_mask(allowed: Tensor, backbone: PreTrainedModel) -> Tensor:
    """What a backbone takes as a mask for bool ``allowed`` ``[B, 1, T, S]``.

    Raises:
        ValueError: a backbone whose attention takes no such mask.
    """
    kind = backbone.config._attn_implementation
    if kind in (ATTENTION, "sdpa"):
        return allowed
    if kind == "eager":
        dtype = backbone.dtype
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )
    raise ValueError(
        f"packed rows, orders other than raster and padded prompts need attention sdpa or eager, got {kind}; set "
        "attn_implementation to sdpa"
    )


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, _no_mask)
