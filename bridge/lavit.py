"""LaVIT's dynamic tokenizer (https://arxiv.org/abs/2309.04669; jy0205/LaVIT, LaVIT Community License)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..tokenizers.attention import bottleneck
from ..tokenizers.lavit import TokenMerger, TokenSelector
from ..tokenizers.learned import GradientQuantizer
from .golden import Golden
from .keymap import Copy, Rule, Split, Under, fill

_BLOCK: tuple[Rule, ...] = (
    Copy(r"norm([012])\.(weight|bias)", lambda match: f"norm_{('kept', 'dropped', 'mlp')[int(match[1])]}.{match[2]}"),
    Split(r"token_causal_attn\.qkv\.(weight|bias)", r"kept.{part}.\1", ("query", "key", "value")),
    Copy(r"token_causal_attn\.proj\.(weight|bias)", r"kept_out.\1"),
    Copy(r"token_cross_attn\.(query|key|value)\.(weight|bias)", r"dropped.\1.\2"),
    Copy(r"token_cross_attn\.proj\.(weight|bias)", r"dropped_out.\1"),
    Copy(r"mlp\.fc1\.(weight|bias)", r"mlp.0.\1"),
    Copy(r"mlp\.fc2\.(weight|bias)", r"mlp.2.\1"),
)

#: Selector, merger and code book, without the image tower.
TOKENIZER: tuple[Rule, ...] = (
    Copy(r"token_predictor\.in_conv\.(\d)\.(weight|bias)", r"selector.local.\1.\2"),
    Copy(r"token_predictor\.out_conv\.(\d)\.(weight|bias)", r"selector.judge.\1.\2"),
    Copy(r"causal_encoder\.ln_vision\.(weight|bias)", r"merger.norm_in.\1"),
    Copy(r"causal_encoder\.norm\.(weight|bias)", r"merger.norm_out.\1"),
    Under(r"causal_encoder\.blocks\.(\d+)\.", r"merger.blocks.\1.", _BLOCK),
    Copy(r"encode_task_layer\.(\d)\.(weight|bias)", r"down.\1.\2"),
    Copy(r"quantize\.embedding\.weight", "quantizer.table"),
)


def parts(config: Mapping[str, Any], leak: float) -> nn.ModuleDict:
    """Untrained parts of a reference configuration."""
    width = config["width"]
    merger = TokenMerger(
        width, config["layers"], config["heads"], int(width * config["mlp_ratio"]), config["norm_eps"], leak
    )
    return nn.ModuleDict(
        {
            "selector": TokenSelector(width, config["predictor_dim"], config["norm_eps"]),
            "merger": merger,
            "down": bottleneck(width, width, config["code_dim"]),
            "quantizer": GradientQuantizer(config["code_dim"], config["n_code"]),
        }
    ).eval()


def replay(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``lavit_tok`` files: the released softmax, and the exact mask beside it."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    patches, keep = inputs["features"], inputs["keep"].bool()
    released, exact = parts(config, config["softmax_eps"]), parts(config, 0.0)
    for built in (released, exact):
        fill(built, weights, TOKENIZER, "lavit_tok")
    quantizer = released["quantizer"]
    assert isinstance(quantizer, GradientQuantizer)
    merged = released["merger"](patches, keep)
    down = released["down"](merged[keep])
    ids = quantizer(F.normalize(down, dim=-1)[None]).ids
    return {
        "predictor_logprob": released["selector"](patches),
        "merged": merged,
        "merged_exact_mask": exact["merger"](patches, keep),
        "kept": merged[keep],
        "token_counts": keep.sum(1),
        "down": down,
        "indices": ids.flatten(),
        "zq": quantizer.lookup(ids)[0],
    }
