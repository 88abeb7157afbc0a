"""Autoregressive sampling over ids with a key-value cache. Knows nothing about pixels: pair it with a tokenizer.

Every row of a batch draws from its own generator, so that a picture does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from ..lm.model import SharedLM
from ..lm.sequences import TEXT, Batch, Example, Rows
from ..tokenizers.codes import PADDING, CodeLayout, Codes, CodeSpec
from .orders import Order, Raster


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn from logits.

    Args:
        guidance: classifier-free guidance scale s in ``u + s (c - u)`` (https://arxiv.org/abs/2207.12598); 1 is off.
        guided_steps: >= 0, number of steps, from the first, that are guided; all by default. The others do without the
            unconditional half of the batch.
        temperature: >= 0; 0 takes the most likely id.
        temperatures: of single codebooks by name, in place of ``temperature``: where things stand may be left to chance
            while their edges are not.
        top_k: keep the k most likely ids; 0 keeps all.
        top_p: keep the most likely ids whose probabilities reach p; 1 keeps all.
        candidates: >= 1, drawings of a prompt, of which the model keeps the one that it reads the prompt from most
            surely: the ranking of DALL-E (https://arxiv.org/abs/2102.12092) with the model as its own judge.

    Raises:
        ValueError: a value outside its range.
    """

    guidance: float = 3.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    candidates: int = 1
    temperatures: Mapping[str, float] | None = None
    guided_steps: int | None = None

    def __post_init__(self) -> None:
        heats = {"": self.temperature, **(self.temperatures or {})}
        if min(heats.values()) < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1, "
                f"got {min(heats.values())}, {self.top_k}, {self.top_p}; 1, 0 and 1 leave the distribution as it is"
            )
        if self.guided_steps is not None and self.guided_steps < 0:
            raise ValueError(f"sampling needs guided_steps >= 0, got {self.guided_steps}; None guides all of them")
        if self.candidates < 1:
            raise ValueError(f"sampling needs candidates >= 1, got {self.candidates}; 1 keeps the first drawing")

    def of(self, codebook: str) -> Sampling:
        """How ids of one codebook are drawn."""
        return replace(self, temperature=(self.temperatures or {}).get(codebook, self.temperature), temperatures=None)


def model_sampling(model: SharedLM) -> Sampling:
    """What a model draws with where nobody says otherwise: its configuration's ``sampling``, else the defaults."""
    return Sampling(**model.config.sampling)


