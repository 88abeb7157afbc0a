"""Autoregressive sampling over ids with a key-value cache. Knows nothing about pixels: pair it with a tokenizer.

Every row of a batch draws from its own generator, so that a picture does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from ..lm.layout import TEXT
from ..lm.model import SharedLM
from ..tokenizers.codes import CodeLayout, Codes, CodeSpec
from .orders import Order, Raster


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn from logits.

    Args:
        guidance: classifier-free guidance scale s in ``u + s (c - u)`` (https://arxiv.org/abs/2207.12598); 1 is off.
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

    def __post_init__(self) -> None:
        heats = {"": self.temperature, **(self.temperatures or {})}
        if min(heats.values()) < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1, "
                f"got {min(heats.values())}, {self.top_k}, {self.top_p}; 1, 0 and 1 leave the distribution as it is"
            )
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


class Session:
    """One run of decoding: the cache of a batch of prompts. It dies with the call that made it.

    Args:
        model: the language model, in eval mode.
        prompts: ``[T_i, W + 1]`` rows of the model's layout, of any lengths; shorter ones are padded on the left and
            masked.
    """

    def __init__(self, model: SharedLM, prompts: Sequence[Tensor]) -> None:
        self.model, self.cache = model, DynamicCache()
        longest = max(len(prompt) for prompt in prompts)
        pad = model.layout.rows(torch.tensor([[model.vocabulary.special("<pad>")]]), TEXT)[0]
        rows = [torch.cat([pad.expand(longest - len(prompt), -1), prompt]) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._pending = torch.stack(rows).to(model.device)
        self._mask = torch.tensor(mask, device=model.device)

    def state(self) -> Tensor:
        """State ``[B, C]`` that predicts the step after all rows so far."""
        found = self.model.next_state(self._pending, self.cache, self._mask)
        self._pending = self._pending[:, :0]
        return found

    def append(self, tokens: Tensor, slot: int) -> None:
        """Add one step: tokens ``[B, <= W]`` of the shared vocabulary at a slot, or one at ``TEXT``."""
        self._pending = torch.cat([self._pending, self.model.layout.rows(tokens, slot)], dim=1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)


@torch.inference_mode()
def sample_codes(
    model: SharedLM,
    captions: Sequence[str],
    generators: Sequence[torch.Generator],
    sampling: Sampling | None = None,
    *,
    order: Order | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Codes:
    """Write the codes of one image per caption.

    Args:
        model: the language model.
        captions: B prompts.
        generators: B CPU generators, one per caption; each alone decides its picture.
        sampling: temperature, filters and guidance; the model's own by default.
        order: raster by default; must be legal for the layout of the model's codes.
        progress: called with (steps done, steps in all) after every step.

    Raises:
        ValueError: another number of generators than captions, an order of several positions per step, or temperatures
            of unknown codebooks.
    """
    sampling, order = sampling or model_sampling(model), order or Raster()
    if len(generators) != len(captions) or not captions:
        raise ValueError(
            f"one generator per caption is needed and at least one caption, got {len(generators)} generators for "
            f"{len(captions)} captions; make one generator for each"
        )
    _check_names(sampling, model.spec)
    candidates, drawn = sampling.candidates, model.spec.positions * model.spec.depth
    uniforms = torch.stack([torch.rand(candidates, drawn, generator=g, dtype=torch.float64) for g in generators])
    repeated = [caption for caption in captions for _ in range(candidates)]
    codes = Codes.full(_draw_ids(model, repeated, uniforms.flatten(0, 1), sampling, order, progress), model.spec)
    return codes if candidates == 1 else codes[_most_readable(model, repeated, codes.ids, candidates)]


def _draw_ids(
    model: SharedLM,
    captions: Sequence[str],
    uniforms: Tensor,
    sampling: Sampling,
    order: Order,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """Ids ``[B, N, D]`` of one image per caption from its row of uniform numbers ``[B, N * D]``."""
    spec, layout = model.spec, model.layout
    slots = _slots(order, spec.layout, layout.steps)
    guided, own = sampling.guidance != 1, {book.name: sampling.of(book.name) for book in spec.codebooks}
    prompts = [layout.prompt(caption) for caption in captions] + [layout.prompt(None)] * (guided * len(captions))
    session = Session(model, prompts)
    ids = torch.empty(len(captions), layout.steps, layout.per_step, dtype=torch.int64, device=model.device)
    drawn = iter(uniforms.T)
    for step, slot in enumerate(slots):
        state = session.state()
        written = torch.empty(len(state), 0, dtype=torch.int64, device=model.device)
        for column, block in enumerate(model.head.at(slot)):
            logits = model.logits(state, written, slot)
            if guided:
                conditional, free = logits.chunk(2)
                logits = free + sampling.guidance * (conditional - free)
            book = spec.columns[(slot * layout.per_step + column) % spec.depth].name
            ids[:, slot, column] = draw(logits, own[book], next(drawn))
            tokens = ids[:, slot, column] + block.start
            written = torch.cat([written, (tokens.repeat(2) if guided else tokens)[:, None]], dim=1)
        session.append(written, slot)
        if progress is not None:
            progress(step + 1, len(slots))
    return ids.view(len(captions), spec.positions, spec.depth)


def _most_readable(model: SharedLM, captions: Sequence[str], ids: Tensor, candidates: int) -> Tensor:
    """Of every ``candidates`` images in a row the one whose caption is likeliest; the first of equals."""
    layout = model.layout
    pairs = zip(ids.cpu(), captions, strict=True)
    read = layout.collate([layout.image_to_text(row, caption) for row, caption in pairs])
    best = model.text_likelihood(read.to(model.device)).view(-1, candidates).argmax(1)
    return best + candidates * torch.arange(len(best), device=best.device)


@torch.inference_mode()
def write_text(model: SharedLM, prompts: Sequence[Tensor], limit: int = 32) -> list[str]:
    """Continue prompts greedily with text until ``<eos>``.

    Args:
        model: the language model.
        prompts: rows from :class:`~smalti.lm.layout.SequenceLayout`.
        limit: most tokens written.
    """
    session, end = Session(model, prompts), model.vocabulary.special("<eos>")
    written = torch.full((len(prompts), limit), end, device=model.device)
    open_rows = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    nothing = torch.empty(len(prompts), 0, dtype=torch.int64, device=model.device)
    for step in range(limit):
        tokens = (
            model.logits(session.state(), nothing, TEXT)
            .argmax(-1)
            .where(open_rows, torch.tensor(end, device=model.device))
        )
        written[:, step] = tokens
        open_rows &= tokens != end
        if not bool(open_rows.any()):
            break
        session.append(tokens[:, None], TEXT)
    return [model.vocabulary.decode(_until(row, end)) for row in written.tolist()]


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


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
