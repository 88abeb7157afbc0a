"""What the detectors have in common: a network of ``transformers`` from a local folder, its identity and thresholds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from ..checkpoints import load_local
from ..images.float32 import full_float32
from ..protocol import state_hash
from .detected import Detected


class LocalDetector(ABC):
    """Finds the 80 classes of COCO by a network from a local folder; never official.

    Args:
        folder: local folder of the model.
        device: where it runs, in float32.
        threshold: score to be exceeded, for :func:`~smalti.eval.geneval.judge`; by default GenEval's, which was chosen
            for its own detector.
        counting_threshold: the same where objects are counted.

    Raises:
        FileNotFoundError: if no such model is in the folder.
        ValueError: if it holds another model, or one that does not find the classes of COCO.
        ImportError: if the model needs a package that is not installed.
    """

    name: ClassVar[str]  #: also the model's ``model_type``
    network: ClassVar[type[Any]]  #: class of ``transformers``
    official = False

    def __init__(
        self,
        folder: str | Path,
        device: str | torch.device = "cpu",
        *,
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
    ) -> None:
        self._net = load_local(self.network, folder, self.name, device)
        self.weights_hash = state_hash(self._net.state_dict())  #: SHA-256, 64 hex digits
        self.threshold, self.counting_threshold = threshold, counting_threshold
        self._prepare(Path(folder))

    @torch.inference_mode()
    def detect(self, image: Image.Image) -> Detected:
        """What is found in a picture, on the CPU.

        Args:
            image: any size and mode, already turned upright.

        Raises:
            ValueError: if the network computes NaN or infinity.
        """
        with full_float32():
            return self._detect(image)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What decides the answers beside the weights, as JSON values for a protocol record."""

    def _prepare(self, folder: Path) -> None:  # noqa: B027 - nothing else is needed unless a detector says so
        """Check the network, and read what it needs beside its weights."""

    @abstractmethod
    def _detect(self, image: Image.Image) -> Detected: ...
