"""LlamaGen's VQ auto-encoder (https://arxiv.org/abs/2406.06525; FoundationVision/LlamaGen, MIT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..tokenizers.convolutional import ConvDecoder, ConvEncoder
from ..tokenizers.learned import GradientQuantizer
from ..tokenizers.vq import VQTokenizer
from .golden import Golden
from .keymap import Copy, Drop, Rule, Under, fill
from .maps import vqgan_rules
from .tensors import gradients, of_map, term, to_map

#: Configuration of the released VQ-16; VQ-8 differs in ``ch_mult``.
VQ_16: Mapping[str, Any] = {
    "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "z_channels": 256,
    "codebook_size": 16384,
    "codebook_embed_dim": 8,
    "codebook_l2_norm": True,
    "commit_loss_beta": 0.25,
    "entropy_loss_ratio": 0.0,
    "resolution": 256,
}
VQ_8: Mapping[str, Any] = {**VQ_16, "ch_mult": [1, 2, 2, 4]}


def vq_tokenizer(config: Mapping[str, Any]) -> VQTokenizer:
    """An untrained tokenizer of a reference configuration."""
    multipliers, blocks = tuple(config["ch_mult"]), config["num_res_blocks"]
    quantizer = GradientQuantizer(
        config["codebook_embed_dim"],
        config["codebook_size"],
        cosine=config["codebook_l2_norm"],
        commitment=config["commit_loss_beta"],
        entropy=config["entropy_loss_ratio"],
    )
    encoder = ConvEncoder(config["z_channels"], config["ch"], multipliers, blocks)
    decoder = ConvDecoder(config["z_channels"], config["ch"], multipliers, blocks + 1)
    return VQTokenizer(encoder, quantizer, decoder, config["resolution"])


def vq_rules(tokenizer: VQTokenizer) -> list[Rule]:
    """Reference names of the whole model."""
    assert isinstance(tokenizer.encoder, ConvEncoder)
    assert isinstance(tokenizer.decoder, ConvDecoder)
    return [
        Under(r"encoder\.", "encoder.", vqgan_rules(tokenizer.encoder)),
        Under(r"decoder\.", "decoder.", vqgan_rules(tokenizer.decoder)),
        Copy(r"quantize\.embedding\.weight", "quantizer.table"),
        Drop(r"quantize\.codebook_used", "it counts recent codes in training"),
        Copy(r"quant_conv\.weight", "narrow.weight", squeeze=True),
        Copy(r"quant_conv\.bias", "narrow.bias"),
        Copy(r"post_quant_conv\.weight", "widen.weight", squeeze=True),
        Copy(r"post_quant_conv\.bias", "widen.bias"),
    ]


def replay_vq(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``llamagen_vq`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    tokenizer = vq_tokenizer(config).eval()
    fill(tokenizer, weights, vq_rules(tokenizer), "llamagen_vq")
    quantizer = tokenizer.quantizer
    assert isinstance(quantizer, GradientQuantizer)
    encoded = tokenizer.encoder(inputs["images"])
    latents = tokenizer.narrow(of_map(encoded)).detach()
    shape = encoded.shape[2:]
    quantized = quantizer(latents)
    codes = tokenizer.encode(inputs["images"])
    looked_up = quantizer.lookup(codes.ids)
    learning = latents.clone().requires_grad_()
    in_training = quantizer.train()(learning)
    pull = (in_training.latents * of_map(inputs["cotangent"])).mean()
    to_latents, to_table = gradients(in_training.loss + pull, learning, quantizer.table)
    forward = tokenizer.eval().training_step_terms(inputs["images"]).reconstruction
    assert forward is not None
    return {
        "encoder": encoded,
        "prequant": to_map(latents, shape),
        "indices": codes.ids.flatten(),
        "quantized": to_map(quantized.latents, shape),
        "entry": to_map(looked_up, shape),
        "decoded": tokenizer.decoder(to_map(tokenizer.widen(quantized.latents), shape)),
        "decoded_from_indices": tokenizer.decoder(to_map(tokenizer.widen(looked_up), shape)),
        "forward": forward,
        "train_vq_loss": term(quantizer, latents, codebook=1.0),
        "train_commit_loss": term(quantizer, latents, commitment=quantizer.commitment),
        "train_entropy_loss": term(quantizer, latents, entropy=quantizer.entropy),
        "grad_prequant": to_map(to_latents, shape),
        "grad_codebook": to_table,
    }
