"""The colour of an object by CLIP (arXiv 2103.00020), as GenEval decides it: zero-shot among ten, on masked crops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ...data.transforms import Crop
from ...tokenizers.anatomy import statistics
from ..checkpoints import load_local, load_tokenizer, pooled, tokens_hash
from ..geneval import COLORS
from ..geneval_prompts import COCO_NAMES
from ..images.float32 import full_float32
from ..protocol import state_hash

BACKGROUND = "#999"  #: what covers the surroundings of an object
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")

_BATCH = 16


class ClipColors:
    """Names the colour of objects whose class is known.

    GenEval uses OpenAI's ViT-L/14 under CUDA's autocast; here everything is float32.

    Args:
        folder: local folder of a CLIP with its tokenizer, e.g. of ``openai/clip-vit-large-patch14``.
        device: where it runs.

    Raises:
        FileNotFoundError: if no CLIP, or no tokenizer, is in the folder.
        ValueError: if it holds another model.
    """

    name = "clip-colors"

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        self._net = load_local(CLIPModel, folder, "clip", device)
        self._tokenizer: Any = load_tokenizer(folder)
        self._statistics = statistics(str(folder)) or (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        self._crop = Crop(self._net.config.vision_config.image_size, filter="bicubic")
        self._classifiers: dict[str, Tensor] = {}
        self.weights_hash = state_hash(self._net.state_dict())

    def describe(self) -> dict[str, Any]:
        """Its identity, as JSON values for a protocol record.

        Name and hash of the weights; side, mean and standard deviation of what it sees; and a hash of the tokens that
        stand for the colours of all 80 classes, which covers the tokenizer.
        """
        mean, std = (list(values) for values in self._statistics)
        return {
            "name": self.name,
            "weights_hash": self.weights_hash,
            "size": self._net.config.vision_config.image_size,
            "mean": mean,
            "std": std,
            "tokens_hash": tokens_hash(self._tokens([text for name in COCO_NAMES for text in _texts(name)])),
        }

    @torch.inference_mode()
    def classify(self, name: str, image: Image.Image, boxes: Tensor, masks: Tensor | None = None) -> list[str]:
        """The most probable of ``COLORS`` for each object.

        Args:
            name: the objects' class.
            image: the picture, any mode.
            boxes: ``(k, 4)`` x0, y0, x1, y1 in pixels.
            masks: ``(k, H, W)`` bool in the size of the picture; without masks the surroundings inside the box are
                seen as well.

        Raises:
            ValueError: if there are masks of another number or size, or CLIP computes NaN or infinity.
        """
        if masks is not None and tuple(masks.shape) != (len(boxes), image.height, image.width):
            raise ValueError(
                f"expected {len(boxes)} masks of {image.height}x{image.width}, got {tuple(masks.shape)}; pass one mask "
                "for each box, in the size of the picture"
            )
        picture = image.convert("RGB")
        chosen: list[str] = []
        for start in range(0, len(boxes), _BATCH):
            rows = range(start, min(start + _BATCH, len(boxes)))
            crops = [object_crop(picture, boxes[row], None if masks is None else masks[row]) for row in rows]
            scores = self._features(crops) @ self.classifier(name).T
            if not bool(scores.isfinite().all()):
                raise ValueError(
                    f"expected finite features of the colours of {name!r}, got NaN or infinity; check the weights of "
                    "CLIP and the picture"
                )
            chosen += [COLORS[place] for place in scores.argmax(1).tolist()]
        return chosen

    @torch.inference_mode()
    def classifier(self, name: str) -> Tensor:
        """``(10, C)`` unit text features of the colours of a class: the mean over the templates, normed again."""
        if name not in self._classifiers:
            tokens = self._tokens(_texts(name)).to(self._net.device)
            output: Any = self._net.get_text_features(tokens["input_ids"], tokens["attention_mask"])
            features = F.normalize(pooled(output), dim=-1).unflatten(0, (len(COLORS), len(TEMPLATES)))
            self._classifiers[name] = F.normalize(features.mean(1), dim=-1)
        return self._classifiers[name]

    def _tokens(self, texts: list[str]) -> Any:
        return self._tokenizer(texts, padding=True, return_tensors="pt")

    def _features(self, crops: list[Image.Image]) -> Tensor:
        levels = np.stack([np.array(self._crop(crop)) for crop in crops])
        pixels = torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in self._statistics)
        with full_float32():
            output: Any = self._net.get_image_features(((pixels - mean) / std).to(self._net.device))
        return F.normalize(pooled(output), dim=-1)


def _texts(name: str) -> list[str]:
    """What is asked about a class: colour by colour, each in all templates."""
    return [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]


def object_crop(image: Image.Image, box: Tensor, mask: Tensor | None = None) -> Image.Image:
    """What CLIP sees of an object: the picture inside the box, covered with gray outside of the mask.

    Args:
        image: an RGB picture.
        box: ``(4,)`` x0, y0, x1, y1 in pixels; rounded, and at least one pixel wide and high.
        mask: ``(H, W)`` bool in the size of the picture.
    """
    if mask is not None:
        covered = Image.new("RGB", image.size, BACKGROUND)
        image = Image.composite(image, covered, Image.fromarray(mask.cpu().numpy()))
    x0, y0, x1, y1 = (round(side) for side in box.tolist())
    x0, y0 = min(x0, image.width - 1), min(y0, image.height - 1)
    return image.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
