"""From an image source to a token store: every picture coded once, before the language model is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..data.base import ImageSource
from ..data.pictures import Item, OnError, Pictures, collate
from ..data.scenes import Scenes
from ..data.tokens import TokenRecord, TokenStore
from ..data.transforms import Crop, Filter, to_uint8
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


class Pages(Dataset[tuple[Item, TokenRecord]]):
    """Pictures with what is known about them: of the picture shown, where the one asked for is broken.

    Args:
        pictures: of any source; scenes bring questions too.
    """

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Item, TokenRecord]:
        """The picture at ``index`` in ``[0, len)``; errors are those of `Pictures`."""
        item = self.pictures[index]
        return item, record_of(self.pictures.source, item["index"])


@torch.inference_mode()
def encode_source(
    tokenizer: VisualTokenizer,
    source: ImageSource,
    batch_size: int = 64,
    filter: Filter = "lanczos",  # noqa: A002 - Pillow's word
    on_error: OnError = "skip",
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TokenStore:
    """Code the pictures of a source, cropped at the center to the tokenizer's size.

    Args:
        tokenizer: in eval mode.
        source: pictures and captions; scenes bring questions too.
        batch_size: pictures coded together.
        filter: of the resize.
        on_error: ``skip`` leaves broken pictures out, ``raise`` stops at the first.
        workers: processes that read; 0 reads in this one.
        progress: called with (pictures done, pictures in all) after every batch.
    """
    crop = Crop(tokenizer.image_size, "center", filter)
    pages = Pages(Pictures(source, crop, on_error))
    pictures = hashlib.sha256()  # as they were coded: cropped
    ids: list[torch.Tensor] = []
    records: list[TokenRecord] = []
    for number, batch in enumerate(DataLoader(pages, batch_size, num_workers=workers, collate_fn=_readable), 1):
        if batch:
            images = collate([item for item, _ in batch])["images"]
            pictures.update(to_uint8(images).numpy().tobytes())
            ids.append(tokenizer.encode(images.to(tokenizer.device, tokenizer.dtype)).ids.cpu())
            records += [record for _, record in batch]
        if progress is not None:
            progress(min(number * batch_size, len(source)), len(source))
    origin: dict[str, Any] = {"pictures": len(source), "left_out": len(source) - len(records)}
    origin |= {"crop": crop.describe(), "pictures_hash": pictures.hexdigest()}
    return TokenStore(torch.cat(ids), records, tokenizer.spec.to_dict(), tokenizer.fingerprint(), origin)


def texts_of(source: ImageSource, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Captions, questions and answers of a source: what a vocabulary is trained on."""
    texts: list[str] = []
    for index in range(len(source)):
        record = record_of(source, index)
        texts += [record.caption] if record.caption else []
        texts += [text for pair in record.questions for text in pair]
        if progress is not None:
            progress(index + 1, len(source))
    return texts


def record_of(source: ImageSource, index: int) -> TokenRecord:
    """Caption and questions of the picture at ``index``; only scenes have questions."""
    asked = source.questions(index) if isinstance(source, Scenes) else []
    return TokenRecord(source.caption(index), tuple((item.question, item.answer) for item in asked))


def _readable(pages: list[tuple[Item, TokenRecord]]) -> list[tuple[Item, TokenRecord]]:
    """Without those that stand in for a broken picture: they come again in their own place."""
    return [page for page in pages if not page[0]["skipped"]]
