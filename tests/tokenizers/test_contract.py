"""What every tokenizer keeps, whatever its family. A new family adds one line to TOKENIZERS."""

import io
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from smalti.data.store import TokenStore
from smalti.data.transforms import Crop, from_uint8
from smalti.eval.images.picture_sets import ArraySource
from smalti.tokenizers.averaged import AveragedQuantizer
from smalti.tokenizers.base import VisualTokenizer
from smalti.tokenizers.codes import Codes
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.dual import DualTokenizer
from smalti.tokenizers.ibq import IndexBackpropagationQuantizer
from smalti.tokenizers.lavit import LavitTokenizer
from smalti.tokenizers.learned import GradientQuantizer
from smalti.tokenizers.lookup import looked_up
from smalti.tokenizers.losses import PixelLoss
from smalti.tokenizers.product import ProductQuantizer
from smalti.tokenizers.qformer import QFormer
from smalti.tokenizers.quantizers import FiniteScalarQuantizer, Quantizer, VectorQuantizer
from smalti.tokenizers.queries import GridReader
from smalti.tokenizers.scales import MultiScaleQuantizer
from smalti.tokenizers.seed import SeedTokenizer
from smalti.tokenizers.slot import SlotTokenizer
from smalti.tokenizers.soft import MapDecoder, MapEncoder, SoftTokenizer
from smalti.tokenizers.tokenflow import SharedMappingQuantizer, TokenFlowTokenizer
from smalti.tokenizers.unitok import MultiCodebookQuantizer, UniTokTokenizer
from smalti.tokenizers.vision import TransformerDecoder, TransformerEncoder, VisionTower
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.tokenize import TokenizeSettings, tokenize_source

SIDE, BATCH = 16, 3
SHAPE = {"width": 8, "multipliers": (1, 1, 2), "blocks": 1}  # stride 4
WEIGHTS = "diffusion_pytorch_model.safetensors"


def conv(quantizer):
    return VQTokenizer(ConvEncoder(8, **SHAPE), quantizer, ConvDecoder(8, **SHAPE), SIDE)


def tower(layers):
    return VisionTower(SIDE, patch_size=4, width=16, layers=layers, heads=2)


def vit():
    quantizer = VectorQuantizer(4, 16, update="gradient")
    decoder = TransformerDecoder(8, grid=4, stride=4, width=16, layers=1, heads=2, refine=4)
    return VQTokenizer(TransformerEncoder(tower(2)), quantizer, decoder, SIDE)


def reader(dim, out_dim):
    return GridReader(dim, out_dim, 4, layers=1, heads=2)


def queries(family, quantizer, reading="attention"):
    qformer = QFormer(6, 16, 2, 2, 32, 16, reading=reading, dropout=0.0)
    return family(tower(2), qformer, quantizer, reader(16, 8), ConvDecoder(8, **SHAPE))


def tokenflow(semantic=None, **options):
    scales = MultiScaleQuantizer(SharedMappingQuantizer(4, 2, 16), [1, 2, 4])
    parts = (semantic or tower(3), ConvEncoder(8, **SHAPE), scales, ConvDecoder(8, **SHAPE))
    return TokenFlowTokenizer(*parts, 1, 2, **options)


def tokenflow_clip():
    semantic = VisionTower(SIDE, patch_size=4, width=16, layers=2, heads=2, kind="clip")
    return tokenflow(semantic, class_token=True, semantic_layer=2, normed=True)


def lavit():
    tokenizer = LavitTokenizer(tower(2), GradientQuantizer(4, 16), reader(16, 16), ConvDecoder(8, **SHAPE), 2, 2)
    with torch.no_grad():  # a selector that keeps about half
        patches = tokenizer.encoder.stem(torch.rand(8, 3, SIDE, SIDE) * 2 - 1)
        keep, drop = tokenizer.selector(tokenizer.encoder.run(patches, 0, 2)).unbind(-1)
        tokenizer.selector.judge[-1].bias[0] -= (keep - drop).median()
    return tokenizer


def unitok():
    quantizer = MultiCodebookQuantizer(4, 16, chunks=2)
    return UniTokTokenizer(ConvEncoder(8, **SHAPE), quantizer, ConvDecoder(8, **SHAPE), SIDE)


