"""How text becomes ids and comes back: a sentencepiece model or any Hugging Face tokenizer behind one contract.

Knows nothing of special tokens and codes, which :mod:`smalti.lm.vocabulary` places behind the ids of the pieces.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..data.files import atomic_file, atomic_folder

MODEL_FILE, TOKENIZER_FOLDER = "vocabulary.model", "text_tokenizer"


class Pieces(ABC):
    """Text as ids in ``[0, size)``."""

    size: int  #: T, number of text ids
    unknown: int | None  #: id that stands for what has no piece; ``None`` where every text can be written

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens around them."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""

    @abstractmethod
    def names(self) -> list[str]:
        """The piece of each id, in its own spelling; empty where an id has none."""

    @abstractmethod
    def save(self, folder: Path) -> list[str]:
        """Write the pieces into a folder and return the files, as paths from there."""

    def fingerprint(self) -> str:
        """16 hexadecimal digits of all names in order."""
        return sha256("\n".join(self.names()).encode()).hexdigest()[:16]


class SentencePieces(Pieces):
    """The pieces of a sentencepiece model (https://arxiv.org/abs/1808.06226).

    Args:
        model: the model, serialized.

    Raises:
        ValueError: bytes that are no such model.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.load_from_serialized_proto(model)
        except RuntimeError as error:
            raise ValueError(
                f"a serialized sentencepiece model was expected, got {len(model)} bytes that are none; "
                "give the content of a .model file"
            ) from error
        self.size = int(self._processor.get_piece_size())
        self.unknown = int(self._processor.unk_id())

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a ``.model`` file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: a file that holds no sentencepiece model.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"a sentencepiece model was expected at {path}, got no such file; give the path of a .model file"
            )
        return cls(Path(path).read_bytes())

    def encode(self, text: str) -> list[int]:
        """See :class:`Pieces`."""
        return [int(i) for i in self._processor.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`Pieces`."""
        return str(self._processor.decode(list(ids)))

    def names(self) -> list[str]:
        """See :class:`Pieces`."""
        return [str(self._processor.id_to_piece(i)) for i in range(self.size)]

    def save(self, folder: Path) -> list[str]:
        """See :class:`Pieces`."""
        with atomic_file(folder / MODEL_FILE) as file:
            file.write_bytes(self.model)
        return [MODEL_FILE]


class HubPieces(Pieces):
    """The pieces of a Hugging Face tokenizer, with the ids that they have in a pretrained embedding.

    The tokenizer's own special tokens are left out in ``decode`` and not put around a text in ``encode``; where a text
    spells one (``<|endoftext|>``), it is encoded as that token.

    Args:
        tokenizer: complete; tokens added later have ids that may mean something else.
        rows: of the pretrained embedding, which may have more than the tokenizer has ids (Qwen2.5: 151936 for 151665);
            as many as the tokenizer needs by default.

    Raises:
        ValueError: fewer rows than the tokenizer needs, or a tokenizer that has special tokens alone.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: int | None = None) -> None:
        vocabulary = tokenizer.get_vocab()
        # Where its files are missing, transformers makes a tokenizer that has its special tokens and nothing else.
        if not set(vocabulary.values()) - set(tokenizer.all_special_ids):
            raise ValueError(
                f"a tokenizer with pieces was expected, got a {type(tokenizer).__name__} that has special tokens alone "
                f"({', '.join(sorted(vocabulary)) or 'none'}); load it from a folder that has its files"
            )
        self.tokenizer, self._end = tokenizer, max(vocabulary.values()) + 1
        self.size = self._end if rows is None else rows
        if self.size < self._end:
            raise ValueError(
                f"rows must be at least {self._end}, one more than the highest id of the tokenizer, got {rows}; "
                "give the number of rows of the pretrained embedding"
            )
        unknown: Any = tokenizer.unk_token_id
        self.unknown = None if unknown is None else int(unknown)

    @classmethod
    def from_folder(cls, folder: str | Path, rows: int | None = None) -> Self:
        """Read a tokenizer that ``save_pretrained`` wrote.

        Raises:
            FileNotFoundError: no such folder; nothing is downloaded.
            ValueError: a folder that holds no tokenizer, and as the constructor.
        """
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"a Hugging Face tokenizer was expected in the folder {folder}, got no such folder; "
                "save one there with save_pretrained"
            )
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the tokenizers library raises no narrower class
            reason = str(error).strip().split("\n", 1)[0]
            raise ValueError(
                f"{folder} does not hold a readable Hugging Face tokenizer ({reason}); "
                "save one there with save_pretrained"
            ) from error
        return cls(tokenizer, rows)

    def encode(self, text: str) -> list[int]:
        """See :class:`Pieces`.

        Raises:
            ValueError: an id past the rows.
        """
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if max(ids, default=0) >= self.size:
            raise ValueError(
                f"the tokenizer must write ids below its {self.size} rows, got {max(ids)} in {text!r}; "
                "make the vocabulary after the last token was added to the tokenizer"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`Pieces`; rows without a piece are left out."""
        return str(self.tokenizer.decode([i for i in ids if i < self._end], skip_special_tokens=True))

    def names(self) -> list[str]:
        """See :class:`Pieces`."""
        names = [""] * self.size
        for name, i in self.tokenizer.get_vocab().items():
            if i < self.size:
                names[i] = name
        return names

    def save(self, folder: Path) -> list[str]:
        """See :class:`Pieces`."""
        with atomic_folder(folder / TOKENIZER_FOLDER) as partial:
            self.tokenizer.save_pretrained(partial)
        files = (file for file in (folder / TOKENIZER_FOLDER).rglob("*") if file.is_file())
        return sorted(file.relative_to(folder).as_posix() for file in files)
