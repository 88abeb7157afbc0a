"""AiT's VQ-VAE of masks and depth maps (https://arxiv.org/abs/2301.02229; SwinTransformer/AiT, no licence file)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..tokenizers.averaged import AveragedQuantizer
from ..tokenizers.soft import MapDecoder, MapEncoder, soft_rows
from .golden import Golden
from .keymap import Copy, Rule, fill
from .tensors import gradients, of_map, to_map


def rules(built: nn.ModuleDict) -> list[Rule]:
    """Reference names of encoder, decoder, table and its averages."""
    decoder = built["decoder"]
    assert isinstance(decoder, MapDecoder)
    return [
        Copy(rf"decoder\.{len(decoder.layers)}\.(weight|bias)", r"decoder.last.\1"),
        Copy(r"(encoder|decoder)\.(\d+)\.(weight|bias)", r"\1.layers.\2.\3"),
        Copy(r"(encoder|decoder)\.(\d+)\.net\.(\d)\.(weight|bias)", r"\1.layers.\2.layers.\3.\4"),
        Copy(r"_vq_vae\._embedding", "quantizer.table"),
        Copy(r"_vq_vae\._ema_cluster_size", "quantizer.counts"),
        Copy(r"_vq_vae\._ema_w", "quantizer.sums"),
    ]


def parts(config: Mapping[str, Any]) -> nn.ModuleDict:
    """Untrained parts of a reference configuration."""
    shape = tuple(config[name] for name in ("embedding_dim", "hidden_dim", "downsample_ratio", "num_resnet_blocks"))
    quantizer = AveragedQuantizer(
        config["embedding_dim"],
        config["num_embeddings"],
        decay=config["ema_decay"],
        commitment=config["commitment_cost"],
        epsilon=config["ema_epsilon"],
        keep_smoothed=True,
        revive_below=0.0,
    )
    return nn.ModuleDict(
        {"encoder": MapEncoder(*shape, channels=1), "quantizer": quantizer, "decoder": MapDecoder(*shape, channels=1)}
    ).eval()


def replay(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``ait_soft`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    built = parts(config)
    fill(built, weights, rules(built), "ait_soft")
    quantizer = built["quantizer"]
    assert isinstance(quantizer, AveragedQuantizer)
    scaled = inputs["map"][:, None]
    encoded = built["encoder"](2 * scaled - 1 if config["use_norm"] else scaled).detach()
    shape = encoded.shape[2:]
    latents = of_map(encoded).requires_grad_()
    quantized = quantizer(latents)

    def decoded(rows: Tensor) -> Tensor:
        found = built["decoder"](to_map(rows, shape))[:, 0]
        return (found + 1) / 2 if config["use_norm"] else found

    soft = soft_rows(of_map(inputs["logits"]), quantizer.table, config["tau"])
    hard = quantizer.lookup(of_map(inputs["logits"]).argmax(-1, keepdim=True))
    pull = (quantized.latents * of_map(inputs["cotangent"])).mean()
    (to_latents,) = gradients(quantized.loss + pull, latents)
    shares = torch.bincount(quantized.ids.flatten(), minlength=quantizer.size) / quantized.ids.numel()
    found = {
        "encoder": encoded,
        "indices": quantized.ids[..., 0],
        "decoded": decoded(quantizer.lookup(quantized.ids)),
        "soft_embedding": to_map(soft, shape),
        "decoded_soft": decoded(soft),
        "decoded_hard": decoded(hard),
        "commit_loss": quantized.loss,
        "quantized": to_map(quantized.latents, shape),
        "perplexity": (-(shares * (shares + 1e-10).log()).sum()).exp(),
        "grad_encoder": to_map(to_latents, shape),
    }
    quantizer.train()(latents.detach())
    return found | {
        "ema_cluster_size": quantizer.counts,
        "ema_w": quantizer.sums,
        "ema_table": quantizer.table,
    }
