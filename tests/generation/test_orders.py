"""Every order is proved by the same four tests; then each by hand, its number of passes, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from smalti.generation import sampler
from smalti.generation.orders import (
    ORDERS,
    Grouped,
    Masked,
    Neighbouring,
    NextScale,
    Random,
    Raster,
    cosine_sizes,
    legal_orders,
    order_of,
    order_parts,
    raster_plan,
)
from smalti.generation.sampler import Progress, sample_codes
from smalti.generation.sampling import Sampling
from smalti.lm.model import SharedLM
from smalti.lm.plans import ABSENT, Plan, PlanRows
from smalti.lm.sequences import Label, Picture, Words
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

SQUARE, WIDE, ODD, ROW, COLUMN = (4, 4), (2, 6), (3, 5), (1, 7), (7, 1)
GRIDS = [SQUARE, WIDE, ODD, ROW, COLUMN, (2, 3, 3), (1, 2, 3), (4, 2, 2), (1, 1)]
CASES = [
    *((order, "grid", shape) for order in (Raster(), Neighbouring(), Random(3), Masked(3)) for shape in GRIDS),
    *((Grouped(1), "grid", shape) for shape in (ODD, ROW, COLUMN)),
    *((Grouped(2), "grid", shape) for shape in (SQUARE, WIDE, (2, 2), (6, 4))),
    *((Grouped(3), "grid", shape) for shape in ((3, 6), (3, 3))),
    *((NextScale(), "scales", shape) for shape in ((1, 2, 3), (2, 3), (1,))),
    (Raster(), "sequence", (5,)),
    (Raster(), "set", (4,)),
]
CASES = [(order, CodeLayout(kind, shape)) for order, kind, shape in CASES]
EVERY = pytest.mark.parametrize(
    ("order", "layout"),
    CASES,
    ids=[f"{'-'.join(map(str, order.fields().values()))}-{layout.shape}" for order, layout in CASES],
)


def seeded(order, layout, seed=0) -> Plan:
    return order.plan(layout, torch.Generator().manual_seed(seed))


@EVERY
def test_every_position_exactly_once(order, layout):
    plan = seeded(order, layout)
    revealed = torch.cat(plan.steps())
    assert revealed.dtype == torch.int64
    assert sorted(revealed.tolist()) == list(range(layout.positions))
    assert [len(step) for step in plan.steps()] == list(plan.sizes)
    assert min(plan.sizes) > 0
    assert sorted(torch.cat(order.steps(layout)).tolist()) == list(range(layout.positions))


@EVERY
def test_a_position_sees_its_own_step_and_what_was_revealed_before(order, layout):
    plan = seeded(order, layout)
    visible, before = plan.visible(), set[int]()
    assert (visible.shape, visible.dtype) == ((layout.positions, layout.positions), torch.bool)
    for step in plan.steps():
        before |= set(step.tolist())
        for position in step.tolist():
            assert set(visible[position].nonzero().flatten().tolist()) == before
    assert order.visible(layout).shape == visible.shape


@EVERY
def test_sources_were_revealed_in_earlier_steps(order, layout):
    plan = seeded(order, layout)
    sources, asked = plan.sources_of_positions(), plan.asks != "nothing"
    extras = set(range(layout.positions, layout.positions + plan.extras))
    assert sources.shape == (layout.positions, plan.directions) == order.sources(layout).shape
    assert sources.dtype == torch.int64
    before = {-1, ABSENT}
    for number, step in enumerate(plan.steps()):
        if number == plan.extras_pass:
            before |= extras
        for position in step.tolist():
            found = set(sources[position].tolist())
            assert found == {position} if asked else found <= before
            assert found != {ABSENT}
        before |= set(step.tolist())


@EVERY
def test_a_source_is_read_by_the_pass_that_it_predicts(order, layout):
    plan = seeded(order, layout)
    if plan.asks != "nothing":
        assert plan.sources.shape == (plan.count, 0)
        return
    read = list[int]()
    for step, sources in enumerate(plan.sources.split(list(plan.sizes))):
        inputs, places = plan.inputs(step), plan.read_from(step)
        read += inputs
        for row, found in zip(sources.tolist(), places.tolist(), strict=True):
            assert [one if one < 0 else inputs[one] for one in found] == row
    assert sorted(read) == [*range(plan.count - plan.sizes[-1]), *range(plan.count, plan.count + plan.extras)]


@EVERY
def test_rows_of_training_see_what_the_order_says(order, layout):
    """Codes see codes as `visible` says, queries all of earlier passes and, where a pass asks for what it writes alone,
    each other; and nobody else a query."""
    plan = seeded(order, layout)
    rows = plan.rows()
    allowed, code = seen(rows), ~rows.asked & (rows.positions >= 0)
    positions, queries = rows.positions[code], rows.asked.nonzero().flatten().tolist()
    assert torch.equal(allowed[code][:, code], plan.visible()[positions][:, positions])
    assert not allowed[~rows.asked][:, rows.asked].any()
    passes = torch.empty_like(plan.positions).index_copy(0, plan.positions, plan.passes)
    for query in queries:
        own, others = int(passes[rows.positions[query]]), rows.positions[rows.asked]
        together = passes[others] == own if plan.asks == "step" else others == rows.positions[query]
        assert torch.equal(allowed[query][rows.asked], together)
        assert torch.equal(allowed[query][code], passes[positions] < own)
    assert sorted(rows.positions[rows.learned].tolist()) == [*range(plan.count)]


def seen(rows: PlanRows) -> torch.Tensor:
    """[R, R]: which row sees which, by the words of `PlanRows`."""
    ranks, asked = rows.ranks.tolist(), rows.asked.tolist()
    table = [
        [ranks[j] == ranks[i] or (ranks[j] < ranks[i] and not asked[j]) for j in range(len(rows))]
        for i in range(len(rows))
    ]
    return torch.tensor(table)


# --------------------------------------------------------------------------------------------- cached against whole

BOOKS = (Codebook("semantic", 5), Codebook("pixel", 6, 2))
ONE = (Codebook("pixel", 9),)
CAPTIONS = ["a red circle", "a", "how many red circle ?"]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
HEADS = {"flat": {"kind": "flat"}, "depth": {"kind": "depth", "heads": 2}, "parallel": {"kind": "parallel"}}


def sharp(lm: SharedLM) -> SharedLM:
    """Predictions that depend on what came before."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if parameter.ndim == 2:
                rows = any(part in name for part in ("embed", "lm_head", "rows", "queries", "classes", "position."))
                parameter.normal_(std=0.6 if rows else 0.3)
    return lm.eval()


