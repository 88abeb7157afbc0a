"""What a picture is made for, as one vector: a class, a sentence, or nothing; for models other than language models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .vocabulary import Vocabulary

#: A class, a sentence, or ``None`` for nothing, which guidance leads away from.
Wanted = str | int | None


class ConditionEncoder(nn.Module):
    """Conditions to vectors."""

    @abstractmethod
    def forward(self, wanted: Sequence[Wanted]) -> Tensor:
        """Vectors ``[B, C]`` of B conditions, on the module's device.

        Raises:
            ValueError: a condition of another kind, a class out of range, or words that the vocabulary lacks.
        """

    @abstractmethod
    def wanted(self, text: str | None) -> Wanted:
        """What a text asks for: itself, or the class whose number it spells.

        Raises:
            ValueError: as :meth:`forward` does.
        """


class ClassEncoder(ConditionEncoder):
    """A row for each class and a last one for none, as in DiT (https://arxiv.org/abs/2212.09748).

    Args:
        classes: number of classes.
        width: C.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, wanted: Sequence[Wanted]) -> Tensor:
        """See :class:`ConditionEncoder`."""
        numbers = [self._number(one) for one in wanted]
        return self.table(torch.tensor(numbers, device=self.table.weight.device))

    def wanted(self, text: str | None) -> Wanted:
        """See :class:`ConditionEncoder`."""
        return None if text is None else class_number(text, self.classes)

    def _number(self, one: Wanted) -> int:
        return self.classes if one is None else class_number(one, self.classes)


class SentenceEncoder(ConditionEncoder):
    """Sentences through a small transformer, and the mean of its states; nothing has a vector of its own.

    Args:
        vocabulary: of the words.
        width: C.
        layers: of the transformer.
        heads: of its attention.
        length: most words of a sentence.

    Raises:
        ValueError: a width that the heads do not divide.
    """

    def __init__(self, vocabulary: Vocabulary, width: int, layers: int = 2, heads: int = 4, length: int = 64) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"the width of a sentence encoder must be a multiple of its heads, got {width} and {heads}"
            )
        self.vocabulary, self.length = vocabulary, length
        self.words = nn.Embedding(vocabulary.text_size, width)
        self.places = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.nothing = nn.Parameter(torch.zeros(width))

    def forward(self, wanted: Sequence[Wanted]) -> Tensor:
        """See :class:`ConditionEncoder`."""
        device = self.nothing.device
        given = torch.tensor([one is not None for one in wanted], device=device)
        if not bool(given.any()) and not torch.is_grad_enabled():  # processes that train together compute the same
            return self.nothing.expand(len(wanted), -1)
        # A row of nothing keeps one word, whose state is not used.
        rows = [torch.tensor(self._ids(one) or [0], dtype=torch.int64) for one in wanted]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1).to(device)
        absent = ids < 0
        entered = self.words(ids.clamp_min(0)) + self.places.weight[: ids.shape[1]]
        states = self.layers(entered, src_key_padding_mask=absent).masked_fill(absent[..., None], 0)
        means = states.sum(1) / (~absent).sum(1, keepdim=True)
        return torch.where(given[:, None], means, self.nothing)

    def wanted(self, text: str | None) -> Wanted:
        """See :class:`ConditionEncoder`."""
        self._ids(text)
        return text

    def _ids(self, sentence: Wanted) -> list[int]:
        if sentence is None:
            return []
        if not isinstance(sentence, str):
            raise ValueError(f"this model draws what sentences say, got {sentence!r}; describe the picture in words")
        ids = self.vocabulary.encode(sentence)
        if not 0 < len(ids) <= self.length:
            raise ValueError(f"a sentence must have 1 to {self.length} tokens, got {len(ids)}; shorten it")
        return ids


def condition_encoder(vocabulary: Vocabulary, classes: int, width: int) -> ConditionEncoder:
    """Of classes where there are any, else of sentences.

    Args:
        vocabulary: of the words.
        classes: number of classes; 0 for sentences.
        width: C.

    Raises:
        ValueError: neither classes nor a vocabulary with text.
    """
    if classes:
        return ClassEncoder(classes, width)
    if not vocabulary.text_size:
        raise ValueError("a model draws for classes or for words, got 0 classes and no text; give one of the two")
    heads = next(heads for heads in (4, 3, 2, 1) if width % heads == 0)
    return SentenceEncoder(vocabulary, width, heads=heads)


def check_one_kind(vocabulary: Vocabulary | None, classes: int) -> None:
    """Raise unless a model has either words or classes to learn from.

    Raises:
        ValueError: both, or neither.
    """
    if (vocabulary is None) != (classes > 0):
        raise ValueError(
            f"a model learns from text or from classes, got {'no' if vocabulary is None else 'a'} vocabulary and "
            f"{classes} classes; give one of the two"
        )


def class_number(wanted: Wanted, classes: int) -> int:
    """The class that a number is, or a text spells.

    Raises:
        ValueError: no class in ``[0, classes)``.
    """
    number = int(wanted) if isinstance(wanted, str) and wanted.isdecimal() else wanted
    if not isinstance(number, int) or not 0 <= number < classes:
        raise ValueError(f"this model draws classes in [0, {classes}), got {wanted!r}; pass a number of those")
    return number
