import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from smalti.tokenizers.feature_discriminator import FeatureDiscriminator
from smalti.tokenizers.vision import VisionTower


def tower(kind="siglip", layers=3):
    return VisionTower(16, 4, 8, layers, 2, 16, kind=kind)


@pytest.mark.parametrize("kind", ["siglip", "dinov2"])
def test_forward_by_a_slow_path(kind):
    """Hidden states from layers run one by one; every head written out patch by patch, wrapped around."""
    seen, images = tower(kind), torch.rand(2, 3, 16, 16) * 2 - 1
    discriminator = FeatureDiscriminator(seen, (-1, 0, 2), kernel=3).eval()
    states = [seen.stem(images)]
    for index in range(3):
        states.append(seen.run(states[-1], index, index + 1))
    found = discriminator(images)
    assert [logits.shape for logits in found] == [(2, 16)] * 3
    for head, logits, layer in zip(discriminator.heads, found, (3, 0, 2), strict=True):
        patches = states[layer][:, seen.prefix :]
        normed = (patches - patches.mean(-1, keepdim=True)) / (
            patches.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        projected = F.leaky_relu(normed @ head.project.weight[:, :, 0].T + head.project.bias, 0.2)
        taps = [projected.roll(shift, dims=1) @ head.mix.weight[:, :, at].T for at, shift in enumerate((1, 0, -1))]
        joined = (projected + F.leaky_relu(sum(taps) + head.mix.bias, 0.2)) / 2**0.5
        torch.testing.assert_close(logits, (joined @ head.logits.weight[:, :, 0].T + head.logits.bias)[..., 0])


def test_the_tower_is_out_of_sight():
    seen = tower("dinov2")
    before = copy.deepcopy(seen.state_dict())
    discriminator = FeatureDiscriminator(seen, (1, 2), kernel=3).train()
    assert {name.split(".")[0] for name in discriminator.state_dict()} == {"heads"}
    assert {name.split(".")[0] for name, _ in discriminator.named_parameters()} == {"heads"}
    other = FeatureDiscriminator(tower("dinov2"), (1, 2), kernel=3)
    other.load_state_dict(discriminator.state_dict(), strict=True)
    assert not seen.training
    optimizer = torch.optim.SGD(discriminator.parameters(), 0.1)
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    torch.stack([logits.sum() for logits in discriminator(images)]).sum().backward()
    optimizer.step()
    assert images.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in seen.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in seen.state_dict().items())


def test_the_tower_follows_devices_not_casts():
    discriminator = FeatureDiscriminator(tower(), (1,), kernel=3)
    assert {weight.dtype for weight in discriminator.bfloat16().tower.parameters()} == {torch.float32}
    assert {weight.dtype for weight in discriminator.parameters()} == {torch.bfloat16}
    assert {weight.device.type for weight in discriminator.to("meta").tower.parameters()} == {"meta"}


def test_a_copy_has_a_tower_of_its_own():
    holder = nn.ModuleDict({"judge": FeatureDiscriminator(tower(), (1,), kernel=3)})
    copied = copy.deepcopy(holder)
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(copied.eval()["judge"](images)[0], holder.eval()["judge"](images)[0])
    copied.to("meta")
    assert {weight.device.type for weight in holder["judge"].tower.parameters()} == {"cpu"}


def test_images_are_resized():
    discriminator = FeatureDiscriminator(tower(), (2,), kernel=3).eval()
    large = torch.rand(2, 3, 20, 36) * 2 - 1
    small = F.interpolate(large, (16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(discriminator(large), discriminator(small))


@pytest.mark.parametrize("layers", [(4,), (0, -5)])
def test_layers_must_exist(layers):
    with pytest.raises(ValueError, match=r"layers must lie in \[-4, 3\], the tower's hidden states, got \["):
        FeatureDiscriminator(tower(), layers)


@pytest.mark.parametrize("layers", [(), (1, 1), (3, -1)])
def test_layers_must_be_named_once(layers):
    with pytest.raises(ValueError, match=r"layers must name at least one hidden state, and none twice, got \["):
        FeatureDiscriminator(tower(), layers)


@pytest.mark.parametrize("kernel", [0, 2, -1, 17])
def test_kernels_must_fit(kernel):
    with pytest.raises(ValueError, match=rf"kernel must be odd and in \[1, 16\], .* got {kernel}; 9 is usual"):
        FeatureDiscriminator(tower(), (1,), kernel)
