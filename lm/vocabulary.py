"""One list of ids for text pieces, special tokens and visual codes. Knows nothing about models or sequences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Self

import sentencepiece
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.files import atomic_file
from ..tokenizers.codes import Codebook
from .pieces import MODEL_FILE, TOKENIZER_FOLDER, HubPieces, Pieces, SentencePieces

#: Every special token, in the order of their ids.
SPECIALS = ("<pad>", "<bos>", "<eos>", "<image>", "</image>", "<caption>", "<question>", "<answer>")

LAYOUT_FILE = "vocabulary.json"


class Vocabulary:
    """Ids ``[0, T)`` are text pieces, the next are :data:`SPECIALS`, then follows one block of K ids per codebook.

    Args:
        pieces: the text, or a serialized sentencepiece model; ``None`` for codes alone, which has neither text nor
            special tokens.
        codebooks: the visual vocabularies, in the order of their blocks; none for text alone.

    Raises:
        ValueError: bytes that are no sentencepiece model, or codebooks of one name.
    """

    def __init__(self, pieces: Pieces | bytes | None = None, codebooks: Sequence[Codebook] = ()) -> None:
        self.pieces = SentencePieces(pieces) if isinstance(pieces, bytes) else pieces
        self.codebooks = tuple(codebooks)
        self.text_size = 0 if self.pieces is None else self.pieces.size
        #: Special tokens that it has: all or none.
        self.specials = () if self.pieces is None else SPECIALS
        starts = [self.text_size + len(self.specials)]
        for book in self.codebooks:
            starts.append(starts[-1] + book.size)
        self._starts = {book.name: start for book, start in zip(self.codebooks, starts, strict=False)}
        self.size = starts[-1]
        if len(self._starts) < len(self.codebooks):
            raise ValueError(
                f"codebooks of one vocabulary must have distinct names, got {[book.name for book in self.codebooks]}; "
                "rename one"
            )
        self._reserved = re.compile("|".join([*map(re.escape, self.specials), *map(_code_pattern, self.codebooks)]))

    @property
    def model(self) -> bytes | None:
        """The serialized sentencepiece model, where there is one."""
        return self.pieces.model if isinstance(self.pieces, SentencePieces) else None

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

    @classmethod
    def from_file(cls, path: str) -> Vocabulary:
        """The pieces of a sentencepiece ``.model`` file, without codebooks.

        Raises:
            FileNotFoundError: there is none.
            ValueError: a file that holds no sentencepiece model.
        """
        return Vocabulary(SentencePieces.from_file(path))

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase | str, rows: int | None = None) -> Vocabulary:
        """The pieces of a Hugging Face tokenizer, with the ids that they have in a pretrained model; no codebooks.

        Args:
            tokenizer: or the local folder that it was saved to.
            rows: of the pretrained embedding; as many as the tokenizer needs by default.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: a folder without a tokenizer, or fewer rows than it needs.
        """
        if isinstance(tokenizer, str):
            return Vocabulary(HubPieces.from_folder(tokenizer, rows))
        return Vocabulary(HubPieces(tokenizer, rows))

    def with_codebooks(self, codebooks: Sequence[Codebook]) -> Vocabulary:
        """The same text and special ids, followed by blocks for ``codebooks``."""
        return Vocabulary(self.pieces, codebooks)

    def encode(self, text: str) -> list[int]:
        """Text ids of a sentence.

        Raises:
            ValueError: a word that the vocabulary lacks (the sentence names it and the nearest known ones), the name of
                a special token or of a code, or codes alone.
        """
        pieces = self._text()
        if found := self._reserved.search(text):
            raise ValueError(
                f"text must not hold the name of a token that is no text, which would be split into pieces, got "
                f"{found[0]!r}; remove it from {text!r}"
            )
        ids = pieces.encode(text)
        if pieces.unknown in ids:
            raise ValueError(_unknown(text, pieces))
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
        if self.pieces is None:
            return ""
        return self.pieces.decode([int(i) for i in ids if int(i) < self.text_size])

    def special(self, token: str) -> int:
        """Id of one of :data:`SPECIALS`.

        Raises:
            ValueError: an unknown special token, or codes alone.
        """
        self._text()
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

    def tokens(self) -> Iterator[str]:
        """The name of every id beyond the text in order: special tokens, then codes as ``<pixel_00000>``.

        Code numbers have as many digits as the largest of their codebook.

        Raises:
            ValueError: a name that is also a text piece, which would then have two ids.
        """
        codes = (f"<{book.name}_{i:0{_digits(book)}}>" for book in self.codebooks for i in range(book.size))
        names = [*self.specials, *codes]
        twice = set(names) & set(self.pieces.names() if self.pieces else ())
        if twice:
            raise ValueError(
                f"every token beyond the text must have a name of its own, got {', '.join(sorted(twice))} among the "
                "text pieces too; use a text tokenizer that lacks them"
            )
        return iter(names)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``vocabulary.json`` and the text pieces beside it: ``vocabulary.model`` or ``text_tokenizer/``."""
        layout: dict[str, Any] = {
            "text": self.text_size,
            "specials": list(self.specials),
            "codebooks": [[book.name, book.size, book.depth] for book in self.codebooks],
        }
        files = [] if self.pieces is None else self.pieces.save(Path(folder))
        if not isinstance(self.pieces, SentencePieces):  # whose files stay as they were before these fields
            layout |= {"size": self.size, "files": files}
            layout["pieces"] = None if self.pieces is None else self.pieces.fingerprint()
        with atomic_file(Path(folder) / LAYOUT_FILE) as file:
            file.write_text(json.dumps(layout, indent=2))

    @classmethod
    def from_pretrained(cls, folder: str) -> Vocabulary:
        """Read a saved vocabulary and check that it means what it meant.

        Raises:
            FileNotFoundError: one of its files is missing.
            ValueError: a damaged file, or other text pieces, special tokens or blocks than were saved.
        """
        missing = missing_files(Path(folder))
        if missing:
            raise FileNotFoundError(
                f"a vocabulary was expected in {folder}, which lacks {', '.join(missing)}; save or train it again"
            )
        try:
            layout = json.loads((Path(folder) / LAYOUT_FILE).read_text())
            found = Vocabulary(_saved_pieces(Path(folder), layout), [Codebook(*book) for book in layout["codebooks"]])
            difference = _difference(layout, found)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} does not hold a readable vocabulary ({error}); save it again") from error
        if difference:
            raise ValueError(f"the vocabulary in {folder} {difference}; train or save it again")
        return found

    def _text(self) -> Pieces:
        if self.pieces is None:
            raise ValueError(
                "a vocabulary of codes alone has no text and no special tokens, so it writes none; make one with pieces"
            )
        return self.pieces


