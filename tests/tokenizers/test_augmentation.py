import pytest
import torch

from smalti.tokenizers.augmentation import POLICY, DiffAugment, Draws


def draws(*rows):
    """Rows of draws, 0.5 where nothing is said: brightness, saturation, contrast, down, right, hole down, right."""
    names = ("brightness", "saturation", "contrast", "down", "right", "hole_down", "hole_right")
    numbers = [[row.get(name, 0.5) for name in names] + [0.0, 0.0, 0.0] for row in rows]
    return Draws(torch.tensor(numbers))


#: One image of two pixels: (0.6, 0.3, 0.0) and (-0.2, 0.1, 0.4).
PIXELS = torch.tensor([[[0.6, -0.2]], [[0.3, 0.1]], [[0.0, 0.4]]])[None]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"brightness": 0.75}, [[0.85, 0.05], [0.55, 0.35], [0.25, 0.65]]),
        ({"brightness": 0.0}, [[0.1, -0.7], [-0.2, -0.4], [-0.5, -0.1]]),
        # Means of the pixels are 0.3 and 0.1; distances from them are doubled less a quarter, or gone.
        ({"saturation": 0.875}, [[0.825, -0.425], [0.3, 0.1], [-0.225, 0.625]]),
        ({"saturation": 0.0}, [[0.3, 0.1], [0.3, 0.1], [0.3, 0.1]]),
        # The mean of the image is 0.2; distances from it are halved.
        ({"contrast": 0.0}, [[0.4, 0.0], [0.25, 0.15], [0.1, 0.3]]),
        # One after the other: + 0.25, then grey at 0.55 and 0.35, then twice 0.75 the distance from 0.45.
        (
            {"brightness": 0.75, "saturation": 0.0, "contrast": 0.75},
            [[0.575, 0.325], [0.575, 0.325], [0.575, 0.325]],
        ),
    ],
)
def test_colors_by_hand(row, expected):
    found = DiffAugment(["color"])(PIXELS, draws(row))
    torch.testing.assert_close(found[0, :, 0], torch.tensor(expected))


GRID = torch.arange(1.0, 65.0).view(1, 1, 8, 8).expand(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("down", "right", "moved"),
    [(0.0, 0.5, (-1, 0)), (0.5, 0.99, (0, 1)), (0.9, 0.1, (1, -1)), (0.34, 0.66, (0, 0))],
)
def test_translation_by_hand(down, right, moved):
    """A side of 8 moves by one pixel at most: thirds of [0, 1) are -1, 0 and 1."""
    found = DiffAugment(["translation"])(GRID, draws({"down": down, "right": right}))
    for y in range(8):
        for x in range(8):
            above, left = y - moved[0], x - moved[1]
            inside = 0 <= above < 8 and 0 <= left < 8
            assert found[0, :, y, x].tolist() == [1 + 8 * above + left if inside else 0] * 3


@pytest.mark.parametrize(("side", "most"), [(30, 4), (32, 4), (64, 8), (3, 0)])
def test_translation_reaches_an_eighth(side, most):
    images = torch.ones(2, 3, side, side)
    found = DiffAugment(["translation"])(images, draws({"down": 0.0}, {"down": 1 - 2**-24}))
    assert [(found[i, 0, :, 0] == 0).nonzero().flatten().tolist() for i in (0, 1)] == [
        list(range(side - most, side)),
        list(range(most)),
    ]


@pytest.mark.parametrize(
    ("side", "down", "right", "rows", "columns"),
    [
        (8, 0.5, 0.5, (2, 6), (2, 6)),  # centres 0 to 8, of which this is 4
        (8, 0.0, 0.999, (0, 2), (6, 8)),  # half outside
        (6, 0.5, 0.0, (2, 5), (0, 2)),  # a hole of 3 pixels: first rows -1 to 4
        (7, 0.25, 0.99, (0, 4), (5, 7)),
    ],
)
def test_cutout_by_hand(side, down, right, rows, columns):
    expected = torch.ones(1, 3, side, side)
    expected[:, :, slice(*rows), slice(*columns)] = 0
    found = DiffAugment(["cutout"])(torch.ones(1, 3, side, side), draws({"hole_down": down, "hole_right": right}))
    assert found.tolist() == expected.tolist()


def test_identity():
    """Middle numbers neither colour nor move; a probability of zero, and no policy, do nothing at all."""
    images = torch.rand(2, 3, 30, 32) * 2 - 1
    torch.testing.assert_close(DiffAugment(["color", "translation"])(images, draws({}, {})), images)
    drawn = DiffAugment().draw(2)
    assert torch.equal(DiffAugment(probability=0.0)(images, drawn), images)
    assert torch.equal(DiffAugment([])(images, drawn), images)
    assert not torch.isclose(DiffAugment()(images, drawn), images).all((1, 2, 3)).any()


