"""Image features beside captions: the first stage of SEED and Slot-MLLM, and UniTok's term of CLIP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertModel,
    CLIPTextModel,
    PreTrainedModel,
    SiglipTextConfig,
    SiglipTextModel,
)

from ..lm.vocabulary import Vocabulary
from .processes import everywhere


class TextTower(nn.Module):
    """Captions to features, by a text encoder of ``transformers``.

    Args:
        vocabulary: cuts captions into pieces.
        width: C, hidden size.
        layers: number of transformer layers.
        heads: attention heads.
        length: longest caption, in pieces.
    """

    def __init__(
        self, vocabulary: Vocabulary, width: int = 128, layers: int = 4, heads: int = 4, length: int = 32
    ) -> None:
        super().__init__()
        padding = vocabulary.special("<pad>")
        config = SiglipTextConfig(
            vocab_size=padding + 1,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=length,
            projection_size=width,
            pad_token_id=padding,
            bos_token_id=None,
            eos_token_id=None,
        )
        self._be(SiglipTextModel(config), lambda captions: vocabulary.padded(captions, length), pooled=True)

    @classmethod
    def from_checkpoint(cls, checkpoint: str, vocabulary: Vocabulary | None = None, freeze: bool = False) -> TextTower:
        """The text encoder of a SigLIP, CLIP or BERT checkpoint: a local folder or a hub id.

        Args:
            checkpoint: a text encoder, or a model that has one.
            vocabulary: of its captions, where it was trained here; the checkpoint's own tokenizer by default.
            freeze: keep it as it is.

        Raises:
            ValueError: a checkpoint of another kind.
        """
        kind = AutoConfig.from_pretrained(checkpoint).model_type
        if kind not in _KINDS:
            raise ValueError(
                f"a text tower starts from a checkpoint of {', '.join(_KINDS)}, got {kind!r} in {checkpoint}; "
                "choose another"
            )
        chosen = _KINDS[kind]
        model = chosen.model.from_pretrained(checkpoint)
        length: int = model.config.max_position_embeddings
        tower = cls.__new__(cls)
        nn.Module.__init__(tower)
        cut = _own_tokenizer(checkpoint, length) if vocabulary is None else _padded(vocabulary, length)
        tower._be(model, cut, pooled=chosen.pooled)
        return tower.requires_grad_(not freeze)

    def ids(self, captions: list[str]) -> Tensor:
        """Ids ``[B, length]`` int64 of captions, padded.

        Raises:
            ValueError: an empty caption, or one that the vocabulary cannot cut.
        """
        if not all(caption.strip() for caption in captions):
            raise ValueError(
                "a contrastive loss needs a caption for every picture, got one without; add the missing captions or "
                "leave those pictures out"
            )
        return self._cut(captions)

    def forward(self, ids: Tensor) -> Tensor:
        """``[B, C]`` from ids ``[B, length]``."""
        found = self.model(input_ids=ids)
        return found.pooler_output if self._pooled else found.last_hidden_state[:, 0]

    def _be(self, model: PreTrainedModel, cut: Callable[[list[str]], Tensor], *, pooled: bool) -> None:
        self.model, self._cut, self._pooled = model, cut, pooled
        self.width: int = model.config.hidden_size


class Contrast(nn.Module):
    """Which caption belongs to which picture: cross-entropy over a batch, both ways (CLIP, arXiv 2103.00020).

    Equal captions of a batch belong to all their pictures. Pictures and captions of all ranks are compared. Defaults
    are SEED's first stage (https://arxiv.org/abs/2307.08041).

    Args:
        image_dim: width of the picture's feature, :attr:`~smalti.tokenizers.base.TrainingTerms.summary`.
        text: encodes the captions.
        dim: width that both are brought to; None leaves the picture's feature as it is, so that the texts' features are
            classes for it (zero-shot), and brings those to its width.
        temperature: learned, from this value on; divides the cosines.
        smoothing: share of the targets that is spread evenly over the batch.
    """

    def __init__(
        self,
        image_dim: int,
        text: TextTower,
        dim: int | None = 256,
        temperature: float = 0.07,
        smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        self.text, self.smoothing = text, smoothing
        self.from_image = nn.Identity() if dim is None else nn.Linear(image_dim, dim)
        self.from_text = nn.Linear(text.width, dim or image_dim)
        self.temperature = nn.Parameter(torch.tensor([temperature]))  # with an axis, so that it can be sharded

    def forward(self, summary: Tensor, captions: list[str]) -> Tensor:
        """A float32 scalar.

        Args:
            summary: ``[B, image_dim]`` of the pictures.
            captions: theirs, B of them.
        """
        ids = self.text.ids(captions).to(summary.device)
        pictures = F.normalize(self.from_image(summary).float(), dim=-1)
        texts = F.normalize(self.from_text(self.text(ids)).float(), dim=-1)
        all_pictures, all_texts, all_ids = everywhere(pictures), everywhere(texts), everywhere(ids)
        pairs = (ids[:, None] == all_ids[None]).all(-1).float()
        targets = pairs / pairs.sum(1, keepdim=True)
        scale = self.temperature.float().clamp(0.001, 0.5)
        ways = ((pictures, all_texts), (texts, all_pictures))
        losses = [F.cross_entropy(a @ b.T / scale, targets, label_smoothing=self.smoothing) for a, b in ways]
        return torch.stack(losses).mean()


@dataclass(frozen=True)
class _Kind:
    model: Any  # class in transformers
    pooled: bool  # whether the model pools; else the first token speaks for the caption


_KINDS = {
    **dict.fromkeys(("siglip", "siglip_text_model"), _Kind(SiglipTextModel, pooled=True)),
    **dict.fromkeys(("clip", "clip_text_model"), _Kind(CLIPTextModel, pooled=True)),
    "bert": _Kind(BertModel, pooled=False),
}


def _padded(vocabulary: Vocabulary, length: int) -> Callable[[list[str]], Tensor]:
    return lambda captions: vocabulary.padded(captions, length)


def _own_tokenizer(checkpoint: str, length: int) -> Callable[[list[str]], Tensor]:
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
    return lambda captions: tokenizer(captions, **options).input_ids
