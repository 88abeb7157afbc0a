"""Which model a command means, and loading it quietly. Heavy imports wait until something is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.leftovers import recovered
from .errors import UsageError

if TYPE_CHECKING:
    import torch

    from ..generation.detokenizers import Detokenizer
    from ..generation.pictures import PicturePipeline
    from ..generation.pipeline import TextToImagePipeline
    from ..tokenizers.base import VisualTokenizer

#: The model that comes with the package: a pipeline folder.
BUILT_IN = Path(__file__).resolve().parent.parent / "pretrained" / "scenes"


def model_folder(given: str | None) -> Path:
    """The folder of ``--model``, or the built-in one.

    Raises:
        FileNotFoundError: there is no such folder, or none is given and none is built in.
    """
    return _folder(given, "--model", "a text-to-image model")


def tokenizer_folder(given: str | None) -> Path:
    """The folder of ``--tokenizer``, which may be that of a model, or the built-in model's.

    Raises:
        FileNotFoundError: as `model_folder`.
    """
    folder = _folder(given, "--tokenizer", "a tokenizer")
    return folder / "tokenizer" if (folder / "model_index.json").is_file() else folder


def load_pipeline(folder: Path, device: str) -> TextToImagePipeline:
    """Load a text-to-image model onto a device, strictly.

    Args:
        folder: from `model_folder`.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:<n>`` or ``mps``.

    Raises:
        FileNotFoundError: a part is missing.
        UsageError: a device that is not there.
        ValueError: a damaged part, or a language model beside another tokenizer than it was trained with.
    """
    from ..generation.pipeline import TextToImagePipeline

    chosen = choose_device(device)
    quiet()
    pipeline = TextToImagePipeline.from_pretrained(folder)
    pipeline.to(chosen)
    return pipeline


def load_pictures(folder: Path, device: str) -> PicturePipeline:
    """Load a model of any kind that draws pictures onto a device, strictly; arguments and errors as `load_pipeline`."""
    from ..generation.folders import load_pictures as load

    chosen = choose_device(device)
    quiet()
    pipeline = load(folder)
    pipeline.to(chosen)
    return pipeline


def load_tokenizer(folder: Path, device: str) -> VisualTokenizer:
    """Load a tokenizer of any family onto a device, strictly; arguments and errors as in `load_pipeline`."""
    import torch

    from ..training.encode import saved_tokenizer

    chosen = choose_device(device)
    quiet()
    tokenizer = saved_tokenizer(str(folder))
    torch.nn.Module.to(tokenizer, torch.device(chosen))  # diffusers leaves its own override untyped
    return tokenizer


def load_decoder(folder: Path, tokenizer: VisualTokenizer) -> Detokenizer:
    """Load a decoder for the codes of a tokenizer onto its device, strictly.

    Args:
        folder: of the decoder.
        tokenizer: whose codes are decoded.

    Raises:
        FileNotFoundError: a part is missing.
        ValueError: a damaged part, or a decoder that was trained for another tokenizer.
    """
    from ..generation.detokenizers import load_decoder as load

    quiet()
    decoder: Any = load(folder, tokenizer)  # diffusers leaves its override of `to` untyped
    return decoder.to(tokenizer.device)


def choose_device(name: str) -> str:
    """The device that ``name`` means here; ``auto`` is a GPU of CUDA where there is one, else the CPU.

    Of several processes on a machine each gets a GPU of its own, as far as there are enough.

    Raises:
        UsageError: an unknown device, or one that this machine lacks.
    """
    import torch

    from ..data.processes import world_size

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        alone = world_size() == 1
        return "cpu" if not count else "cuda" if alone else f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % count}"
    there = ["cpu", *["cuda"][:count], *(f"cuda:{index}" for index in range(count))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if name not in there:
        raise UsageError(f"--device must be auto or one of {', '.join(there)} here, got {name!r}; choose one of them")
    return name


def device_name(device: torch.device) -> str:
    """What kind of device it is, since another kind rounds differently."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _folder(given: str | None, option: str, what: str) -> Path:
    if given is None and not BUILT_IN.is_dir():
        raise FileNotFoundError(f"no {option} was given and no model is built in at {BUILT_IN}; pass {option} DIR")
    folder = BUILT_IN if given is None else recovered(given)
    if not folder.is_dir():
        raise FileNotFoundError(f"{option} must be the folder of {what}, got {given!r}, which is no folder; check it")
    return folder


def quiet() -> None:
    """Errors only, and no bar for a load of a second."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
