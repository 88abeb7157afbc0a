"""The Inception of the Frechet distance against a path written out layer by layer from the state dict."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from smalti.eval.images.inception import FIDInception, tf1_bilinear
from smalti.eval.protocol import file_hash

#: Every convolution of the published file: name, channels in, channels out, kernel.
LAYERS = """
Conv2d_1a_3x3 3 32 3x3
Conv2d_2a_3x3 32 32 3x3
Conv2d_2b_3x3 32 64 3x3
Conv2d_3b_1x1 64 80 1x1
Conv2d_4a_3x3 80 192 3x3
"""
SHAPES_A = """
branch1x1 IN 64 1x1
branch5x5_1 IN 48 1x1
branch5x5_2 48 64 5x5
branch3x3dbl_1 IN 64 1x1
branch3x3dbl_2 64 96 3x3
branch3x3dbl_3 96 96 3x3
branch_pool IN OUT 1x1
"""
SHAPES_B = """
branch3x3 IN 384 3x3
branch3x3dbl_1 IN 64 1x1
branch3x3dbl_2 64 96 3x3
branch3x3dbl_3 96 96 3x3
"""
SHAPES_C = """
branch1x1 IN 192 1x1
branch7x7_1 IN OUT 1x1
branch7x7_2 OUT OUT 1x7
branch7x7_3 OUT 192 7x1
branch7x7dbl_1 IN OUT 1x1
branch7x7dbl_2 OUT OUT 7x1
branch7x7dbl_3 OUT OUT 1x7
branch7x7dbl_4 OUT OUT 7x1
branch7x7dbl_5 OUT 192 1x7
branch_pool IN 192 1x1
"""
SHAPES_D = """
branch3x3_1 IN 192 1x1
branch3x3_2 192 320 3x3
branch7x7x3_1 IN 192 1x1
branch7x7x3_2 192 192 1x7
branch7x7x3_3 192 192 7x1
branch7x7x3_4 192 192 3x3
"""
SHAPES_E = """
branch1x1 IN 320 1x1
branch3x3_1 IN 384 1x1
branch3x3_2a 384 384 1x3
branch3x3_2b 384 384 3x1
branch3x3dbl_1 IN 448 1x1
branch3x3dbl_2 448 384 3x3
branch3x3dbl_3a 384 384 1x3
branch3x3dbl_3b 384 384 3x1
branch_pool IN 192 1x1
"""
BLOCKS = [  # name, table, channels in, the width that varies
    ("Mixed_5b", SHAPES_A, 192, 32),
    ("Mixed_5c", SHAPES_A, 256, 64),
    ("Mixed_5d", SHAPES_A, 288, 64),
    ("Mixed_6a", SHAPES_B, 288, 0),
    ("Mixed_6b", SHAPES_C, 768, 128),
    ("Mixed_6c", SHAPES_C, 768, 160),
    ("Mixed_6d", SHAPES_C, 768, 160),
    ("Mixed_6e", SHAPES_C, 768, 192),
    ("Mixed_7a", SHAPES_D, 768, 0),
    ("Mixed_7b", SHAPES_E, 1280, 0),
    ("Mixed_7c", SHAPES_E, 2048, 0),
]


def published_layout() -> dict[str, Tensor]:
    """Random weights under the published names, scaled so that activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(0)
    lines = LAYERS.split("\n")
    for block, table, before, width in BLOCKS:
        filled = table.replace("IN", str(before)).replace("OUT", str(width))
        lines += [f"{block}.{line}" for line in filled.split("\n") if line]
    state: dict[str, Tensor] = {}
    for name, before, after, kernel in (line.split() for line in lines if line):
        height, width = map(int, kernel.split("x"))
        shape = (int(after), int(before), height, width)
        scale = (2 / (shape[1] * height * width)) ** 0.5
        state[f"{name}.conv.weight"] = torch.randn(shape, generator=generator) * scale
        state[f"{name}.bn.weight"] = torch.rand(shape[0], generator=generator) + 0.5
        state[f"{name}.bn.bias"] = torch.randn(shape[0], generator=generator) * 0.1
        state[f"{name}.bn.running_mean"] = torch.randn(shape[0], generator=generator) * 0.1
        state[f"{name}.bn.running_var"] = torch.rand(shape[0], generator=generator) + 0.5
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)
    state["fc.weight"] = torch.randn(1008, 2048, generator=generator) * 0.02
    state["fc.bias"] = torch.randn(1008, generator=generator)
    return state


