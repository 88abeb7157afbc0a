"""What holds for every discriminator, and the one of patches."""

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from smalti.tokenizers.discriminator import PatchDiscriminator
from smalti.tokenizers.feature_discriminator import FeatureDiscriminator
from smalti.tokenizers.losses import discriminator_loss, generator_loss, gradient_penalty
from smalti.tokenizers.stylegan import StyleDiscriminator
from smalti.tokenizers.vision import VisionTower

#: Name -> how a small one is built, and the number of logits of one image of 32 pixels, head by head.
KINDS = {
    "patch": (lambda: PatchDiscriminator(8, 2), [6 * 6]),
    "style": (lambda: StyleDiscriminator(4, 2), [1]),
    "style-deviation": (lambda: StyleDiscriminator(4, 2, deviation=True), [1]),
    "feature": (lambda: FeatureDiscriminator(VisionTower(16, 4, 8, 2, 2, 16), (1, 2), 5), [16, 16]),
    "feature-dino": (
        lambda: FeatureDiscriminator(VisionTower(16, 4, 8, 2, 2, 16, kind="dinov2"), (0, -1), 3),
        [16, 16],
    ),
}
#: Those whose logits of an image do not depend on the others of its batch.
APART = [name for name in KINDS if name != "style-deviation"]
#: Frozen towers stay in float32, where shorter steps are rounded away.
STEPS = dict.fromkeys(("feature", "feature-dino"), (torch.float32, 2e-4))


@pytest.fixture(params=KINDS)
def discriminator(request):
    return KINDS[request.param][0]()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("sides", [(30, 30), (32, 32), (64, 64), (33, 48)])
@pytest.mark.parametrize("count", [1, 3])
def test_logits_of_every_size(name, sides, count):
    build, logits = KINDS[name]
    found = build()(torch.rand(count, 3, *sides) * 2 - 1)
    assert [len(head) for head in found] == [count] * len(logits)
    assert all(head.isfinite().all() for head in found)
    if sides == (32, 32):
        assert [head[0].numel() for head in found] == logits


@pytest.mark.parametrize("name", APART)
def test_images_of_a_batch_do_not_mix(name):
    discriminator, images = KINDS[name][0]().eval(), torch.randn(4, 3, 24, 24)
    together = discriminator(images)
    alone = [discriminator(image[None]) for image in images]
    for head, logits in enumerate(together):
        torch.testing.assert_close(logits, torch.cat([one[head] for one in alone]))
    brighter = discriminator(images + 1)
    assert all(not torch.allclose(one, other, atol=1e-3) for one, other in zip(brighter, together, strict=True))


def test_the_generator_is_reached_and_the_discriminator_is_not(discriminator):
    """Called with detached parameters, as the generator's term is: gradients flow through to the images only."""
    images = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    buffers = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    before = discriminator.eval()(images)
    discriminator.train()
    logits = functional_call(
        discriminator, fixed | {name: buffer.clone() for name, buffer in buffers.items()}, (images,)
    )
    generator_loss("hinge", logits).backward()
    assert images.grad.isfinite().all()
    assert (images.grad != 0).float().mean() > 0.5
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in discriminator.named_buffers())
    for one, other in zip(logits, before, strict=True):  # but for one more step of the power iteration
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("name", "dtype", "step"), [(n, *STEPS.get(n, (torch.float64, 1e-5))) for n in KINDS])
def test_the_penalty_has_a_slope(name, dtype, step):
    """Twice differentiated: the gradient of R1 in one weight, against differences of R1 on both sides."""
    discriminator, images = KINDS[name][0]().eval().to(dtype), (torch.rand(2, 3, 24, 24) * 2 - 1).to(dtype)
    weight = max(discriminator.parameters(), key=torch.Tensor.numel)
    (slope,) = torch.autograd.grad(gradient_penalty(discriminator, images), weight)
    direction = slope / slope.norm()
    ends = []
    for move in (step, -step):
        with torch.no_grad():
            weight += move * direction
        ends.append(gradient_penalty(discriminator, images).item())
        with torch.no_grad():
            weight -= move * direction
    assert slope.norm() > 0
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope.norm().item(), rel=0.03)