def soft():
    return SoftTokenizer(MapEncoder(4, 16, 4, 1), AveragedQuantizer(4, 16), MapDecoder(4, 16, 4, 1), SIDE)


def dual(shortcut=None, **options):
    semantic, pixel = VectorQuantizer(8, 16, depth=2, shared=True), VectorQuantizer(8, 12, depth=3)
    return DualTokenizer(tower(4), semantic, pixel, ConvDecoder(16, **SHAPE), 3, 2, shortcut, **options)


TOKENIZERS = {
    "vq-conv": lambda: conv(VectorQuantizer(4, 16)),
    "vq-vit": vit,
    "vq-fsq": lambda: conv(FiniteScalarQuantizer(6, [5, 4, 3])),
    "vq-averaged": lambda: conv(AveragedQuantizer(4, 16, depth=2)),
    "vq-gradient": lambda: conv(GradientQuantizer(4, 16, cosine=True, entropy=0.1)),
    "vq-ibq": lambda: conv(IndexBackpropagationQuantizer(4, 16)),
    "vq-multi": lambda: conv(MultiCodebookQuantizer(6, 16, chunks=3)),
    "vq-product": lambda: conv(ProductQuantizer([VectorQuantizer(2, 12), VectorQuantizer(4, 16, depth=2)])),
    "vq-shared": lambda: conv(SharedMappingQuantizer(4, 2, 16)),
    "dual": dual,
    "dual-shortcut": lambda: dual(shortcut=1),
    "dual-local": lambda: dual(local_pixels=True, local_depth=2, contrast=4),
    "lavit": lavit,
    "seed": lambda: queries(SeedTokenizer, GradientQuantizer(4, 16, codebook=0.25, commitment=1.0)),
    "slot": lambda: queries(SlotTokenizer, VectorQuantizer(4, 16, depth=2), "morph"),
    "soft": soft,
    "tokenflow": tokenflow,
    "tokenflow-clip": tokenflow_clip,
    "unitok": unitok,
}

#: Those of them with codebooks that are added to one another, where `looked_up` has them side by side.
ADDED = {"dual", "dual-local", "dual-shortcut", "slot", "vq-product"}

#: Those that hand out no latents.
WITHOUT_LATENTS = {"tokenflow", "tokenflow-clip"}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request) -> VisualTokenizer:
    return TOKENIZERS[request.param]().eval()


@pytest.fixture
def family(request) -> str:
    return request.node.callspec.params["tokenizer"]


@pytest.fixture
def images():
    return torch.rand(BATCH, 3, SIDE, SIDE) * 2 - 1


def targets_of(tokenizer):
    """What a teacher would give, for the families that are taught."""
    if not isinstance(tokenizer, DualTokenizer | TokenFlowTokenizer):
        return {}
    tower = tokenizer.encoder if isinstance(tokenizer, DualTokenizer) else tokenizer.semantic_encoder
    return {"tokens": torch.randn(BATCH, tower.grid**2, tower.width), "pooled": torch.randn(BATCH, tower.width)}


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_ids_keep_the_spec(tokenizer, images):
    codes = tokenizer.encode(images)
    assert codes.spec == tokenizer.spec
    assert codes.ids.shape == (BATCH, tokenizer.spec.positions, tokenizer.spec.depth)
    assert codes.ids.dtype == torch.int64
    assert codes.mask.dtype == torch.bool
    assert codes.mask.shape == codes.ids.shape[:2]
    assert bool(codes.mask.all()) is not tokenizer.spec.dynamic
    for column, codebook in zip(codes.ids[codes.mask].unbind(-1), tokenizer.spec.columns, strict=True):
        assert 0 <= int(column.min()) <= int(column.max()) < codebook.size


def test_different_images_have_different_codes(tokenizer, images):
    ids = tokenizer.encode(images).ids
    assert not torch.equal(ids[0], ids[1])


def test_encoding_is_deterministic_and_changes_nothing(tokenizer, images):
    before = state(tokenizer)
    assert torch.equal(tokenizer.encode(images).ids, tokenizer.encode(images).ids)
    assert equal(before, state(tokenizer))


