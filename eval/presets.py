"""Published protocols by name: what a result must have been measured with to stand in a table beside others.

A preset neither measures nor loads anything. It lists fields of a `Protocol` and their values; `Preset.check` compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ..data.transforms import Crop
from .detector import THRESHOLDS
from .geneval_prompts import GENEVAL_SHA256
from .images.inception import INCEPTION_SHA256
from .protocol import QUANTISER, Protocol, flat

IMAGENET_TRAIN = 1_281_167  #: pictures behind the training set's statistics
SCENES_V1_SHA256 = "183e00a2470d46e52460129293580e4170bafeee738ad276a16c0a97cf166a8c"  #: its prompts as JSONL


@dataclass(frozen=True)
class Preset:
    """Values that fields of a protocol must have."""

    name: str
    about: str  #: one line: what is scored, and who scores like that
    task: str
    count: int  #: images
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])  #: values by field, dotted inside mappings
    begins: Mapping[str, str] = field(default_factory=dict[str, str])  #: first characters of a field, for hashes
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])  #: options of the command that measures so

    def check(self, protocol: Protocol) -> None:
        """Raise unless a result was measured like this.

        Raises:
            ValueError: a field has another value; the sentence names the first such field and both values.
        """
        found = flat(protocol.to_dict())
        for name, expected in {"task": self.task, "count": self.count, **flat(self.fields)}.items():
            if found.get(name) != expected:
                raise ValueError(self._wrong(name, repr(expected), found.get(name)))
        for name, start in self.begins.items():
            if not str(found.get(name)).startswith(start):
                raise ValueError(self._wrong(name, f"a value that begins with {start!r}", found.get(name)))

    def _wrong(self, name: str, expected: str, came: object) -> str:
        return (
            f"the preset {self.name} needs {name} to be {expected}, got {came!r}; "
            "measure it so, or leave the preset out and call the number by its own protocol"
        )


def get_preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ValueError: an unknown name; the nearest known one is in the sentence.
    """
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(PRESETS)}"
        raise ValueError(f"{name!r} is no preset; {hint}")
    return PRESETS[name]()


def _adm_256() -> Preset:
    crop = Crop(256, "adm").describe()
    return Preset(
        "adm-256",
        "gFID of 50,000 class-conditional ImageNet samples of 256 pixels against training-set statistics (ADM, arXiv "
        "2105.05233; LlamaGen, VAR, NAR and PAR use it)",
        "generation",
        50_000,
        {
            "crop": {"size": [256, 256], "mode": "none"},
            "dtype": "float32",
            "extra": {"reference_split": "train", "reference_count": IMAGENET_TRAIN, "reference_crop": crop},
        },
        {"weights_hash": INCEPTION_SHA256},
    )


def _val50k() -> Preset:
    crop = Crop(256, "adm")
    return Preset(
        "val50k-centercrop",
        "rFID of the 50,000 ImageNet validation pictures of 256 pixels, against the same pictures after the same crop "
        "(LlamaGen, arXiv 2406.06525)",
        "reconstruction",
        50_000,
        {
            "crop": crop.describe(),
            "dtype": "float32",
            "quantiser": QUANTISER,
            "extra": {"reference_split": "originals"},
        },
        {"weights_hash": INCEPTION_SHA256},
        {"size": 256, "crop": "adm"},
    )


def _geneval(name: str, rewritten: bool) -> Preset:
    return Preset(
        name,
        f"GenEval (arXiv 2310.11513) with its official detector, four images of each of 553 prompts, "
        f"{'rewritten by another model' if rewritten else 'as they are'}",
        "GenEval",
        2212,
        {"prompts_hash": GENEVAL_SHA256, "rewritten": rewritten, "sampler": {"per_prompt": 4}},
    )


def _scenes_v1() -> Preset:
    return Preset(
        "scenes-v1",
        "SceneEval (GenEval rules) on the full embedded world: 332 prompts of seed 0, four pictures each",
        "SceneEval (GenEval rules)",
        1328,
        {
            "prompts_hash": SCENES_V1_SHA256,
            "rewritten": False,
            "sampler": {"per_prompt": 4},
            "extra": {"thresholds": dict(THRESHOLDS)},
        },
    )


#: By name, what makes each preset.
PRESETS = {
    "adm-256": _adm_256,
    "val50k-centercrop": _val50k,
    "geneval-raw": lambda: _geneval("geneval-raw", rewritten=False),
    "geneval-rewritten": lambda: _geneval("geneval-rewritten", rewritten=True),
    "scenes-v1": _scenes_v1,
}