def test_the_penalty_of_training_reaches_every_weight(discriminator):
    """In training mode, where the spectral norms move at every call, after one call and before another."""
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    loss = discriminator_loss("hinge", discriminator(images), discriminator(-images))
    (loss + gradient_penalty(discriminator, images)).backward()
    gradients = {name: parameter.grad for name, parameter in discriminator.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert all(gradient.any() for name, gradient in gradients.items() if "weight" in name)


def test_autocast(discriminator):
    discriminator, images = discriminator.eval(), torch.rand(2, 3, 32, 32) * 2 - 1
    exact = discriminator(images)
    penalty = gradient_penalty(discriminator, images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = discriminator(images)
        loss = discriminator_loss("non-saturating", rounded, rounded)
        assert gradient_penalty(discriminator, images) == penalty
        assert generator_loss("hinge", discriminator(images.bfloat16())).dtype == torch.float32
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in discriminator.parameters())
    for one, other in zip(rounded, exact, strict=True):
        torch.testing.assert_close(one.float(), other, atol=0.05, rtol=0.05)


def test_half_weights(discriminator):
    """The whole module in bfloat16, penalty included; a frozen tower stays in float32."""
    images = (torch.rand(2, 3, 32, 32) * 2 - 1).bfloat16()
    logits = discriminator.bfloat16()(images)
    assert {head.dtype for head in logits} == {torch.bfloat16}
    penalty = gradient_penalty(discriminator, images)
    penalty.backward()
    assert penalty.dtype == torch.float32
    assert penalty.isfinite()


@pytest.mark.parametrize("kind", ["hinge", "non-saturating"])
def test_learns_to_tell_apart(discriminator, kind):
    """Of unseen pairs every head ranks the smooth picture above the noise, more often than not by far."""
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2, (0.5, 0.9))

    def pictures(count):
        noise = torch.rand(count, 3, 16, 16) * 2 - 1
        return F.interpolate(F.avg_pool2d(noise, 4), scale_factor=4.0), noise

    for _ in range(40):
        smooth, noise = pictures(8)
        optimizer.zero_grad()
        discriminator_loss(kind, discriminator(smooth), discriminator(noise)).backward()
        optimizer.step()
    discriminator.eval()
    for smooth, noise in zip(*map(discriminator, pictures(32)), strict=True):
        ranked = smooth.reshape(32, -1).mean(1)[:, None] > noise.reshape(32, -1).mean(1)
        assert ranked.float().mean() > 0.75


def test_written_and_read(discriminator):
    state = {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}
    images = torch.rand(1, 3, 32, 32)
    before = discriminator.eval()(images)
    with torch.no_grad():
        for tensor in discriminator.state_dict().values():
            tensor.zero_()
    discriminator.load_state_dict(state, strict=True)
    assert all(torch.equal(*pair) for pair in zip(discriminator(images), before, strict=True))


@pytest.mark.parametrize("kind", [PatchDiscriminator, StyleDiscriminator])
@pytest.mark.parametrize(("width", "layers"), [(0, 3), (8, 0)])
def test_impossible_sizes(kind, width, layers):
    with pytest.raises(ValueError, match=rf"needs width >= 1 and layers >= 1, got {width} and {layers}; 64 and \d"):
        kind(width, layers)


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (3, 32, 32)])
def test_other_shapes(discriminator, shape):
    with pytest.raises(ValueError, match=rf"images must be \[B, 3, H, W\], got \[{', '.join(map(str, shape))}\]; add"):
        discriminator(torch.zeros(shape))


@pytest.mark.parametrize("kind", [PatchDiscriminator, StyleDiscriminator])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_smallest_sides(kind, layers):
    discriminator = kind(4, layers)
    side = discriminator.minimum
    assert [head[0].numel() for head in discriminator(torch.zeros(1, 3, side, side))] == [1]
    with pytest.raises(
        ValueError,
        match=rf"{kind.__name__} needs sides of at least {side} pixels, got {side - 1}x{side}; use larger images or",
    ):
        discriminator(torch.zeros(1, 3, side - 1, side))


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_receptive_field_of_patches(layers, field):
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    (logits,) = PatchDiscriminator(4, layers).eval()(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert int(images.grad.abs().sum((0, 1, 2)).gt(0).sum()) == field


def test_slopes_of_patches_are_bounded():
    """Every convolution, as a matrix, has spectral norm one."""
    discriminator = PatchDiscriminator(8, 2)
    for _ in range(50):
        discriminator(torch.randn(1, 3, 24, 24))
    convolutions = [module for module in discriminator.eval().modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 4
    for layer in convolutions:
        norm = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
        torch.testing.assert_close(norm, torch.ones(()), atol=0.02, rtol=0)
