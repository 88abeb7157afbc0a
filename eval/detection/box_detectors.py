"""Detectors without masks for GenEval's rules: DETR and OWLv2 from ``transformers``.

Their confidences mean something else than those of GenEval's detector, for which 0.3 and 0.9 were chosen: thresholds
must be recalibrated for each of them before scores mean anything, e.g. on pictures whose content is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import DetrForObjectDetection, Owlv2ForObjectDetection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ...tokenizers.anatomy import statistics
from ..checkpoints import load_tokenizer, pooled, tokens_hash
from ..geneval_prompts import COCO_NAMES
from ..protocol import state_hash
from .detected import Detected, require_finite
from .local import LocalDetector
from .mask2former import MEAN, STD, normalised, resized

#: COCO's own names of the classes that GenEval names otherwise.
RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}

#: Names of label ids that no object of COCO has ever had.
_GAPS = ("N/A", "street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door", "blender")
GAPS = frozenset((*_GAPS, "hair brush"))


class DetrDetector(LocalDetector):
    """Finds the 80 classes of COCO by a DETR (arXiv 2005.12872), without masks.

    One box for each query whose best class is one of COCO's, inside the picture.

    Args:
        folder: local folder of a DETR trained on COCO, e.g. ``facebook/detr-resnet-50`` in its revision ``no_timm``.
        device: where it runs, in float32.
        threshold: score to be exceeded. The default is uncalibrated: 0.3 must be recalibrated for this detector.
        counting_threshold: the same for counting. The default is uncalibrated: so must 0.9.

    Raises:
        FileNotFoundError: if no DETR is in the folder.
        ValueError: if it holds another model, or its class names are not those of COCO.
        ImportError: if its backbone is one of timm's, and timm is not installed.
    """

    name = "detr"
    network = DetrForObjectDetection

    def describe(self) -> dict[str, Any]:
        """How pictures are prepared, and a hash of which class each label id means."""
        return {"mean": list(MEAN), "std": list(STD), "labels_hash": state_hash({"labels": self._classes})}

    def _prepare(self, folder: Path) -> None:
        self._classes = coco_labels(self._net.config.id2label)

    def _detect(self, image: Image.Image) -> Detected:
        pixels = normalised(resized(image)).to(self._net.device)
        output: Any = self._net(pixel_values=pixels[None])
        scores, ids = output.logits[0].float().softmax(-1)[:, :-1].max(-1)
        labels = self._classes.to(ids.device)[ids]
        kept = labels >= 0
        boxes = corners(output.pred_boxes[0], image.width, image.height, image)
        require_finite(boxes, scores.cpu())  # here, because NaN may seem to be of no class of COCO
        return Detected(boxes[kept.cpu()], scores[kept].cpu(), labels[kept].cpu())


class Owlv2Detector(LocalDetector):
    """Finds the 80 classes of COCO by their names with an OWLv2 (arXiv 2306.09683), without masks.

    One box for each patch, of its best class, inside the picture. The picture is padded to a square with gray and
    resized; where it shrinks, by an antialiased bilinear filter in place of the published Gaussian blur.

    Args:
        folder: local folder of an OWLv2 with its tokenizer, e.g. of ``google/owlv2-base-patch16-ensemble``.
        device: where it runs, in float32.
        threshold: score to be exceeded. The default is uncalibrated: 0.3 must be recalibrated for this detector.
        counting_threshold: the same for counting. The default is uncalibrated: so must 0.9.

    Raises:
        FileNotFoundError: if no OWLv2, or no tokenizer, is in the folder.
        ValueError: if it holds another model.
    """

    name = "owlv2"
    network = Owlv2ForObjectDetection

    def describe(self) -> dict[str, Any]:
        """How pictures are prepared, and a hash of the tokens of the classes' names."""
        mean, std = (list(values) for values in self._statistics)
        return {"mean": mean, "std": std, "tokens_hash": self._tokens_hash}

    def _prepare(self, folder: Path) -> None:
        self._statistics = statistics(str(folder)) or (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        texts = [f"a photo of a {name}" for name in COCO_NAMES]
        tokens = load_tokenizer(folder)(texts, padding=True, return_tensors="pt")
        self._tokens_hash = tokens_hash(tokens)
        self._queries = self._embedded(tokens.to(self._net.device))

    def _detect(self, image: Image.Image) -> Detected:
        features: Tensor = self._net.image_embedder(self._input(image).to(self._net.device))[0]
        rows = features.flatten(1, 2)
        logits: Tensor = self._net.class_predictor(rows, self._queries[None])[0]
        boxes: Tensor = self._net.box_predictor(rows, features)
        scores, labels = logits[0].float().sigmoid().max(-1)
        side = max(image.size)  # boxes are relative to the padded square
        return Detected(corners(boxes[0], side, side, image), scores.cpu(), labels.cpu())

    def _input(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
        side = max(image.size)
        square = F.pad(pixels, (0, side - image.width, 0, side - image.height), value=0.5)
        size: int = self._net.config.vision_config.image_size
        shrinks = side > size
        square = F.interpolate(square[None], (size, size), mode="bilinear", align_corners=False, antialias=shrinks)
        mean, std = (torch.tensor(values)[:, None, None] for values in self._statistics)
        return (square - mean) / std

    @torch.inference_mode()
    def _embedded(self, tokens: Mapping[str, Tensor]) -> Tensor:
        output: Any = self._net.owlv2.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        return F.normalize(pooled(output), dim=-1)


def coco_labels(names: Mapping[int, str]) -> Tensor:
    """For each label id of a detector its place in ``COCO_NAMES``, int64; -1 for ids that no object of COCO has.

    Args:
        names: the detector's name of each id, ids from 0 without holes: COCO's own names or GenEval's.

    Raises:
        ValueError: if a name is none of COCO's, or a class of COCO has no id; the message lists them.
    """
    places = {name: place for place, name in enumerate(COCO_NAMES)} | dict.fromkeys(GAPS, -1)
    renamed = [RENAMED.get(names[label], names[label]) for label in range(len(names))]
    unknown = [name for name in renamed if name not in places]
    missing = [name for name in COCO_NAMES if name not in renamed]
    if unknown or missing:
        what = f"unknown {', '.join(unknown)}" if unknown else f"no {', '.join(missing)}"
        raise ValueError(
            f"expected a detector of the {len(COCO_NAMES)} COCO classes, got {what}; use one trained on COCO, with its "
            "class names in id2label of config.json"
        )
    return torch.tensor([places[name] for name in renamed])


def corners(boxes: Tensor, width: float, height: float, image: Image.Image) -> Tensor:
    """Corners of boxes in pixels, cut off at the borders of the picture, on the CPU.

    Args:
        boxes: ``(n, 4)`` centre, width and height relative to ``width`` and ``height``.
        width: that 1 stands for along x, in pixels.
        height: that 1 stands for along y, in pixels.
        image: the picture whose borders are meant.

    Returns:
        ``(n, 4)`` float32: x0, y0, x1, y1.
    """
    center, half = boxes[:, :2].float(), boxes[:, 2:].float() / 2
    scale = torch.tensor([width, height, width, height])
    limit = torch.tensor([image.width, image.height] * 2).float()
    return (torch.cat([center - half, center + half], 1).cpu() * scale).clamp(min=torch.zeros(4), max=limit)