def test_decode_gives_pixels_in_range(tokenizer, images):
    pixels = tokenizer.decode(tokenizer.encode(images))
    assert pixels.shape == images.shape
    assert pixels.dtype == torch.float32
    assert float(pixels.detach().abs().max()) <= 1


def test_decode_clamps(tokenizer, images):
    with torch.no_grad():
        tokenizer.decoder.last_layer.mul_(1e4)
    assert float(tokenizer.decode(tokenizer.encode(images)).detach().abs().max()) == 1


def test_a_store_decodes_as_its_pictures_do(tokenizer, tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    settings = TokenizeSettings(Crop(SIDE), batch_size=1, shard_size=3)
    tokenize_source(tokenizer, ArraySource(list(levels)), tmp_path / "store", "noise", settings)
    store = TokenStore(tmp_path / "store")
    store.check_tokenizer(tokenizer.identity())
    for index, picture in enumerate(levels):
        stored = Codes.full(store[index]["ids"][None], tokenizer.spec)
        codes = tokenizer.encode(from_uint8(torch.from_numpy(picture).permute(2, 0, 1))[None])
        assert torch.equal(tokenizer.decode(stored), tokenizer.decode(codes))


@pytest.mark.parametrize("through", ["family", "base"])
def test_save_and_load(tokenizer, images, tmp_path, through):
    tokenizer.save_pretrained(tmp_path / "saved")
    cls = type(tokenizer) if through == "family" else VisualTokenizer
    loaded = cls.from_pretrained(tmp_path / "saved")
    assert type(loaded) is type(tokenizer)
    assert not loaded.training
    codes = tokenizer.encode(images)
    assert torch.equal(loaded.encode(images).ids, codes.ids)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    assert loaded.spec == tokenizer.spec
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_saving_keeps_other_files(tokenizer, tmp_path):
    folder = tmp_path / "saved"
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("my notes")
    (folder / "samples").mkdir()
    (folder / "samples" / "a.txt").write_text("a")
    (folder / "diffusion_pytorch_model-00001-of-00002.safetensors").write_text("stale")
    tokenizer.save_pretrained(folder)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.json", WEIGHTS, "README.md", "samples/a.txt"}
    assert VisualTokenizer.from_pretrained(folder).fingerprint() == tokenizer.fingerprint()


def test_saved_config_is_plain_json(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["_class_name"] == type(tokenizer).__name__
    assert config["encoder"].keys() == {"class", "args"}


@pytest.fixture
def saved(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def test_missing_weight(saved):
    rewrite(saved, lambda weights: weights.pop("decoder.last.bias"))
    with pytest.raises(ValueError, match=r"its configuration key by key, got .*missing.*decoder\.last\.bias"):
        VisualTokenizer.from_pretrained(saved)


def test_unexpected_weight(saved):
    rewrite(saved, lambda weights: weights.update(foreign=torch.zeros(1)))
    with pytest.raises(ValueError, match=r"must match its configuration key by key, got .*unexpected.*foreign"):
        VisualTokenizer.from_pretrained(saved)


def test_weight_of_another_shape(saved):
    rewrite(saved, lambda weights: weights.update({"decoder.last.bias": torch.zeros(4)}))
    with pytest.raises(ValueError, match=r"does not hold a readable tokenizer .*size mismatch for decoder\.last\.bias"):
        VisualTokenizer.from_pretrained(saved)


@pytest.mark.parametrize("kept", [0, 40, -8])
def test_truncated_weights(saved, kept):
    whole = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(whole[:kept])
    with pytest.raises(ValueError, match=r"does not hold a readable tokenizer .*; save it again"):
        VisualTokenizer.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_missing_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"should hold a tokenizer but lacks {name}; save or train it again"):
        VisualTokenizer.from_pretrained(saved)


def test_damaged_config(saved):
    (saved / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"does not hold a readable tokenizer .*not a valid JSON"):
        VisualTokenizer.from_pretrained(saved)


def test_unknown_family_and_part(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "_class_name": "Nobody"}))
    with pytest.raises(ValueError, match=r"class 'Nobody', which no imported module defines; import the module"):
        VisualTokenizer.from_pretrained(saved)
    config["encoder"]["class"] = "Nothing"
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"names the part 'Nothing', known parts are .*ConvEncoder"):
        VisualTokenizer.from_pretrained(saved)


