"""One list of ids for text pieces, special tokens and visual codes. Knows nothing about models or sequences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import Literal, Self

import sentencepiece
import torch
from torch import Tensor

from ..data.files import atomic_file
from ..tokenizers.codes import Codebook

#: Every special token, in the order of their ids.
SPECIALS = ("<pad>", "<bos>", "<eos>", "<image>", "</image>", "<caption>", "<question>", "<answer>")

MODEL_FILE, LAYOUT_FILE = "vocabulary.model", "vocabulary.json"


class Vocabulary:
    """Ids ``[0, T)`` are text pieces, the next are :data:`SPECIALS`, then follows one block of K ids per codebook.

    Args:
        model: a serialized sentencepiece model.
        codebooks: the visual vocabularies, in the order of their blocks; none for text alone.
    """

    def __init__(self, model: bytes, codebooks: Sequence[Codebook] = ()) -> None:
        self.model, self.codebooks = model, tuple(codebooks)
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.text_size = int(self._pieces.get_piece_size())
        starts = [self.text_size + len(SPECIALS)]
        for book in self.codebooks:
            starts.append(starts[-1] + book.size)
        self._starts = {book.name: start for book, start in zip(self.codebooks, starts, strict=False)}
        self.size = starts[-1]

    @classmethod
    def train(
        cls, texts: Iterable[str], size: int = 8000, model_type: Literal["word", "unigram", "bpe"] = "word"
    ) -> Self:
        """Train a sentencepiece model on texts.

        Args:
            texts: one sentence each, at least one not empty.
            size: largest number of pieces; a ``word`` model takes fewer when there are fewer words.
            model_type: ``word`` keeps whole words and can tell an unknown one; the others split words.

        Raises:
            ValueError: nothing to train on.
        """
        lines = sorted({text.strip() for text in texts} - {""})
        if not lines:
            raise ValueError("a vocabulary is trained on captions or questions, got none; name a column that has text")
        words = {word for line in lines for word in line.split()}
        limit = min(size, len(words) + 1) if model_type == "word" else size
        target = BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=target,
            vocab_size=limit,
            model_type=model_type,
            hard_vocab_limit=False,
            character_coverage=1.0,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
        return cls(target.getvalue())

    def with_codebooks(self, codebooks: Sequence[Codebook]) -> Vocabulary:
        """The same text and special ids, followed by blocks for ``codebooks``."""
        return Vocabulary(self.model, codebooks)

    def encode(self, text: str) -> list[int]:
        """Text ids of a sentence.

        Raises:
            ValueError: a word that the vocabulary lacks; the sentence names it and the nearest known ones.
        """
        ids: list[int] = self._pieces.encode(text)
        if self._pieces.unk_id() in ids:
            raise ValueError(self._unknown(text))
        return ids

    def padded(self, texts: Sequence[str], length: int) -> Tensor:
        """Ids ``[B, length]`` int64 of sentences, padded on the right.

        Raises:
            ValueError: a sentence of more pieces, or with an unknown word.
        """
        rows = [self.encode(text) for text in texts]
        longest = max(map(len, rows), default=0)
        if longest > length:
            raise ValueError(
                f"captions must have at most {length} pieces here, got {longest}; shorten them or raise text_length"
            )
        padding = self.special("<pad>")
        return torch.tensor([row + [padding] * (length - len(row)) for row in rows])

    def decode(self, ids: Iterable[int]) -> str:
        """The sentence of text ids; special and visual ids are left out."""
        return str(self._pieces.decode([int(i) for i in ids if int(i) < self.text_size]))

    def special(self, token: str) -> int:
        """Id of one of :data:`SPECIALS`.

        Raises:
            ValueError: an unknown special token.
        """
        if token not in SPECIALS:
            raise ValueError(f"special tokens are {', '.join(SPECIALS)}, got {token!r}")
        return self.text_size + SPECIALS.index(token)

    def block(self, codebook: str) -> range:
        """Ids of one codebook.

        Raises:
            ValueError: a codebook the vocabulary has no block for.
        """
        if codebook not in self._starts:
            raise ValueError(
                f"the vocabulary has blocks for {list(self._starts)}, got {codebook!r}; add it with with_codebooks"
            )
        size = next(book.size for book in self.codebooks if book.name == codebook)
        return range(self._starts[codebook], self._starts[codebook] + size)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``vocabulary.model`` and ``vocabulary.json`` into a folder."""
        layout = {
            "text": self.text_size,
            "specials": list(SPECIALS),
            "codebooks": [[book.name, book.size, book.depth] for book in self.codebooks],
        }
        with atomic_file(Path(folder) / MODEL_FILE) as file:
            file.write_bytes(self.model)
        with atomic_file(Path(folder) / LAYOUT_FILE) as file:
            file.write_text(json.dumps(layout, indent=2))

    @classmethod
    def from_pretrained(cls, folder: str) -> Vocabulary:
        """Read a saved vocabulary and check that it means what it meant.

        Raises:
            FileNotFoundError: one of its files is missing.
            ValueError: a damaged file, other special tokens, or another number of text pieces than were saved.
        """
        missing = [name for name in (MODEL_FILE, LAYOUT_FILE) if not (Path(folder) / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"a vocabulary was expected in {folder}, which lacks {', '.join(missing)}; save or train it again"
            )
        try:
            layout = json.loads((Path(folder) / LAYOUT_FILE).read_text())
            text, specials = layout["text"], layout["specials"]
            books = [Codebook(*entry) for entry in layout["codebooks"]]
            found = Vocabulary((Path(folder) / MODEL_FILE).read_bytes(), books)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{folder} does not hold a readable vocabulary ({error}); save it again") from error
        if specials != list(SPECIALS) or text != found.text_size:
            raise ValueError(
                f"the vocabulary in {folder} should have {found.text_size} text pieces and specials {list(SPECIALS)}, "
                f"its file says {text} and {specials}; train it again"
            )
        return found

    def _unknown(self, text: str) -> str:
        words = [word for word in text.split() if self._pieces.unk_id() in self._pieces.encode(word)]
        known = [self._pieces.id_to_piece(i).lstrip("\u2581") for i in range(self.text_size)]
        hints = [f"{word!r} (near: {', '.join(get_close_matches(word, known, 3, 0.5)) or 'nothing'})" for word in words]
        return (
            f"every word must be in the vocabulary of {self.text_size} pieces, got {', '.join(hints)}; reword the text"
        )
