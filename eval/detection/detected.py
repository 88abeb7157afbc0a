"""What a detector found in one picture: boxes, confidences, classes and perhaps masks, read as GenEval's rules do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..geneval import Detection
from ..geneval_prompts import COCO_NAMES


@dataclass(frozen=True, eq=False)
class Detected(Mapping[str, list[Detection]]):
    """Boxes of one picture. As a mapping it goes to :func:`~smalti.eval.geneval.judge`: by class name, best first.

    A class without a box has no entry. The detections of a class are the same objects each time they are read, so
    that `index` finds them again.

    Raises:
        ValueError: if the four tensors do not describe the same boxes, a box or a score is not finite, or a label is
            no class.
    """

    boxes: Tensor  #: ``(n, 4)`` float: x0, y0, x1, y1 in pixels of the picture, y downwards
    scores: Tensor  #: ``(n,)`` float, confidences in [0, 1]
    labels: Tensor  #: ``(n,)`` int64 in [0, 80): places in :data:`~smalti.eval.geneval_prompts.COCO_NAMES`
    masks: Tensor | None = None  #: ``(n, H, W)`` bool, true inside the object; None if the detector has none

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = [tuple(item.shape) for item in (self.boxes, self.scores, self.labels)]
        masks = count if self.masks is None else len(self.masks)
        if shapes != [(count, 4), (count,), (count,)] or masks != count:
            raise ValueError(
                f"expected boxes (n, 4), scores (n,), labels (n,) and masks (n, H, W) of the same n, got "
                f"{', '.join(map(str, shapes))} and {masks} masks; give each box one of each"
            )
        require_finite(self.boxes, self.scores)
        if count and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(COCO_NAMES):
            raise ValueError(
                f"expected labels in [0, {len(COCO_NAMES)}), got {int(self.labels.min())} to {int(self.labels.max())}; "
                "map the detector's classes to those of COCO"
            )

    def __getitem__(self, name: str) -> list[Detection]:
        return self._by_class[name][1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_class)

    def __len__(self) -> int:
        return len(self._by_class)

    def index(self, name: str, detection: Detection) -> int:
        """The row of a detection of the class ``name`` in the tensors.

        Raises:
            ValueError: if it is none of this picture's detections of that class.
        """
        rows, found = self._by_class.get(name, ([], []))
        for row, item in zip(rows, found, strict=True):
            # Two boxes may be equal while their masks differ.
            if item is detection:
                return row
        raise ValueError(f"expected a detection of {name!r} in this picture, got {detection}; pass one read from it")

    @cached_property
    def _by_class(self) -> dict[str, tuple[list[int], list[Detection]]]:
        groups: dict[str, tuple[list[int], list[Detection]]] = {}
        boxes, scores, labels = self.boxes.tolist(), self.scores.tolist(), self.labels.tolist()
        for row in self.scores.argsort(descending=True, stable=True).tolist():
            rows, found = groups.setdefault(COCO_NAMES[labels[row]], ([], []))
            x0, y0, x1, y1 = boxes[row]
            rows.append(row)
            found.append(Detection((x0, y0, x1, y1), scores[row]))
        return groups


def require_finite(boxes: Tensor, scores: Tensor) -> None:
    """Refuse what would read as "not there": no comparison holds for NaN.

    Args:
        boxes: ``(n, 4)``.
        scores: ``(n,)``.

    Raises:
        ValueError: if a number is NaN or infinite.
    """
    wrong = int((~(torch.isfinite(boxes).all(1) & torch.isfinite(scores))).sum())
    if wrong:
        raise ValueError(
            f"expected finite boxes and scores, got NaN or infinity in {wrong} of {len(scores)}; check the detector's "
            "weights and the picture"
        )
