"""smalti: images to discrete visual tokens that a language model can read and write, and back to pixels.

The public names are imported on first use, so that ``import smalti`` and ``smalti --help`` are quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .generation.detokenizers import Detokenizer, load_decoder
    from .generation.diffusion import DecoderSampling, DiffusionDecoder
    from .generation.enat import ENATPipeline, MaskedSampling
    from .generation.folders import load_pictures
    from .generation.orders import Grouped, Masked, Neighbouring, NextScale, Random, Raster
    from .generation.pipeline import TextToImagePipeline
    from .generation.sampling import Sampling
    from .generation.text import TextSampling
    from .generation.xar import XARPipeline, XARSampling
    from .lm.model import SharedLM
    from .lm.vocabulary import Vocabulary
    from .tokenizers.base import VisualTokenizer
    from .tokenizers.codes import Codebook, CodeLayout, Codes, CodeSpec
    from .tokenizers.dual import DualTokenizer
    from .tokenizers.lavit import LavitTokenizer
    from .tokenizers.seed import SeedTokenizer
    from .tokenizers.slot import SlotTokenizer
    from .tokenizers.soft import SoftTokenizer
    from .tokenizers.tokenflow import TokenFlowTokenizer
    from .tokenizers.unitok import UniTokTokenizer
    from .tokenizers.vq import VQTokenizer

_HOMES = {
    "CodeLayout": "tokenizers.codes",
    "CodeSpec": "tokenizers.codes",
    "Codebook": "tokenizers.codes",
    "Codes": "tokenizers.codes",
    "DecoderSampling": "generation.diffusion",
    "Detokenizer": "generation.detokenizers",
    "DiffusionDecoder": "generation.diffusion",
    "DualTokenizer": "tokenizers.dual",
    "ENATPipeline": "generation.enat",
    "Grouped": "generation.orders",
    "LavitTokenizer": "tokenizers.lavit",
    "Masked": "generation.orders",
    "MaskedSampling": "generation.enat",
    "Neighbouring": "generation.orders",
    "NextScale": "generation.orders",
    "Random": "generation.orders",
    "Raster": "generation.orders",
    "Sampling": "generation.sampling",
    "SeedTokenizer": "tokenizers.seed",
    "SharedLM": "lm.model",
    "SlotTokenizer": "tokenizers.slot",
    "SoftTokenizer": "tokenizers.soft",
    "TextSampling": "generation.text",
    "TextToImagePipeline": "generation.pipeline",
    "TokenFlowTokenizer": "tokenizers.tokenflow",
    "UniTokTokenizer": "tokenizers.unitok",
    "VQTokenizer": "tokenizers.vq",
    "VisualTokenizer": "tokenizers.base",
    "Vocabulary": "lm.vocabulary",
    "XARPipeline": "generation.xar",
    "XARSampling": "generation.xar",
    "load_decoder": "generation.detokenizers",
    "load_pictures": "generation.folders",
}

__all__ = [
    "CodeLayout",
    "CodeSpec",
    "Codebook",
    "Codes",
    "DecoderSampling",
    "Detokenizer",
    "DiffusionDecoder",
    "DualTokenizer",
    "ENATPipeline",
    "Grouped",
    "LavitTokenizer",
    "Masked",
    "MaskedSampling",
    "Neighbouring",
    "NextScale",
    "Random",
    "Raster",
    "Sampling",
    "SeedTokenizer",
    "SharedLM",
    "SlotTokenizer",
    "SoftTokenizer",
    "TextSampling",
    "TextToImagePipeline",
    "TokenFlowTokenizer",
    "UniTokTokenizer",
    "VQTokenizer",
    "VisualTokenizer",
    "Vocabulary",
    "XARPipeline",
    "XARSampling",
    "load_decoder",
    "load_pictures",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'smalti' has no attribute {name!r}; public names are {', '.join(__all__)}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
