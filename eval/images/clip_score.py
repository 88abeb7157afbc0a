"""CLIP score: how well a picture fits its prompt, by the angle between their features (https://arxiv.org/abs/2104.08718).

Two scales are in use: ``100 max(cos, 0)``, that of torchmetrics and of most tables, and the paper's ``2.5 max(cos, 0)``
on captions that begin with ``A photo depicts``. A score belongs to its model; numbers of two models are not comparable.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, CLIPModel, SiglipModel

from ..checkpoints import load_local, load_tokenizer, pooled, stated_type
from ..protocol import file_hash, state_hash, text_hash
from .float32 import full_float32
from .summed import SummedMetric

PERCENT = 100.0  #: the weight of most tables
PAPER_WEIGHT = 2.5  #: the paper's w
PAPER_PREFIX = "A photo depicts "  #: what the paper puts before each caption

#: What decides how a tokenizer reads, as far as a folder has it.
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "spiece.model"),
)
#: Steps of an image processor, and the settings of each.
_STEPS = {
    "do_resize": ("size", "resample"),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
}
_MODELS: dict[str, type[Any]] = {"clip": CLIPModel, "siglip": SiglipModel}


def clip_score(images: Tensor, texts: Tensor, weight: float = PERCENT) -> Tensor:
    """``weight max(cos, 0)`` of each pair of features.

    Every pair is cut off at 0, as the formula says; torchmetrics cuts off the mean, which is the same unless an angle
    is obtuse.

    Args:
        images: ``(B, D)`` floats of any length.
        texts: the same shape.
        weight: ``PERCENT`` or ``PAPER_WEIGHT``.

    Returns:
        ``(B,)`` float64 in ``[0, weight]``.

    Raises:
        ValueError: shapes that differ, or features that are not finite.
    """
    if images.ndim != 2 or images.shape != texts.shape:
        raise ValueError(
            f"expected features (B, D) of as many pictures as texts, got {tuple(images.shape)} and "
            f"{tuple(texts.shape)}; pass one text for each picture"
        )
    if not bool(images.isfinite().all() and texts.isfinite().all()):
        raise ValueError("features must be finite, got NaN or infinity; check the pictures and the model")
    return weight * F.cosine_similarity(images.double(), texts.double(), dim=-1).clamp_min(0)


class CLIPScorer:
    """A CLIP or a SigLIP from a local folder that scores pictures against prompts.

    Pictures are prepared by the folder's own image processor, on Pillow; everything runs in float32. Prompts that do
    not fit the model (77 tokens of CLIP, 64 of SigLIP) are cut off: `too_long` names them, `CLIPScoreMetric` warns.

    Args:
        folder: with the model, its tokenizer and its image processor, as ``save_pretrained`` writes them.
        device: where it runs.
        prefix: put before each prompt, e.g. ``PAPER_PREFIX``.

    Raises:
        FileNotFoundError: the model, its tokenizer or its image processor is missing.
        ValueError: another kind of model, or weights that do not fit.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu", prefix: str = "") -> None:
        folder, kind = Path(folder), stated_type(folder) or "clip"
        self._net = load_local(_MODELS.get(kind, CLIPModel), folder, kind if kind in _MODELS else "clip", device)
        self._tokenizer: Any = load_tokenizer(folder)
        self._processor = _image_processor(folder)
        self.preparation = _preparation(self._processor)  #: what is done to a picture, as JSON values
        self.tokenizer_hash = _tokenizer_hash(folder)  #: SHA-256 of the tokenizer's files, 64 hex digits
        self._prefix = prefix
        self._padding = "max_length" if kind == "siglip" else "longest"  # how each was trained
        self.max_tokens: int = self._net.config.text_config.max_position_embeddings
        self.weights_hash = state_hash(self._net.state_dict())  #: SHA-256 of the weights, 64 hex digits
        side, patch = self._net.config.vision_config.image_size, self._net.config.vision_config.patch_size
        self.name = (
            f"{type(self._net).__name__} at {side} pixels in patches of {patch}, {type(self._processor).__name__}, "
            f"{self.max_tokens} tokens, float32{f', prompts after {prefix!r}' if prefix else ''}"
        )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`clip_score` of each picture and its prompt, ``(B,)`` float64 on the CPU.

        Args:
            images: ``(B, 3, H, W)`` uint8.
            prompts: B texts.

        Raises:
            TypeError: pictures that are not uint8.
            ValueError: another number of prompts than of pictures, or another shape.
        """
        if len(images) != len(prompts):
            raise ValueError(f"expected a prompt for each of {len(images)} pictures, got {len(prompts)}; pair them up")
        return clip_score(self.images(images), self.texts(prompts))

    @torch.inference_mode()
    def images(self, images: Tensor) -> Tensor:
        """Features ``(B, D)`` float32 on the CPU, not normalised.

        Args:
            images: ``(B, 3, H, W)`` uint8.

        Raises:
            TypeError: pictures that are not uint8.
            ValueError: another shape.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"the CLIP score reads uint8 pictures, got {images.dtype}; use data.transforms.to_uint8")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"expected pictures of shape (B, 3, H, W), got {tuple(images.shape)}; move the channels there"
            )
        pictures = [Image.fromarray(levels) for levels in images.permute(0, 2, 3, 1).cpu().numpy()]
        pixels: Tensor = self._processor(images=pictures, return_tensors="pt")["pixel_values"]
        with full_float32():
            return pooled(self._net.get_image_features(pixel_values=pixels.to(self._net.device))).float().cpu()

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Features ``(B, D)`` float32 on the CPU, not normalised; prompts are cut off where the model ends."""
        tokens = self._tokenizer(
            [self._prefix + prompt for prompt in prompts],
            padding=self._padding,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self._net.device)
        # SigLIP was trained without a mask: its tower reads the padding.
        mask = tokens["attention_mask"] if self._padding == "longest" else None
        return pooled(self._net.get_text_features(input_ids=tokens["input_ids"], attention_mask=mask)).float().cpu()

    def too_long(self, prompts: Sequence[str]) -> list[int]:
        """Indices of the prompts of which the model does not see the end."""
        if not prompts:
            return []
        ids = self._tokenizer([self._prefix + prompt for prompt in prompts], verbose=False)["input_ids"]
        return [index for index, row in enumerate(ids) if len(row) > self.max_tokens]


class CLIPScoreMetric(SummedMetric):
    """Mean CLIP score over all pairs seen, exact however unevenly the pairs fall on processes.

    States are a float64 sum and integer counts, added across processes.

    Args:
        scorer: the model.
    """

    higher_is_better = True

    total: Tensor
    truncated: Tensor
    count: Tensor

    def __init__(self, scorer: CLIPScorer) -> None:
        super().__init__()
        self.scorer = scorer
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("truncated", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Add one batch.

        Args:
            images: ``(B, 3, H, W)`` uint8.
            prompts: B texts.

        Raises:
            TypeError: as `CLIPScorer`.
            ValueError: as `CLIPScorer`.
        """
        self.total += self.scorer(images, prompts).sum().to(self.total.device)
        self.truncated += len(self.scorer.too_long(prompts))
        self.count += len(prompts)

    def compute(self) -> dict[str, Tensor]:
        """Scores over everything seen; warns of prompts that were cut off.

        Returns:
            ``clip_score`` (``100 max(cos, 0)``, float64), ``clip_s`` (the paper's scale: 2.5 in place of 100; the
            paper's number only with its prefix), ``truncated`` (int64, prompts that were cut off) and ``count``.

        Raises:
            ValueError: if no pair was seen.
        """
        if int(self.count) == 0:
            raise ValueError("expected at least one picture, got none; call update() before compute()")
        if int(self.truncated):
            warnings.warn(
                f"{int(self.truncated)} of {int(self.count)} prompts are longer than the model's "
                f"{self.scorer.max_tokens} tokens and were cut off; the score is of what is left of them",
                stacklevel=2,
            )
        mean = self.total / self.count
        return {
            "clip_score": mean,
            "clip_s": mean * (PAPER_WEIGHT / PERCENT),
            "truncated": self.truncated,
            "count": self.count,
        }

    def describe(self) -> dict[str, Any]:
        """Which model gave the score, and how it read pictures and prompts, as JSON values for a protocol record."""
        return {
            "name": self.scorer.name,
            "weights_hash": self.scorer.weights_hash,
            "tokenizer_hash": self.scorer.tokenizer_hash,
            "preparation": self.scorer.preparation,
            "formula": "100 max(cos, 0)",
        }


def _image_processor(folder: Path) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"expected the image processor of the model in {folder}, which cannot be read "
            f"({' '.join(str(error).split())[:120]}); copy preprocessor_config.json too"
        ) from error


def _preparation(processor: Any) -> dict[str, Any]:
    """The settings of the steps that an image processor takes."""
    stated: dict[str, Any] = processor.to_dict()
    return {name: _plain(name, stated[name]) for step in _STEPS if stated.get(step) for name in _STEPS[step]}


def _plain(name: str, value: Any) -> Any:
    """A setting in JSON types."""
    if name == "resample":
        return Image.Resampling(value).name.lower()
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    return value if isinstance(value, (int, float)) else list(value)


def _tokenizer_hash(folder: Path) -> str:
    return text_hash(f"{name} {file_hash(folder / name)}" for name in _TOKENIZER_FILES if (folder / name).is_file())
