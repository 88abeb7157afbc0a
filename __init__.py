"""smalti: images to discrete visual tokens that a language model can read and write, and back to pixels.

The public names are imported on first use, so that ``import smalti`` and ``smalti --help`` are quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .generation.pipeline import TextToImagePipeline
    from .generation.sampler import Sampling
    from .lm.model import SharedLM
    from .lm.vocabulary import Vocabulary
    from .tokenizers.base import VisualTokenizer
    from .tokenizers.codes import Codebook, CodeLayout, Codes, CodeSpec
    from .tokenizers.dual import DualTokenizer
    from .tokenizers.vq import VQTokenizer

_HOMES = {
    "CodeLayout": "tokenizers.codes",
    "CodeSpec": "tokenizers.codes",
    "Codebook": "tokenizers.codes",
    "Codes": "tokenizers.codes",
    "DualTokenizer": "tokenizers.dual",
    "Sampling": "generation.sampler",
    "SharedLM": "lm.model",
    "TextToImagePipeline": "generation.pipeline",
    "VQTokenizer": "tokenizers.vq",
    "VisualTokenizer": "tokenizers.base",
    "Vocabulary": "lm.vocabulary",
}

__all__ = [
    "CodeLayout",
    "CodeSpec",
    "Codebook",
    "Codes",
    "DualTokenizer",
    "Sampling",
    "SharedLM",
    "TextToImagePipeline",
    "VQTokenizer",
    "VisualTokenizer",
    "Vocabulary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'smalti' has no attribute {name!r}; public names are {', '.join(__all__)}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
