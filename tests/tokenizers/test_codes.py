import pytest
import torch

from smalti.tokenizers.codes import Codebook, CodeLayout, Codes, CodeSpec

GRID = CodeLayout("grid", (2, 3))
SPEC = CodeSpec(GRID, (Codebook("semantic", 4, 2), Codebook("pixel", 8)))
SLOTS = CodeSpec(CodeLayout("set", (3,)), (Codebook("slot", 4),), dynamic=True)


@pytest.mark.parametrize(
    ("kind", "shape", "positions"),
    [("grid", (2, 3), 6), ("grid", (2, 3, 4), 24), ("sequence", (5,), 5), ("set", (7,), 7), ("scales", (1, 2, 4), 21)],
)
def test_positions(kind, shape, positions):
    assert CodeLayout(kind, shape).positions == positions


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        ("grid", (4,), r"grid layout takes \(h, w\) or \(t, h, w\) with every side >= 1, got shape \(4,\)"),
        ("grid", (0, 4), r"every side >= 1, got shape \(0, 4\)"),
        ("sequence", (4, 4), r"sequence layout takes \(n,\)"),
        ("set", (), r"set layout takes \(n,\)"),
        ("scales", (), r"scales layout takes the side lengths"),
        ("ring", (4,), "layout kind must be one of grid, sequence, set, scales, got 'ring'"),
    ],
)
def test_impossible_layouts(kind, shape, expected):
    with pytest.raises(ValueError, match=expected):
        CodeLayout(kind, shape)


def test_require():
    GRID.require("neighbouring order", "grid", "scales")
    with pytest.raises(ValueError, match=r"next-scale order needs codes laid out as scales, got a grid of \(2, 3\)"):
        GRID.require("next-scale order", "scales")


@pytest.mark.parametrize(("size", "depth"), [(0, 1), (4, 0)])
def test_impossible_codebooks(size, depth):
    with pytest.raises(ValueError, match=f"'pixel' needs size >= 1 and depth >= 1, got size {size}, depth {depth}"):
        Codebook("pixel", size, depth)


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_codebooks_have_distinct_names(names):
    with pytest.raises(ValueError, match="at least one codebook and distinct names, got"):
        CodeSpec(GRID, tuple(Codebook(name, 4) for name in names))


def test_spec_arithmetic():
    assert SPEC.positions == 6
    assert SPEC.depth == 3
    assert [book.name for book in SPEC.columns] == ["semantic", "semantic", "pixel"]
    assert SPEC.slices() == {"semantic": slice(0, 2), "pixel": slice(2, 3)}
    assert SPEC.bits == 6 * (2 + 2 + 3)
    assert SPEC.with_shape(4, 4).positions == 16
    assert SPEC.with_shape(4, 4).codebooks == SPEC.codebooks


@pytest.mark.parametrize("spec", [SPEC, SLOTS])
def test_spec_survives_a_dict(spec):
    assert CodeSpec.from_dict(spec.to_dict()) == spec


def ids(*shape):
    return torch.zeros(shape, dtype=torch.int64)


def test_codes_of_one_codebook():
    values = torch.arange(3).expand(2, 6, 3)
    codes = Codes.full(values, SPEC)
    assert torch.equal(codes.of("semantic"), values[..., :2])
    assert torch.equal(codes.of("pixel"), values[..., 2:])
    with pytest.raises(ValueError, match="codebook must be one of semantic, pixel, got 'sound'"):
        codes.of("sound")


def test_depths_with_tables_of_their_own_go_by_one_name():
    books = (Codebook("semantic", 4), Codebook("pixel.0", 4), Codebook("pixel.1", 4))
    codes = Codes.full(torch.arange(3).expand(2, 6, 3), CodeSpec(GRID, books))
    assert torch.equal(codes.of("pixel"), codes.ids[..., 1:])
    assert torch.equal(codes.of("pixel.1"), codes.ids[..., 2:])


def test_slicing_and_joining():
    codes = Codes.full(torch.randint(0, 4, (5, 6, 3)), SPEC)
    assert len(codes[1:4]) == 3
    assert torch.equal(codes[torch.tensor([4, 0])].ids, codes.ids[[4, 0]])
    joined = Codes.cat([codes[:2], codes[2:]])
    assert torch.equal(joined.ids, codes.ids)
    assert torch.equal(joined.mask, codes.mask)
    assert joined.to("cpu").spec == SPEC


def test_joining_unlike_codes():
    with pytest.raises(ValueError, match=r"codes can be joined when all have one spec, got \[\]"):
        Codes.cat([])
    with pytest.raises(ValueError, match="codes can be joined when all have one spec"):
        Codes.cat([Codes.full(ids(1, 6, 3), SPEC), Codes.full(ids(1, 3, 1), SLOTS)])


@pytest.mark.parametrize("shape", [(1, 5, 3), (1, 6, 2), (6, 3)])
def test_shapes_must_fit(shape):
    with pytest.raises(ValueError, match=r"ids must be \[B, 6, 3\] \(B, N, D\) for a grid of \(2, 3\), got"):
        Codes(ids(*shape), torch.ones(shape[:2], dtype=torch.bool), SPEC)


def test_mask_must_fit():
    with pytest.raises(ValueError, match=r"mask must be \[B, N\] = \[2, 6\], got \[2, 5\]"):
        Codes(ids(2, 6, 3), torch.ones(2, 5, dtype=torch.bool), SPEC)
    with pytest.raises(ValueError, match="mask must be true everywhere unless the spec is dynamic"):
        Codes(ids(2, 6, 3), torch.zeros(2, 6, dtype=torch.bool), SPEC)


def test_types_must_fit():
    with pytest.raises(TypeError, match=r"int64 ids and a bool mask, got torch.int32 and torch.bool"):
        Codes.full(ids(1, 6, 3).int(), SPEC)
    with pytest.raises(TypeError, match=r"int64 ids and a bool mask, got torch.int64 and torch.int64"):
        Codes(ids(1, 6, 3), ids(1, 6), SPEC)


@pytest.mark.parametrize(
    ("column", "value", "book", "size"), [(1, 4, "semantic", 4), (2, 8, "pixel", 8), (0, -1, "semantic", 4)]
)
def test_ids_must_lie_in_their_codebook(column, value, book, size):
    wrong = ids(1, 6, 3)
    wrong[0, 3, column] = value
    with pytest.raises(
        ValueError,
        match=rf"ids of codebook '{book}' must lie in \[0, {size}\) .*, got {min(value, 0)}..{max(value, 0)}",
    ):
        Codes.full(wrong, SPEC)


def test_padding_agrees_with_the_mask():
    values, mask = torch.tensor([[[2], [3], [-1]]]), torch.tensor([[True, True, False]])
    assert len(Codes(values, mask, SLOTS)) == 1
    assert Codes(values[:, :2], mask[:, :2], SLOTS).ids.shape == (1, 2, 1)
    with pytest.raises(ValueError, match=r"be -1 where masked, got -1..3"):
        Codes(values, ~mask, SLOTS)
