"""Whether a checkpoint of Lightning holds what training resumes from and nothing that runs.

``weights_only=True`` sees to that where the checkpoint is one file. Where it is a folder with the parts of all
processes, ``torch.distributed.checkpoint`` unpickles its table and its plain values as they are, so both are looked at
here before it does.
"""

from __future__ import annotations

import io
from pathlib import Path
from pickle import Unpickler, UnpicklingError
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from ..data.weight_files import read_weight_file, refusal

TABLE = ".metadata"

_REMEDY = "continue from another checkpoint"

#: What a table is made of, beside types of tensors.
_PARTS = {
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("PosixPath", "WindowsPath"),
}


def check_checkpoint(path: str | Path) -> None:
    """Raise where a checkpoint must not be opened.

    Args:
        path: a file, or the folder of a sharded checkpoint; it may be missing.

    Raises:
        ValueError: damaged, or it asks for functions or classes that training does not need.
    """
    path = Path(path)
    if path.is_file():
        read_weight_file(path, mmap=True)
        return
    for file in sorted(path.glob("*.pt")) if path.is_dir() else ():
        read_weight_file(file, mmap=True)
    if (path / TABLE).is_file():
        _check_values(path, _read_table(path / TABLE))


class _Table(Unpickler):
    """Opens a table of ``torch.distributed.checkpoint`` and nothing else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """A class of tables, a type of tensors, or an error."""
        if global_name in _PARTS.get(module_name, ()):
            return super().find_class(module_name, global_name)
        found = getattr(torch, global_name, None) if module_name == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        raise UnpicklingError(f"GLOBAL {module_name}.{global_name} was not among what a table holds")


def _read_table(file: Path) -> Metadata:
    try:
        with file.open("rb") as stream:
            found: Any = _Table(stream).load()
    except UnpicklingError as error:
        raise ValueError(refusal(error, str(file), _REMEDY)) from error
    except (EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} cannot be read as a table of a checkpoint ({error}); {_REMEDY}") from error
    if not isinstance(found, Metadata):
        raise ValueError(f"{file} must be the table of a checkpoint, got {type(found).__name__}; {_REMEDY}")
    return found


def _check_values(folder: Path, table: Metadata) -> None:
    for index, place in (table.storage_data or {}).items():
        if not isinstance(table.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            continue
        with (folder / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            value = io.BytesIO(file.read(place.length))
        try:
            torch.load(value, "cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(refusal(error, f"{index.fqn} in {folder}", _REMEDY)) from error