def missing_files(folder: Path) -> list[str]:
    """Names of the files that a saved vocabulary lacks in a folder, ``vocabulary.json`` last.

    Where ``vocabulary.json`` cannot say which files there should be, ``vocabulary.model`` is one unless the folder has
    a ``text_tokenizer``.
    """
    files: Any = [] if (folder / TOKENIZER_FOLDER).is_dir() else [MODEL_FILE]
    with suppress(OSError, ValueError, TypeError, AttributeError):
        layout = json.loads((folder / LAYOUT_FILE).read_text())
        files = [str(name) for name in layout.get("files", [MODEL_FILE])]
    return [name for name in [*files, LAYOUT_FILE] if not (folder / name).is_file()]


def _saved_pieces(folder: Path, layout: Mapping[str, Any]) -> Pieces | None:
    if "pieces" not in layout:
        return SentencePieces.from_file(folder / MODEL_FILE)
    return None if layout["pieces"] is None else HubPieces.from_folder(folder / TOKENIZER_FOLDER, layout["text"])


def _difference(layout: Mapping[str, Any], found: Vocabulary) -> str:
    """What a file says otherwise than the vocabulary that it made; empty where they agree."""
    text, specials, size = layout["text"], list(layout["specials"]), layout.get("size", found.size)
    lacking = [token for token in found.specials if token not in specials]
    if lacking:
        return f"must have all special tokens, its file lacks {', '.join(lacking)}"
    if specials != list(found.specials):
        return f"must have the special tokens {list(found.specials)}, its file says {specials}"
    if text != found.text_size:
        return f"should have {found.text_size} text pieces, its file says {text}"
    if size != found.size:
        blocks = ", ".join(f"{book.name} {book.size}" for book in found.codebooks) or "no codebook"
        return f"should have {size} ids, its text, special tokens and blocks ({blocks}) make {found.size}"
    if found.pieces and layout.get("pieces") not in (None, found.pieces.fingerprint()):
        return f"was saved with other text pieces than {TOKENIZER_FOLDER} holds"
    return ""


def _unknown(text: str, pieces: Pieces) -> str:
    words = [word for word in text.split() if pieces.unknown in pieces.encode(word)] or [text]
    known = [name.lstrip("\u2581") for name in pieces.names()]  # the mark of a space before a word
    hints = [f"{word!r} (near: {', '.join(get_close_matches(word, known, 3, 0.5)) or 'nothing'})" for word in words]
    return f"every word must be in the vocabulary of {pieces.size} pieces, got {', '.join(hints)}; reword the text"


def _digits(book: Codebook) -> int:
    return len(str(book.size - 1))


def _code_pattern(book: Codebook) -> str:
    return rf"<{re.escape(book.name)}_\d{{{_digits(book)}}}>"
