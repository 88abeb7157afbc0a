import pytest
import torch
from torch.nn import functional as F

from smalti.tokenizers.convolutional import ConvDecoder
from smalti.tokenizers.dual import DualTokenizer
from smalti.tokenizers.product import ProductQuantizer
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vision import TransformerDecoder, VisionTower


def build(semantic_layer=3, pixel_layer=1, shortcut_layer=None, decoder=None, patch=4, **options):
    tower = VisionTower(16, patch_size=patch, width=16, layers=4, heads=2)
    semantic, pixel = VectorQuantizer(8, 16, depth=2, shared=True), VectorQuantizer(8, 12, depth=3)
    decoder = decoder or ConvDecoder(16, 8, (1, 1, 2), 1)
    return DualTokenizer(tower, semantic, pixel, decoder, semantic_layer, pixel_layer, shortcut_layer, **options)


@pytest.fixture
def tokenizer():
    return build().eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16) * 2 - 1


def teacher(**shapes):
    return {name: torch.randn(shape) for name, shape in ({"tokens": (2, 16, 16), "pooled": (2, 16)} | shapes).items()}


def test_columns_are_semantic_first(tokenizer, images):
    codes = tokenizer.encode(images)
    assert [book.name for book in codes.spec.columns] == ["semantic", "semantic", "pixel.0", "pixel.1", "pixel.2"]
    hidden = tokenizer.encoder.stem(images)
    shallow = tokenizer.encoder.run(hidden, 0, 1)
    deep = tokenizer.encoder.run(shallow, 1, 3)
    assert torch.equal(codes.of("pixel"), tokenizer.pixel(tokenizer.to_pixel(shallow)).ids)
    assert torch.equal(codes.of("semantic"), tokenizer.semantic(tokenizer.to_semantic(deep)).ids)


def test_embedding_is_both_tables_side_by_side(tokenizer, images):
    codes = tokenizer.encode(images)
    vectors = tokenizer.embed(codes)
    assert vectors.shape == (2, 16, 8 + 8)
    assert torch.equal(vectors[..., :8], tokenizer.semantic.lookup(codes.of("semantic")))


def test_only_pixel_codes_are_decoded(tokenizer, images):
    codes = tokenizer.encode(images)
    pixels = tokenizer.decode(codes)
    for columns, matters in ((slice(0, 2), False), (slice(2, 5), True)):
        ids = codes.ids.clone()
        ids[..., columns] = (ids[..., columns] + 1) % 12
        assert torch.equal(tokenizer.decode(type(codes).full(ids, codes.spec)), pixels) is not matters


def test_shortcut_is_weighted(images):
    """Weight zero is no shortcut; the pixel feature is linear in the weight."""
    features = {}
    for weight in (0.0, 0.6, 1.2):
        torch.manual_seed(3)
        tokenizer = build(pixel_layer=2, shortcut_layer=1, shortcut_weight=weight).eval()
        tokenizer.pixel.register_forward_pre_hook(
            lambda _module, inputs, weight=weight: features.update({weight: inputs[0]})
        )
        tokenizer.encode(images)
    shallow = tokenizer.encoder.run(tokenizer.encoder.stem(images), 0, 1)
    torch.testing.assert_close(features[0.6] - features[0.0], 0.6 * tokenizer.to_shortcut(shallow))
    torch.testing.assert_close(features[1.2] - features[0.0], 1.2 * tokenizer.to_shortcut(shallow))
    middle = tokenizer.encoder.run(shallow, 1, 2)
    torch.testing.assert_close(features[0.0], tokenizer.to_pixel(middle))


def test_distillation_by_hand(tokenizer, images):
    targets = teacher()
    terms = tokenizer.training_step_terms(images, **targets)
    assert set(terms.losses) == {"quantizer.semantic", "quantizer.pixel", "distill.tokens", "distill.pooled"}
    hidden = tokenizer.from_semantic(tokenizer.semantic.lookup(terms.codes.of("semantic")))
    pooled = tokenizer.encoder.pool(tokenizer.encoder.run(hidden, 3, 4))
    for name, student in (("tokens", hidden), ("pooled", pooled)):
        cosine = F.cosine_similarity(student, targets[name], dim=-1).mean()
        expected = (student - targets[name]).square().mean() - cosine
        torch.testing.assert_close(terms.losses[f"distill.{name}"], expected)


def test_perfect_student(tokenizer, images):
    """Distance to itself: no squared error, cosine one."""
    hidden = tokenizer.from_semantic(tokenizer.semantic.lookup(tokenizer.encode(images).of("semantic")))
    pooled = tokenizer.encoder.pool(tokenizer.encoder.run(hidden, 3, 4))
    losses = tokenizer.training_step_terms(images, tokens=hidden, pooled=pooled).losses
    torch.testing.assert_close(losses["distill.tokens"], torch.tensor(-1.0))
    torch.testing.assert_close(losses["distill.pooled"], torch.tensor(-1.0))


def test_without_a_teacher(tokenizer, images):
    assert set(tokenizer.training_step_terms(images).losses) == {"quantizer.semantic", "quantizer.pixel"}


