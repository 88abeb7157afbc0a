from math import exp, log, log1p

import pytest
import torch

from smalti.tokenizers.losses import PixelLoss, discriminator_loss, generator_loss, gradient_penalty, lecam
from smalti.tokenizers.perceptual import Perceptual


class Brightness(Perceptual):
    """The squared difference of mean pixels."""

    def __init__(self):
        super().__init__(torch.nn.Identity())

    def features(self, images):
        return [images.mean((1, 2, 3))]

    def compare(self, layer, first, second):
        return (first - second).square()


IMAGES = torch.zeros(2, 3, 4, 4)


def test_terms_by_hand():
    losses = PixelLoss(l1=2.0, l2=3.0, perceptual=Brightness(), perceptual_weight=4.0)(IMAGES + 0.5, IMAGES)
    assert {name: loss.item() for name, loss in losses.items()} == {"l1": 1.0, "l2": 0.75, "perceptual": 1.0}


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        ({}, {"l1"}),
        ({"l1": 0.0, "l2": 1.0}, {"l2"}),
        ({"perceptual": Brightness()}, {"l1", "perceptual"}),
        ({"perceptual": Brightness(), "perceptual_weight": 0.0}, {"l1"}),
    ],
)
def test_terms_without_weight_are_absent(weights, names):
    assert set(PixelLoss(**weights)(IMAGES, IMAGES)) == names


def test_half_precision_is_summed_in_float32():
    losses = PixelLoss(l2=1.0)((IMAGES + 1 / 3).bfloat16(), IMAGES.bfloat16())
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_gradients_reach_the_reconstruction():
    reconstruction = torch.full_like(IMAGES, 0.5, requires_grad=True)
    torch.stack([*PixelLoss(perceptual=Brightness())(reconstruction, IMAGES).values()]).sum().backward()
    torch.testing.assert_close(reconstruction.grad, torch.full_like(IMAGES, 1 / 96 + 2 * 0.5 / 2 / 48))


@pytest.mark.parametrize("weights", [{"l1": -1.0}, {"l1": 0.0}, {"l1": 0.0, "perceptual_weight": 1.0}])
def test_impossible_weights(weights):
    with pytest.raises(ValueError, match=r"weights of pixel losses must be >= 0 and one of them above zero, got l1"):
        PixelLoss(**weights)


def test_shapes_must_agree():
    with pytest.raises(
        ValueError, match=r"must have the shape of its images, \[2, 3, 4, 4\], got \[2, 3, 8, 8\]; resize"
    ):
        PixelLoss()(torch.zeros(2, 3, 8, 8), IMAGES)


#: Logits of two heads: three and two images; written out below.
REAL = [torch.tensor([2.0, 0.5, -1.0]), torch.tensor([0.0, 3.0])]
FAKE = [torch.tensor([-2.0, 0.0, 1.0]), torch.tensor([-0.5, 1.0])]


def test_hinges_by_hand():
    # relu(1 - real): 0, 0.5, 2 and 1, 0; relu(1 + fake): 0, 1, 2 and 0.5, 2.
    first, second = (2.5 / 3 + 3 / 3) / 2, (1 / 2 + 2.5 / 2) / 2
    assert discriminator_loss("hinge", REAL[:1], FAKE[:1]).item() == pytest.approx(first)
    assert discriminator_loss("hinge", REAL, FAKE).item() == pytest.approx((first + second) / 2)
    assert generator_loss("hinge", FAKE[:1]).item() == pytest.approx(1 / 3)
    assert generator_loss("hinge", FAKE).item() == pytest.approx((1 / 3 - 0.25) / 2)


def test_the_released_hinge_by_hand():
    # Margins are -1, 0.5, 2 and -2, 1, 2; what is negative counts a hundredth.
    real, fake = [torch.tensor([2.0, 0.5, -1.0])], [torch.tensor([-3.0, 0.0, 1.0])]
    expected = ((-0.01 + 0.5 + 2) / 3 + (-0.02 + 1 + 2) / 3) / 2
    assert discriminator_loss("leaky-hinge", real, fake).item() == pytest.approx(expected)
    assert generator_loss("leaky-hinge", fake).item() == pytest.approx(2 / 3)
    met = torch.full((4,), 9.0)
    assert discriminator_loss("leaky-hinge", [met], [-met]).item() == pytest.approx(-0.08)  # no lower bound


def test_non_saturating_by_hand():
    # log(1 + exp(-real)) + log(1 + exp(fake)), per head.
    real = [(log1p(exp(-2)) + log1p(exp(-0.5)) + log1p(exp(1))) / 3, (log(2) + log1p(exp(-3))) / 2]
    fake = [(log1p(exp(-2)) + log(2) + log1p(exp(1))) / 3, (log1p(exp(-0.5)) + log1p(exp(1))) / 2]
    first, second = ((one + other) / 2 for one, other in zip(real, fake, strict=True))
    assert discriminator_loss("non-saturating", REAL[:1], FAKE[:1]).item() == pytest.approx(first)
    assert discriminator_loss("non-saturating", REAL, FAKE).item() == pytest.approx((first + second) / 2)
    climbed = [(log1p(exp(2)) + log(2) + log1p(exp(-1))) / 3, (log1p(exp(0.5)) + log1p(exp(-1))) / 2]
    assert generator_loss("non-saturating", FAKE).item() == pytest.approx(sum(climbed) / 2)