def test_loading_as_another_family(saved, tokenizer):
    other = VQTokenizer if isinstance(tokenizer, DualTokenizer) else DualTokenizer
    with pytest.raises(ValueError, match=rf"holds a .*Tokenizer, not a {other.__name__}; load it with VisualTokenizer"):
        other.from_pretrained(saved)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a tokenizer folder was expected at .*nowhere, which does not exist"):
        VisualTokenizer.from_pretrained(tmp_path / "nowhere")


def test_autocast(tokenizer, images):
    quantized = []
    for module in tokenizer.modules():
        if isinstance(module, Quantizer):
            module.register_forward_hook(lambda _module, _inputs, output: quantized.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        codes = tokenizer.encode(images)
        assert tokenizer.embed(codes).dtype == torch.float32
        pixels = tokenizer.decode(codes)
    assert quantized
    assert all(item.latents.dtype == torch.float32 for item in quantized)
    assert float((pixels.float() - tokenizer.decode(codes)).detach().abs().max()) < 0.1


def test_half_precision_leaves_quantizers_alone(tokenizer, images):
    codes = tokenizer.encode(images)
    vectors, pixels = tokenizer.embed(codes), tokenizer.decode(codes)
    tables = {name: state(part) for name, part in tokenizer.named_modules() if isinstance(part, Quantizer)}
    tokenizer.bfloat16()
    assert tokenizer.dtype == torch.bfloat16
    for name, table in tables.items():
        assert equal(table, state(tokenizer.get_submodule(name)))
    assert torch.equal(tokenizer.embed(codes), vectors)
    halved = tokenizer.decode(tokenizer.encode(images))
    assert halved.dtype == torch.bfloat16
    assert float((tokenizer.decode(codes).float() - pixels).detach().abs().max()) < 0.2


def test_loading_in_half_precision(tokenizer, saved, images):
    loaded = VisualTokenizer.from_pretrained(saved, torch_dtype=torch.bfloat16)
    codes = loaded.encode(images)
    assert loaded.decode(codes).dtype == torch.bfloat16
    assert torch.equal(loaded.embed(codes), tokenizer.embed(codes))


def test_gradients_reach_every_weight(tokenizer, images):
    tokenizer.train()
    terms = tokenizer.training_step_terms(images, **targets_of(tokenizer))
    losses = [*PixelLoss(l1=1.0)(terms.reconstruction, images).values(), *terms.losses.values()]
    torch.stack(losses).sum().backward()
    idle = [name for name, weight in tokenizer.named_parameters() if weight.requires_grad and not touched(weight)]
    assert not idle
    assert any(touched(weight) for weight in tokenizer.encoder.parameters())
    assert any(touched(weight) for weight in tokenizer.decoder.parameters())


def touched(weight: nn.Parameter) -> bool:
    return weight.grad is not None and bool(weight.grad.isfinite().all()) and bool(weight.grad.any())


def test_training_terms_agree_with_the_contract(tokenizer, images):
    terms = tokenizer.training_step_terms(images, **targets_of(tokenizer))
    assert torch.equal(terms.codes.ids, tokenizer.encode(images).ids)
    torch.testing.assert_close(terms.reconstruction.clamp(-1, 1), tokenizer.decode(terms.codes), atol=1e-5, rtol=0)
    assert all(loss.shape == () and loss.isfinite() for loss in terms.losses.values())


def test_codebooks_move_in_training_only(tokenizer, images):
    optimizer = torch.optim.SGD([weight for weight in tokenizer.parameters() if weight.requires_grad], 0.1)
    codebooks = {name: module for name, module in tokenizer.named_modules() if isinstance(module, VectorQuantizer)}
    ids = torch.arange(12)[:, None, None]
    for training in (False, True):
        tokenizer.train(training)
        before = {name: module.lookup(ids.expand(-1, -1, module.depth)) for name, module in codebooks.items()}
        terms = tokenizer.training_step_terms(images, **targets_of(tokenizer))
        if training:
            torch.stack([terms.reconstruction.square().mean(), *terms.losses.values()]).sum().backward()
            optimizer.step()
        for name, module in codebooks.items():
            moved = not torch.equal(module.lookup(ids.expand(-1, -1, module.depth)), before[name])
            assert moved == training, name


def test_one_image_equals_many(tokenizer, images):
    codes = tokenizer.encode(images)
    pixels = tokenizer.decode(codes)
    for i in range(BATCH):
        assert torch.equal(tokenizer.encode(images[i : i + 1]).ids, codes.ids[i : i + 1])
        torch.testing.assert_close(tokenizer.decode(codes[i : i + 1]), pixels[i : i + 1], atol=1e-5, rtol=0)


def test_other_sizes(tokenizer):
    wide = torch.rand(2, 3, 8, 24) * 2 - 1
    if not tokenizer.any_size:
        with pytest.raises(ValueError, match=r"images must be 16x16 \(height x width\) .*, got 8x24; resize or crop"):
            tokenizer.encode(wide)
        return
    codes = tokenizer.encode(wide)
    assert codes.spec.layout.shape == (2, 6)
    assert tokenizer.decode(codes).shape == wide.shape
    with pytest.raises(ValueError, match=r"divisible by 4 in height and width, got 17x15; resize or pad to 20x16"):
        tokenizer.encode(torch.zeros(1, 3, 17, 15))


def test_refused_images(tokenizer):
    with pytest.raises(TypeError, match=r"floating point in \[-1, 1\], got torch.uint8; convert uint8 with x / 127.5"):
        tokenizer.encode(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
    for shape in ([1, 1, SIDE, SIDE], [3, SIDE, SIDE], [0, 3, SIDE, SIDE]):
        with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\] with B >= 1, got "):
            tokenizer.encode(torch.zeros(shape))


def test_training_refuses_the_same_images(tokenizer):
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\]"):
        tokenizer.training_step_terms(torch.zeros(1, 4, SIDE, SIDE))


