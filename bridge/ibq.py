"""IBQ's quantizer (https://arxiv.org/abs/2412.02692; TencentARC/SEED-Voken, Apache-2.0)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..tokenizers.ibq import IndexBackpropagationQuantizer
from ..tokenizers.search import entropies, nearest, soft_index
from .golden import Golden
from .keymap import Copy, Rule, fill
from .tensors import gradients, of_map, to_map

#: The one table.
TABLE: tuple[Rule, ...] = (Copy(r"embedding\.weight", "table"),)


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
