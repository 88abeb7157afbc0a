"""AiT's VQ-VAE of masks and depth maps (https://arxiv.org/abs/2301.02229; SwinTransformer/AiT, no licence file)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..tokenizers.averaged import AveragedQuantizer
from ..tokenizers.soft import UNSCALED, MapDecoder, MapEncoder, SoftTokenizer, soft_rows
from .golden import Golden
from .keymap import Copy, Rule, fill
from .tensors import gradients, of_map, to_map

#: Configuration of the released tokenizer of depth maps in metres.
DEPTH: Mapping[str, Any] = {
    "image_size": 480,
    "num_tokens": 128,
    "codebook_dim": 512,
    "num_resnet_blocks": 2,
    "hidden_dim": 16,
    "downsample_ratio": 32,
    "use_norm": False,
    "max_value": 10.0,
    "residul_type": "v1",
    "train_objective": "regression",
    "ema_decay": 0.99,
    "commitment_cost": 0.25,
}
#: What differs in that of instance masks.
MASKS: Mapping[str, Any] = {**DEPTH, "image_size": 64, "downsample_ratio": 16, "use_norm": True, "max_value": 1.0}
_BUILT_FOR = {"residul_type": "v1", "train_objective": "regression"}


def tokenizer(config: Mapping[str, Any]) -> SoftTokenizer:
    """An untrained tokenizer of a reference configuration; -1 and 1 of its pictures are 0 and ``max_value`` of maps.

    Raises:
        ValueError: a configuration that no release was trained with.
    """
    for name, value in _BUILT_FOR.items():
        if config[name] != value:
            raise ValueError(f"{name} must be {value!r} as released, got {config[name]!r}; leave it out")
    span = UNSCALED if config["use_norm"] else (0.0, config["max_value"])
    shape = (config["codebook_dim"], config["hidden_dim"] * config["downsample_ratio"] // 2)
    shape = (*shape, config["downsample_ratio"], config["num_resnet_blocks"], 1, span)
    quantizer = AveragedQuantizer(
        config["codebook_dim"],
        config["num_tokens"],
        decay=config["ema_decay"],
        commitment=config["commitment_cost"],
        keep_smoothed=True,
        revive_below=0.0,
    )
    return SoftTokenizer(MapEncoder(*shape), quantizer, MapDecoder(*shape), config["image_size"])


def rules(built: SoftTokenizer | nn.ModuleDict) -> list[Rule]:
    """Reference names of encoder, decoder, table and its averages."""
    decoder = built.get_submodule("decoder")
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