class Slow:
    """The network written out, without a table, from a state dict."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, name: str, x: Tensor, stride: int = 1, padding=0) -> Tensor:
        x = F.conv2d(x, self.state[f"{name}.conv.weight"], stride=stride, padding=padding)
        mean, variance = self.state[f"{name}.bn.running_mean"], self.state[f"{name}.bn.running_var"]
        x = (x - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-3).sqrt()
        x = x * self.state[f"{name}.bn.weight"].view(-1, 1, 1) + self.state[f"{name}.bn.bias"].view(-1, 1, 1)
        return x.clamp_min(0)

    @staticmethod
    def average(x: Tensor) -> Tensor:  # only pixels inside the picture count
        ones = torch.ones_like(x[:1, :1])
        total = F.avg_pool2d(x, 3, 1, 1) * 9
        return total / (F.avg_pool2d(ones, 3, 1, 1) * 9).round()

    def a(self, n: str, x: Tensor) -> Tensor:
        five = self.conv(f"{n}.branch5x5_2", self.conv(f"{n}.branch5x5_1", x), padding=2)
        three = self.conv(f"{n}.branch3x3dbl_2", self.conv(f"{n}.branch3x3dbl_1", x), padding=1)
        three = self.conv(f"{n}.branch3x3dbl_3", three, padding=1)
        pool = self.conv(f"{n}.branch_pool", self.average(x))
        return torch.cat([self.conv(f"{n}.branch1x1", x), five, three, pool], 1)

    def b(self, n: str, x: Tensor) -> Tensor:
        three = self.conv(f"{n}.branch3x3dbl_2", self.conv(f"{n}.branch3x3dbl_1", x), padding=1)
        three = self.conv(f"{n}.branch3x3dbl_3", three, stride=2)
        return torch.cat([self.conv(f"{n}.branch3x3", x, stride=2), three, F.max_pool2d(x, 3, 2)], 1)

    def c(self, n: str, x: Tensor) -> Tensor:
        seven = self.conv(f"{n}.branch7x7_2", self.conv(f"{n}.branch7x7_1", x), padding=(0, 3))
        seven = self.conv(f"{n}.branch7x7_3", seven, padding=(3, 0))
        double = self.conv(f"{n}.branch7x7dbl_2", self.conv(f"{n}.branch7x7dbl_1", x), padding=(3, 0))
        double = self.conv(f"{n}.branch7x7dbl_3", double, padding=(0, 3))
        double = self.conv(f"{n}.branch7x7dbl_4", double, padding=(3, 0))
        double = self.conv(f"{n}.branch7x7dbl_5", double, padding=(0, 3))
        pool = self.conv(f"{n}.branch_pool", self.average(x))
        return torch.cat([self.conv(f"{n}.branch1x1", x), seven, double, pool], 1)

    def d(self, n: str, x: Tensor) -> Tensor:
        three = self.conv(f"{n}.branch3x3_2", self.conv(f"{n}.branch3x3_1", x), stride=2)
        seven = self.conv(f"{n}.branch7x7x3_2", self.conv(f"{n}.branch7x7x3_1", x), padding=(0, 3))
        seven = self.conv(f"{n}.branch7x7x3_3", seven, padding=(3, 0))
        seven = self.conv(f"{n}.branch7x7x3_4", seven, stride=2)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)

    def e(self, n: str, x: Tensor, pooled: Tensor) -> Tensor:
        three = self.conv(f"{n}.branch3x3_1", x)
        wide = self.conv(f"{n}.branch3x3_2a", three, padding=(0, 1))
        high = self.conv(f"{n}.branch3x3_2b", three, padding=(1, 0))
        double = self.conv(f"{n}.branch3x3dbl_2", self.conv(f"{n}.branch3x3dbl_1", x), padding=1)
        also_wide = self.conv(f"{n}.branch3x3dbl_3a", double, padding=(0, 1))
        also_high = self.conv(f"{n}.branch3x3dbl_3b", double, padding=(1, 0))
        pool = self.conv(f"{n}.branch_pool", pooled)
        return torch.cat([self.conv(f"{n}.branch1x1", x), wide, high, also_wide, also_high, pool], 1)

    def pool(self, images: Tensor) -> Tensor:
        x = (slow_resize(images.float(), 299) - 128) / 128
        x = self.conv("Conv2d_2a_3x3", self.conv("Conv2d_1a_3x3", x, stride=2))
        x = F.max_pool2d(self.conv("Conv2d_2b_3x3", x, padding=1), 3, 2)
        x = F.max_pool2d(self.conv("Conv2d_4a_3x3", self.conv("Conv2d_3b_1x1", x)), 3, 2)
        x = self.a("Mixed_5d", self.a("Mixed_5c", self.a("Mixed_5b", x)))
        x = self.c("Mixed_6c", self.c("Mixed_6b", self.b("Mixed_6a", x)))
        x = self.d("Mixed_7a", self.c("Mixed_6e", self.c("Mixed_6d", x)))
        x = self.e("Mixed_7b", x, self.average(x))
        x = self.e("Mixed_7c", x, F.max_pool2d(x, 3, 1, 1))
        return x.sum((2, 3)) / 64


def slow_resize(images: Tensor, side: int) -> Tensor:
    """Pixel by pixel from the definition, with a matrix per axis."""

    def matrix(size: int) -> Tensor:
        weights = torch.zeros(side, size)
        for i in range(side):
            place = i * size / side
            low = int(place)
            weights[i, low] += 1 - (place - low)
            weights[i, min(low + 1, size - 1)] += place - low
        return weights

    return matrix(images.shape[2]) @ images @ matrix(images.shape[3]).T


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return published_layout()


@pytest.fixture(scope="module")
def file(state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def network(file) -> FIDInception:
    return FIDInception(file, sha256_prefix=None)


def test_all_566_tensors_are_loaded_strictly(state, file, network):
    assert len(state) == 566
    assert sum(value.numel() for value in state.values()) == 23_885_486  # the published file: 23.89 million
    loaded = network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert network.weights_hash == file_hash(file)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_activations_equal_the_slow_path(state, network, precisions):
    images = torch.randint(0, 256, (2, 3, 40, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    network.train()  # stays in evaluation mode, so that an image does not depend on its neighbours
    assert not network.training
    outputs = network.outputs(images)
    assert precisions == {"ieee"}
    expected = Slow(state).pool(images[1:])
    assert outputs.pool.shape == (2, 2048)
    assert outputs.pool.dtype == torch.float32
    assert float(expected.std()) > 0.01
    assert torch.allclose(outputs.pool[1:], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    logits = expected @ state["fc.weight"].T  # no bias
    assert torch.allclose(outputs.logits[1:], logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))


@pytest.mark.parametrize("size", [(20, 33), (299, 299), (400, 512)])
def test_resize_equals_the_definition(size):
    images = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(3)) * 255
    rounding = 0.02  # of places in float32, as in TensorFlow
    assert torch.allclose(tf1_bilinear(images, 299), slow_resize(images, 299), atol=rounding)


def test_resize_by_hand():  # to twice the side: every other pixel is kept, the last one repeated
    row = torch.tensor([[[[0.0, 10.0], [20.0, 40.0]]]])
    expected = [[0.0, 5.0, 10.0, 10.0], [10.0, 17.5, 25.0, 25.0], [20.0, 30.0, 40.0, 40.0], [20.0, 30.0, 40.0, 40.0]]
    assert tf1_bilinear(row, 4)[0, 0].tolist() == expected
    assert tf1_bilinear(torch.arange(16.0).view(1, 1, 4, 4), 2)[0, 0].tolist() == [[0.0, 2.0], [8.0, 10.0]]


def test_reads_safetensors_too(state, network, tmp_path):
    save_file(state, tmp_path / "inception.safetensors")
    again = FIDInception(tmp_path / "inception.safetensors", sha256_prefix=None)
    assert again.weights_hash != network.weights_hash
    assert torch.equal(again.fc.weight, network.fc.weight)


@pytest.fixture
def hollow(state) -> dict[str, Tensor]:
    """Right names and shapes, a single number in each, so that the file is small."""
    return {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}


def test_another_file_is_refused_by_its_hash(hollow, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(hollow, path)
    with pytest.raises(ValueError, match=r"a sha256 that begins 6726825d, got [0-9a-f]{16}; take the published"):
        FIDInception(path)
    assert FIDInception(path, sha256_prefix=file_hash(path)[:8]).weights_hash == file_hash(path)
    with pytest.raises(FileNotFoundError, match="Inception weights were expected in"):
        FIDInception(path.with_name("none.pth"))


def test_weights_that_do_not_fit(hollow, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({name: value for name, value in hollow.items() if name != "fc.bias"} | {"extra": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"the 566 tensors .*, got 1 missing \(fc\.bias\); 1 unexpected \(extra\)"):
        FIDInception(path, None)
    torch.save(hollow | {"fc.weight": torch.zeros(8, 8)}, path)
    with pytest.raises(ValueError, match=r"got 1 of another shape \(fc\.weight\)"):
        FIDInception(path, None)
    for content in ({"state_dict": {"a": torch.ones(1)}}, torch.ones(3), {}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="must hold tensors by name, got"):
            FIDInception(path, None)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"cannot be read as weights .*; fetch it again"):
        FIDInception(path, None)


def test_images_that_are_not_levels(network):
    with pytest.raises(TypeError, match=r"reads uint8 images, got torch.float32; round them once"):
        network(torch.zeros(1, 3, 8, 8))
    for shape in ((1, 1, 8, 8), (3, 8, 8), (1, 3, 0, 8)):
        with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\], got"):
            network(torch.zeros(shape, dtype=torch.uint8))