def draw(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """Draw one id per row by inverting the cumulative distribution.

    Args:
        logits: ``[B, V]`` float32.
        sampling: temperature and filters; guidance is not used here.
        uniform: ``[B]`` float64 in [0, 1), the randomness of each row.

    Returns:
        ``[B]`` int64 ids in ``[0, V)``.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = (order.values.double() / sampling.temperature).softmax(-1)
    if sampling.top_k:
        probabilities[:, sampling.top_k :] = 0
    reached = probabilities.cumsum(-1)
    probabilities[reached - probabilities >= sampling.top_p * reached[:, -1:]] = 0
    edges = probabilities.cumsum(-1)
    rank = torch.searchsorted(edges, (uniform.to(edges) * edges[:, -1])[:, None], right=True)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1
    return order.indices.gather(1, rank.minimum(last))[:, 0]


@dataclass(frozen=True)
class Prompts:
    """Prompts of any lengths as one batch; shorter ones are padded on the left."""

    rows: Tensor  #: [B, T, W + 1] int64: the tokens of a step, then its slot
    mask: Tensor  #: [B, T] int64, 0 where a step is padding
    vectors: Tensor | None  #: [F, C] of the steps that are vectors, row by row


def left_padded(model: SharedLM, prompts: Sequence[Rows]) -> Prompts:
    """Prompts on the device of the model that reads them.

    Args:
        model: the language model.
        prompts: at least one, rows of the model's layout.
    """
    longest = max(len(prompt.rows) for prompt in prompts)
    pad = model.layout.rows(torch.tensor([[0]]), TEXT)[0]
    missing = [longest - len(prompt.rows) for prompt in prompts]
    rows = [torch.cat([pad.expand(n, -1), prompt.rows]) for n, prompt in zip(missing, prompts, strict=True)]
    mask = [[0] * n + [1] * (longest - n) for n in missing]
    vectors = [prompt.vectors for prompt in prompts if prompt.vectors is not None]
    given = torch.cat(vectors).to(model.device) if vectors else None
    return Prompts(torch.stack(rows).to(model.device), torch.tensor(mask, device=model.device), given)


def unlearned(rows: Tensor, vectors: Tensor | None = None) -> Batch:
    """Rows ``[B, T, W + 1]`` as a batch that is only read."""
    slots = rows[..., -1]
    return Batch(rows[..., :-1], slots, torch.zeros_like(slots, dtype=torch.bool), vectors=vectors)


class Session:
    """One run of decoding: the cache of a batch of prompts. It dies with the call that made it.

    Args:
        model: the language model, in eval mode.
        prompts: rows of the model's layout, of any lengths; shorter ones are padded on the left and masked.
    """

    def __init__(self, model: SharedLM, prompts: Sequence[Rows]) -> None:
        given = left_padded(model, prompts)
        self.model, self.cache = model, DynamicCache()
        self._pending, self._vectors, self._mask = given.rows, given.vectors, given.mask
        self._slots = given.rows[..., -1]

    def state(self) -> Tensor:
        """State ``[B, C]`` that predicts the step after all rows so far."""
        batch = unlearned(self._pending, self._vectors)
        found = self.model.next_state(batch, self.cache, self._slots, self._mask)
        self._pending, self._vectors = self._pending[:, :0], None
        return found

    def append(self, tokens: Tensor, slot: int, present: Tensor | None = None) -> None:
        """Add one step: tokens ``[B, <= W]`` of the shared vocabulary at a slot, or one at ``TEXT``.

        Args:
            tokens: of the step.
            slot: of the step.
            present: ``[B]`` bool, false for sequences that have ended; all go on by default.
        """
        rows = self.model.layout.rows(tokens, slot)
        self._pending = torch.cat([self._pending, rows], dim=1)
        self._slots = torch.cat([self._slots, rows[..., -1]], dim=1)
        new = self._mask.new_ones(len(tokens), 1) if present is None else present[:, None].to(self._mask)
        self._mask = torch.cat([self._mask, new], dim=1)

    def keep(self, count: int) -> None:
        """Go on with the first ``count`` sequences alone."""
        self.cache.batch_select_indices(torch.arange(count, device=self._mask.device))
        self._pending, self._slots, self._mask = self._pending[:count], self._slots[:count], self._mask[:count]


#: What an image is written for: a caption, a class, or vectors ``[n, F]`` of another model.
Condition = str | int | Tensor


@torch.inference_mode()
def sample_codes(
    model: SharedLM,
    conditions: Sequence[Condition],
    generators: Sequence[torch.Generator],
    sampling: Sampling | None = None,
    *,
    order: Order | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Codes:
    """Write the codes of one image per condition.

    Args:
        model: the language model.
        conditions: B captions, or what else the model is conditioned on.
        generators: B CPU generators, one per condition; each alone decides its picture.
        sampling: temperature, filters and guidance; the model's own by default.
        order: raster by default; must be legal for the layout of the model's codes.
        progress: called with (steps done, steps in all) after every step.

    Raises:
        ValueError: another number of generators than conditions, an order of several positions per step, temperatures
            of unknown codebooks, or candidates for what is no caption.
    """
    sampling, order = sampling or model_sampling(model), order or Raster()
    if len(generators) != len(conditions) or not conditions:
        raise ValueError(
            f"one generator per caption is needed and at least one caption, got {len(generators)} generators for "
            f"{len(conditions)} captions; make one generator for each"
        )
    _check_names(sampling, model.spec)
    candidates, drawn = sampling.candidates, model.spec.positions * model.spec.depth
    uniforms = torch.stack([torch.rand(candidates, drawn, generator=g, dtype=torch.float64) for g in generators])
    repeated = [condition for condition in conditions for _ in range(candidates)]
    codes = Codes.full(_draw_ids(model, repeated, uniforms.flatten(0, 1), sampling, order, progress), model.spec)
    return codes if candidates == 1 else codes[_most_readable(model, repeated, codes.ids, candidates)]


def _draw_ids(
    model: SharedLM,
    conditions: Sequence[Condition],
    uniforms: Tensor,
    sampling: Sampling,
    order: Order,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """Ids ``[B, N, D]`` of one image per condition from its row of uniform numbers ``[B, N * D]``; -1 past an end."""
    spec, layout, count = model.spec, model.layout, len(conditions)
    slots = _slots(order, spec.layout, layout.steps)
    own = {book.name: sampling.of(book.name) for book in spec.codebooks}
    guided = len(slots) if sampling.guided_steps is None else sampling.guided_steps
    guided = 0 if sampling.guidance == 1 else guided
    session = Session(model, _prompts(model, conditions, unconditional=guided > 0))
    ids = torch.full((count, layout.steps, layout.per_step), PADDING, device=model.device)
    going, drawn = torch.ones(count, dtype=torch.bool, device=model.device), iter(uniforms.T)
    for step, slot in enumerate(slots):
        if step == guided and step:
            session.keep(count)
        state, twice = session.state(), 1 + (step < guided)
        written = torch.empty(count * twice, 0, dtype=torch.int64, device=model.device)
        for column, block in enumerate(model.head.at(slot)):
            logits = _guided(model.logits(state, written, slot), sampling.guidance if twice == 2 else None)
            if block.stop is not None and slot == 0:
                logits[:, -1] = -torch.inf  # at least one position
            book = spec.columns[(slot * layout.per_step + column) % spec.depth].name
            chosen = draw(logits, own[book], next(drawn))
            going = going & (chosen < len(block.ids))
            ids[:, slot, column] = chosen.where(going, torch.full_like(chosen, PADDING))
            tokens = block.tokens(chosen.where(going, torch.zeros_like(chosen)))
            written = torch.cat([written, tokens.repeat(twice)[:, None]], dim=1)
        if spec.dynamic and not bool(going.any()):
            break
        session.append(written, slot, going.repeat(twice) if spec.dynamic else None)
        if progress is not None:
            progress(step + 1, len(slots))
    return ids.view(count, spec.positions, spec.depth)


def _prompts(model: SharedLM, conditions: Sequence[Condition], unconditional: bool) -> list[Rows]:
    """Those of the conditions, and behind them, where asked, those of nothing."""
    given = [model.layout.prompt(condition) for condition in conditions]
    return given + ([model.unconditional(condition) for condition in conditions] if unconditional else [])


def _guided(logits: Tensor, guidance: float | None) -> Tensor:
    """Logits of the first half of the rows led away from those of the second; as they are without guidance."""
    if guidance is None:
        return logits
    conditional, free = logits.chunk(2)
    return free + guidance * (conditional - free)


def _most_readable(model: SharedLM, captions: Sequence[Condition], ids: Tensor, candidates: int) -> Tensor:
    """Of every ``candidates`` images in a row the one whose caption is likeliest; the first of equals."""
    layout, read = model.layout, list[Example]()
    for row, caption in zip(ids.cpu(), captions, strict=True):
        if not isinstance(caption, str):
            raise ValueError(f"a model ranks candidates by their captions, got {type(caption).__name__}; draw one each")
        read.append(layout.image_to_text(row, caption))
    best = model.text_likelihood(layout.collate(read).to(model.device)).view(-1, candidates).argmax(1)
    return best + candidates * torch.arange(len(best), device=best.device)


def _check_names(sampling: Sampling, spec: CodeSpec) -> None:
    known = [book.name for book in spec.codebooks]
    unknown = [name for name in sampling.temperatures or {} if name not in known]
    if unknown:
        raise ValueError(
            f"temperatures must be given for codebooks of the model, which are {', '.join(known)}, got {unknown[0]!r}; "
            "correct the name"
        )


def _slots(order: Order, layout: CodeLayout, total: int) -> list[int]:
    steps = order.steps(layout)
    if any(len(step) != 1 for step in steps):
        raise ValueError(
            "the flat and depth heads write one position per step, got an order with steps of "
            f"{max(map(len, steps))} positions; use raster order"
        )
    each = total // layout.positions
    return [int(step) * each + part for step in steps for part in range(each)]