def model(order, layout, head="depth", classes=0, **parts) -> SharedLM:
    spec = CodeSpec(layout, ONE if head == "flat" else BOOKS)
    words = Vocabulary(None) if classes else Vocabulary.train(["a red circle", "how many ?"])
    fields = order_parts(order, spec)
    return sharp(SharedLM.build(LLAMA, words, spec, "f00d", HEADS[head], classes=classes, **fields, **parts))


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + number) for number in range(count)]


def whole_pass(lm, conditions, ids, plans, scale) -> list[torch.Tensor]:
    """Guided logits ``[B, N, K]`` by column of the learned positions, nan elsewhere, from one pass without a cache.

    The mean over the directions and guidance are written out, on logits.
    """

    def built(condition, codes, rows):
        return lm.layout.build([*condition, Picture(codes, rows=rows)])

    given = [Words(c, learned=False) if isinstance(c, str) else Label(c) for c in conditions]
    free = [[] if lm.layout.brackets else [Label(lm.layout.classes)] for _ in conditions]
    sequences = [built([c], codes, rows) for c, codes, rows in zip(given, ids, plans, strict=True)]
    sequences += [built(c, codes, rows) for c, codes, rows in zip(free, ids, plans, strict=True)]
    batch = lm.layout.collate(sequences)
    count, spec = len(conditions), lm.spec
    found = [torch.full((2 * count, spec.positions, book.size), math.nan) for book in spec.columns]
    with torch.no_grad():
        states = lm.directed(batch)
        for row in range(2 * count):
            steps = (batch.learned[row] & (batch.slots[row] >= 0)).nonzero().flatten()
            sources, before = batch.ordering.sources[row, steps], lm.inputs.embed(batch.tokens[row, steps])
            for column in range(spec.depth):
                total = torch.zeros(len(steps), spec.columns[column].size)
                for direction, (head, table) in enumerate(lm.heads):
                    leaving = head(states[row, sources[:, direction].clamp_min(0), direction], before[:, :column])
                    logits = head.column_logits(leaving[:, column], table, column)
                    total += logits * (sources[:, direction] != ABSENT)[:, None]
                total /= (sources != ABSENT).sum(1)[:, None]
                found[column][row, batch.slots[row, steps]] = total
    return [part[count:] + scale * (part[:count] - part[count:]) for part in found]


