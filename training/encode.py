"""From an image source to a token store: every picture coded once, before the language model is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..data.base import ImageSource
from ..data.pictures import OnError, Pictures, collate
from ..data.scenes import Scenes
from ..data.tokens import TokenRecord, TokenStore
from ..data.transforms import Crop, Filter
from ..tokenizers.base import VisualTokenizer


def saved_tokenizer(folder: str) -> VisualTokenizer:
    """The tokenizer in a folder of this machine; the hub is not asked.

    Raises:
        FileNotFoundError: no such folder, or one that lacks the configuration or weights.
        ValueError: damaged files.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"a tokenizer was expected in {folder}, which is no folder; train it or check the path")
    return VisualTokenizer.from_pretrained(folder)


@torch.inference_mode()
def encode_source(
    tokenizer: VisualTokenizer,
    source: ImageSource,
    batch_size: int = 64,
    filter: Filter = "lanczos",  # noqa: A002 - Pillow's word
    on_error: OnError = "skip",
    progress: Callable[[int, int], None] | None = None,
) -> TokenStore:
    """Code the pictures of a source, cropped at the center to the tokenizer's size.

    Args:
        tokenizer: in eval mode.
        source: pictures and captions; scenes bring questions too.
        batch_size: pictures coded together.
        filter: of the resize.
        on_error: ``skip`` leaves broken pictures out, ``raise`` stops at the first.
        progress: called with (pictures done, pictures in all) after every batch.
    """
    crop = Crop(tokenizer.image_size, "center", filter)
    pictures = Pictures(source, crop, on_error)
    ids: list[torch.Tensor] = []
    kept: list[int] = []
    for start in range(0, len(source), batch_size):
        wanted = range(start, min(start + batch_size, len(source)))
        items = [item for index in wanted if (item := pictures[index])["index"] == index]
        if items:
            images = collate(items)["images"].to(tokenizer.device, tokenizer.dtype)
            ids.append(tokenizer.encode(images).ids.cpu())
            kept += [item["index"] for item in items]
        if progress is not None:
            progress(wanted.stop, len(source))
    records = [_record(source, index) for index in kept]
    origin = {"pictures": len(source), "left_out": len(source) - len(kept), "crop": crop.describe()}
    return TokenStore(torch.cat(ids), records, tokenizer.spec.to_dict(), tokenizer.fingerprint(), origin)


def texts_of(source: ImageSource, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Captions, questions and answers of a source: what a vocabulary is trained on."""
    texts: list[str] = []
    for index in range(len(source)):
        record = _record(source, index)
        texts += [record.caption] if record.caption else []
        texts += [text for pair in record.questions for text in pair]
        if progress is not None:
            progress(index + 1, len(source))
    return texts


def _record(source: ImageSource, index: int) -> TokenRecord:
    asked = source.questions(index) if isinstance(source, Scenes) else []
    return TokenRecord(source.caption(index), tuple((item.question, item.answer) for item in asked))
