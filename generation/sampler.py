"""Sampling of codes in any order with a key-value cache. Knows nothing about pixels: pair it with a tokenizer.

Every row of a batch draws from its own generator, so that a picture does not depend on what else is in the batch. All
that a pass predicts is drawn in one call, guidance and the mean over directions are applied before the output
projection, and the unconditional half of the batch ends with the last step that is guided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lm.losses import Predictors, mean_logits
from ..lm.model import SharedLM
from ..lm.plans import Plan
from ..lm.sequences import EXTRA, NONE, Example, Rows
from ..tokenizers.codes import PADDING, Codes
from .filters import draw
from .orders import Masked, Order, Raster, order_of, raster_plan
from .sampling import Sampling, model_sampling
from .session import Session


@dataclass(frozen=True)
class Progress:
    """How far the images of a batch are written."""

    done: int  #: passes that are done
    total: int  #: passes in all
    ids: Tensor  #: [B, N, D] int64, -1 where nothing is written yet


#: Called after every pass.
Watch = Callable[[Progress], None]

#: What an image is written for: a caption, a class, or vectors ``[n, F]`` of another model.
Condition = str | int | Tensor


def model_order(model: SharedLM) -> Order:
    """The order that a model was trained to write in."""
    return order_of(model.config.order)


def plan_of(model: SharedLM, order: Order | None = None, generator: torch.Generator | None = None) -> Plan:
    """How a model writes an image: its passes, over steps of single columns where its head writes those.

    Args:
        model: the language model.
        order: the model's own by default.
        generator: of the CPU, for orders that draw; one of its own by default.

    Raises:
        ValueError: an order that the codes do not allow.
    """
    chosen = order or model_order(model)
    chosen.check(model.spec, model.layout.per_step)
    if isinstance(chosen, Raster):
        return raster_plan(model.layout.steps)
    return chosen.plan(model.spec.layout, generator or torch.Generator())


@torch.inference_mode()
def sample_codes(
    model: SharedLM,
    conditions: Sequence[Condition],
    generators: Sequence[torch.Generator],
    sampling: Sampling | None = None,
    *,
    order: Order | None = None,
    progress: Watch | None = None,
) -> Codes:
    """Write the codes of one image per condition.

    Args:
        model: the language model.
        conditions: B captions, or what else the model is conditioned on.
        generators: B CPU generators, one per condition; each alone decides its picture.
        sampling: temperature, filters and guidance; the model's own by default.
        order: the model's own by default; must be legal for its codes and need what the model has.
        progress: called after every pass, with what is written so far.

    Raises:
        ValueError: another number of generators than conditions, an order that the codes or the model do not allow,
            temperatures of unknown codebooks, or candidates for what is no caption.
    """
    sampling, order = sampling or model_sampling(model), order or model_order(model)
    if len(generators) != len(conditions) or not conditions:
        raise ValueError(
            f"one generator per caption is needed and at least one caption, got {len(generators)} generators for "
            f"{len(conditions)} captions; make one generator for each"
        )
    sampling.check(model.spec)
    repeated = [condition for condition in conditions for _ in range(sampling.candidates)]
    drawn = Chances.of(model, order, [generator for generator in generators for _ in range(sampling.candidates)])
    double = any(scale != 1 for scale in sampling.scales(len(drawn.plan.sizes)))
    session = Session(model, _prompts(model, repeated, double), drawn.plan.count, drawn.plan.extras)
    codes = Codes.full(ImageWriter(session, drawn, sampling).write_all(progress), model.spec)
    if sampling.candidates == 1:
        return codes
    return codes[_most_readable(model, repeated, codes.ids, sampling.candidates)]


@dataclass(frozen=True)
class Chances:
    """The plan of an order and all that is left to chance in it, for a batch of images."""

    plan: Plan  #: of all images, but for the positions
    positions: Tensor  #: [B, N] int64, the position that each image writes k-th
    uniform: Tensor  #: [B, U] float64 in [0, 1), in the order of use
    noise: float  #: of the choice among what is asked for

    @classmethod
    def of(cls, model: SharedLM, order: Order, generators: Sequence[torch.Generator]) -> Chances:
        """Drawn from one generator for each image.

        Raises:
            ValueError: an order that the codes or the model do not allow.
        """
        plans, uniforms = list[Plan](), list[Tensor]()
        for generator in generators:
            plan = plans[0] if plans and not order.random else plan_of(model, order, generator)
            plans.append(plan)
            uniforms.append(torch.rand(_draws(plan, model.layout.per_step), generator=generator, dtype=torch.float64))
        _check_model(model, order, plans[0])
        positions = torch.stack([plan.positions for plan in plans]).to(model.device)
        noise = order.noise if isinstance(order, Masked) else 0.0
        return cls(plans[0], positions, torch.stack(uniforms).to(model.device), noise)


#: Logits of queries that are drawn from together: so many that those of 16 images are small beside the model, and more
#: where a pass costs more than its rows.
_TOGETHER = {"cpu": 3 << 18, "other": 1 << 27}


class ImageWriter:
    """Writes an image behind each prompt of a session, pass by pass.

    Args:
        session: of B prompts, or of twice as many where sampling guides, those of nothing behind the others.
        chances: of B images.
        sampling: how ids are drawn.
    """

    def __init__(self, session: Session, chances: Chances, sampling: Sampling) -> None:
        self.session, self.model, self.plan = session, session.model, chances.plan
        self.noise, self.count = chances.noise, len(chances.positions)
        layout, device = self.model.layout, chances.positions.device
        self.positions = chances.positions.clone()
        self.scales = sampling.scales(len(self.plan.sizes))
        self.guided_until = max((step + 1 for step, scale in enumerate(self.scales) if scale != 1), default=0)
        self.drawn = [sampling.of(book.name) for book in self.model.spec.columns]
        self.ids = torch.full((self.count, layout.steps, layout.per_step), PADDING, device=device)
        self.tokens = torch.full((self.count, self.plan.count, layout.per_step), NONE, device=device)
        self.going = torch.ones(self.count, dtype=torch.bool, device=device)
        self._uniform, self._used = chances.uniform, 0
        self.heads, self.inputs = self.model.heads, self.model.inputs
        self._starts = torch.tensor([block.ids.start for block in self.model.head.blocks], device=device)
        session.open_image()

    @property
    def codes(self) -> Tensor:
        """Ids ``[B, N, D]`` so far, -1 elsewhere."""
        spec = self.model.spec
        return self.ids.view(self.count, spec.positions, spec.depth)

    def write_all(self, progress: Watch | None = None) -> Tensor:
        """All passes.

        Args:
            progress: called after every pass.

        Returns:
            Ids ``[B, N, D]`` int64, -1 past the end of dynamic codes.
        """
        passes = len(self.plan.sizes)
        for step in range(passes):
            if not self.write(step):
                break
            if progress is not None:
                progress(Progress(step + 1, passes, self.codes.clone()))
        return self.codes

    def write(self, step: int) -> bool:
        """One pass; false once all images have ended."""
        if step == self.guided_until and step:
            self.session.keep(self.count)
        asks = self.plan.asks
        start, end = self.plan.starts[step : step + 2]
        wanted = self._left(step) if asks == "rest" else self.positions[:, start:end]
        rows, found = self._rows(step), list[tuple[Tensor, Tensor | None]]()
        for part in self._parts(wanted) if asks == "rest" else [wanted]:
            queries = None if asks == "nothing" else self._twice(step, part)
            states = self.session.read(rows, queries, self._present(step), apart=asks == "rest")
            found.append(self._draw(self._predictors(states, step, part), part, step))
            rows = None
        chosen = torch.cat([ids for ids, _ in found], dim=1)
        sure = torch.cat([each for _, each in found if each is not None], dim=1) if self.plan.adaptive else None
        if self.plan.adaptive:
            wanted, chosen = self._surest(step, wanted, chosen, sure)
        self._put(step, wanted, chosen)
        return not self.model.spec.dynamic or bool(self.going.any())

    def _parts(self, wanted: Tensor) -> Sequence[Tensor]:
        """What queries that do not see each other ask for, ``[B, n]``, in parts that are read one after the other."""
        limit = _TOGETHER["cpu" if wanted.device.type == "cpu" else "other"]
        return wanted.split(max(1, limit // (self.count * max(map(len, self.model.head.blocks)))), dim=1)

    def _left(self, step: int) -> Tensor:
        """``[B, r]`` positions that are not written before a pass, in their order."""
        start = self.plan.starts[step]
        written = torch.zeros(self.count, self.plan.count, dtype=torch.bool, device=self.positions.device)
        written.scatter_(1, self.positions[:, :start], True)
        return written.int().argsort(dim=1, stable=True)[:, : self.plan.count - start]

    def _twice(self, step: int, values: Tensor | None) -> Tensor | None:
        """For the unconditional half too, while there is one."""
        if values is None or step >= self.guided_until:
            return values
        return torch.cat([values, values])

    def _rows(self, step: int) -> Tensor | None:
        """Rows of the codes that the pass before wrote, and extras."""
        ks = self.plan.inputs(step)
        codes = [k for k in ks if k < self.plan.count]
        if not ks:
            return None
        at = slice(codes[0], codes[-1] + 1) if codes else slice(0)
        rows = torch.cat([self.tokens[:, at], self.positions[:, at, None]], dim=-1)
        if len(codes) < len(ks):
            number = torch.arange(len(ks) - len(codes), device=rows.device)[:, None]
            none = torch.full((len(number), self.tokens.shape[-1] - 1), NONE, device=rows.device)
            extras = torch.cat([number, none, torch.full_like(number, EXTRA)], dim=1)
            rows = torch.cat([rows, extras.expand(self.count, -1, -1)], dim=1)
        return self._twice(step, rows)

    def _present(self, step: int) -> Tensor | None:
        return self._twice(step, self.going) if self.model.spec.dynamic and step else None

    def _predictors(self, states: Tensor, step: int, wanted: Tensor) -> Predictors:
        """What predicts the wanted positions ``[B, n]``: states ``[B' * n, S, C]``, conditional ones first."""
        if self.plan.asks != "nothing":
            found = states[:, -wanted.shape[1] :, :1]
            return Predictors(found.flatten(0, 1), None)
        rows = len(self.plan.inputs(step))
        if rows <= 1 and self.plan.directions == 1:  # by the last row, as there is no other
            return Predictors(states[:, -1], None)
        sources = self.plan.read_from(step).to(states.device)
        first = states.shape[1] - rows  # what stands before is the prompt
        directions = torch.arange(sources.shape[1], device=states.device)
        found = states[:, torch.where(sources >= 0, sources + first, first - 1).clamp_min(0), directions]
        if sources.shape[1] == 1:
            return Predictors(found.flatten(0, 1), None)
        shares = (sources > -2).to(states.dtype)
        shares = (shares / shares.sum(1, keepdim=True)).repeat(len(states), 1)
        return Predictors(found.flatten(0, 1), shares)

    def _draw(self, predictors: Predictors, wanted: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        """Choices ``[B, n, W]`` for wanted positions ``[B, n]``, and how sure the model is of each position."""
        model, width = self.model, self.model.layout.per_step
        slot, number = (int(wanted[0, 0]) if width != model.spec.depth else 0), wanted.shape[1]
        twice = 1 + (step < self.guided_until)
        guidance = self.scales[step] if twice == 2 else None
        uniform = self._chance(number * width).view(self.count, number, width)
        found = list[Tensor]()
        sure = torch.zeros(self.count * number, device=wanted.device) if self.plan.adaptive else None
        written = torch.empty(self.count * number * twice, 0, dtype=torch.int64, device=wanted.device)
        shares = predictors.shares
        if shares is None and len(self.heads) > 1:
            raise ValueError(_needs_directions(len(self.heads), 1))
        for column, block in enumerate(model.head.at(slot)):
            leaving = predictors.leaving(self.heads, self.inputs.embed(written))
            whole = (slot * width + column) % model.spec.depth
            logits = mean_logits(self.heads, [state[:, -1] for state in leaving], shares, whole, guidance)
            if block.stop is not None and self.plan.starts[step] == 0:
                logits[:, -1] = -torch.inf  # at least one position
            how = self.drawn[whole]
            chosen = draw(logits, uniform[..., column].flatten(), how.temperature, how.top_k, how.top_p)
            if sure is not None:
                sure += logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
            found.append(chosen)
            if block.stop is not None:
                self.going = self.going & (chosen < len(block.ids))
            if column < width - 1:  # the next one reads it
                tokens = block.tokens(chosen if block.stop is None else chosen.clamp_max(len(block.ids) - 1))
                written = torch.cat([written, tokens.repeat(twice)[:, None]], dim=1)
        ids = torch.stack(found, dim=-1).view(self.count, number, width)
        return ids, None if sure is None else sure.view(self.count, number) / width

    def _surest(self, step: int, wanted: Tensor, chosen: Tensor, sure: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of what was asked for, as much as the pass keeps."""
        assert sure is not None
        steps = len(self.plan.sizes)
        gumbel = -(-self._chance(wanted.shape[1]).clamp_min(1e-300).log()).log()
        ranked = sure + self.noise * (1 - (step + 1) / steps) * gumbel.to(sure)
        kept = ranked.topk(self.plan.sizes[step], dim=1).indices.sort(dim=1).values
        return wanted.gather(1, kept), chosen.gather(1, kept[..., None].expand(-1, -1, chosen.shape[-1]))

    def _put(self, step: int, wanted: Tensor, chosen: Tensor) -> None:
        """Note what was written, ``[B, n, W]`` at ``[B, n]``."""
        start, end = self.plan.starts[step : step + 2]
        width, depth = self.model.layout.per_step, self.model.spec.depth
        first = int(wanted[0, 0]) * width % depth if width != depth else 0
        if self.plan.adaptive:
            self.positions[:, start:end] = wanted
        written = chosen
        if self.model.spec.dynamic:
            ended = ~self.going[:, None, None]
            written, chosen = chosen.masked_fill(ended, 0), chosen.masked_fill(ended, PADDING)
        self.ids.scatter_(1, wanted[..., None].expand_as(chosen), chosen)
        self.tokens[:, start:end] = written + self._starts[first : first + width]

    def _chance(self, count: int) -> Tensor:
        """The next ``count`` uniform numbers of every image, ``[B, count]``."""
        self._used += count
        return self._uniform[:, self._used - count : self._used]


def _draws(plan: Plan, width: int) -> int:
    """Uniform numbers that an image takes."""
    if not plan.adaptive:
        return plan.count * width
    return sum((plan.count - start) * (width + 1) for start in plan.starts[:-1])


def _check_model(model: SharedLM, order: Order, plan: Plan) -> None:
    config = model.config
    if plan.directions != config.directions and not (plan.count == 1 or isinstance(order, Raster)):
        raise ValueError(_needs_directions(config.directions, plan.directions))
    if isinstance(order, Raster) and config.directions != 1:
        raise ValueError(_needs_directions(config.directions, 1))
    own = plan_of(model)
    if (plan.asks == "nothing", plan.extras) != (own.asks == "nothing", own.extras):
        raise ValueError(
            f"{order.fields()['kind']} order needs {plan.queries} learned vectors of its kind, got a model of "
            f"{model_order(model).fields()['kind']} order with {config.queries}; use the order that it was trained in"
        )


def _needs_directions(has: int, needs: int) -> str:
    return (
        f"this order predicts in {needs} directions, got a model of {has}; use the order that the model was trained in"
    )


def _prompts(model: SharedLM, conditions: Sequence[Condition], unconditional: bool) -> list[Rows]:
    """Those of the conditions, and behind them, where asked, those of nothing."""
    given = [model.layout.prompt(condition) for condition in conditions]
    return given + ([model.unconditional(condition) for condition in conditions] if unconditional else [])


def _most_readable(model: SharedLM, captions: Sequence[Condition], ids: Tensor, candidates: int) -> Tensor:
    """Of every ``candidates`` images in a row the one whose caption is likeliest; the first of equals."""
    layout, read = model.layout, list[Example]()
    for row, caption in zip(ids.cpu(), captions, strict=True):
        if not isinstance(caption, str):
            raise ValueError(f"a model ranks candidates by their captions, got {type(caption).__name__}; draw one each")
        read.append(layout.image_to_text(row, caption))
    best = model.text_likelihood(layout.collate(read).to(model.device)).view(-1, candidates).argmax(1)
    return best + candidates * torch.arange(len(best), device=best.device)