def recorded(monkeypatch, name: str) -> list[torch.Tensor]:
    """What a function returns to the sampler from here on."""
    kept, function = list[torch.Tensor](), getattr(sampler, name)

    def record(*args):
        found = function(*args)
        kept.append(found.clone())
        return found

    monkeypatch.setattr(sampler, name, record)
    return kept


def prove_cached(monkeypatch, lm, order, conditions, scale=2.5) -> None:
    """The logits that the sampler drew from are those of a whole pass over what it wrote."""
    layout, depth, count = lm.spec.layout, lm.spec.depth, len(conditions)
    logits, drawn, told = recorded(monkeypatch, "mean_logits"), recorded(monkeypatch, "draw"), list[Progress]()
    sampling = Sampling(scale, temperature=1.3)
    codes = sample_codes(lm, conditions, generators(count), sampling, order=order, progress=told.append).ids
    plans = [order.plan(layout, stream) for stream in generators(count)]
    adaptive, starts = plans[0].adaptive, plans[0].starts
    assert [done.done for done in told] == list(range(1, len(plans[0].sizes) + 1))
    assert len(logits) == len(drawn) == len(told) * depth
    known, expected = [list[int]() for _ in conditions], list[torch.Tensor]()
    if not adaptive:
        expected = whole_pass(lm, conditions, codes, [plan.rows() for plan in plans], scale)
    for step, done in enumerate(told):
        new = [ids[:, 0].ge(0).nonzero().flatten().tolist() for ids in done.ids]
        new = [[place for place in places if place not in found] for places, found in zip(new, known, strict=True)]
        rest = [[place for place in range(layout.positions) if place not in found] for found in known]
        wanted = torch.tensor(rest) if adaptive else torch.stack([plan.steps()[step] for plan in plans])
        chosen = torch.stack(drawn[step * depth : step * depth + depth], -1).view(*wanted.shape, depth)
        for row, places in enumerate(new):
            assert adaptive or sorted(wanted[row].tolist()) == places
            assert len(places) == plans[row].sizes[step]
        if adaptive:
            ids = codes.scatter(1, wanted[..., None].expand_as(chosen), chosen)
            orders = [torch.tensor([*found, *left]) for found, left in zip(known, rest, strict=True)]
            sizes = (*plans[0].sizes[:step], layout.positions - starts[step])  # all that is asked for at once
            rows = [replace(plan, positions=at, sizes=sizes).rows() for plan, at in zip(plans, orders, strict=True)]
            expected = whole_pass(lm, conditions, ids, rows, scale)
        for column, found in enumerate(logits[step * depth : step * depth + depth]):
            whole = expected[column].gather(1, wanted[..., None].expand(-1, -1, found.shape[-1]))
            torch.testing.assert_close(found.view_as(whole), whole, rtol=1e-3, atol=1e-3)
        for row, places in enumerate(new):
            index = [wanted[row].tolist().index(place) for place in places]
            assert torch.equal(done.ids[row, places], chosen[row, index])
            assert torch.equal(codes[row, places], chosen[row, index])
            known[row] += places
    assert float(expected[0][expected[0].isfinite()].std()) > 0.5  # not the same everywhere


@EVERY
def test_cached_generation_equals_one_whole_pass(monkeypatch, order, layout):
    prove_cached(monkeypatch, model(order, layout), order, CAPTIONS)


KINDS = [Raster(), Neighbouring(), Grouped(2), Random(5), Masked(3)]
NAMES = [order.fields()["kind"] for order in KINDS]


@pytest.mark.parametrize("rotary", ["sequence", "axial"])
@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("order", KINDS, ids=NAMES)
def test_cached_generation_equals_one_whole_pass_with_every_head_and_places(monkeypatch, order, head, rotary):
    layout = CodeLayout("grid", (2, 4))
    embedding = {"places": rotary == "sequence"}
    prove_cached(monkeypatch, model(order, layout, head, rotary=rotary, embedding=embedding), order, CAPTIONS)


