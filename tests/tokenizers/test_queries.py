"""Tokenizers without pixels, and what the releases of SEED and Slot-MLLM have that others have not."""

import pytest
import torch

from smalti.tokenizers.base import VisualTokenizer
from smalti.tokenizers.convolutional import ConvDecoder
from smalti.tokenizers.features import FeatureReader
from smalti.tokenizers.lavit import LavitTokenizer
from smalti.tokenizers.learned import GradientQuantizer
from smalti.tokenizers.qformer import QFormer
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.queries import GridReader
from smalti.tokenizers.seed import SeedTokenizer
from smalti.tokenizers.slot import SlotTokenizer
from smalti.tokenizers.vision import VisionTower

NO_PIXELS = "has no pixel decoder; train one or draw with a diffusion decoder"


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16) * 2 - 1


def tower(kind="blip2"):
    return VisionTower(16, 4, 16, 2, 2, 32, kind=kind)


def qformer(memory_dim=16):
    return QFormer(3, 16, 1, 2, 32, memory_dim, dropout=0.0)


def seed(**options):
    return SeedTokenizer(tower(), qformer(), GradientQuantizer(4, 16), image_dim=5, placed=True, **options)


def slot():
    quantizer = VectorQuantizer(16, 8, 2, 4, shared=True)
    released = {"patches_only": True, "narrowed": False, "from_restored": True, "token_dim": 7}
    return SlotTokenizer(tower("dinov2"), qformer(6), quantizer, image_dim=5, placed=True, heads=4, **released)


def lavit():
    return LavitTokenizer(tower(), GradientQuantizer(4, 16), layers=1, heads=2, mlp_width=20)


@pytest.mark.parametrize("build", [seed, slot, lavit])
def test_a_tokenizer_without_pixels(images, tmp_path, build):
    tokenizer = build().eval()
    codes = tokenizer.encode(images)
    with pytest.raises(ValueError, match=f"this {type(tokenizer).__name__} {NO_PIXELS}"):
        tokenizer.decode(codes)
    if tokenizer.reader is None and isinstance(tokenizer, LavitTokenizer):
        with pytest.raises(ValueError, match="features of LavitTokenizer need a reader, got none; build it with one"):
            tokenizer.training_step_terms(images)
    else:
        assert tokenizer.training_step_terms(images).reconstruction is None
    tokenizer.save_pretrained(tmp_path)
    loaded = VisualTokenizer.from_pretrained(tmp_path)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert torch.equal(loaded.embed(loaded.encode(images)), tokenizer.embed(codes))


def test_image_embeddings_without_pixels(images):
    seeds, slots = seed().eval(), slot().eval()
    codes = seeds.encode(images)
    assert seeds.image_embedding(codes).shape == (2, 5)
    with pytest.raises(ValueError, match="embeddings of codes need a token_dim, got 0; give their width"):
        seeds.token_embeddings(codes)
    codes = slots.encode(images)
    assert slots.embed(codes).shape == (2, 3, 16)
    assert (slots.image_embedding(codes).shape, slots.token_embeddings(codes).shape) == ((2, 5), (2, 3, 7))


def test_restored_vectors_know_their_place():
    tokenizer = seed().eval()
    same = torch.ones(1, 3, 16)
    assert torch.allclose(tokenizer.restore(same)[0, 0], tokenizer.restore(same)[0, 1], atol=1e-6)  # places start at 0
    with torch.no_grad():
        tokenizer.restore[0].positions.normal_()
    assert not torch.allclose(tokenizer.restore(same)[0, 0], tokenizer.restore(same)[0, 1], atol=1e-3)


def test_lavits_own_reader_may_serve_pixels(images, tmp_path):
    reader, decoder = FeatureReader(4, 16, 4, 1, 2, 20), ConvDecoder(8, 8, (1, 1, 2), 1)
    tokenizer = LavitTokenizer(tower(), GradientQuantizer(4, 16), reader, decoder, 1, 2).eval()
    codes = tokenizer.encode(images)
    assert tokenizer.decode(codes).shape == images.shape
    terms = tokenizer.train().training_step_terms(images)
    (terms.reconstruction.square().mean() + sum(terms.losses.values())).backward()
    assert all(weight.grad is not None for weight in reader.parameters())
    tokenizer.eval().save_pretrained(tmp_path)
    loaded = VisualTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))


def test_refusals():
    reader, decoder = GridReader(16, 16, 4, 1, 2), ConvDecoder(16, 8, (1, 1, 2), 1)
    with pytest.raises(ValueError, match="pixels need a reader and a decoder, got a reader alone; add a decoder or"):
        seed(reader=reader)
    with pytest.raises(ValueError, match="pixels need a reader and a decoder, got a decoder alone; add a reader or"):
        LavitTokenizer(tower(), GradientQuantizer(4, 16), decoder=decoder)
    with pytest.raises(ValueError, match="the reader's dim and that of what it reads must agree, got 16 and 4"):
        LavitTokenizer(tower(), GradientQuantizer(4, 16), FeatureReader(16, 16, 4, 1, 2))
    with pytest.raises(ValueError, match="the quantizer's dim and the Q-Former's must agree, got 4 and 16"):
        seed(narrowed=False)
    with pytest.raises(ValueError, match="the Q-Former's memory_dim and the tower's width must agree, got 6 and 16"):
        SeedTokenizer(tower(), qformer(6), GradientQuantizer(4, 16))
