"""Models of diffusers and transformers from local folders: no download, no pickle, no weight that is lacking."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin

from ..data.files import atomic_folder


class LocalModel(ModelMixin, ConfigMixin):
    """A model of ours in a folder of its own, written whole or not at all and read strictly."""

    config_name = "config.json"

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write configuration and weights to a folder; other arguments are diffusers'."""
        with atomic_folder(Path(save_directory)) as folder:
            super().save_pretrained(folder, *args, **kwargs)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]: a folder and nothing else
        cls, pretrained_model_name_or_path: str | PathLike[str]
    ) -> Self:
        """Load one from a folder, in evaluation mode.

        Raises:
            FileNotFoundError: no such folder, or one without a configuration.
            ValueError: damaged files, or weights that do not match the configuration key by key.
        """
        return _strictly(super().from_pretrained, cls.__name__, Path(pretrained_model_name_or_path), _PLAIN)


#: Without accelerate, diffusers has one way to load; it is named so that it need not warn.
_PLAIN: Mapping[str, Any] = {"low_cpu_mem_usage": False}


def load_model(kind: type[Any], folder: Path) -> Any:
    """A saved model of ``diffusers`` or ``transformers``, in evaluation mode.

    Args:
        kind: its class.
        folder: where it was saved.

    Raises:
        FileNotFoundError: no such folder, or one without a configuration.
        ValueError: damaged files, or weights that do not match the configuration key by key.
    """
    return _strictly(kind.from_pretrained, kind.__name__, folder, _PLAIN if issubclass(kind, ModelMixin) else {})


def load_pipeline(kind: type[Any], folder: Path, models: Mapping[str, type[Any]]) -> Any:
    """A saved pipeline of ``diffusers``.

    Args:
        kind: its class.
        folder: where it was saved.
        models: those of its parts that have weights, by the names of their folders.

    Raises:
        FileNotFoundError: no such folder, or a part is missing.
        ValueError: a damaged part, or one whose weights do not match its configuration key by key.
    """
    missing = [name for name in ("model_index.json", *models) if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder} should hold a {kind.__name__} but lacks {', '.join(missing)}; check the path or save it again"
        )
    parts = {name: load_model(model, folder / name) for name, model in models.items()}
    try:
        return kind.from_pretrained(folder, local_files_only=True, **parts)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        told = _line(error)
        raise ValueError(f"{folder} does not hold a readable {kind.__name__} ({told}); save it again") from error


def _strictly(load: Callable[..., Any], name: str, folder: Path, options: Mapping[str, Any]) -> Any:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{name} was expected in {folder}, which has no config.json; check the path")
    try:
        kind = json.loads((folder / "config.json").read_text()).get("_class_name", name)
        safely = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        loaded = load(folder, **safely, **options) if kind == name else None
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{folder} does not hold a readable {name} ({_line(error)}); save it again") from error
    if loaded is None:
        raise ValueError(f"{folder} must hold {name}, got {kind}; give the folder of the former")
    model, report = loaded
    differing = {key: sorted(map(str, found)) for key, found in report.items() if found}
    if differing:
        raise ValueError(f"weights in {folder} must match its configuration key by key, got {differing}; save it again")
    return model.eval()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
