"""Models of ``transformers`` for scores: from local folders only, every weight accounted for, in float32."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer

from .protocol import state_hash

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
        ValueError: if it holds another kind of model, weights that are not those of the model, or files that cannot be
            read.
        ImportError: if the model needs a package that is not installed.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"expected a {kind} model in {folder}, found no config.json there; pass a folder written by save_pretrained"
        )
    stated = stated_type(folder)
    if stated != kind:
        raise ValueError(f"expected a {kind} model in {folder}, got one of the type {stated}; pass another folder")
    if not any([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        raise FileNotFoundError(
            f"expected weights of a {kind} model in {folder}, found no *.safetensors there; copy them too"
        )
    with _reading(f"{kind} model", folder):
        model, report = model_class.from_pretrained(
            folder,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
            dtype=torch.float32,
        )
    _check_complete(report, folder, kind)
    return model.requires_grad_(requires_grad=False).eval().to(device)


def stated_type(folder: str | Path) -> str | None:
    """The ``model_type`` that a folder's ``config.json`` states; None where there is no such file or no type in it.

    Raises:
        ValueError: if the file is no JSON object.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        return None
    try:
        config: object = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"expected a JSON object in {file}, got text that does not parse; copy the folder of the model again"
        ) from error
    if not isinstance(config, dict):
        raise ValueError(
            f"expected a JSON object in {file}, got {type(config).__name__}; copy the folder of the model again"
        )
    stated = cast("dict[str, object]", config).get("model_type")
    return None if stated is None else str(stated)


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer beside a model; nothing is downloaded.

    Raises:
        FileNotFoundError: if the folder has none.
        ValueError: if its files cannot be read.
        ImportError: if it needs a package that is not installed.
    """
    folder = Path(folder)
    # Without its files, transformers makes one up of a few words that reads every text alike.
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise FileNotFoundError(
            f"expected a tokenizer in {folder}, found none of {', '.join(_VOCABULARIES)}; copy its files too"
        )
    with _reading("tokenizer", folder):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def tokens_hash(tokens: Mapping[str, Tensor]) -> str:
    """SHA-256 of what a tokenizer made of some texts, 64 hex digits: for these texts, the identity of the tokenizer."""
    return state_hash({name: tokens[name] for name in ("input_ids", "attention_mask")})


def pooled(output: Any) -> Tensor:
    """Projected features of a CLIP or its kin: ``transformers`` returned them bare before it wrapped them."""
    return getattr(output, "pooler_output", output)


def _check_complete(report: dict[str, Any], folder: Path, kind: str) -> None:
    # Counters of training steps are no weights, and a frozen norm has none.
    excess = {name for name in report["unexpected_keys"] if not name.endswith("num_batches_tracked")}
    unlike = {name for name, *_ in report["mismatched_keys"]}
    wrong = {"lack": report["missing_keys"], "have in excess": excess, "have in another shape": unlike}
    for what, names in wrong.items():
        if names:
            raise ValueError(
                f"expected the weights of a {kind} model in {folder}, which {what} {len(names)} entries such as "
                f"{min(names)}; copy the folder of the model again"
            )


@contextmanager
def _reading(what: str, folder: Path) -> Generator[None]:
    """One sentence for whatever ends the reading of a folder's files."""
    try:
        yield
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise ImportError(f"the {what} in {folder} needs a package that is not installed: {reason}") from error
    except Exception as error:  # every reader behind from_pretrained raises kinds of its own
        reason = f"{type(error).__name__} {' '.join(str(error).split())[:120]}".rstrip()
        raise ValueError(
            f"expected a {what} in {folder}, got files that cannot be read ({reason}); copy the folder again"
        ) from error
