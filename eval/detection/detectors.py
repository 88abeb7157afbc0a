"""Detectors for GenEval's rules (arXiv 2310.11513) by name, and the colours of the boxes that count.

A picture is judged by ``judge(metadata, detected, color=colors_in(image, detected, colors), threshold=...)``: the
result of `Detector.detect` is the mapping that the rules read, and colours are looked at only where a rule asks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ..geneval import Classify, Detection
from .box_detectors import DetrDetector, Owlv2Detector
from .detected import Detected
from .mask2former import Mask2FormerDetector


class Detector(Protocol):
    """Finds the 80 classes of COCO in pictures."""

    @property
    def name(self) -> str:
        """Short, for tables and protocols."""
        ...

    @property
    def weights_hash(self) -> str:
        """SHA-256 of its weights, 64 hex digits."""
        ...

    @property
    def official(self) -> bool:
        """Whether scores by it may be called GenEval; otherwise they are scores by GenEval's rules."""
        ...

    @property
    def threshold(self) -> float:
        """Confidence that a detection must exceed."""
        ...

    @property
    def counting_threshold(self) -> float:
        """The same where objects are counted."""
        ...

    def describe(self) -> dict[str, Any]:
        """What decides its answers beside the weights, as JSON values; may be empty."""
        ...

    def detect(self, image: Image.Image) -> Detected:
        """Everything found in a picture of any size and mode, in its pixels."""
        ...


class ColorClassifier(Protocol):
    """Names the colour of objects of a known class, e.g. `ClipColors`."""

    def classify(self, name: str, image: Image.Image, boxes: Tensor, masks: Tensor | None = None) -> list[str]:
        """One of GenEval's ``COLORS`` for each of ``boxes`` ``(k, 4)``, with ``masks`` ``(k, H, W)`` bool or none."""
        ...


#: Kinds that `load_detector` knows.
DETECTORS = {"mask2former": Mask2FormerDetector, "detr": DetrDetector, "owlv2": Owlv2Detector}


def load_detector(spec: str, device: str | torch.device = "cpu") -> Detector:
    """The detector that a text names, with its default thresholds.

    Args:
        spec: ``KIND:FOLDER``: one of ``DETECTORS`` and the local folder of its model.
        device: where it runs.

    Raises:
        ValueError: if the text names no known kind or no folder, or the folder holds another model.
        FileNotFoundError: if no model is in the folder.
    """
    kind, _, folder = spec.partition(":")
    if kind not in DETECTORS or not folder:
        raise ValueError(
            f"expected a detector as KIND:FOLDER, KIND one of {', '.join(DETECTORS)}, got {spec!r}; name the kind and "
            "the folder of its model"
        )
    return DETECTORS[kind](Path(folder), device)


def colors_in(image: Image.Image, detected: Detected, classifier: ColorClassifier) -> Classify:
    """What :func:`~smalti.eval.geneval.judge` asks for colours in one picture; each box is classified at most once.

    Args:
        image: the picture.
        detected: what was found in it; the detections asked for must be read from this object.
        classifier: names the colours.
    """
    known: dict[int, str] = {}

    def color(name: str, detection: Detection) -> str:
        row = detected.index(name, detection)
        if row not in known:
            masks = None if detected.masks is None else detected.masks[row : row + 1]
            known[row] = classifier.classify(name, image, detected.boxes[row : row + 1], masks)[0]
        return known[row]

    return color
