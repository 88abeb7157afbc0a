import pytest
from diffusers.configuration_utils import register_to_config

from smalti.tokenizers.averaged import AveragedQuantizer
from smalti.tokenizers.component import Component, build, freeze
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.ibq import IndexBackpropagationQuantizer
from smalti.tokenizers.learned import GradientQuantizer
from smalti.tokenizers.qformer import QFormer
from smalti.tokenizers.quantizers import FiniteScalarQuantizer, VectorQuantizer
from smalti.tokenizers.scales import MultiScaleQuantizer
from smalti.tokenizers.tokenflow import SharedMappingQuantizer
from smalti.tokenizers.unitok import MultiCodebookQuantizer
from smalti.tokenizers.vision import TransformerDecoder, TransformerEncoder, VisionTower

TOWER = {"image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "heads": 2}
PARTS = [
    ConvEncoder(8, 8, (1, 2), 1),
    ConvDecoder(8, 8, (1, 2), 1),
    VectorQuantizer(4, 8, depth=2, shared=True),
    FiniteScalarQuantizer(3, [3, 3]),
    AveragedQuantizer(4, 8, depth=2),
    GradientQuantizer(4, 8),
    IndexBackpropagationQuantizer(4, 8),
    MultiCodebookQuantizer(4, 8, 2),
    MultiScaleQuantizer(SharedMappingQuantizer(4, 2, 8), [1, 2]),
    QFormer(4, 8, 2, 2, 16, 8),
    VisionTower(**TOWER),
    TransformerEncoder(VisionTower(**TOWER)),
    TransformerDecoder(8, 4, 4, 16, 1, 2, 4),
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_build_inverts_to_spec(part):
    spec = part.to_spec()
    again = build(spec)
    assert type(again) is type(part)
    assert again.to_spec() == spec
    assert {name: weight.shape for name, weight in again.state_dict().items()} == {
        name: weight.shape for name, weight in part.state_dict().items()
    }


def test_freeze_reaches_into_lists_and_dicts():
    part = FiniteScalarQuantizer(3, [3, 3])
    frozen = freeze({"parts": [part, (part, 1)], "size": 2})
    spec = {"class": "FiniteScalarQuantizer", "args": {"dim": 3, "levels": [3, 3]}}
    assert frozen == {"parts": [spec, [spec, 1]], "size": 2}
    built = build(frozen)
    assert isinstance(built["parts"][1][0], FiniteScalarQuantizer)
    assert built["size"] == 2


def test_parts_of_ones_own_are_found():
    class Mine(Component):
        @register_to_config
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size

    assert build(Mine(3).to_spec()).size == 3


def test_unknown_part():
    with pytest.raises(
        ValueError, match=r"names the part 'Nothing', known parts are .*; import the module that defines it"
    ):
        build({"class": "Nothing", "args": {}})
