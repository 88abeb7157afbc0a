"""The sampler that releases of this field ship, for any order: slow, and easy to see through.

It is what :mod:`smalti.generation.sampler` is compared with, by its ids in tests and by its time in
``benchmarks/generation.py``. Every row of the sequences has a slot of its own in buffers of full size: first the
prompt, then the steps of the image in raster order, then extras. A pass attends to all slots, under a mask that hides
those that are not filled. Both halves of a guided batch run to the end and are classified, as is every direction;
positions are drawn one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.cache_utils import Cache, CacheLayerMixin

from ..lm.model import SharedLM
from ..lm.plans import ABSENT, PROMPT
from ..lm.sequences import EXTRA, NONE, Rows
from ..tokenizers.codes import PADDING, Codes
from .orders import Order
from .sampler import Chances, Condition, model_order
from .sampling import Sampling, model_sampling
from .session import left_padded, unlearned


@torch.inference_mode()
def sample_plainly(
    model: SharedLM,
    conditions: Sequence[Condition],
    generators: Sequence[torch.Generator],
    sampling: Sampling | None = None,
    order: Order | None = None,
) -> Codes:
    """The codes that :func:`~smalti.generation.sampler.sample_codes` writes.

    Args:
        model: the language model, in eval mode.
        conditions: B of them.
        generators: B CPU generators, one per condition.
        sampling: temperature, filters and guidance, of one candidate; the model's own by default.
        order: the model's own by default.

    Raises:
        ValueError: several candidates, or an order that the codes or the model do not allow.
    """
    sampling, order = sampling or model_sampling(model), order or model_order(model)
    if sampling.candidates != 1:
        raise ValueError(f"the plain sampler draws 1 candidate, got {sampling.candidates}; rank them with sample_codes")
    chances = Chances.of(model, order, generators)
    scales = sampling.scales(len(chances.plan.sizes))
    prompts = [model.layout.prompt(condition) for condition in conditions]
    if any(scale != 1 for scale in scales):
        prompts += [model.unconditional(condition) for condition in conditions]
    image = PlainImage(model, prompts, chances)
    for step, scale in enumerate(scales):
        wanted = image.wanted(step)
        image.read(step, wanted)
        chosen, sure = image.draw(step, wanted, scale, sampling)
        if image.plan.adaptive:
            wanted, chosen = image.surest(step, wanted, chosen, sure)
        image.write(step, wanted, chosen)
    return Codes.full(image.ids.view(len(image.ids), model.spec.positions, model.spec.depth), model.spec)


class PlainImage:
    """A batch of B images behind their prompts. Every row of their R sequences has a slot; R is B, or 2B with guidance.

    Args:
        model: the language model.
        prompts: R of them, padded on the left to P slots.
        chances: of the images.
    """

    def __init__(self, model: SharedLM, prompts: Sequence[Rows], chances: Chances) -> None:
        self.model, self.plan, self.noise = model, chances.plan, chances.noise
        self.positions, self.uniform = chances.positions.clone(), list(chances.uniform.unbind(1))
        given, device, steps = left_padded(model, prompts), model.device, model.layout.steps
        self.first, self.width = given.rows.shape[1], model.layout.per_step
        self.halves = len(prompts) // len(self.positions)
        self.ids = torch.full((len(self.positions), steps, self.width), PADDING, device=device)
        self.going = torch.ones(len(self.positions), dtype=torch.bool, device=device)
        behind = torch.full((steps + self.plan.extras, self.width + 1), NONE, device=device)
        behind[:steps, -1] = torch.arange(steps, device=device)
        behind[steps:, 0], behind[steps:, -1] = torch.arange(self.plan.extras, device=device), EXTRA
        self.rows = torch.cat([given.rows, behind.expand(len(prompts), -1, -1)], dim=1)
        self.vectors = given.vectors
        self.slots = torch.arange(self.rows.shape[1], device=device)
        self.present = torch.cat([given.mask.bool(), given.mask.new_ones(len(prompts), len(behind)).bool()], dim=1)
        self.places = model.places(self.rows[..., -1], self.present)
        self.filled = torch.zeros_like(self.present)
        layers = int(model.backbone.config.num_hidden_layers) + model.config.directions - 1
        self.cache = DenseCache(layers, len(self.slots))
        embedding = model.inputs.pieces[0]
        self.states = embedding.new_zeros(*self.rows.shape[:2], model.config.directions, embedding.shape[1])

    def wanted(self, step: int) -> Tensor:
        """``[B, n]`` positions that a pass predicts."""
        start, end = self.plan.starts[step : step + 2]
        if self.plan.asks != "rest":
            return self.positions[:, start:end]
        rows = [sorted({*range(self.plan.count)} - {*row}) for row in self.positions[:, :start].tolist()]
        return torch.tensor(rows, device=self.positions.device)

    def read(self, step: int, wanted: Tensor) -> None:
        """One pass: the prompt, or what the pass before wrote; extras; and queries, which no later pass sees, nor any
        other query where all that is missing is asked for.
        """
        known = self.slots[: self.first].expand(len(self.rows), -1) if step == 0 else self._inputs(step)
        asked = self._both(wanted + self.first)[:, : 0 if self.plan.asks == "nothing" else None]
        at, row = torch.cat([known, asked], dim=1), torch.arange(len(self.rows), device=known.device)[:, None]
        self.filled.scatter_(1, known, True)
        before = (at >= self.first)[..., None] | (self.slots <= at[..., None])  # prompts are causal
        seen = (self.filled & self.present)[:, None] & before
        if self.plan.asks == "step":
            seen[:, known.shape[1] :] |= torch.zeros_like(self.filled).scatter(1, asked, True)[:, None]
        seen |= self.slots == at[..., None]  # padding sees itself
        asking = (torch.arange(at.shape[1], device=at.device) >= known.shape[1]).expand_as(at)
        batch = unlearned(self.rows[row, at], self.vectors, asking if asked.shape[1] else None)
        self.cache.turn_to(at)
        places = self.places.gather(-1, at.expand(*self.places.shape[:-1], -1))
        with sdpa_kernel(SDPBackend.MATH):
            self.states[row, at] = self.model.through(self.model.embed(batch), places, seen[:, None], self.cache)

    def draw(self, step: int, wanted: Tensor, scale: float, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """Choices ``[B, n, W]`` for positions ``[B, n]``, and the sum of their log-likelihoods where that counts."""
        model, (batch, number), slot = self.model, wanted.shape, self._slot(wanted)
        sources, shares = self._sources(step, wanted)
        row = torch.arange(len(self.rows), device=wanted.device)[:, None]
        chosen, written = wanted.new_empty(batch, number, 0), wanted.new_empty(len(row) * number, 0)
        sure = torch.zeros(batch, number, device=wanted.device)
        uniform = self._chance(number * self.width).view(batch, number, self.width)
        for column, block in enumerate(model.head.at(slot)):
            whole, before = (slot * self.width + column) % model.spec.depth, model.inputs.embed(written)
            logits = torch.zeros(len(row), number, len(block), device=wanted.device)
            for direction, (head, table) in enumerate(model.heads):
                states = self.states[row, sources[..., direction], direction].flatten(0, 1)
                found = head.column_logits(head(states, before)[:, -1], table, whole).float()
                logits += shares[:, direction, None] * found.view_as(logits)
            if self.halves == 2:
                given, free = logits.chunk(2)
                logits = free + scale * (given - free)
            if block.stop is not None and step == 0:
                logits[..., -1] = -torch.inf  # at least one position
            how = sampling.of(model.spec.columns[whole].name)
            ids = torch.stack([pick(logits[:, j], uniform[:, j, column], how) for j in range(number)], dim=1)
            if self.plan.adaptive:
                sure += logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
            if block.stop is not None:
                self.going = self.going & (ids[:, 0] < len(block.ids))
            chosen = torch.cat([chosen, ids[..., None]], dim=-1)
            written = torch.cat([written, self._both(block.tokens(ids)).view(-1, 1)], dim=-1)
        return chosen, sure

    def surest(self, step: int, wanted: Tensor, chosen: Tensor, sure: Tensor) -> tuple[Tensor, Tensor]:
        """Of what was asked for, as much as the pass keeps."""
        gumbel = -(-self._chance(wanted.shape[1]).clamp_min(1e-300).log()).log()
        falling = self.noise * (1 - (step + 1) / len(self.plan.sizes))
        ranked = sure / self.width + falling * gumbel.to(sure)
        kept = ranked.argsort(dim=1, descending=True)[:, : self.plan.sizes[step]].sort(dim=1).values
        return wanted.gather(1, kept), chosen.gather(1, kept[..., None].expand(-1, -1, self.width))

    def write(self, step: int, wanted: Tensor, chosen: Tensor) -> None:
        """Note ids ``[B, n, W]`` at positions ``[B, n]``, in both halves."""
        start, end = self.plan.starts[step : step + 2]
        self.positions[:, start:end] = wanted
        ended, at = ~self.going[:, None, None], self._both(wanted + self.first)
        self.ids[torch.arange(len(wanted), device=at.device)[:, None], wanted] = chosen.masked_fill(ended, PADDING)
        blocks = enumerate(self.model.head.at(self._slot(wanted)))
        columns = [block.tokens(chosen.masked_fill(ended, 0)[..., column]) for column, block in blocks]
        tokens = self._both(torch.stack(columns, dim=-1))
        self.rows[torch.arange(len(at), device=at.device)[:, None], at, :-1] = tokens

    def _slot(self, wanted: Tensor) -> int:
        """The step that is written, where steps differ in what they choose from."""
        return int(wanted[0, 0]) if self.width != self.model.spec.depth else 0

    def _both(self, values: Tensor) -> Tensor:
        """Of all R sequences, from values of B images."""
        return torch.cat([values] * self.halves)

    def _chance(self, count: int) -> Tensor:
        """The next uniform numbers of every image, ``[B, count]``."""
        drawn, self.uniform = self.uniform[:count], self.uniform[count:]
        return torch.stack(drawn, dim=1)

    def _written(self) -> Tensor:
        """``[R, N + extras]``: the slot of what is written k-th, then those of extras."""
        extras = self.slots[self.first + self.plan.count :].expand(len(self.positions), -1)
        return self._both(torch.cat([self.positions + self.first, extras], dim=1))

    def _inputs(self, step: int) -> Tensor:
        return self._written()[:, self.plan.inputs(step)]

    def _sources(self, step: int, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """``[R, n, S]`` slots whose states predict n positions, and the share ``[n, S]`` of each in their mean."""
        if self.plan.asks != "nothing":
            return self._both(wanted + self.first)[..., None], torch.ones(wanted.shape[1], 1, device=wanted.device)
        sources = self.plan.sources[self.plan.starts[step] : self.plan.starts[step + 1]].to(wanted.device)
        found = self._written()[:, sources.clamp_min(0)].masked_fill(sources == PROMPT, self.first - 1)
        present = (sources != ABSENT).float()
        return found, present / present.sum(1, keepdim=True)


class DenseLayer(CacheLayerMixin):
    """One layer's keys and values: buffers of full size that begin as zeros.

    Args:
        room: slots.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.at = room, torch.empty(0, 0, dtype=torch.int64)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers, ``[R, H, room, D]``."""
        batch, heads, _, width = key_states.shape
        self.keys = key_states.new_zeros(batch, heads, self.room, width)
        self.values = value_states.new_zeros(batch, heads, self.room, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put those of T rows, ``[R, H, T, D]``, into their slots; the whole buffers."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        index = self.at[:, None, :, None]
        self.keys.scatter_(2, index.expand_as(key_states), key_states)
        self.values.scatter_(2, index.expand_as(value_states), value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """All slots."""
        return self.room

    def get_max_length(self) -> int:
        """All slots."""
        return self.room

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """A mask covers all slots."""
        return self.room, 0


class DenseCache(Cache):
    """A :class:`DenseLayer` for every layer of a model.

    Args:
        layers: of the model.
        room: slots.
    """

    layers: list[DenseLayer]  # pyright: ignore[reportIncompatibleVariableOverride]: of one kind

    def __init__(self, layers: int, room: int) -> None:
        super().__init__(layers=[DenseLayer(room) for _ in range(layers)])

    def turn_to(self, at: Tensor) -> None:
        """Slots ``[R, T]`` of the rows that come next."""
        for layer in self.layers:
            layer.at = at


def pick(logits: Tensor, uniform: Tensor, how: Sampling) -> Tensor:
    """Ids ``[B]`` from logits ``[B, V]`` and uniform numbers ``[B]``, with filters that sort the vocabulary."""
    if how.temperature == 0:
        return logits.argmax(-1)
    logits = logits / how.temperature
    if how.top_k or how.top_p < 1:
        ranked, ids = logits.sort(dim=-1, descending=True, stable=True)
        if 0 < how.top_k < ranked.shape[-1]:
            ranked = ranked.masked_fill(ranked < ranked[:, how.top_k - 1, None], -torch.inf)
        passed = ranked.softmax(-1).cumsum(-1) > how.top_p
        if how.top_p < 1:
            ranked[:, 1:] = ranked[:, 1:].masked_fill(passed[:, :-1], -torch.inf)
        logits = torch.empty_like(ranked).scatter(1, ids, ranked)
    edges = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    below = edges <= uniform[:, None] * edges[:, -1:]
    return below.sum(-1).clamp_max(logits.shape[-1] - 1)
