"""The ceiling of a tokenizer that keeps everything is the oracle, of one that keeps nothing 0."""

import pytest
import torch

from smalti.data.scene_world import World
from smalti.eval.ceilings import CEILING_TASK, ceiling_protocol, tokenizer_ceiling
from smalti.eval.images.metrics import PSNR_CAP
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

SMALL = World.named("small")


class Kept(VQTokenizer):
    """Gives back what it was shown last, or one grey."""

    gray = False

    def encode(self, images):
        self.shown = images
        return super().encode(images)

    def decode(self, codes, generator=None):
        return torch.zeros_like(self.shown) if self.gray else self.shown


@pytest.fixture
def tokenizer():
    sizes = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    return Kept(ConvEncoder(**sizes), VectorQuantizer(4, 16), ConvDecoder(**sizes), SMALL.size).eval()


def test_a_tokenizer_that_keeps_everything_scores_as_the_oracle(tokenizer):
    told = []
    found = tokenizer_ceiling(tokenizer, SMALL, per_prompt=1, progress=lambda done, total: told.append((done, total)))
    scores = found.to_dict()
    assert (scores["ceiling"], scores["strict"], scores["psnr"], scores["ssim"]) == (1, 1, PSNR_CAP, 1)
    assert scores["interval"] == {"low": 1, "high": 1}
    assert told[-1] == (91, 91)


def test_a_tokenizer_that_keeps_nothing_scores_nothing(tokenizer):
    tokenizer.gray = True
    scores = tokenizer_ceiling(tokenizer, SMALL, per_prompt=1).to_dict()
    assert (scores["ceiling"], scores["strict"]) == (0, 0)
    low, high = scores["psnr_interval"].values()
    assert low < scores["psnr"] < high < 40


def test_another_size_is_refused(tokenizer):
    with pytest.raises(ValueError, match="the world has pictures of 64x64 pixels, the tokenizer takes 30x30; name"):
        tokenizer_ceiling(tokenizer, World.named("full"))


def test_the_protocol_says_which_renders(tokenizer):
    protocol = ceiling_protocol(tokenizer, "small", per_prompt=2, seed=3)
    assert (protocol.task, protocol.count, protocol.seed) == (CEILING_TASK, 182, 3)
    assert protocol.differences(ceiling_protocol(tokenizer, "small", per_prompt=2, seed=4)).keys() >= {
        "seed",
        "dataset_hash",
    }
