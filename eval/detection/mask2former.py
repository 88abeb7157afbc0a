"""Mask2Former (arXiv 2112.01527) as GenEval's detector: mmdet's order of steps, the weights of ``transformers``.

GenEval's own detector is mmdet's Mask2Former with a Swin-S. ``facebook/mask2former-swin-small-coco-instance`` is the
same architecture from another training run: scores by it may be near the official ones, but are not official.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Mask2FormerConfig, Mask2FormerModel
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPreTrainedModel

from ..geneval_prompts import COCO_NAMES
from .detected import Detected, require_finite
from .local import LocalDetector

LONG_SIDE, SHORT_SIDE = 1333, 800  #: bounds of the network's input before it is padded
DIVISOR = 32  #: the padded input's sides are multiples of this
PADDING = 128.0  #: level of the padding, before it is normalised
MOST = 100  #: pairs of query and class that are kept of one picture

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Mask2FormerNet(Mask2FormerPreTrainedModel):
    """Mask2Former without its training loss, which cannot even be constructed where scipy is missing.

    Reads and writes the checkpoints of ``Mask2FormerForUniversalSegmentation``.
    """

    _keys_to_ignore_on_load_unexpected = [r"criterion\.empty_weight"]  # noqa: RUF012 - the base class has a list

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__(config)
        self.model = Mask2FormerModel(config)
        classes: Any = config.num_labels
        self.class_predictor = nn.Linear(config.hidden_dim, classes + 1)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits ``(B, Q, K + 1)``, the last one "no object", and mask logits ``(B, Q, H / 4, W / 4)``.

        Args:
            pixel_values: ``(B, 3, H, W)``, normalised and padded. Padding is seen as picture, as in mmdet:
                neither implementation masks it.
        """
        output: Any = self.model(pixel_values=pixel_values, output_hidden_states=True)
        queries = output.transformer_decoder_intermediate_states[-1].transpose(0, 1)  # the last ones, normed
        return self.class_predictor(queries), output.masks_queries_logits[-1]


class Mask2FormerDetector(LocalDetector):
    """Finds the 80 classes of COCO, with masks, by a Mask2Former of ``transformers``.

    At most 100 objects of a picture; those with an empty mask, whose score is 0, are left out.

    Args:
        folder: local folder of a Mask2Former trained on instances of COCO, its classes in COCO's order.
        device: where it runs, in float32.
        threshold: score to be exceeded, for :func:`~smalti.eval.geneval.judge`; GenEval's by default.
        counting_threshold: the same for counting.

    Raises:
        FileNotFoundError: if no Mask2Former is in the folder.
        ValueError: if it holds another model, or one of another number of classes.
    """

    name = "mask2former"
    network = Mask2FormerNet

    def describe(self) -> dict[str, Any]:
        """How pictures are prepared."""
        return {"sides": [LONG_SIDE, SHORT_SIDE], "mean": list(MEAN), "std": list(STD), "padding": PADDING}

    def _prepare(self, folder: Path) -> None:
        classes = self._net.config.num_labels
        if classes != len(COCO_NAMES):
            raise ValueError(
                f"expected a Mask2Former of the {len(COCO_NAMES)} COCO classes in {folder}, got one of {classes}; "
                "use one trained on instances of COCO"
            )

    def _detect(self, image: Image.Image) -> Detected:
        pixels = resized(image)
        padded = normalised(padded_input(pixels)).to(self._net.device)
        class_logits, mask_logits = self._net(padded[None])
        height, width = pixels.shape[1:]
        full = F.interpolate(mask_logits, padded.shape[1:], mode="bilinear", align_corners=False)
        original = F.interpolate(
            full[..., :height, :width], (image.height, image.width), mode="bilinear", align_corners=False
        )
        return instances(class_logits[0], original[0])


def resized(image: Image.Image) -> Tensor:
    """The picture as large as 1333 x 800 allows in either orientation, ``(3, h, w)`` float32 in whole levels 0 to 255.

    Bilinear and, as in OpenCV, without antialiasing where the picture shrinks.
    """
    levels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()
    height, width = levels.shape[1:]
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    size = int(height * scale + 0.5), int(width * scale + 0.5)
    return F.interpolate(levels[None], size, mode="bilinear", align_corners=False)[0].round()


def normalised(levels: Tensor) -> Tensor:
    """``(3, h, w)`` float32 levels 0 to 255, less ImageNet's mean, over its standard deviation."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (levels - mean) / std


def padded_input(levels: Tensor) -> Tensor:
    """``(3, h, w)`` levels with 128 at the right and bottom up to multiples of 32.

    Before `normalised`, as mmdet's configurations of this family do: their padding is gray, not the mean colour.
    """
    height, width = levels.shape[1:]
    return F.pad(levels, (0, -width % DIVISOR, 0, -height % DIVISOR), value=PADDING)


def instances(class_logits: Tensor, mask_logits: Tensor, most: int = MOST) -> Detected:
    """The best pairs of query and class, each with the query's mask.

    A mask is where its logits are above 0. The score is the probability of the class times the mean probability of
    the mask inside of it; the box is the mask's extent, its right and lower side one after the last pixel.

    Args:
        class_logits: ``(Q, K + 1)``, the last one "no object".
        mask_logits: ``(Q, H, W)`` in the size of the picture.
        most: pairs kept, by probability of the class.

    Returns:
        On the CPU; pairs with an empty mask are left out.

    Raises:
        ValueError: if a logit of a class or a pair's mask is NaN.
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    best, pairs = probabilities.flatten().topk(min(most, probabilities.numel()))
    queries, labels = pairs // probabilities.shape[1], pairs % probabilities.shape[1]
    masks = mask_logits > 0
    inside = (mask_logits.float().sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    boxes, scores = extents(masks)[queries], best * inside[queries]
    require_finite(boxes, scores)  # here, because a mask of NaN is an empty one
    found = masks.any(2).any(1)[queries]
    return Detected(boxes[found].cpu(), scores[found].cpu(), labels[found].cpu(), masks[queries[found]].cpu())


def extents(masks: Tensor) -> Tensor:
    """Boxes ``(n, 4)`` float32 around ``(n, H, W)`` bool masks, the right and lower side exclusive.

    What stands for an empty mask means nothing.
    """
    sides: list[Tensor] = []
    for line in (masks.any(1), masks.any(2)):  # columns, then rows
        first = line.int().argmax(1)
        last = line.shape[1] - line.flip(1).int().argmax(1)
        sides += [first, last]
    x0, x1, y0, y1 = sides
    return torch.stack([x0, y0, x1, y1], 1).float()