def test_probability_is_per_image_and_augmentation():
    augment = DiffAugment(["translation", "cutout"], probability=0.25)
    images, drawn = torch.ones(2000, 3, 8, 8), augment.draw(2000, torch.Generator().manual_seed(1))
    changed = (augment(images, drawn) != images).any(1).flatten(1).any(1)
    # A third of the shifts of one side are none: 1 - (1 - 0.25 * 8 / 9) * 0.75 of the images change.
    assert changed.float().mean().item() == pytest.approx(1 - (1 - 0.25 * 8 / 9) * 0.75, abs=0.03)


def test_equal_draws_do_the_same_and_rows_can_be_split():
    augment, images = DiffAugment(), torch.rand(6, 3, 16, 16) * 2 - 1
    drawn = augment.draw(6, torch.Generator().manual_seed(5))
    whole = augment(images, drawn)
    assert torch.equal(augment(images, augment.draw(6, torch.Generator().manual_seed(5))), whole)
    assert not torch.equal(augment(images, augment.draw(6, torch.Generator().manual_seed(6))), whole)
    assert len(drawn[2:4]) == 2
    torch.testing.assert_close(augment(images[2:4], drawn[2:4]), whole[2:4])
    torch.testing.assert_close(augment(images[[5, 0]], drawn[[5, 0]]), whole[[5, 0]])
    torch.testing.assert_close(augment(images[1::2], drawn[torch.tensor([1, 3, 5])]), whole[1::2])
    assert not torch.allclose(augment(images[:1].expand(6, -1, -1, -1), drawn)[0], whole[1])


def test_draws_do_not_depend_on_the_policy():
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    first, second = (DiffAugment(policy).draw(3, g) for policy, g in zip((["cutout"], POLICY), generators, strict=True))
    assert torch.equal(first.numbers, second.numbers)


def test_default_draws_follow_the_seed():
    torch.manual_seed(11)
    first = DiffAugment().draw(2)
    torch.manual_seed(11)
    assert torch.equal(first.numbers, DiffAugment().draw(2).numbers)
    assert first.numbers.min() >= 0
    assert first.numbers.max() < 1


def test_augmenting_draws_nothing():
    augment = DiffAugment()
    drawn = augment.draw(2)
    before = torch.get_rng_state()
    augment(torch.zeros(2, 3, 8, 8), drawn)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("policy", [*([name] for name in POLICY), list(POLICY)])
def test_gradients_flow(policy):
    """Every operation is linear in the images: the gradient times a direction is the change along it, exactly."""
    augment, drawn = DiffAugment(policy), DiffAugment().draw(2, torch.Generator().manual_seed(3))
    images = (torch.rand(2, 3, 12, 16, dtype=torch.float64) * 2 - 1).requires_grad_()
    target, direction = torch.randn_like(images), torch.randn_like(images)
    (augment(images, drawn) * target).sum().backward()
    with torch.no_grad():
        change = augment(images + direction, drawn) - augment(images, drawn)
    assert images.grad.any()
    torch.testing.assert_close((images.grad * direction).sum(), (change * target).sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (30, 32)])
def test_values_stay_finite(dtype, size):
    images = (torch.rand(64, 3, *size) * 2 - 1).to(dtype)
    found = DiffAugment()(images, DiffAugment().draw(64))
    assert found.dtype == dtype
    assert found.shape == images.shape
    assert found.float().abs().max() < 10


def test_other_policies():
    with pytest.raises(
        ValueError, match=r"policy must be some of color, translation, cutout, got colour, zoom; correct"
    ):
        DiffAugment(["zoom", "color", "colour"])


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_other_probabilities(probability):
    with pytest.raises(ValueError, match=rf"probability must lie in \[0, 1\], got {probability}; the paper"):
        DiffAugment(probability=probability)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (3, 1, 8, 8), (3, 8, 8)])
def test_images_and_rows_must_match(shape):
    drawn = DiffAugment().draw(3)
    with pytest.raises(
        ValueError, match=r"takes images \[B, 3, H, W\] and a row of draws for each, got \[.*and 3 rows;"
    ):
        DiffAugment()(torch.zeros(shape), drawn)


def test_rows_are_slices_or_lists():
    drawn = DiffAugment().draw(3)
    with pytest.raises(
        ValueError, match=r"draws must be numbers \[B, 10\], got \[10\]; take rows with a slice or a list"
    ):
        drawn[0]
