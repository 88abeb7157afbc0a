"""Files of weights, opened without running code that is in them. Knows nothing of whose weights they are."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

#: How torch names the function or class that a file asks for.
_ASKED = re.compile(r"GLOBAL (\S+) (?:was not|whose module)")


def read_weight_file(path: str | Path, mmap: bool = False) -> Any:
    """What a ``.safetensors`` or a file of ``torch.save`` holds, on the CPU: tensors and plain values.

    Args:
        path: the file, which must exist.
        mmap: leave the tensors of a file of ``torch.save`` on the disk until they are used.

    Raises:
        ValueError: a damaged file, or a pickle that asks for functions or classes: it could run whatever it likes.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that it then refuses
            return torch.load(path, "cpu", weights_only=True, mmap=mmap and is_zipfile(path))
    except UnpicklingError as error:
        raise ValueError(refusal(error, str(path))) from error
    except (OSError, EOFError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as weights ({_reason(error)}); fetch it again") from error


def refusal(
    error: Exception, name: str = "a file of weights", remedy: str = "convert it to safetensors where you trust it"
) -> str:
    """The sentence about a pickle that ``torch.load(..., weights_only=True)`` would not open.

    Args:
        error: what torch raised.
        name: of the file.
        remedy: what helps against code in it.
    """
    if found := _ASKED.search(str(error)):
        return (
            f"{name} must hold tensors and plain values, got a pickle that asks for {found[1]}, which can run any "
            f"code; {remedy}"
        )
    return f"{name} cannot be read as weights ({_reason(error)}); fetch it again"


def _reason(error: Exception) -> str:
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