@pytest.mark.parametrize("head", list(HEADS))
def test_cached_scales_equal_one_whole_pass_with_every_head(monkeypatch, head):
    layout = CodeLayout("scales", (1, 2, 3))
    prove_cached(monkeypatch, model(NextScale(), layout, head), NextScale(), CAPTIONS)


@pytest.mark.parametrize("order", KINDS, ids=NAMES)
def test_cached_generation_equals_one_whole_pass_for_classes(monkeypatch, order):  # which stand nowhere
    layout = CodeLayout("grid", (2, 4))
    lm = model(order, layout, classes=4, rotary="axial", embedding={"places": False})
    prove_cached(monkeypatch, lm, order, [3, 0], scale=1.5)


# ---------------------------------------------------------------------------------------------------- groups of one


def equal(one: Plan, other: Plan) -> bool:
    return (
        torch.equal(one.positions, other.positions)
        and torch.equal(one.sources, other.sources)
        and (one.sizes, one.extras, one.asks, one.adaptive) == (other.sizes, other.extras, other.asks, other.adaptive)
    )


@pytest.mark.parametrize(
    ("order", "shape"),
    [(Neighbouring(), ROW), (Neighbouring(), COLUMN), *((Grouped(1), shape) for shape in (SQUARE, ODD, ROW, COLUMN))],
)
def test_groups_of_one_are_plain_next_token_prediction(monkeypatch, order, shape):
    layout = CodeLayout("grid", shape)
    assert equal(order.plan(layout), raster_plan(layout.positions))
    lm = model(Raster(), layout)
    kept = recorded(monkeypatch, "mean_logits")
    ids = sample_codes(lm, CAPTIONS, generators(3), Sampling(2.0), order=order).ids
    assert torch.equal(ids, sample_codes(lm, CAPTIONS, generators(3), Sampling(2.0), order=Raster()).ids)
    ours, theirs = kept[: len(kept) // 2], kept[len(kept) // 2 :]
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    found = lm(lm.layout.collate([lm.layout.text_to_image("a", ids[0], rows=order.plan(layout).rows())]))
    plain = lm(lm.layout.collate([lm.layout.text_to_image("a", ids[0])]))
    torch.testing.assert_close(found.loss, plain.loss)


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("kind", [Random, Masked])
def test_with_a_pass_for_every_position_each_sees_those_before(kind, shape):
    layout = CodeLayout("grid", shape)
    for passes in (layout.positions, 100):
        plan = seeded(kind(passes), layout)
        assert plan.sizes == (1,) * layout.positions
        permuted = plan.visible()[plan.positions][:, plan.positions]
        assert torch.equal(permuted, torch.ones_like(permuted).tril())


# ------------------------------------------------------------------------------------------------ numbers of passes

BARE = {**LLAMA, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.mark.parametrize(
    ("order", "shape", "forwards"),
    [
        (Raster(), (16, 16), 256),
        (Neighbouring(), (16, 16), 31),
        (Neighbouring(), (24, 24), 47),
        (Neighbouring(), (4, 16, 16), 34),
        (Neighbouring(), (3, 5), 7),
        (Grouped(2), (16, 16), 67),
        (Grouped(2), (24, 24), 147),
        (Grouped(4), (24, 24), 51),
        (Random(), (16, 16), 88),
        (Random(3), (1, 2), 2),
        (Masked(), (16, 16), 8),
        (Masked(12), (4, 4), 12),
    ],
    ids=lambda value: value.fields()["kind"] if hasattr(value, "fields") else None,
)
def test_number_of_forwards(order, shape, forwards):
    spec = CodeSpec(CodeLayout("grid", shape), (Codebook("pixel", 3),))
    lm = SharedLM.build(BARE, Vocabulary(None), spec, "f00d", classes=2, **order_parts(order, spec)).eval()
    ran, order = list[int](), sampler.model_order(lm)
    hook = lm.backbone.base_model.register_forward_hook(lambda *_: ran.append(1))
    ids = sample_codes(lm, [0], generators(1), Sampling(2.0)).ids
    hook.remove()
    assert len(ran) == len(order.steps(spec.layout)) == forwards
    assert ids.min() >= 0


def test_scales_take_as_many_passes_as_there_are():
    assert [len(step) for step in NextScale().steps(CodeLayout("scales", (1, 2, 3, 4)))] == [1, 4, 9, 16]


def test_sizes_follow_the_cosine():
    assert cosine_sizes(16, 4) == [2, 3, 5, 6]  # 14.8, 11.3, 6.1 and 0 are missing
    assert cosine_sizes(16, 1) == [16]
    assert cosine_sizes(5, 9) == [1] * 5
    assert cosine_sizes(256, 8) == [5, 15, 24, 31, 39, 45, 48, 49]
    for count, passes in ((256, 88), (7, 6), (100, 99), (3, 2)):
        sizes = cosine_sizes(count, passes)
        assert (len(sizes), sum(sizes)) == (passes, count)
        assert min(sizes) >= 1


# ------------------------------------------------------------------------------------------------- orders by hand


def test_raster_is_one_position_per_step_after_the_one_before():
    layout = CodeLayout("grid", (2, 2))
    assert [step.tolist() for step in Raster().steps(layout)] == [[0], [1], [2], [3]]
    assert Raster().sources(layout).tolist() == [[-1], [0], [1], [2]]
    assert Raster().visible(layout).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_neighbouring_goes_right_and_down_by_diagonals():
    layout = CodeLayout("grid", (2, 3))  # 0 1 2 over 3 4 5
    assert [step.tolist() for step in Neighbouring().steps(layout)] == [[0], [1, 3], [2, 4], [5]]
    right_below = [[-1, -1], [0, -2], [1, -2], [-2, 0], [3, 1], [4, 2]]
    assert Neighbouring().sources(layout).tolist() == right_below
    see = Neighbouring().visible(layout).int().tolist()
    assert see == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0], [1] * 5 + [0], [1, 1, 0, 1, 0, 0], [1] * 5 + [0], [1] * 6]


