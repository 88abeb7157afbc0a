"""Codes to levels: seeds that belong to pictures, other sizes, and what is not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.data.transforms import to_uint8
from smalti.eval.images.decoded import Rebuilder, paints, picture_generators, resized
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.qformer import QFormer
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.seed import SeedTokenizer
from smalti.tokenizers.vision import VisionTower
from smalti.tokenizers.vq import VQTokenizer

PARTS = {"dim": 8, "width": 8, "multipliers": (1, 1, 2), "blocks": 1}


@pytest.fixture
def tokenizer():
    return VQTokenizer(ConvEncoder(**PARTS), VectorQuantizer(8, 16), ConvDecoder(**PARTS), 16).eval()


@pytest.fixture
def codes(tokenizer):
    return tokenizer.encode(torch.rand(5, 3, 16, 16) * 2 - 1)


def decoded(rebuild, codes, *sizes):
    parts, start = [], 0
    for size in sizes:
        parts.append(rebuild(codes[start : start + size]))
        start += size
    return torch.cat(parts)


def test_a_picture_is_drawn_from_its_own_seed(tokenizer, codes, brush):
    with torch.inference_mode():
        whole = decoded(Rebuilder(brush(tokenizer), (16, 16), 3), codes, 5)
        parts = decoded(Rebuilder(brush(tokenizer), (16, 16), 3), codes, 2, 3)
        other = decoded(Rebuilder(brush(tokenizer), (16, 16), 4), codes, 5)
        third = brush(tokenizer).decode(codes[2:3], picture_generators(3, 2, 1))
    assert (whole.int() - parts.int()).abs().max() <= 1  # another batch may round a level otherwise
    assert (whole != other).float().mean() > 0.5
    assert (whole[2:3].int() - to_uint8(third).int()).abs().max() <= 1


def test_seeds_of_pictures_differ():
    states = {int(one.initial_seed()) for seed in (0, 1) for one in picture_generators(seed, 0, 50)}
    assert len(states) == 100
    assert picture_generators(0, 7, 1)[0].initial_seed() == picture_generators(0, 0, 8)[7].initial_seed()


def test_a_tokenizers_own_pictures_and_their_time(tokenizer, codes):
    rebuild = Rebuilder(tokenizer, (16, 16))
    with torch.inference_mode():
        assert torch.equal(rebuild(codes), to_uint8(tokenizer.decode(codes)))
    assert (rebuild.pictures, rebuild.seconds > 0) == (5, True)


def test_pictures_of_another_size_are_resized_as_pil_does(tokenizer, codes, brush):
    with torch.inference_mode():
        small = Rebuilder(brush(tokenizer, 0.0, side=32), (16, 16))(codes)
        large = to_uint8(brush(tokenizer, 0.0, side=32).decode(codes))
    assert small.shape == (5, 3, 16, 16)
    picture = Image.fromarray(large[1].permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(small[1].permute(1, 2, 0).numpy(), np.array(picture))
    assert resized(large, (8, 4)).shape == (5, 3, 8, 4)


def test_pictures_that_are_not_finite_are_named(tokenizer, codes, brush):
    rebuild = Rebuilder(brush(tokenizer), (16, 16))
    with torch.inference_mode():
        rebuild(codes)
        broken = Rebuilder(brush(tokenizer, float("nan")), (16, 16))
        with pytest.raises(ValueError, match="got NaN or infinity in picture 0; the decoder is damaged"):
            broken(codes)


def test_who_has_a_decoder_of_its_own(tokenizer):
    bare = SeedTokenizer(
        VisionTower(16, patch_size=4, width=16, layers=2, heads=2),
        QFormer(6, 16, 2, 2, 32, 16, reading="attention", dropout=0.0),
        VectorQuantizer(4, 16),
    )
    assert paints(tokenizer)
    assert not paints(bare)
