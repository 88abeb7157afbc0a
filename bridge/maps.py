"""Maps of the blocks that several projects share."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from ..tokenizers.convolutional import ConvDecoder, ConvEncoder, Downsample, ResidualBlock, SpatialAttention, Upsample
from .keymap import Copy, Drop, Join, Rule, Split, Under

#: AttentionProjection of DualToken and UniTok.
ATTENTION_PROJECTION: tuple[Rule, ...] = (
    Copy(r"attn\.qkv\.weight", "qkv.weight"),
    Copy(r"attn\.(q|v)_bias", lambda match: {"q": "query_bias", "v": "value_bias"}[match[1]]),
    Drop(r"attn\.zero_k_bias", "keys have no bias", zero=True),
    Copy(r"attn\.proj\.(weight|bias)", r"out.\1"),
    Copy(r"proj\.(weight|bias)", r"skip.\1"),
    Copy(r"norm1\.(weight|bias)", r"norm_attention.\1"),
    Copy(r"norm3\.(weight|bias)", r"norm_skip.\1"),
    Copy(r"norm2\.(weight|bias)", r"norm_mlp.\1"),
    Copy(r"mlp\.norm\.(weight|bias)", r"mlp.norm.\1"),
    Copy(r"mlp\.w([012])\.(weight|bias)", lambda match: f"mlp.{('gate', 'up', 'down')[int(match[1])]}.{match[2]}"),
)

#: A vision transformer's pre-norm block (timm's names).
PRE_NORM_BLOCK: tuple[Rule, ...] = (
    Copy(r"norm1\.(weight|bias)", r"norm_attention.\1"),
    Copy(r"norm2\.(weight|bias)", r"norm_mlp.\1"),
    Split(r"attn\.qkv\.(weight|bias)", r"attention.{part}.\1", ("query", "key", "value")),
    Copy(r"attn\.proj\.(weight|bias)", r"out.\1"),
    Copy(r"mlp\.fc1\.(weight|bias)", r"mlp.0.\1"),
    Copy(r"mlp\.fc2\.(weight|bias)", r"mlp.2.\1"),
)

#: BERT's attention block with its output layer and norm.
POST_NORM_ATTENTION: tuple[Rule, ...] = (
    Copy(r"self\.(query|key|value)\.(weight|bias)", r"mixer.\1.\2"),
    Copy(r"self\.(gru)\.(weight|bias)_(ih|hh)", r"mixer.\1.\2_\3"),
    Copy(r"self\.(norm_slots|norm_mlp|mlp\.\d)\.(weight|bias)", r"mixer.\1.\2"),
    Copy(r"output\.dense\.(weight|bias)", r"out.\1"),
    Copy(r"output\.LayerNorm\.(weight|bias)", r"norm.\1"),
)

_RESIDUAL = {"norm1": "layers.0", "conv1": "layers.2", "norm2": "layers.3", "conv2": "layers.5", "nin_shortcut": "skip"}


#: A residual block of convolutions (taming-transformers' names).
RESIDUAL_BLOCK = Copy(
    rf"(?P<inner>{'|'.join(_RESIDUAL)})\.(?P<kind>weight|bias)",
    lambda match: f"{_RESIDUAL[match['inner']]}.{match['kind']}",
)


@dataclass(frozen=True)
class LayerNames:
    """How a project names the layers of its VQGAN encoder and decoder, as templates with numbers."""

    middle: tuple[str, str, str]  #: residual block, attention, residual block
    block: str  #: of ``{side}`` and ``{stage}``, before its layers
    residual: str  #: the ``{index}``-th residual block of a stage
    attention: str  #: the attention after it
    sides: tuple[str, str]  #: what ``{side}`` is in the encoder and in the decoder
    finest_first: bool  #: whether the decoder's stages are counted from the pixels

    def stage(self, module: ConvEncoder | ConvDecoder, place: int, count: int) -> str:
        """Prefix of the stage that comes at ``place`` of ``count``."""
        decoding = isinstance(module, ConvDecoder)
        number = count - 1 - place if decoding and self.finest_first else place
        return self.block.format(side=self.sides[decoding], stage=number)


#: LlamaGen's names; TokenFlow, PAR, RandAR and NAR took them over.
LLAMAGEN = LayerNames(
    ("mid.0", "mid.1", "mid.2"), "conv_blocks.{stage}", "res.{index}", "attn.{index}", ("", ""), finest_first=False
)
#: Names of taming-transformers, which IBQ and Open-MAGVIT2 kept.
TAMING = LayerNames(
    ("mid.block_1", "mid.attn_1", "mid.block_2"),
    "{side}.{stage}",
    "block.{index}",
    "attn.{index}",
    ("down", "up"),
    finest_first=True,
)


def vqgan_rules(module: ConvEncoder | ConvDecoder, names: LayerNames = LLAMAGEN) -> list[Rule]:
    """A project's names of a VQGAN encoder or decoder."""
    named = _layers(module, names)
    any_layer = "|".join(re.escape(name) for name in sorted(named, key=len, reverse=True))

    def layer(match: re.Match[str]) -> str:
        return named[match["layer"]]

    return [
        Copy(r"conv_in\.(weight|bias)", r"layers.0.\1"),
        Copy(r"norm_out\.(weight|bias)", lambda match: f"layers.{len(module.layers) - 2}.{match[1]}"),
        Copy(r"conv_out\.(weight|bias)", r"last.\1"),
        Copy(
            rf"(?P<layer>{any_layer})\.(?P<inner>{'|'.join(_RESIDUAL)})\.(?P<kind>weight|bias)",
            lambda match: f"{layer(match)}.{_RESIDUAL[match['inner']]}.{match['kind']}",
        ),
        Join(
            rf"(?P<layer>{any_layer})\.(?P<part>q|k|v)\.(?P<kind>weight|bias)",
            lambda match: f"{layer(match)}.qkv.{match['kind']}",
            ("q", "k", "v"),
        ),
        Copy(
            rf"(?P<layer>{any_layer})\.(?P<inner>norm|proj_out|conv)\.(?P<kind>weight|bias)",
            lambda match: f"{layer(match)}.{match['inner'].replace('proj_out', 'out')}.{match['kind']}",
        ),
    ]


