"""In which order positions are generated. An order is data: a plan of passes, their sources, and what they see.

Orders know nothing about models: what a plan needs of one (directions, learned vectors) is said by the plan.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ..lm.plans import ABSENT, PROMPT, Plan
from ..tokenizers.codes import CodeLayout, CodeSpec, Kind


class Order(ABC):
    """An order of writing for layouts of some kinds."""

    #: Kinds of layouts that it can write.
    kinds: tuple[Kind, ...] = ()
    #: Whether every image is written in an order of its own.
    random = False

    @abstractmethod
    def _plan(self, layout: CodeLayout, generator: torch.Generator | None) -> Plan:
        """The plan of a layout that is legal."""

    def fields(self) -> dict[str, Any]:
        """Its arguments by name, as :func:`order_of` takes them."""
        return {
            "kind": ORDER_NAMES[type(self)],
            **{name: getattr(self, name) for name in signature(type(self)).parameters},
        }

    def plan(self, layout: CodeLayout, generator: torch.Generator | None = None) -> Plan:
        """How images of a layout are written.

        Args:
            layout: of the codes.
            generator: of the CPU, for orders that draw; the global one by default.

        Raises:
            ValueError: a layout that it cannot write; legal orders are named.
        """
        if layout.kind not in self.kinds:
            raise ValueError(
                f"{ORDER_NAMES[type(self)]} order writes a {' or '.join(self.kinds)}, got a {layout.kind} of "
                f"{layout.shape}; legal for it are {', '.join(legal_orders(layout.kind))}"
            )
        return self._plan(layout, generator)

    def check(self, spec: CodeSpec, per_step: int | None = None) -> None:
        """Raise unless it can write codes of a spec.

        Args:
            spec: of the codes.
            per_step: columns that a step of the language model writes; all of them by default.

        Raises:
            ValueError: a layout that it cannot write, codes of dynamic length, or steps of single columns, for any
                order but raster.
        """
        plan = self.plan(spec.layout, torch.Generator())
        if isinstance(self, Raster):
            return
        name = ORDER_NAMES[type(self)]
        if spec.dynamic:
            raise ValueError(
                f"{name} order needs to know how many positions an image has, got codes of dynamic length; use raster"
            )
        if per_step not in (None, spec.depth):
            raise ValueError(
                f"{name} order writes the {spec.depth} columns of a position in one step, got a head that writes "
                f"{per_step}; use a depth or parallel head"
            )
        if plan.count != spec.positions:
            raise ValueError(f"{name} order must write {spec.positions} positions, got a plan of {plan.count}; mend it")

    def steps(self, layout: CodeLayout) -> list[Tensor]:
        """Positions revealed at each step, ``[G]`` int64 each; together every position exactly once."""
        return self.plan(layout).steps()

    def sources(self, layout: CodeLayout) -> Tensor:
        """``[N, S]`` int64: positions whose states predict each position, by direction.

        -1 is the prompt, -2 none, a position itself where it is asked for, N and above a learned vector.
        """
        return self.plan(layout).sources_of_positions()

    def visible(self, layout: CodeLayout) -> Tensor:
        """``[N, N]`` bool: row may attend column while training."""
        return self.plan(layout).visible()


class Raster(Order):
    """Left to right, top to bottom, one position at a time; the order of plain next-token prediction.

    Legal for grids (row-major), sequences and sets in their stored order.
    """

    kinds = ("grid", "sequence", "set")

    def _plan(self, layout: CodeLayout, generator: torch.Generator | None) -> Plan:
        return raster_plan(layout.positions)


class Neighbouring(Order):
    """All positions at one distance from the first at a time, each predicted by its neighbours (NAR,
    https://arxiv.org/abs/2503.10696).

    One direction for each axis of more than one position: right of the left neighbour, below of the upper one, and for
    video next of the frame before. In a step positions follow by increasing frame, then row, as in the release.
    """

    kinds = ("grid",)

    def _plan(self, layout: CodeLayout, generator: torch.Generator | None) -> Plan:
        shape = layout.shape
        places = torch.cartesian_prod(*map(torch.arange, shape)).view(layout.positions, len(shape))
        distances = places.sum(1)
        positions = distances.argsort(stable=True)
        written = positions.argsort()  # k of each position
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        axes = [axis for axis in reversed(range(len(shape))) if shape[axis] > 1] or [len(shape) - 1]
        cells, columns = torch.arange(layout.positions), list[Tensor]()
        for axis in axes:
            neighbours = written[(cells - strides[axis]).clamp_min(0)]
            columns.append(torch.where(places[:, axis] > 0, neighbours, ABSENT))
        sources = torch.stack(columns, dim=1)
        sources[0] = PROMPT
        return Plan(positions, tuple(torch.bincount(distances).tolist()), sources[positions])


class Grouped(Order):
    """Far-apart positions at a time (PAR, https://arxiv.org/abs/2412.15119).

    The grid is cut into ``regions x regions`` regions. The first position of each is written one by one, then one
    position of every region at a time, in the same places of all; each predicts the next of its own region. Between the
    two, learned vectors stand in for what the other regions have not written yet.

    Args:
        regions: to a side; 2 for PAR-4X, 4 for PAR-16X.

    Raises:
        ValueError: regions below 1; in :meth:`plan`, a grid that does not divide into them.
    """

    kinds = ("grid",)

    def __init__(self, regions: int = 2) -> None:
        if regions < 1:
            raise ValueError(f"grouped order needs at least 1 region to a side, got {regions}; 2 is PAR-4X")
        self.regions = regions

    def _plan(self, layout: CodeLayout, generator: torch.Generator | None) -> Plan:
        side, shape = self.regions, layout.shape
        if len(shape) != 2 or shape[0] % side or shape[1] % side:
            raise ValueError(
                f"grouped order cuts a grid of (h, w) into {side} x {side} regions, got {shape}; choose regions that "
                "divide both"
            )
        height, width = shape[0] // side, shape[1] // side
        cells = torch.arange(layout.positions).view(side, height, side, width)
        positions = cells.permute(1, 3, 0, 2).reshape(-1)
        count, group = layout.positions, side * side
        sources = torch.arange(-1, count - 1)
        sources[group:] = torch.arange(count - group)
        sources[group + 1 : 2 * group] = torch.arange(count, count + group - 1)[: max(0, count - group - 1)]
        if count > group:
            sources[group] = group - 1
        extras = group - 1 if count > group else 0
        sizes = (1,) * group + (group,) * (count // group - 1)
        return Plan(positions, sizes, sources[:, None], extras, group)


class NextScale(Order):
    """A whole scale at a time, coarse to fine, each asked for by queries that see all coarser scales (after VAR,
    https://arxiv.org/abs/2404.02905, and TokenFlow, https://arxiv.org/abs/2412.03069)."""

    kinds = ("scales",)

    def _plan(self, layout: CodeLayout, generator: torch.Generator | None) -> Plan:
        return _asking(torch.arange(layout.positions), [side * side for side in layout.shape], "step")


class Random(Order):
    """Positions in an order drawn anew for every image, a few at a time, each asked for by a query at its place (after
    RandAR, https://arxiv.org/abs/2412.01827).

    Args:
        passes: number of passes; a cosine says how many positions each writes, few at first. One position a pass where
            there are no more than that.

    Raises:
        ValueError: no pass.
    """

    kinds = ("grid",)
    random = True

    def __init__(self, passes: int = 88) -> None:
        if passes < 1:
            raise ValueError(f"random order needs at least 1 pass, got {passes}; RandAR takes 88 for 256 positions")
        self.passes = passes

    def _plan(self, layout: CodeLayout, generator: torch.Generator | None) -> Plan:
        positions = torch.randperm(layout.positions, generator=generator)
        return _asking(positions, cosine_sizes(layout.positions, self.passes), "step")


class Masked(Order):
    """All that is missing is asked for at once and what is surest is kept, pass after pass (after MaskGIT,
    https://arxiv.org/abs/2202.04200). Queries do not see each other, unlike there.

    Args:
        passes: number of passes; a cosine says how many positions each keeps, few at first.
        noise: >= 0, of the Gumbel noise on log-probabilities when the surest are chosen; it falls to 0 with the passes.

    Raises:
        ValueError: no pass, or negative noise.
    """

    kinds = ("grid",)
    random = True

    def __init__(self, passes: int = 8, noise: float = 1.5) -> None:
        if passes < 1 or noise < 0:
            raise ValueError(
                f"masked order needs passes >= 1 and noise >= 0, got {passes} and {noise}; 8 and 1.5 are usual"
            )
        self.passes, self.noise = passes, noise

    def _plan(self, layout: CodeLayout, generator: torch.Generator | None) -> Plan:
        positions = torch.randperm(layout.positions, generator=generator)
        return _asking(positions, cosine_sizes(layout.positions, self.passes), "rest", adaptive=True)


def raster_plan(count: int) -> Plan:
    """Positions one by one, each predicted by the one before."""
    return Plan(torch.arange(count), (1,) * count, torch.arange(-1, count - 1)[:, None])


def cosine_sizes(count: int, passes: int) -> list[int]:
    """Positions that each pass writes when ``floor(N cos(pi / 2 * (s + 1) / passes))`` are missing after pass s.

    Every pass writes one at least; there are no more passes than positions.
    """
    passes = min(passes, count)
    missing = [math.floor(count * math.cos(math.pi / 2 * (step + 1) / passes)) for step in range(passes)]
    sizes, left = list[int](), count
    for step, after in enumerate(missing):
        later = passes - step - 1
        size = left if later == 0 else min(max(1, left - after), left - later)
        sizes.append(size)
        left -= size
    return sizes


def _asking(positions: Tensor, sizes: list[int], asks: Any, adaptive: bool = False) -> Plan:
    none = torch.empty(len(positions), 0, dtype=torch.int64)
    return Plan(positions, tuple(sizes), none, asks=asks, adaptive=adaptive)


#: Orders by the name that they have in a configuration.
ORDERS: Mapping[str, type[Order]] = {
    "raster": Raster,
    "neighbouring": Neighbouring,
    "grouped": Grouped,
    "next-scale": NextScale,
    "random": Random,
    "masked": Masked,
}
ORDER_NAMES: Mapping[type[Order], str] = {order: name for name, order in ORDERS.items()}


def legal_orders(kind: Kind) -> list[str]:
    """Names of the orders that can write layouts of a kind."""
    return [name for name, order in ORDERS.items() if kind in order.kinds]


def order_parts(order: Order, spec: CodeSpec) -> dict[str, Any]:
    """Fields of a :class:`~smalti.lm.config.SharedLMConfig` for a model that writes in an order.

    Raises:
        ValueError: codes that it cannot write.
    """
    plan = order.plan(spec.layout, torch.Generator())
    if isinstance(order, Raster):
        return {"order": order.fields()}
    return {"order": order.fields(), "directions": plan.directions, "queries": plan.queries}


def order_of(fields: Mapping[str, Any]) -> Order:
    """The order that a configuration names; raster where it names none.

    Args:
        fields: ``kind`` and the arguments of its class.

    Raises:
        ValueError: an unknown kind, or arguments that it does not have.
    """
    options = dict(fields)
    kind = options.pop("kind", "raster")
    if kind not in ORDERS:
        raise ValueError(f"the order must be one of {', '.join(ORDERS)}, got {kind!r}; choose one of them")
    known = list(signature(ORDERS[kind]).parameters)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"{kind} order takes {', '.join(known) or 'no options'}, got {', '.join(unknown)}; correct or remove them"
        )
    return ORDERS[kind](**options)
