import pytest
import torch
from diffusers.configuration_utils import register_to_config
from torch.nn.functional import avg_pool2d

from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder, Encoder
from smalti.tokenizers.quantizers import FiniteScalarQuantizer, VectorQuantizer
from smalti.tokenizers.vision import TransformerDecoder, TransformerEncoder, VisionTower
from smalti.tokenizers.vq import VQTokenizer

STRIDE_4, STRIDE_2 = (1, 1, 1), (1, 1)


class PatchMeans(Encoder):
    """The mean colour of each 4x4 patch."""

    @register_to_config
    def __init__(self):
        super().__init__()
        self.dim, self.stride = 3, 4

    def forward(self, images):
        return avg_pool2d(images, 4)


def encoder(multipliers=STRIDE_4):
    return ConvEncoder(8, 8, multipliers, 1)


def decoder(multipliers=STRIDE_4):
    return ConvDecoder(8, 8, multipliers, 1)


def transformer_encoder(side=16):
    return TransformerEncoder(VisionTower(side, patch_size=4, width=16, layers=1, heads=2))


def transformer_decoder(grid=4):
    return TransformerDecoder(8, grid, stride=4, width=16, layers=1, heads=2, refine=4)


def test_spec_and_sizes():
    tokenizer = VQTokenizer(encoder(), VectorQuantizer(4, 16, depth=2), decoder(), 32)
    assert tokenizer.spec.layout.shape == (8, 8)
    books = [{"name": f"pixel.{depth}", "size": 16, "depth": 1} for depth in range(2)]
    assert tokenizer.spec.to_dict()["codebooks"] == books
    assert (tokenizer.image_size, tokenizer.stride, tokenizer.any_size) == ((32, 32), 4, True)


def test_positions_are_in_raster_order():
    """Position 7 of a 4x4 grid is row 1, column 3: only it changes with the pixels of that cell."""
    tokenizer = VQTokenizer(PatchMeans(), FiniteScalarQuantizer(3, [9, 9, 9]), decoder(), 16).eval()
    images = torch.zeros(1, 3, 16, 16)
    dark = tokenizer.encode(images).ids
    images[:, :, 4:8, 12:16] = 1
    changed = (tokenizer.encode(images).ids != dark).flatten()
    assert changed.nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize(
    ("first", "second", "any_size"),
    [
        (encoder, decoder, True),
        (encoder, transformer_decoder, False),
        (transformer_encoder, decoder, False),
        (transformer_encoder, transformer_decoder, False),
    ],
)
def test_any_size_needs_both_ends(first, second, any_size):
    tokenizer = VQTokenizer(first(), FiniteScalarQuantizer(4, [3, 3]), second(), 16).eval()
    assert tokenizer.any_size is any_size
    images = torch.zeros(1, 3, 16, 16)
    assert tokenizer.decode(tokenizer.encode(images)).shape == images.shape


def test_strides_must_agree():
    with pytest.raises(ValueError, match=r"one stride that divides image_size 16, got strides 4 and 2"):
        VQTokenizer(encoder(), VectorQuantizer(4, 16), decoder(STRIDE_2), 16)
    with pytest.raises(ValueError, match=r"one stride that divides image_size 18, got strides 4 and 4"):
        VQTokenizer(encoder(), VectorQuantizer(4, 16), decoder(), 18)


def test_grids_must_agree():
    quantizer = VectorQuantizer(4, 16)
    with pytest.raises(ValueError, match=r"image_size 32 asks for 8 cells per side, got .* built for 4; give all"):
        VQTokenizer(transformer_encoder(), quantizer, transformer_decoder(), 32)
    with pytest.raises(ValueError, match=r"image_size 16 asks for 4 cells per side, got .* built for 4 and 5"):
        VQTokenizer(transformer_encoder(), quantizer, transformer_decoder(5), 16)


def test_reconstruction_can_be_learned():
    """A few steps on one batch lower the error: all parts pull the same way."""
    tokenizer = VQTokenizer(encoder(STRIDE_2), VectorQuantizer(8, 64), decoder(STRIDE_2), 8)
    images = torch.rand(4, 3, 1, 1).expand(4, 3, 8, 8) * 2 - 1
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
    errors = []
    for _ in range(30):
        terms = tokenizer.training_step_terms(images)
        error = (terms.reconstruction - images).square().mean()
        optimizer.zero_grad()
        (error + terms.losses["quantizer"]).backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.5 * errors[0]