@pytest.mark.parametrize("shape", GRIDS)
def test_neighbours_are_predicted_from(shape):
    sources = Neighbouring().sources(CodeLayout("grid", shape))
    cells = torch.arange(math.prod(shape)).view(shape)
    for cell in range(1, math.prod(shape)):
        place = (cells == cell).nonzero()[0].tolist()
        expected = []
        for axis in reversed(range(len(shape))):  # right, below, next
            before = [*place]
            before[axis] -= 1
            if shape[axis] > 1:
                expected.append(int(cells[tuple(before)]) if before[axis] >= 0 else -2)
        assert sources[cell].tolist() == expected
    assert set(sources[0].tolist()) == {-1}


@pytest.mark.parametrize("shape", [SQUARE, ODD, (2, 3, 3)])
def test_neighbouring_steps_follow_by_frame_and_row(shape):
    layout = CodeLayout("grid", shape)
    for step in Neighbouring().steps(layout):
        places = torch.stack(torch.unravel_index(step, shape), 1)
        assert len(places.sum(1).unique()) == 1
        assert all(one < other for one, other in pairwise(places.tolist()))


def test_grouped_writes_the_same_place_of_every_region():
    layout, order = CodeLayout("grid", (4, 4)), Grouped(2)
    steps = [[0], [2], [8], [10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]
    assert [step.tolist() for step in order.steps(layout)] == steps
    sources = order.sources(layout).flatten().tolist()
    assert [sources[at] for at in (0, 2, 8, 10)] == [-1, 0, 2, 8]
    assert [sources[at] for at in steps[4]] == [10, 16, 17, 18]  # the last one alone, and three learned vectors
    assert [sources[at] for at in steps[5]] == steps[4]
    assert [sources[at] for at in steps[6]] == steps[5]
    plan = order.plan(layout)
    assert (plan.extras, plan.extras_pass, plan.queries) == (3, 4, 3)
    assert Grouped(2).plan(CodeLayout("grid", (2, 2))).extras == 0  # nothing is left to write together


def test_next_scale_asks_for_a_scale_at_a_time():
    layout = CodeLayout("scales", (1, 2))
    assert [step.tolist() for step in NextScale().steps(layout)] == [[0], [1, 2, 3, 4]]
    assert NextScale().sources(layout).flatten().tolist() == [0, 1, 2, 3, 4]
    assert NextScale().visible(layout).int().tolist() == [[1, 0, 0, 0, 0], *[[1] * 5] * 4]


@pytest.mark.parametrize("order", [Random(4), Masked(4)], ids=["random", "masked"])
def test_random_orders_come_from_the_generator(order):
    layout = CodeLayout("grid", (4, 4))
    one, same, other = (seeded(order, layout, seed).positions for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(order.plan(layout).positions, order.plan(layout).positions)  # of the global one
    assert order.random
    first = torch.bincount(torch.stack([seeded(order, layout, seed).positions[:1] for seed in range(320)]).flatten())
    assert len(first) == 16
    assert int(first.min()) >= 5  # 20 of each are expected


# ---------------------------------------------------------------------------------------------- what cannot be written

LEGAL = {
    "grid": ["raster", "neighbouring", "grouped", "random", "masked"],
    "scales": ["next-scale"],
    "sequence": ["raster"],
    "set": ["raster"],
}
LAYOUTS = {"grid": (2, 2), "scales": (1, 2), "sequence": (4,), "set": (4,)}


@pytest.mark.parametrize("kind", list(LEGAL))
def test_illegal_layouts_name_the_legal_orders(kind):
    layout = CodeLayout(kind, LAYOUTS[kind])
    spec = CodeSpec(layout, ONE)
    assert legal_orders(kind) == LEGAL[kind]
    for name, order in ORDERS.items():
        if name in LEGAL[kind]:
            order().check(spec, 1)
            assert len(order().steps(layout)) > 0
            continue
        message = rf"^{name} order writes a .*, got a {kind} of .*; legal for it are {', '.join(LEGAL[kind])}$"
        for ask in (order().plan, order().steps, order().sources, order().visible):
            with pytest.raises(ValueError, match=message):
                ask(layout)
        with pytest.raises(ValueError, match=message):
            order().check(spec)
        lm = SharedLM.build(BARE, Vocabulary(None), spec, "f00d", classes=2)
        with pytest.raises(ValueError, match=message):
            sample_codes(lm, [0], generators(1), order=order())
        with pytest.raises(ValueError, match=message):
            order_parts(order(), spec)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (2, 4, 4)])
