import torch

from smalti.tokenizers.base import VisualTokenizer
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.unitok import MultiCodebookQuantizer, UniTokTokenizer
from smalti.tokenizers.vitamin import ViTaminDecoder, ViTaminEncoder

SHAPE = {"width": 8, "multipliers": (1, 1, 2), "blocks": 1}
VITAMIN = {"channels": (4, 8), "blocks": (1, 1), "layers": 1, "heads": 2}


def unitok(**options):
    quantizer = MultiCodebookQuantizer(4, 16, chunks=2)
    return UniTokTokenizer(ConvEncoder(8, **SHAPE), quantizer, ConvDecoder(8, **SHAPE), 16, **options).eval()


def test_what_it_hands_to_the_plain_tokenizer_is_not_its_own():
    """Options that the plain tokenizer learns do not tell a saved one apart."""
    named = {name for name in unitok().config if not name.startswith("_")}
    assert named == {"encoder", "quantizer", "decoder", "image_size", "pooled_dim"}


def test_image_features_are_optional_and_compared_with_captions():
    plain, tokenizer, images = unitok(), unitok(pooled_dim=5), torch.rand(2, 3, 16, 16) * 2 - 1
    assert plain.pooled(plain.encode(images)) is None
    codes = tokenizer.encode(images)
    widened = tokenizer.widen(tokenizer.embed(codes))
    torch.testing.assert_close(tokenizer.pooled(codes), tokenizer.projection(tokenizer.fc_norm(widened.mean(1))))
    assert tokenizer.pooled(codes).shape == (2, 5)
    terms = tokenizer.train().training_step_terms(images)
    torch.testing.assert_close(terms.summary, tokenizer.pooled(terms.codes))
    terms.summary.square().sum().backward()
    assert tokenizer.projection.weight.grad.any()
    assert tokenizer.encoder.last.weight.grad.any()
    assert plain.training_step_terms(images).summary is None


def test_with_vitamin_it_learns_and_is_saved(tmp_path):
    encoder, decoder = ViTaminEncoder(16, **VITAMIN), ViTaminDecoder(16, **VITAMIN)
    tokenizer = UniTokTokenizer(encoder, MultiCodebookQuantizer(4, 16, chunks=2), decoder, 64)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    terms = tokenizer.training_step_terms(images)
    (terms.reconstruction.square().mean() + terms.losses["quantizer"]).backward()
    assert not [name for name, weight in tokenizer.named_parameters() if weight.grad is None or not weight.grad.any()]
    tokenizer.eval().save_pretrained(tmp_path / "saved")
    loaded, codes = VisualTokenizer.from_pretrained(tmp_path / "saved"), tokenizer.encode(images)
    assert torch.equal(loaded.encode(images).ids, codes.ids)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    assert loaded.fingerprint() == tokenizer.fingerprint()
