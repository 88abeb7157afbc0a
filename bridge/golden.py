"""Files that hold a published module's weights, inputs and outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Golden:
    """A file of published weights, inputs and outputs."""

    system: str  #: which module
    config: Mapping[str, Any]  #: what it is built from
    tolerance: Mapping[str, Any]  #: how close is equal
    weights: Tensors  #: by reference names
    inputs: Tensors  #: without ``in.``
    outputs: Tensors  #: without ``out.``

    @classmethod
    def load(cls, path: str | Path) -> Golden:
        """Read a file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no safetensors file, or one without the metadata.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"a golden file was expected at {path}, which does not exist; check the path")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads(metadata.get("golden") or metadata.get("json") or "{}")
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no readable golden file ({error}); fetch it again") from error
        if not {"system", "config", "tolerance"} <= set(about):
            raise ValueError(
                f"{path} needs metadata 'golden' or 'json' with system, config and tolerance; fetch it again"
            )
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "in": {}, "out": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor
        return cls(about["system"], about["config"], about["tolerance"], *groups.values())
