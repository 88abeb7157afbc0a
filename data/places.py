"""Whether something can be written somewhere, asked before the work that it is for."""

from __future__ import annotations

import tempfile
from pathlib import Path

#: What a folder holds that a model, or a part of one, was saved to.
_MODELS = ("config.json", "model_index.json", "decoder.json", "latents.json")


def check_place(path: str | Path, what: str) -> None:
    """Raise unless a file or folder can be made at ``path``; missing folders are left for later.

    Args:
        path: where to write.
        what: begins the sentence, such as the name of an option.

    Raises:
        ValueError: a file in place of a folder, no permission, or a disk that cannot be written.
    """
    place = next(folder for folder in Path(path).absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(f"{what} cannot be written to {place} ({error.strerror}); choose another place") from error


def check_model_place(folder: str | Path, what: str) -> None:
    """Raise unless a model can be saved to ``folder``, whose contents it replaces: a new one, or that of a model.

    Raises:
        ValueError: as `check_place`, or a folder that holds something else.
    """
    folder = Path(folder)
    check_place(folder / _MODELS[0], what)
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    if found and not any((folder / name).is_file() for name in _MODELS):
        raise ValueError(
            f"{what} must be a new folder or that of a model, which is replaced, got {folder}, which holds "
            f"{found[0].name}; choose another folder"
        )
