"""How steps enter the language model: text from a table, codes in one of three ways, conditions through their own.

``sum``: the rows that a step's codes have in the shared table, added. ``concat``: a narrow table of its own for each
column, side by side, through a linear layer. ``codebook``: the tokenizer's own vectors of the codes, side by side by
codebook (DualToken, https://arxiv.org/abs/2503.14324), through an MLP; what the tokenizer gives may be handed in
instead, and then carries the gradient on (ETT, https://arxiv.org/abs/2505.10562).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..tokenizers.codes import CodeSpec
from ..tokenizers.lookup import looked_up
from .sequences import NONE
from .tables import Table
from .vocabulary import Vocabulary

Activation = Literal["gelu", "gelu_tanh"]


class CodePositions(nn.Module):
    """Learned vectors for the position and the first column of a step's codes, zero for everything else.

    Args:
        spec: the codes.
        per_step: W, columns that one step writes.
        width: C, hidden size of the language model.
    """

    def __init__(self, spec: CodeSpec, per_step: int, width: int) -> None:
        super().__init__()
        self.steps = spec.depth // per_step
        self.position = nn.Embedding(spec.positions, width)
        self.column = nn.Embedding(self.steps, width)

    def forward(self, slots: Tensor) -> Tensor:
        """``[B, T]`` slots (see :mod:`smalti.lm.layout`) to ``[B, T, C]``."""
        visual = slots.clamp_min(0)
        added = self.position(visual // self.steps) + self.column(visual % self.steps)
        return added * (slots >= 0)[..., None]


def embed_tokens(tokens: Tensor, table: Table) -> Tensor:
    """The sum of a step's embeddings.

    Args:
        tokens: ``[B, T, W]`` ids, :data:`~smalti.lm.sequences.NONE` where a step wrote fewer than W.
        table: the input rows.

    Returns:
        ``[B, T, C]``.
    """
    if tokens.shape[-1] == 1:
        return table.embed(tokens[..., 0])
    return (table.embed(tokens.clamp_min(0)) * (tokens != NONE)[..., None]).sum(-2)


class CodeEmbedding(nn.Module):
    """Codes of steps to vectors, where they are not simply rows of the shared table."""

    @abstractmethod
    def forward(self, ids: Tensor, slots: Tensor, read_as: Tensor | None) -> Tensor:
        """Vectors ``[M, C]`` of M steps.

        Args:
            ids: ``[M, W]`` codes, counted from 0 in each codebook.
            slots: ``[M]`` int64, which step of its image each is.
            read_as: ``[M, ...]``, in place of a look-up; None looks up.
        """


class ConcatEmbedding(CodeEmbedding):
    """Side by side: a table of its own for each of the D columns, and one linear layer.

    Args:
        spec: the codes.
        per_step: W; a step that writes fewer than D columns leaves the others zero.
        width: C of the language model.
        dim: of each column's vectors; C / D by default.

    Raises:
        ValueError: steps of single columns, whose vectors have nothing to stand beside.
    """

    def __init__(self, spec: CodeSpec, per_step: int, width: int, dim: int | None = None) -> None:
        super().__init__()
        _need_whole("concat", spec, per_step)
        each = dim or max(1, width // spec.depth)
        self.tables = nn.ModuleList(nn.Embedding(book.size, each) for book in spec.columns)
        self.join = nn.Linear(each * spec.depth, width)

    def forward(self, ids: Tensor, slots: Tensor, read_as: Tensor | None) -> Tensor:
        """See :class:`CodeEmbedding`."""
        if read_as is not None:
            raise ValueError(f"concat embeddings look codes up, got vectors {list(read_as.shape)}; use kind codebook")
        return self.join(torch.cat([table(ids[:, at]) for at, table in enumerate(self.tables)], dim=-1))


class CodebookEmbedding(CodeEmbedding):
    """The tokenizer's vectors of the codes through a two-layer MLP (GELU).

    Args:
        spec: the codes.
        per_step: W.
        width: C of the language model.
        dims: width of the vectors by codebook, see :meth:`VisualTokenizer.code_vectors`.
        hidden: of the MLP; C by default.

    Raises:
        ValueError: steps of single columns, or widths of other codebooks than the spec's.
    """

    def __init__(
        self, spec: CodeSpec, per_step: int, width: int, dims: Mapping[str, int], hidden: int | None = None
    ) -> None:
        super().__init__()
        _need_whole("codebook", spec, per_step)
        names = [book.name for book in spec.codebooks]
        if set(dims) != set(names):
            raise ValueError(
                f"codebook embeddings need the width of {', '.join(names)}, got {', '.join(dims) or 'none'}; give "
                "that of the tokenizer's code_vectors for each"
            )
        self.spec = spec
        for book in spec.codebooks:
            self.register_buffer(_buffer(book.name), torch.zeros(book.size, dims[book.name]))
        inner = hidden or width
        self.enter = nn.Linear(sum(dims.values()), inner)
        self.leave = nn.Linear(inner, width)

    def set_vectors(self, vectors: Mapping[str, Tensor]) -> None:
        """Copy the vectors ``[K, C]`` of every codebook from a tokenizer."""
        for name, table in self.vectors().items():
            table.copy_(vectors[name].detach())

    def vectors(self) -> dict[str, Tensor]:
        """``[K, C]`` by codebook."""
        return {book.name: getattr(self, _buffer(book.name)) for book in self.spec.codebooks}

    def forward(self, ids: Tensor, slots: Tensor, read_as: Tensor | None) -> Tensor:
        """See :class:`CodeEmbedding`; ``read_as`` is ``[M, sum of dims]``, what ``embed`` of the tokenizer gives."""
        found = looked_up(self.vectors(), ids[None], self.spec)[0] if read_as is None else read_as
        return self.leave(F.gelu(self.enter(found.to(self.enter.weight.dtype))))


class VectorProjector(nn.Module):
    """Continuous features to the width of the language model, through a two-layer MLP.

    Args:
        dim: F of the features.
        width: C of the language model.
        hidden: of the MLP; C by default.
        bias: whether its layers have one.
        activation: between them: ``gelu``, or ``gelu_tanh``, its approximation.
        null: number of vectors kept in place of no features at all, for classifier-free guidance: drawn once and never
            trained, as in LlamaGen; 0 for none.
    """

    null: Tensor | None  #: [null, F]

    def __init__(
        self,
        dim: int,
        width: int,
        hidden: int | None = None,
        bias: bool = True,
        activation: Activation = "gelu",
        null: int = 0,
    ) -> None:
        super().__init__()
        inner = hidden or width
        self.first, self.second = nn.Linear(dim, inner, bias), nn.Linear(inner, width, bias)
        self.approximate = "tanh" if activation == "gelu_tanh" else "none"
        self.dim, self.null_count = dim, null
        self.register_buffer("null", torch.randn(null, dim) * dim**-0.5 if null else None)

    def forward(self, values: Tensor) -> Tensor:
        """``[M, F]`` to ``[M, C]``.

        Raises:
            ValueError: features of another width.
        """
        if values.shape[-1] != self.dim:
            raise ValueError(f"vectors of this model have {self.dim} channels, got {values.shape[-1]}; use its encoder")
        return self.second(F.gelu(self.first(values.to(self.first.weight.dtype)), approximate=self.approximate))


#: Ways for codes to enter, by the name they have in a configuration; ``sum`` needs no module.
KINDS: Mapping[str, type[CodeEmbedding] | None] = {
    "sum": None,
    "concat": ConcatEmbedding,
    "codebook": CodebookEmbedding,
}


def code_embedding(fields: Mapping[str, Any], spec: CodeSpec, per_step: int, width: int) -> CodeEmbedding | None:
    """The way for codes to enter that a configuration asks for; None for ``sum``.

    Args:
        fields: ``kind`` (``sum`` by default) and the arguments of its class.
        spec: the codes.
        per_step: W, columns that one step writes.
        width: C of the language model.

    Raises:
        ValueError: an unknown kind, or arguments that it does not have.
    """
    options = {name: value for name, value in fields.items() if name not in ("kind", "places")}
    kind = fields.get("kind", "sum")
    if kind not in KINDS:
        raise ValueError(f"codes enter as one of {', '.join(KINDS)}, got {kind!r}; choose one of them")
    family = KINDS[kind]
    known = [] if family is None else list(signature(family).parameters)[3:]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"codes that enter by {kind} take {', '.join([*known, 'places'])}, got {', '.join(unknown)}; correct it"
        )
    return None if family is None else family(spec, per_step, width, **options)


def local_ids(tokens: Tensor, slots: Tensor, vocabulary: Vocabulary, spec: CodeSpec) -> Tensor:
    """Codes counted from 0 in each codebook: ``[M, W]``, of tokens ``[M, W]`` of the vocabulary at slots ``[M]``."""
    starts = torch.tensor([vocabulary.block(book.name).start for book in spec.columns], device=tokens.device)
    per_step = tokens.shape[1]
    columns = slots[:, None] * per_step % spec.depth + torch.arange(per_step, device=tokens.device)
    return tokens - starts[columns]


def _buffer(codebook: str) -> str:
    return f"vectors_{codebook.replace('.', '_')}"


def _need_whole(kind: str, spec: CodeSpec, per_step: int) -> None:
    if per_step != spec.depth:
        raise ValueError(
            f"codes enter by {kind} where a step writes all {spec.depth} columns of a position, got {per_step}; use a "
            "depth or parallel head, or kind sum"
        )