def test_half_a_teacher(tokenizer, images):
    with pytest.raises(ValueError, match=r"a teacher gives tokens and pooled, got tokens$"):
        tokenizer.training_step_terms(images, tokens=torch.zeros(2, 16, 16))


def test_teacher_of_another_width(tokenizer, images):
    with pytest.raises(ValueError, match=r"teacher tokens must be \[2, 16, 16\] like the encoder's, got \[2, 16, 24\]"):
        tokenizer.training_step_terms(images, **teacher(tokens=(2, 16, 24)))


@pytest.mark.parametrize(("semantic", "pixel", "shortcut"), [(5, 1, None), (1, 2, None), (3, 1, 2)])
def test_layers_out_of_order(semantic, pixel, shortcut):
    expected = (
        rf"shortcut_layer <= pixel_layer <= semantic_layer <= 4 \(the tower's\), got {shortcut}, {pixel}, {semantic}"
    )
    with pytest.raises(ValueError, match=expected):
        build(semantic, pixel, shortcut)


def test_grid_is_resized_where_strides_differ(images):
    """A patch of 5 leaves 3 cells per side of 16 pixels; a decoder of stride 4 wants 4 (27 and 24 in the release)."""
    tokenizer = build(patch=5).eval()
    codes = tokenizer.encode(images)
    assert codes.spec.layout.shape == (3, 3)
    assert tokenizer.decode(codes).shape == images.shape


@pytest.mark.parametrize(
    "decoder", [ConvDecoder(16, 8, (1,) * 6, 1), TransformerDecoder(16, 3, 4, 16, 1, 2, 4)], ids=["stride", "grid"]
)
def test_decoder_must_unfold_to_the_image(decoder):
    with pytest.raises(
        ValueError, match=r"must unfold to the encoder's 16 pixels, got one of stride (32|4) and grid (any|3)"
    ):
        build(decoder=decoder)


@pytest.mark.parametrize("local_depth", [0, 2])
def test_local_pixel_codes_depend_on_their_patch_alone(images, local_depth):
    tokenizer = build(pixel_layer=0, local_pixels=True, local_depth=local_depth).eval()
    changed = images.clone()
    changed[:, :, :4, :4] = -changed[:, :, :4, :4]  # the first patch
    first, second = tokenizer.encode(images).of("pixel"), tokenizer.encode(changed).of("pixel")
    assert torch.equal(first[:, 1:], second[:, 1:])


@pytest.mark.parametrize("local_depth", [0, 2])
def test_placeless_pixel_codes(images, local_depth):
    tokenizer = build(pixel_layer=0, local_pixels=True, placeless_pixels=True, local_depth=local_depth).eval()
    moved = images.roll((4, 8), dims=(2, 3))  # by one patch down and two to the right
    side = tokenizer.encoder.grid
    codes = [tokenizer.encode(pixels).of("pixel").unflatten(1, (side, side)) for pixels in (images, moved)]
    assert torch.equal(codes[0].roll((1, 2), dims=(1, 2)), codes[1])
    assert len(codes[0].flatten(0, 2).unique(dim=0)) > 1


@pytest.mark.parametrize("options", [{"pixel_layer": 1}, {"local_pixels": False}, {"shortcut_layer": 0}])
def test_placeless_pixel_codes_read_only_their_patch(options):
    with pytest.raises(ValueError, match="placeless pixel codes need pixel_layer 0, local_pixels and no shortcut, got"):
        build(**{"pixel_layer": 0, "local_pixels": True, "placeless_pixels": True} | options)


def test_local_layers_need_local_pixels():
    with pytest.raises(ValueError, match="local_depth 2 needs local_pixels, got False; switch it on or leave 0"):
        build(local_depth=2)


def test_contrast_codes_are_the_same_in_every_colour():
    quantizer = ProductQuantizer([VectorQuantizer(4, 12), VectorQuantizer(4, 12)])
    tower = VisionTower(16, patch_size=4, width=16, layers=2, heads=2)
    decoder, options = ConvDecoder(16, 8, (1, 1, 2), 1), {"pixel_layer": 0, "local_pixels": True}
    tokenizer = DualTokenizer(tower, VectorQuantizer(8, 16), quantizer, decoder, 1, **options, contrast=4).eval()
    covered = torch.rand(2, 1, 16, 16)
    dark, light, other = (
        torch.tensor(color)[:, None, None] for color in ([-1, -0.5, 0], [0.2, 0.9, -0.1], [0, 0, 1.0])
    )
    codes = [tokenizer.encode(dark + covered * (color - dark)) for color in (light, other)]
    assert torch.equal(codes[0].of("pixel.1"), codes[1].of("pixel.1"))
    assert len(codes[0].of("pixel.1").unique()) > 1
    assert not torch.equal(codes[0].of("pixel.0"), codes[1].of("pixel.0"))


@pytest.mark.parametrize("options", [{"contrast": 8, "pixel_layer": 0, "local_pixels": True}, {"contrast": 4}])
def test_contrast_leaves_channels_of_local_pixels(options):
    with pytest.raises(ValueError, match="contrast must leave some of the 8 channels of local pixels"):
        build(**options)
