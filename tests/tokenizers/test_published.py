"""Numbers that papers and releases state; LlamaGen's are in tests/bridge, TokenFlow's and UniTok's with their parts."""

import pytest
import torch

from smalti.tokenizers.convolutional import ConvDecoder
from smalti.tokenizers.qformer import QFormer
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.queries import GridReader
from smalti.tokenizers.seed import SeedTokenizer
from smalti.tokenizers.slot import SlotTokenizer
from smalti.tokenizers.vision import VisionTower


def test_dualtoken_decoder():
    with torch.device("meta"):
        decoder = ConvDecoder(1024, 128, (1, 1, 4, 4, 8), 3)
    assert sum(weight.numel() for weight in decoder.parameters()) / 1e6 == pytest.approx(168.4, abs=0.06)


@pytest.mark.parametrize(("family", "depth", "kind"), [(SeedTokenizer, 1, "sequence"), (SlotTokenizer, 4, "set")])
def test_codes_of_an_image(family, depth, kind):
    tokenizer = family(
        VisionTower(16, 8, 8, 1, 1),
        QFormer(dim=8, layers=1, heads=1, hidden=8, memory_dim=8),
        VectorQuantizer(4, 8192, depth=depth, shared=depth > 1),
        GridReader(8, 8, 4, 1, 1),
        ConvDecoder(8, 8, (1, 1, 1), 1),
    ).eval()
    assert (tokenizer.spec.layout.kind, tokenizer.spec.layout.shape) == (kind, (32,))
    assert tokenizer.encode(torch.zeros(2, 3, 16, 16)).ids.shape == (2, 32, depth)