def test_grouped_needs_a_grid_that_divides(shape):
    message = r"cuts a grid of \(h, w\) into 2 x 2 regions, got \(.*\); choose regions that divide both"
    with pytest.raises(ValueError, match=message):
        Grouped(2).plan(CodeLayout("grid", shape))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grouped(0), r"grouped order needs at least 1 region to a side, got 0; 2 is PAR-4X"),
        (lambda: Random(0), r"random order needs at least 1 pass, got 0; RandAR takes 88 for 256 positions"),
        (lambda: Masked(0), r"masked order needs passes >= 1 and noise >= 0, got 0 and 1.5; 8 and 1.5 are usual"),
        (lambda: Masked(8, -1.0), r"masked order needs passes >= 1 and noise >= 0, got 8 and -1.0; 8 and 1.5"),
    ],
)
def test_options_out_of_range_are_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("order", [Neighbouring(), Grouped(2), Random(2), Masked(2)], ids=NAMES[1:])
def test_dynamic_codes_are_written_in_raster_order_alone(order):
    spec = CodeSpec(CodeLayout("grid", (2, 2)), ONE, dynamic=True)
    message = rf"{order.fields()['kind']} order needs to know how many positions .* dynamic length; use raster"
    with pytest.raises(ValueError, match=message):
        order.check(spec)
    lm = SharedLM.build(BARE, Vocabulary.train(["a"]), spec, "f00d")
    with pytest.raises(ValueError, match=message):
        sample_codes(lm, ["a"], generators(1), order=order)
    Raster().check(spec)


@pytest.mark.parametrize("order", [Neighbouring(), Grouped(2), Random(2), Masked(2)], ids=NAMES[1:])
def test_heads_that_write_single_columns_write_raster_alone(order):
    spec = CodeSpec(CodeLayout("grid", (2, 2)), BOOKS)
    message = (
        rf"{order.fields()['kind']} order writes the 3 columns of a position in one step, got a head that writes 1; "
        "use a depth or parallel head"
    )
    lm = SharedLM.build(BARE, Vocabulary(None), spec, "f00d", {"kind": "flat"}, classes=2, **order_parts(order, spec))
    with pytest.raises(ValueError, match=message):
        sample_codes(lm, [0], generators(1))
    order.check(spec, 3)
    Raster().check(spec, 1)


