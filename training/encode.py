"""What is known about the pictures of a source, and the tokenizer that codes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch.utils.data import Dataset

from ..data.base import ImageSource
from ..data.pictures import Item, Pictures
from ..data.scenes import Scenes
from ..data.store import TokenRecord
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
