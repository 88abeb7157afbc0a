"""Loading, where families do not differ; what they share otherwise is in test_contract.py."""

import copy

import pytest
import torch
from diffusers.configuration_utils import register_to_config

from smalti.tokenizers.base import VisualTokenizer
from smalti.tokenizers.component import unusual
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import FiniteScalarQuantizer
from smalti.tokenizers.vq import VQTokenizer


class Mine(VQTokenizer):
    """A family of the user's own."""


@pytest.fixture
def parts():
    return ConvEncoder(4, 4, (1, 1), 1), FiniteScalarQuantizer(4, [3, 3]), ConvDecoder(4, 4, (1, 1), 1), 8


def test_a_family_of_ones_own(parts, tmp_path):
    tokenizer = Mine(*parts)
    tokenizer.save_pretrained(tmp_path / "mine")
    for cls in (VisualTokenizer, VQTokenizer, Mine):
        assert type(cls.from_pretrained(tmp_path / "mine")) is Mine
    VQTokenizer(*parts).save_pretrained(tmp_path / "theirs")
    assert type(Mine.from_pretrained(tmp_path / "theirs")) is Mine


def test_subfolder(parts, tmp_path):
    tokenizer = VQTokenizer(*parts)
    tokenizer.save_pretrained(tmp_path / "pipeline" / "tokenizer")
    loaded = VisualTokenizer.from_pretrained(tmp_path / "pipeline", subfolder="tokenizer")
    assert loaded.fingerprint() == tokenizer.fingerprint()
    with pytest.raises(FileNotFoundError, match=r"a tokenizer folder was expected at .*pipeline/other, which does not"):
        VisualTokenizer.from_pretrained(tmp_path / "pipeline", subfolder="other")


def test_hub_id_that_is_not_here():
    with pytest.raises(ValueError, match=r"nobody/nothing does not hold a readable tokenizer \(.*\); save it again"):
        VisualTokenizer.from_pretrained("nobody/nothing")


def test_fingerprint_sees_the_configuration(parts):
    tokenizer = VQTokenizer(*parts)
    larger = VQTokenizer(*parts[:3], 16)
    larger.load_state_dict(tokenizer.state_dict())
    assert len({tokenizer.fingerprint(), larger.fingerprint()}) == 2
    assert len(tokenizer.fingerprint()) == 16
    assert int(tokenizer.fingerprint(), 16) >= 0


class WithOption(VQTokenizer):
    """The same family after it has learnt an option."""

    @register_to_config
    def __init__(self, encoder, quantizer, decoder, image_size=256, option=False) -> None:
        super().__init__(encoder, quantizer, decoder, image_size)


class PartWithOption(FiniteScalarQuantizer):
    """A part after it has learnt an option."""

    @register_to_config
    def __init__(self, dim, levels, option=False) -> None:
        super().__init__(dim, levels)


def test_fingerprint_outlives_options_that_are_not_used(parts):
    plain = VQTokenizer(*parts)
    for option in (False, True):
        grown = WithOption(*parts, option=option)
        grown.load_state_dict(plain.state_dict())
        assert (grown.fingerprint() == plain.fingerprint()) is not option


def test_arguments_at_their_defaults_do_not_count(parts):
    encoder, _, decoder, _ = parts
    chosen = [
        unusual(VQTokenizer, VQTokenizer(encoder, PartWithOption(4, [3, 3], option), decoder, 8).config)["quantizer"]
        for option in (False, True)
    ]
    assert chosen[0] == {"class": "PartWithOption", "args": {"dim": 4, "levels": [3, 3]}}
    assert chosen[1]["args"] == {"dim": 4, "levels": [3, 3], "option": True}


def test_parts_are_built_in_the_order_of_the_constructor(parts):
    """diffusers reads a configuration in the order of a set, which differs from process to process."""
    tokenizer = VQTokenizer(encoder=parts[0], quantizer=parts[1], decoder=parts[2], image_size=parts[3])
    for order in (1, -1):
        config = dict(list(tokenizer.config.items())[::order])
        assert list(VQTokenizer.extract_init_dict(config)[0]) == ["encoder", "quantizer", "decoder", "image_size"]


def test_fingerprint_of_half_precision(parts):
    tokenizer = VQTokenizer(*parts)
    half, again = copy.deepcopy(tokenizer).to(torch.bfloat16), copy.deepcopy(tokenizer)
    assert half.fingerprint() != tokenizer.fingerprint()  # other values
    again.load_state_dict(half.state_dict())
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert again.fingerprint() == half.fingerprint()  # the same values in more bytes