def test_codes_of_another_tokenizer(tokenizer, images):
    stranger = conv(VectorQuantizer(4, 99)).eval().encode(images)
    for use in (tokenizer.embed, tokenizer.decode):
        with pytest.raises(ValueError, match=r"codes must keep this tokenizer's spec .*99.*; re-encode the images"):
            use(stranger)
        with pytest.raises(ValueError, match=r"codes must hold at least one image, got an empty batch"):
            use(tokenizer.encode(images)[:0])


def test_fingerprint_follows_every_weight(tokenizer):
    seen = {tokenizer.fingerprint()}
    for weight in list(tokenizer.parameters())[:: max(1, len(list(tokenizer.parameters())) // 8)]:
        with torch.no_grad():
            weight.view(-1)[0] += 1e-3
        seen.add(tokenizer.fingerprint())
    assert len(seen) > 8
    assert tokenizer.fingerprint() == tokenizer.fingerprint()


def test_embed(tokenizer, images):
    codes = tokenizer.encode(images)
    vectors = tokenizer.embed(codes)
    assert vectors.shape[:2] == codes.ids.shape[:2]
    assert vectors.is_floating_point()
    weights = [named for part in parts(tokenizer) for named in part.named_parameters()]
    learned = [weight for name, weight in weights if name.endswith("embed")]
    assert len(learned) == sum(getattr(part, "by_gradient", False) for part in parts(tokenizer))
    for codebook in learned:
        (slope,) = torch.autograd.grad(vectors.square().sum(), codebook)
        used = torch.zeros(codebook.shape[1], dtype=torch.bool).index_fill(0, codes.ids.unique(), value=True)
        assert torch.equal(slope[0].abs().sum(-1) > 0, used)


def parts(tokenizer):
    return [module for module in tokenizer.modules() if isinstance(module, Quantizer)]


def test_embed_equals_what_the_decoder_was_trained_on(tokenizer, images):
    """Looking ids up again gives the latents that quantization gave."""
    seen = []
    for part in parts(tokenizer):
        part.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    codes = tokenizer.encode(images)
    vectors = tokenizer.finest(codes) if isinstance(tokenizer, TokenFlowTokenizer) else tokenizer.embed(codes)
    vectors = vectors[codes.mask][None] if tokenizer.spec.dynamic else vectors
    torch.testing.assert_close(vectors, torch.cat([item.latents for item in seen], -1), atol=1e-6, rtol=0)


def test_looking_codes_up_in_the_vectors_is_embedding(tokenizer, images, family):
    codes = tokenizer.encode(images)
    vectors, found = tokenizer.embed(codes), looked_up(tokenizer.code_vectors(), codes.ids, tokenizer.spec)
    if family in ADDED:
        assert found.shape[-1] > vectors.shape[-1]
    else:
        assert torch.equal(found, vectors)


def test_latents_are_what_embedding_gives(tokenizer, images, family):
    terms = tokenizer.training_step_terms(images)
    if family in WITHOUT_LATENTS:
        assert terms.latents is None
        with pytest.raises(ValueError, match=r"embedded as they are quantized, got a \w+Tokenizer without; read its"):
            tokenizer.tuned_embedding(terms)
    else:
        assert torch.equal(terms.latents, tokenizer.embed(terms.codes))


@pytest.mark.parametrize("tokenizer", sorted(TOKENIZERS.keys() - WITHOUT_LATENTS), indirect=True)
def test_tuning_reaches_encoder_and_codebooks(tokenizer, images):
    terms = tokenizer.train().training_step_terms(images)
    before = [weight.requires_grad for weight in tokenizer.parameters()]
    tuned = tokenizer.tuned_embedding(terms)
    assert [weight.requires_grad for weight in tokenizer.parameters()] == before
    assert torch.equal(tuned, tokenizer.embed(terms.codes))
    tuned.mul(torch.randn_like(tuned)).sum().backward()
    assert any(touched(weight) for weight in tokenizer.encoder.parameters())
    weights = [weight for part in parts(tokenizer) for weight in part.parameters()]
    assert all(touched(weight) for weight in weights)


def test_tuning_counts_every_code_once(images):
    """IBQ's latents reach its table, with shares that sum to none over the rows; latents of others do not."""
    quantizers = [IndexBackpropagationQuantizer(2, 8), GradientQuantizer(4, 16)]
    tokenizer = conv(ProductQuantizer(quantizers)).train()
    terms = tokenizer.training_step_terms(images)
    slope = torch.randn(BATCH, 16, 6)
    (tokenizer.tuned_embedding(terms) * slope).sum().backward()
    for quantizer, part in zip(quantizers, slope.flatten(0, 1).split([2, 4], dim=-1), strict=True):
        torch.testing.assert_close(quantizer.table.grad.sum(0), part.sum(0), atol=1e-4, rtol=0)


def test_tuning_counts_what_projects_codes_once(images):
    tokenizer = conv(FiniteScalarQuantizer(6, [5, 4, 3])).train()
    terms = tokenizer.training_step_terms(images)
    slope = torch.randn(BATCH, 16, 6)
    (tokenizer.tuned_embedding(terms) * slope).sum().backward()
    bias = tokenizer.quantizer.table.project_out.bias
    torch.testing.assert_close(bias.grad, slope.sum((0, 1)), atol=1e-4, rtol=0)


def test_pickles(tokenizer, images):
    """Workers and deep copies get the same tokenizer."""
    buffer = io.BytesIO()
    torch.save(tokenizer, buffer)
    buffer.seek(0)
    copy = torch.load(buffer, weights_only=False)
    assert torch.equal(copy.encode(images).ids, tokenizer.encode(images).ids)


def test_code_vectors_name_every_codebook(tokenizer):
    vectors = tokenizer.code_vectors()
    assert {name: len(table) for name, table in vectors.items()} == {b.name: b.size for b in tokenizer.spec.codebooks}
    for part in parts(tokenizer):
        if part.depth == 1 and not isinstance(part, MultiScaleQuantizer):
            every = part.lookup(torch.arange(part.size)[None, :, None])[0]
            torch.testing.assert_close(part.vectors("x"), {"x": every})