def test_an_order_that_forgets_positions_is_an_error():
    class Half(Neighbouring):
        def _plan(self, layout, generator):
            return raster_plan(layout.positions // 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smalti.generation.orders.ORDER_NAMES", {Half: "half"})
        with pytest.raises(ValueError, match=r"half order must write 4 positions, got a plan of 2; mend it"):
            Half().check(CodeSpec(CodeLayout("grid", (2, 2)), ONE))


@pytest.mark.parametrize(
    ("own", "asked", "message"),
    [
        (Raster(), Neighbouring(), r"predicts in 2 directions, got a model of 1; use the order that the model was"),
        (Neighbouring(), Raster(), r"predicts in 1 directions, got a model of 2; use the order"),
        (Neighbouring(), Random(2), r"predicts in 1 directions, got a model of 2; use the order"),
        (Random(2), Neighbouring(), r"predicts in 2 directions, got a model of 1; use the order"),
        (
            Raster(),
            Random(2),
            r"random order needs 1 learned vectors of its kind, got a model of raster order with 0; use the order",
        ),
        (
            Raster(),
            Masked(2),
            r"masked order needs 1 learned vectors of its kind, got a model of raster order with 0; use the order",
        ),
        (
            Masked(2),
            Grouped(2),
            r"grouped order needs 3 learned vectors of its kind, got a model of masked order with 1; use the order",
        ),
    ],
)
def test_models_write_in_orders_that_they_have_the_parts_for(own, asked, message):
    lm = model(own, CodeLayout("grid", SQUARE))
    with pytest.raises(ValueError, match=message):
        sample_codes(lm, ["a"], generators(1), order=asked)


@pytest.mark.parametrize("order", [Raster(), Random(2)], ids=["raster", "random"])
def test_training_sequences_longer_than_the_backbone_are_refused(order):
    """By what stands in them: queries take no places of their own."""
    spec = CodeSpec(CodeLayout("grid", (2, 2)), ONE)
    backbone = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 10}
    lm = SharedLM.build(backbone, Vocabulary.train(["a"]), spec, "f00d", **order_parts(order, spec))
    ids, rows = torch.zeros(4, 1, dtype=torch.int64), order.plan(spec.layout).rows()
    lm(lm.layout.collate([lm.layout.text_to_image("a a a", ids, rows=rows)]))
    with pytest.raises(ValueError, match=r"have at most 10 tokens, got 1\d; raise max_position_embeddings"):
        lm(lm.layout.collate([lm.layout.text_to_image("a a a a a", ids, rows=rows)]))


@pytest.mark.parametrize("order", [*KINDS, NextScale(), Grouped(4), Random(9), Masked(5, noise=0.5)])
def test_orders_are_named_in_configurations(order):
    again = order_of(order.fields())
    assert type(again) is type(order)
    assert again.fields() == order.fields()


def test_the_order_of_nothing_is_raster():
    assert isinstance(order_of({}), Raster)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"kind": "spiral"},
            "one of raster, neighbouring, grouped, next-scale, random, masked, got 'spiral'; choose one of them",
        ),
        ({"kind": "masked", "steps": 8}, "masked order takes passes, noise, got steps; correct or remove them"),
        ({"passes": 8}, "raster order takes no options, got passes; correct or remove them"),
        ({"kind": "grouped", "side": 2, "regions": 2}, "grouped order takes regions, got side; correct"),
    ],
)
def test_unknown_orders_and_options_are_an_error(fields, message):
    with pytest.raises(ValueError, match=message):
        order_of(fields)


def test_what_a_model_needs_for_an_order():
    grid, video = (CodeSpec(CodeLayout("grid", shape), ONE) for shape in (SQUARE, (2, 2, 2)))
    assert order_parts(Raster(), grid) == {"order": {"kind": "raster"}}
    assert order_parts(Neighbouring(), grid) == {"order": {"kind": "neighbouring"}, "directions": 2, "queries": 0}
    assert order_parts(Neighbouring(), video)["directions"] == 3
    assert order_parts(Grouped(2), grid) == {
        "order": {"kind": "grouped", "regions": 2},
        "directions": 1,
        "queries": 3,
    }
    random = {"order": {"kind": "random", "passes": 5}, "directions": 1, "queries": 1}
    assert order_parts(Random(5), grid) == random
