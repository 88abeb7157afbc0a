"""Slot-MLLM's slot attention (asdfasdf127/Slot-MLLM, no licence file; BSD-3 headers from LAVIS)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..tokenizers.attention import PostNorm
from ..tokenizers.qformer import GRUSlotAttention, MorphSlotAttention
from .golden import Golden
from .keymap import fill
from .maps import POST_NORM_ATTENTION


def replay_morph(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``slot_morph`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    sizes = (config["hidden_size"], config["num_attention_heads"], config["encoder_width"])
    mixer = MorphSlotAttention(*sizes, epsilon=config["morph_eps"])
    block = _block(mixer, config, weights, "slot_morph")
    slots, memory = inputs["slots"], inputs["inputs"]
    return {
        "attention": mixer.attend(slots, memory),
        "slots": mixer(slots, memory),
        "block": block(slots, memory),
    }


def replay_gru(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``slot_gru`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    sizes = (config["hidden_size"], config["num_attention_heads"], config["encoder_width"])
    mixer = GRUSlotAttention(*sizes, epsilon=config["gru_eps"], half=config["use_half_slot"])
    block = _block(mixer, config, weights, "slot_gru")
    slots, memory = inputs["slots"], inputs["inputs"]
    found = dict[str, Tensor]()
    for rounds in config["num_iterations"]:
        mixer.rounds = rounds
        found[f"slots_iter{rounds}"], found[f"attention_iter{rounds}"] = mixer.attend(slots, memory)
        found[f"block_iter{rounds}"] = block(slots, memory)
        mixer.only_half = True
        found[f"slots_half_iter{rounds}"] = mixer(slots, memory)
        mixer.only_half = config["use_half_slot"]
    return found


def _block(
    mixer: MorphSlotAttention | GRUSlotAttention, config: Mapping[str, Any], weights: Mapping[str, Tensor], name: str
) -> PostNorm:
    width = config["hidden_size"]
    block = PostNorm(mixer, width, width, config["layer_norm_eps"]).eval()
    fill(block, weights, POST_NORM_ATTENTION, name)
    return block
