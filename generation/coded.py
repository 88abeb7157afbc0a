"""What all pipelines have in common that draw codes first: a tokenizer, and what turns codes into pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import Codes
from .detokenizers import Detokenizer, Generators, load_decoder
from .pictures import PicturePipeline

#: What stands for the tokenizer's own pixel decoder where a decoder may be named.
PIXELS = "pixels"


class CodePipeline(PicturePipeline):
    """Draws codes, which the tokenizer's pixel decoder or a decoder of their own turns into pixels.

    A subclass takes the tokenizer first, its model second and the decoder, or None, third, and names the first two in
    ``parts``. The decoder is saved in the folder ``decoder``, its scheduler and other parts in folders of that.
    """

    _optional_components: ClassVar[list[str]] = ["decoder"]

    tokenizer: VisualTokenizer
    decoder: Detokenizer | None  #: None where the tokenizer's own pixel decoder is used

    def hold(self, tokenizer: VisualTokenizer, model: torch.nn.Module, decoder: Detokenizer | None) -> None:
        """Take the parts, in evaluation mode; called once, in the constructor.

        Raises:
            ValueError: a decoder for the codes of another tokenizer.
        """
        if decoder is not None:
            decoder.check_tokenizer(tokenizer)
            decoder.eval()
        model_name = [*self.parts][-1]
        self.register_modules(**{"tokenizer": tokenizer.eval(), model_name: model.eval(), "decoder": decoder})

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]: parts of known classes, and no hub
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        decoder: Detokenizer | str | PathLike[str] | None = None,
    ) -> Self:
        """Load a pipeline folder, strictly.

        Args:
            pretrained_model_name_or_path: the folder.
            decoder: in place of the folder's own: one that is loaded, or its folder; ``pixels`` for the tokenizer's
                pixel decoder. None takes what the folder has.

        Raises:
            FileNotFoundError: no folder, or a part of it is missing.
            ValueError: a damaged part, or a model or a decoder beside another tokenizer than it was trained with.
        """
        folder = Path(pretrained_model_name_or_path)
        pipeline = super().from_pretrained(folder)
        chosen = decoder
        if decoder is None and json.loads((folder / "model_index.json").read_text()).get("decoder", [None])[0]:
            chosen = folder / "decoder"
        if chosen is None or chosen == PIXELS:
            return pipeline
        return pipeline.with_decoder(chosen)

    def with_decoder(self, decoder: Detokenizer | str | PathLike[str] | None) -> Self:
        """The same pipeline with another way from codes to pixels.

        Args:
            decoder: one that is loaded, or its folder; None for the tokenizer's own pixel decoder.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: a decoder for the codes of another tokenizer.
        """
        found = (
            decoder if decoder is None or isinstance(decoder, Detokenizer) else load_decoder(decoder, self.tokenizer)
        )
        parts: list[Any] = [getattr(self, name) for name in self.parts]
        build: Any = type(self)
        if found is not None:
            torch.nn.Module.to(found, self.tokenizer.device)
        return build(*parts, found)

    def untrained(self, seed: int = 0) -> Self:
        """See :class:`~smalti.generation.pictures.PicturePipeline`; the decoder stays."""
        return super().untrained(seed).with_decoder(self.decoder)

    def encode(self, images: Tensor) -> Codes:
        """Codes of images, on the tokenizer's device and in its precision."""
        return self.tokenizer.encode(images.to(self.tokenizer.device, self.tokenizer.dtype))

    def pixels(self, codes: Codes, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Pixels ``[B, 3, H, W]`` in [-1, 1] of codes.

        Args:
            codes: of B pictures.
            generators: one for each picture, of decoders that draw; without, every picture starts from seed 0.
        """
        if self.decoder is None:
            return self.tokenizer.decode(codes)
        draws: Generators = [torch.Generator().manual_seed(0) for _ in range(len(codes))]
        return self.decoder.decode(codes, draws if generators is None else generators)

    def rebuild(self, images: Tensor) -> Tensor:
        """See :class:`~smalti.generation.pictures.PicturePipeline`."""
        return self.pixels(self.encode(images))
