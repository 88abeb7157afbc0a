"""IBQ's quantizer (https://arxiv.org/abs/2412.02692; TencentARC/SEED-Voken, Apache-2.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..tokenizers.convolutional import ConvDecoder, ConvEncoder
from ..tokenizers.ibq import IndexBackpropagationQuantizer
from ..tokenizers.search import entropies, nearest, soft_index
from ..tokenizers.vq import VQTokenizer
from .golden import Golden
from .keymap import Copy, Drop, Rule, Under, fill
from .maps import TAMING, vqgan_rules
from .tensors import gradients, of_map, to_map

#: Configuration of the released tokenizer of 16384 codes; the others differ in ``n_embed``.
IBQ_16384: Mapping[str, Any] = {
    "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 4,
    "z_channels": 256,
    "n_embed": 16384,
    "embed_dim": 256,
    "beta": 0.25,
    "resolution": 256,
}

#: The one table.
TABLE: tuple[Rule, ...] = (Copy(r"embedding\.weight", "table"),)


def tokenizer(config: Mapping[str, Any]) -> VQTokenizer:
    """An untrained tokenizer of a reference configuration."""
    multipliers, blocks, width = tuple(config["ch_mult"]), config["num_res_blocks"], config["z_channels"]
    return VQTokenizer(
        ConvEncoder(width, config["ch"], multipliers, blocks),
        IndexBackpropagationQuantizer(config["embed_dim"], config["n_embed"], config["beta"]),
        ConvDecoder(width, config["ch"], multipliers, blocks + 1),
        config["resolution"],
        always_project=True,
    )


def rules(built: VQTokenizer) -> list[Rule]:
    """Reference names of the whole model, beside what trains it."""
    assert isinstance(built.encoder, ConvEncoder)
    assert isinstance(built.decoder, ConvDecoder)
    return [
        Under(r"encoder\.", "encoder.", vqgan_rules(built.encoder, TAMING)),
        Under(r"decoder\.", "decoder.", vqgan_rules(built.decoder, TAMING)),
        Under(r"quantize\.", "quantizer.", TABLE),
        Copy(r"quant_conv\.weight", "narrow.weight", squeeze=True),
        Copy(r"quant_conv\.bias", "narrow.bias"),
        Copy(r"post_quant_conv\.weight", "widen.weight", squeeze=True),
        Copy(r"post_quant_conv\.bias", "widen.bias"),
        Drop(r"loss\..*", "discriminator and perceptual distance, for training"),
        Drop(r"model_ema\.(decay|num_updates)", "settings of the averages"),
        Drop(r"model_ema\.loss.*", "averages of the discriminator"),
    ]


def averaged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averages in place of the weights they belong to, as the release evaluates them.

    A file keeps both: ``encoder.conv_in.weight``, and its average as ``model_ema.encoderconv_inweight``.
    """
    found = dict(weights)
    for name in weights:
        average = found.pop(f"model_ema.{name.replace('.', '')}", None)
        if average is not None:
            found[name] = average
    return found


def replay(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``ibq`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    quantizer = IndexBackpropagationQuantizer(
        config["e_dim"], config["n_e"], config["beta"], entropy=0.0, temperature=config["entropy_temperature"]
    ).train()
    fill(quantizer, weights, TABLE, "ibq")
    table, shape = quantizer.table, inputs["z"].shape[2:]
    latents = of_map(inputs["z"]).clone().requires_grad_()
    flat = latents.flatten(0, 1)
    quantized = quantizer(latents)
    rows = quantizer.lookup(quantized.ids).flatten(0, 1)
    values = soft_index(flat, table, nearest(flat, table, "dot"))
    measured = entropies(flat, table, config["entropy_temperature"], "dot")
    entropy = config["sample_minimization_weight"] * measured.sample
    entropy = entropy - config["batch_maximization_weight"] * measured.batch
    task = (quantized.latents * of_map(inputs["cotangent"])).mean()
    found = {
        "logits": to_map(latents @ table.T, shape),
        "indices": quantized.ids.flatten(),
        "zq": to_map(quantized.latents, shape),
        "entry": to_map(quantizer.lookup(quantized.ids), shape),
        "loss_zq_z": F.mse_loss(values, flat),
        "loss_commit": F.mse_loss(flat, rows.detach()),
        "loss_codebook": F.mse_loss(rows, flat.detach()),
        "quant_loss": quantized.loss,
        "sample_entropy": measured.sample,
        "avg_entropy": measured.batch,
        "entropy_loss": entropy,
    }
    for name, loss in (("task", task), ("quant", quantized.loss), ("entropy", entropy)):
        to_latents, to_table = gradients(loss, latents, table, keep=True)
        found |= {f"grad_{name}_z": to_map(to_latents, shape), f"grad_{name}_table": to_table}
    return found
