"""Models of ``transformers`` for scores: from local folders only, every weight accounted for, in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")


def load_local(model_class: type[Any], folder: str | Path, kind: str, device: str | torch.device = "cpu") -> Any:
    """A model from a folder that ``save_pretrained`` wrote, ready to be asked: frozen, in evaluation mode, float32.

    Args:
        model_class: class of ``transformers`` to be built.
        folder: where ``config.json`` and the weights are; nothing is downloaded.
        kind: the ``model_type`` that ``config.json`` must state.
        device: where the model runs.

    Raises:
        FileNotFoundError: if the folder has no configuration or no weights.
        ValueError: if it holds another kind of model, or weights that are not those of the model.
        ImportError: if the model needs a package that is not installed.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"expected a {kind} model in {folder}, found no config.json there; pass a folder written by save_pretrained"
        )
    stated = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if stated != kind:
        raise ValueError(f"expected a {kind} model in {folder}, got one of the type {stated}; pass another folder")
    if not any([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        raise FileNotFoundError(
            f"expected weights of a {kind} model in {folder}, found no *.safetensors there; copy them too"
        )
    try:
        model, report = model_class.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise ImportError(f"the {kind} model in {folder} needs a package that is not installed: {reason}") from error
    _check_complete(report, folder, kind)
    return model.requires_grad_(requires_grad=False).eval().to(device)


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer beside a model; nothing is downloaded.

    Raises:
        FileNotFoundError: if the folder has none.
    """
    folder = Path(folder)
    # Without its files, transformers makes one up of a few words that reads every text alike.
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise FileNotFoundError(
            f"expected a tokenizer in {folder}, found none of {', '.join(_VOCABULARIES)}; copy its files too"
        )
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _check_complete(report: dict[str, Any], folder: Path, kind: str) -> None:
    # Counters of training steps are no weights, and a frozen norm has none.
    excess = {name for name in report["unexpected_keys"] if not name.endswith("num_batches_tracked")}
    for what, names in (("lack", report["missing_keys"]), ("have in excess", excess)):
        if names:
            raise ValueError(
                f"expected the weights of a {kind} model in {folder}, which {what} {len(names)} entries such as "
                f"{min(names)}; copy the folder of the model again"
            )
