"""Folders of models that draw pictures, whatever their kind: the kind stands in ``model_index.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from .enat import ENATPipeline
from .pictures import PicturePipeline
from .pipeline import TextToImagePipeline
from .xar import XARPipeline

#: Kinds by the name that they have in ``model_index.json``.
KINDS: Mapping[str, type[TextToImagePipeline | ENATPipeline | XARPipeline]] = {
    kind.__name__: kind for kind in (TextToImagePipeline, ENATPipeline, XARPipeline)
}


def load_pictures(folder: str | PathLike[str]) -> PicturePipeline:
    """Load a model that draws pictures, strictly.

    Raises:
        FileNotFoundError: no folder, or a part of it is missing.
        ValueError: a folder of another kind, or a damaged part.
    """
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(
            f"{folder} should hold a model that draws pictures but lacks {index.name}; check the path"
        )
    try:
        kind = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is damaged ({error}); save the model again") from error
    if kind not in KINDS:
        raise ValueError(f"{folder} should hold one of {', '.join(KINDS)}, got a {kind}; load it with its own library")
    return KINDS[kind].from_pretrained(folder)