@pytest.mark.parametrize(("kind", "cost", "climb"), [("hinge", 1.0, 0.0), ("non-saturating", log(2), log(2))])
def test_undecided_logits(kind, cost, climb):
    logits = [torch.zeros(4, 1, 3, 3)]
    assert discriminator_loss(kind, logits, logits).item() == pytest.approx(cost)
    assert generator_loss(kind, logits).item() == pytest.approx(climb)


def test_hinge_lets_met_margins_go():
    real, fake = (torch.full((4,), value, requires_grad=True) for value in (2.0, -2.0))
    discriminator_loss("hinge", [real], [fake]).backward()
    assert not real.grad.any()
    assert not fake.grad.any()


@pytest.mark.parametrize(("kind", "slope"), [("hinge", -0.25), ("non-saturating", -0.125)])
def test_generator_climbs(kind, slope):
    fake = torch.zeros(4, dtype=torch.bfloat16, requires_grad=True)
    loss = generator_loss(kind, [fake])
    loss.backward()
    assert loss.dtype == torch.float32
    assert fake.grad.tolist() == [slope] * 4


@pytest.mark.parametrize("kind", ["hinge", "non-saturating"])
def test_adversarial_losses_are_summed_in_float32(kind):
    """Logits that bfloat16 can hold and whose mean it cannot."""
    real, fake = torch.full((300,), -1.0), torch.full((300,), 1.0)
    real[0], fake[0] = -2.0, 2.0
    exact = discriminator_loss(kind, [real], [fake])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = discriminator_loss(kind, [real.bfloat16()], [fake.bfloat16()])
    assert torch.equal(rounded, exact)
    anchors = torch.zeros(2)
    assert torch.equal(lecam([real.bfloat16()], [fake.bfloat16()], *anchors), lecam([real], [fake], *anchors))


def test_far_logits_cost_what_they_are_off():
    far = [torch.tensor([-1e4], requires_grad=True)]
    loss = discriminator_loss("non-saturating", far, [torch.tensor([1e4])])
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert far[0].grad.tolist() == [-0.5]


def test_lecam_by_hand():
    # relu(real - (-0.5)): 2.5, 1, 0 and 0.5, 3.5; relu(0.25 - fake): 2.25, 0.25, 0 and 0.75, 0.
    first = (6.25 + 1) / 3 + (5.0625 + 0.0625) / 3
    second = (0.25 + 12.25) / 2 + 0.5625 / 2
    anchors = torch.tensor(0.25), torch.tensor(-0.5)
    assert lecam(REAL[:1], FAKE[:1], *anchors).item() == pytest.approx(first)
    assert lecam(REAL, FAKE, *anchors).item() == pytest.approx((first + second) / 2)


def test_lecam_pulls_the_sides_together():
    real, fake = torch.tensor([3.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
    lecam([real], [fake], torch.tensor(1.0), torch.tensor(-1.0)).backward()
    assert (real.grad.item(), fake.grad.item()) == (8.0, -8.0)


def test_penalty_by_hand():
    """Heads 2 x_0 and x_0 x_1 of images (x_0, x_1, x_2): the slope is (2 + x_1, x_0, 0)."""
    images = torch.tensor([[1.0, 2.0, 9.0], [3.0, -1.0, 9.0]]).view(2, 3, 1, 1)
    scale = torch.tensor(1.0, requires_grad=True)
    penalty = gradient_penalty(lambda x: [scale * 2 * x[:, 0], (scale * x[:, 0] * x[:, 1])[..., 0]], images)
    assert penalty.item() == ((16 + 1) + (1 + 9)) / 2
    penalty.backward()
    assert scale.grad.item() == (16 + 1) + (1 + 9)
    assert images.grad is None


def test_penalty_sums_the_logits_of_an_image():
    images = torch.rand(2, 3, 2, 2)
    assert gradient_penalty(lambda x: [x], images).item() == 12
    assert gradient_penalty(lambda x: [x, x], images).item() == 4 * 12


def test_penalty_is_taken_outside_autocast():
    images, layer = torch.rand(2, 3, 5, 5), torch.nn.Conv2d(3, 4, 3)
    exact = gradient_penalty(lambda x: [layer(x)], images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient_penalty(lambda x: [layer(x)], images), exact)


@pytest.mark.parametrize("loss", [lambda: discriminator_loss("wgan", REAL, FAKE), lambda: generator_loss("wgan", FAKE)])
def test_other_adversarial_losses(loss):
    said = "an adversarial loss is one of hinge, non-saturating, leaky-hinge, got 'wgan'; use one"
    with pytest.raises(ValueError, match=said):
        loss()


@pytest.mark.parametrize(
    ("loss", "counts"),
    [
        (lambda: discriminator_loss("hinge", REAL, FAKE[:1]), "2 and 1"),
        (lambda: lecam(REAL[:1], FAKE, torch.zeros(()), torch.zeros(())), "1 and 2"),
        (lambda: discriminator_loss("non-saturating", [], []), "0 and 0"),
        (lambda: generator_loss("hinge", []), "0 and 0"),
    ],
)
def test_heads_must_pair_up(loss, counts):
    with pytest.raises(ValueError, match=rf"need logits of the same heads, one or more, got {counts}; pass all"):
        loss()