def _layers(module: ConvEncoder | ConvDecoder, names: LayerNames) -> dict[str, str]:
    """Their name of every block -> ours: the decoder's middle comes first, the encoder's last."""
    blocks = [(index, layer) for index, layer in enumerate(module.layers) if isinstance(layer, _BLOCKS)]
    middle = blocks[:3] if isinstance(module, ConvDecoder) else blocks[-3:]
    rest = blocks[3:] if isinstance(module, ConvDecoder) else blocks[:-3]
    named = {name: f"layers.{index}" for name, (index, _) in zip(names.middle, middle, strict=True)}
    stages = 1 + sum(isinstance(layer, Upsample | Downsample) for _, layer in rest)
    stage, counts = 0, Counter[str]()
    for index, layer in rest:
        prefix = names.stage(module, stage, stages)
        if isinstance(layer, Upsample | Downsample):
            named[f"{prefix}.{type(layer).__name__.lower()}"] = f"layers.{index}"
            stage, counts = stage + 1, Counter[str]()
        else:
            kind = names.residual if isinstance(layer, ResidualBlock) else names.attention
            named[f"{prefix}.{kind.format(index=counts[kind])}"] = f"layers.{index}"
            counts[kind] += 1
    return named


_BLOCKS = (ResidualBlock, SpatialAttention, Upsample, Downsample)


def qformer_rules(*, text: bool) -> list[Rule]:
    """SEED's names of its Q-Former; ``text`` where the file also holds the text side, which queries never pass."""
    layer = r"encoder\.layer\.(\d+)\."
    rules: list[Rule] = [
        Copy(r"embeddings\.LayerNorm\.(weight|bias)", r"norm.\1"),
        Copy(layer + r"intermediate_query\.dense\.(weight|bias)", r"layers.\1.mlp.mixer.linear.\2"),
        Copy(layer + r"output_query\.dense\.(weight|bias)", r"layers.\1.mlp.out.\2"),
        Copy(layer + r"output_query\.LayerNorm\.(weight|bias)", r"layers.\1.mlp.norm.\2"),
        Under(layer + r"attention\.", r"layers.\1.attention.", POST_NORM_ATTENTION),
        Under(layer + r"crossattention\.", r"layers.\1.reading.", POST_NORM_ATTENTION),
    ]
    if text:
        why = "only text passes it"
        rules += [
            Drop(r"embeddings\.(?:(?:word|position)_embeddings\.weight|position_ids)", why),
            Drop(layer + r"(intermediate|output)\.(dense|LayerNorm)\.(weight|bias)", why),
        ]
    return rules
