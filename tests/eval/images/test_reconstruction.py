"""Reconstruction scores: those of the parts, whatever the batch, of the pictures as they would be saved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from smalti.data.base import Part
from smalti.data.scenes import Scenes
from smalti.data.transforms import Crop, from_uint8, to_tensor, to_uint8
from smalti.eval.codebook_use import CodebookUse
from smalti.eval.images.decoded import picture_generators
from smalti.eval.images.exports import read_images, write_adm
from smalti.eval.images.extractors import VisionExtractor
from smalti.eval.images.feature_statistics import FeatureStatistics, Reference
from smalti.eval.images.frechet import frechet_distance
from smalti.eval.images.generation import reference_of
from smalti.eval.images.kernel_distance import kernel_distance, subset_size
from smalti.eval.images.metrics import psnr, ssim
from smalti.eval.images.picture_sets import ArraySource, Files, Joined, PictureSet
from smalti.eval.images.reconstruction import ReconstructionSettings, evaluate_reconstruction
from smalti.eval.presets import Preset
from smalti.eval.protocol import QUANTISER
from smalti.tokenizers.codes import Codes
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.perceptual import LPIPS, BackboneLoss, _alexnet
from smalti.tokenizers.qformer import QFormer
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.seed import SeedTokenizer
from smalti.tokenizers.vision import VisionTower
from smalti.tokenizers.vq import VQTokenizer

SIDE, COUNT = 16, 12
CROP = Crop(SIDE)
SETTINGS = ReconstructionSettings(CROP, "scenes-small validation", batch_size=5)
PARTS = {"dim": 8, "width": 8, "multipliers": (1, 1, 2), "blocks": 1}


@pytest.fixture
def tokenizer():
    return VQTokenizer(ConvEncoder(**PARTS), VectorQuantizer(8, 16), ConvDecoder(**PARTS), SIDE).eval()


@pytest.fixture(scope="module")
def source():
    return Scenes("small", "validation", COUNT, size=24)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=SIDE, patch_size=8, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def extractor(vit):
    return VisionExtractor(vit)


@pytest.fixture
def pair(tokenizer, source):
    """Originals and reconstructions, ``[N, 3, H, W]`` uint8, all at once."""
    originals = torch.stack([to_tensor(CROP(source.picture(index))) for index in range(COUNT)])
    with torch.inference_mode():
        return to_uint8(originals), to_uint8(tokenizer.decode(tokenizer.encode(originals)))


def same(scores, others, rel=1e-4):
    assert scores.keys() == others.keys()
    for name, value in scores.items():
        assert value == pytest.approx(others[name], rel=rel, abs=1e-9), name


def test_scores_are_those_of_the_parts(tokenizer, source, extractor, pair):
    result = evaluate_reconstruction(tokenizer, source, SETTINGS, extractor)
    before, after = pair
    assert result.scores["psnr"] == pytest.approx(float(psnr(from_uint8(after), from_uint8(before)).mean()), rel=1e-5)
    assert result.scores["ssim"] == pytest.approx(float(ssim(from_uint8(after), from_uint8(before)).mean()), rel=1e-5)
    assert result.scores["rfid"] == pytest.approx(frechet_distance(extractor(after), extractor(before)), rel=1e-4)
    with torch.inference_mode():
        ids = tokenizer.encode(from_uint8(before)).ids.flatten()
    chances = torch.bincount(ids).double() / len(ids)
    assert result.scores["usage"] == {"pixel": len(ids.unique()) / 16}
    assert result.scores["uniform_usage"] == {"pixel": pytest.approx(1 - (15 / 16) ** len(ids))}
    assert result.scores["perplexity"]["pixel"] == pytest.approx(float(torch.special.entr(chances).sum().exp()))
    assert (result.scores["tokens"], result.scores["bits"]) == (16, 64)
    assert result.model == {"tokenizer": "VQTokenizer", "tokenizer_fingerprint": tokenizer.fingerprint()}


def test_the_batch_moves_nothing(tokenizer, source, extractor):
    settings = [ReconstructionSettings(CROP, "x", batch_size=size, compatibility=True, kernel=True) for size in (1, 7)]
    one, other = (evaluate_reconstruction(tokenizer, source, each, extractor) for each in settings)
    same(one.scores, other.scores)
    assert one.protocol == other.protocol
    assert {"psnr_pooled", "ssim_llamagen_compat"} <= set(one.scores)


def test_the_protocol_names_pictures_crop_and_network(tokenizer, source, extractor):
    protocol = evaluate_reconstruction(tokenizer, source, SETTINGS, extractor).protocol
    assert (protocol.task, protocol.dataset, protocol.count) == ("reconstruction", "scenes-small validation", COUNT)
    assert (protocol.crop, protocol.filter, protocol.quantiser) == (CROP.describe(), "lanczos", QUANTISER)
    assert (protocol.extractor, protocol.weights_hash) == (extractor.name, extractor.weights_hash)
    assert protocol.reference_hash == protocol.dataset_hash
    assert protocol.extra["reference_split"] == "originals"
    assert protocol.extra["pixels"]["ssim"]["data_range"] == 1.0

    def differing(other, settings=SETTINGS):
        return set(protocol.differences(evaluate_reconstruction(tokenizer, other, settings, extractor).protocol))

    assert differing(Scenes("small", "validation", COUNT, size=24)) == set()
    assert differing(Scenes("small", "validation", COUNT, size=24, seed=1)) == {"dataset_hash", "reference_hash"}
    other = ReconstructionSettings(Crop(SIDE, "adm"), SETTINGS.dataset)
    assert differing(source, other) == {"crop.mode", "crop.filter", "filter"}
    assert differing(Part(source, 0, 8)) == {"count", "dataset_hash", "reference_hash"}


def test_kernel_distance_is_that_of_all_features(tokenizer, source, extractor, pair):
    settings = ReconstructionSettings(CROP, "x", batch_size=5, kernel=True)
    result = evaluate_reconstruction(tokenizer, source, settings, extractor)
    before, after = (extractor(images) for images in pair)
    expected = kernel_distance(after, before, 100, COUNT // 2)
    assert result.scores["kid"]["mean"] == pytest.approx(expected.mean, rel=1e-3)
    assert result.protocol.extra["kid"] == {
        "subsets": 100,
        "subset_size": COUNT // 2,
        "kernel": "polynomial of degree 3",
    }


@pytest.mark.parametrize(("count", "size"), [(50_000, 1000), (1001, 1000), (1000, 500), (5, 2), (3, 2)])
def test_subsets_are_smaller_than_their_set(count, size):
    assert subset_size(count) == size


def test_perceptual_distance_is_the_mean_over_pictures(tokenizer, tmp_path):
    network = _alexnet()
    torch.save({f"features.{name}": value for name, value in network.features.state_dict().items()}, tmp_path / "a.pth")
    lpips = LPIPS(tmp_path / "a.pth", net="alex")
    big = VQTokenizer(ConvEncoder(**PARTS), VectorQuantizer(8, 16), ConvDecoder(**PARTS), 32).eval()
    source = Scenes("small", "validation", 3, size=32)
    result = evaluate_reconstruction(big, source, ReconstructionSettings(Crop(32), "x", 2), lpips=lpips)
    images = torch.stack([to_tensor(source.picture(index)) for index in range(3)])
    with torch.inference_mode():
        seen = from_uint8(to_uint8(big.decode(big.encode(images))))
        expected = lpips.distances(seen, images).mean()
    assert result.scores["lpips"] == pytest.approx(float(expected), rel=1e-4)
    assert len(result.protocol.extra["lpips"]["weights_hash"]) == 64
    assert "rfid" not in result.scores
    assert result.protocol.extractor is None


def test_statistics_of_the_same_originals_give_the_same_distance(tokenizer, source, extractor):
    reference = reference_of(PictureSet(source, "scenes", CROP), extractor, "validation", 4)
    direct = evaluate_reconstruction(tokenizer, source, SETTINGS, extractor)
    stored = evaluate_reconstruction(tokenizer, source, SETTINGS, extractor, reference=reference)
    same(stored.scores, direct.scores)
    assert reference.dataset_hash == direct.protocol.dataset_hash
    assert stored.protocol.reference == "statistics of scenes"
    assert stored.protocol.extra["reference_split"] == "validation"
    assert stored.protocol.extra["reference_verified"] is True
    assert "reference_verified" not in direct.protocol.extra
    again = reference_of(PictureSet(source, "scenes", CROP), extractor, "validation", 7)
    assert not torch.equal(again.statistics.covariance, reference.statistics.covariance)  # rounding
    other = evaluate_reconstruction(tokenizer, source, SETTINGS, extractor, reference=again)
    assert stored.protocol.differences(other.protocol) == {}


def test_statistics_of_other_pictures_are_refused_before_a_file_is_written(tokenizer, source, extractor, tmp_path):
    others = Scenes("small", "validation", COUNT, size=24, seed=1)
    reference = reference_of(PictureSet(others, "others", CROP), extractor, "validation")
    with pytest.raises(ValueError, match=r"statistics of other pictures \(others, \w{12}\) than those reconstructed"):
        evaluate_reconstruction(
            tokenizer,
            source,
            SETTINGS,
            extractor,
            reference=reference,
            sink=lambda pictures: write_adm(tmp_path / "r.npz", pictures, COUNT),
        )
    assert not list(tmp_path.iterdir())


def test_converted_statistics_are_taken_as_not_verified(tokenizer, source, extractor, tmp_path):
    statistics = reference_of(PictureSet(source, "scenes", CROP), extractor, "validation").statistics
    np.savez(tmp_path / "adm.npz", mu=statistics.mean.numpy(), sigma=statistics.covariance.numpy())
    known = {"dataset": "scenes", "extractor": extractor.name, "weights_hash": extractor.weights_hash}
    reference = Reference.from_adm(tmp_path / "adm.npz", split="validation", count=COUNT, **known)
    result = evaluate_reconstruction(tokenizer, source, SETTINGS, extractor, reference=reference)
    assert result.protocol.extra["reference_verified"] is False
    assert result.protocol.reference_hash == reference.identity != result.protocol.dataset_hash


def test_the_tokenizer_convolves_in_full_float32(tokenizer, source, precisions):
    evaluate_reconstruction(tokenizer, source, SETTINGS)
    assert precisions == {"ieee"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "train"}, "statistics of the train split"),
        ({"split": "generated"}, "statistics of the generated split"),
        ({"extractor": "another"}, "statistics of extractor"),
        ({"weights_hash": "0" * 64}, "statistics of weights_hash"),
        ({"crop": Crop(SIDE, "adm").describe()}, "the originals after the same crop, got statistics of"),
        ({"count": COUNT + 1}, f"got statistics of {COUNT + 1} pictures for {COUNT}"),
    ],
)
def test_other_statistics_are_refused(tokenizer, source, extractor, change, message):
    fields = {"extractor": extractor.name, "weights_hash": extractor.weights_hash, "split": "validation"}
    fields |= {"dataset": "x", "dataset_hash": "y", "crop": CROP.describe()} | change
    count = fields.pop("count", COUNT)
    width = extractor.num_features
    statistics = FeatureStatistics(torch.zeros(width).double(), torch.eye(width).double(), count)
    with pytest.raises(ValueError, match=message):
        evaluate_reconstruction(tokenizer, source, SETTINGS, extractor, reference=Reference(statistics, **fields))


def test_statistics_without_an_extractor_are_refused(tokenizer, source, extractor):
    reference = reference_of(PictureSet(source, "scenes", CROP), extractor, "validation")
    with pytest.raises(ValueError, match="statistics need the extractor that made them, ViTModel"):
        evaluate_reconstruction(tokenizer, source, SETTINGS, reference=reference)


def test_another_protocol_than_the_presets_is_refused_before_the_work(tokenizer, source):
    progress = []
    with pytest.raises(ValueError, match="the preset tiny needs count to be 13, got 12"):
        evaluate_reconstruction(
            tokenizer,
            source,
            SETTINGS,
            preset=Preset("tiny", "", "reconstruction", 13),
            progress=lambda done, total: progress.append(done),
        )
    assert progress == []
    good = Preset("tiny", "", "reconstruction", COUNT)
    assert evaluate_reconstruction(tokenizer, source, SETTINGS, preset=good).protocol.preset == "tiny"


def test_decoders_are_scored_on_the_codes_of_the_tokenizer(tokenizer, source, extractor, pair, brush):
    plain = evaluate_reconstruction(tokenizer, source, SETTINGS, extractor)
    decoder, seen = brush(tokenizer), []
    result = evaluate_reconstruction(
        tokenizer,
        source,
        SETTINGS,
        extractor,
        teacher=extractor,
        decoders={"brush": decoder},
        watch=lambda originals, rebuilt: seen.append((originals, dict(rebuilt))),
    )
    assert list(result.scores["decoders"]) == ["pixel", "brush"]
    known = {**result.scores["decoders"]["pixel"], **result.scores}
    same(plain.scores, {name: known[name] for name in plain.scores})
    before, pixels = pair
    with torch.inference_mode():
        codes = tokenizer.encode(from_uint8(before))
        after = to_uint8(decoder.decode(codes, picture_generators(0, 0, COUNT)))
    for name, levels in (("pixel", pixels), ("brush", after)):
        scores = result.scores["decoders"][name]
        expected = psnr(from_uint8(levels), from_uint8(before)).mean()
        assert scores["psnr"] == pytest.approx(float(expected), rel=1e-4)
        assert scores["rfid"] == pytest.approx(frechet_distance(extractor(levels), extractor(before)), rel=1e-3)
        cosines = torch.nn.functional.cosine_similarity(extractor(levels), extractor(before))
        assert scores["agreement"] == pytest.approx(float(cosines.mean()), rel=1e-5)
        shown = torch.cat([rebuilt[name] for _, rebuilt in seen])
        assert (shown.int() - levels.int()).abs().max() <= 1
    assert torch.equal(torch.cat([originals for originals, _ in seen]), before)
    assert result.protocol.sampler == {"brush": {"class": "Brush", "bristles": 3}}
    assert result.protocol.extra["agreement"]["weights_hash"] == extractor.weights_hash
    assert result.model["decoder brush"] == f"Brush {decoder.fingerprint()}"


def test_without_decoders_nothing_new_is_written(tokenizer, source, extractor):
    result = evaluate_reconstruction(tokenizer, source, SETTINGS, extractor)
    usual = ("psnr", "ssim", "l1", "capped", "rfid", "usage", "uniform_usage", "perplexity", "tokens", "bits")
    assert sorted(result.scores) == sorted(usual)
    assert set(result.protocol.extra) == {"pixels", "reference_split"}
    assert result.protocol.sampler is None
    assert set(result.model) == {"tokenizer", "tokenizer_fingerprint"}


def test_the_batch_moves_no_score_of_a_decoder_that_draws(tokenizer, source, extractor, brush):
    settings = [ReconstructionSettings(CROP, "x", batch_size=size, seed=3) for size in (1, 12)]
    one, other = (
        evaluate_reconstruction(tokenizer, source, each, teacher=extractor, decoders={"brush": brush(tokenizer)})
        for each in settings
    )
    same(one.scores["decoders"]["brush"], other.scores["decoders"]["brush"], rel=1e-3)
    assert one.protocol == other.protocol


def test_pictures_of_another_size_are_resized_and_said_to_be(tokenizer, source, brush):
    large = brush(tokenizer, 0.0, side=32)
    result = evaluate_reconstruction(tokenizer, source, SETTINGS, decoders={"large": large})
    assert result.protocol.sampler["large"]["resized"] == "from 32x32 (bicubic, antialiased)"
    assert result.scores["decoders"]["large"]["psnr"] == pytest.approx(result.scores["decoders"]["pixel"]["psnr"], 0.2)


def test_a_perceptual_distance_without_published_weights(tokenizer, source, vit, pair):
    distance = BackboneLoss(vit)
    result = evaluate_reconstruction(tokenizer, source, SETTINGS, perceptual=distance)
    before, after = (from_uint8(levels) for levels in pair)
    with torch.inference_mode():
        expected = float(distance.distances(after, before).mean())
    assert result.scores["perceptual"] == pytest.approx(expected, rel=1e-4)
    assert result.protocol.extra["perceptual"]["name"] == "hidden states of ViTModel, layers -1"


def test_a_tokenizer_without_pixels_needs_a_decoder(source, brush, monkeypatch):
    tower = VisionTower(SIDE, patch_size=4, width=16, layers=2, heads=2)
    qformer = QFormer(6, 16, 2, 2, 32, 16, reading="attention", dropout=0.0)
    bare = SeedTokenizer(tower, qformer, VectorQuantizer(4, 16)).eval()
    with pytest.raises(ValueError, match="pictures of codes need a decoder, got a SeedTokenizer without one"):
        evaluate_reconstruction(bare, source, SETTINGS)
    decoder = brush(bare)
    monkeypatch.setattr(bare, "decode", lambda codes: torch.zeros(len(codes), 3, SIDE, SIDE))  # for the brush
    written = []
    result = evaluate_reconstruction(bare, source, SETTINGS, decoders={"brush": decoder}, sink=written.extend)
    assert list(result.scores["decoders"]) == ["brush"]
    assert len(written) == COUNT


def test_decoders_that_do_not_fit_are_refused(tokenizer, source, brush):
    with pytest.raises(ValueError, match="must be called otherwise than 'pixel'"):
        evaluate_reconstruction(tokenizer, source, SETTINGS, decoders={"pixel": brush(tokenizer)})
    other = VQTokenizer(ConvEncoder(**PARTS), VectorQuantizer(8, 16), ConvDecoder(**PARTS), SIDE).eval()
    with pytest.raises(ValueError, match="this decoder was trained for the codes of tokenizer"):
        evaluate_reconstruction(tokenizer, source, SETTINGS, decoders={"brush": brush(other)})


class Damaged(VQTokenizer):
    """Decodes NaN in place of the ninth picture."""

    seen = 0

    def decode(self, codes, generator=None):
        images = super().decode(codes, generator)
        for image in images:
            self.seen += 1
            if self.seen == 9:
                image[0, 3, 3] = torch.nan
        return images


def test_pictures_that_are_not_finite_are_named(source):
    tokenizer = Damaged(ConvEncoder(**PARTS), VectorQuantizer(8, 16), ConvDecoder(**PARTS), SIDE).eval()
    with pytest.raises(ValueError, match=r"decoded pictures must be finite, got NaN or infinity in picture 8;"):
        evaluate_reconstruction(tokenizer, source, SETTINGS)


def test_features_that_are_not_finite_are_refused(tokenizer, source):
    class Broken:
        name, weights_hash, num_features = "broken", "0", 4

        def __call__(self, images):
            return torch.full((len(images), 4), torch.nan)

    with pytest.raises(ValueError, match="features must be finite"):
        evaluate_reconstruction(tokenizer, source, SETTINGS, Broken())


def test_reconstructions_are_handed_on_as_they_are_made(tokenizer, source, pair, tmp_path):
    told = []
    evaluate_reconstruction(
        tokenizer,
        source,
        SETTINGS,
        sink=lambda pictures: write_adm(tmp_path / "r.npz", pictures, COUNT),
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(5, COUNT), (10, COUNT), (12, COUNT)]
    written = torch.from_numpy(np.stack(list(read_images(tmp_path / "r.npz")))).permute(0, 3, 1, 2)
    assert (written.int() - pair[1].int()).abs().max() <= 1  # another batch may round a level otherwise


def test_codes_are_counted_without_padding(tokenizer):
    spec = replace(tokenizer.spec, dynamic=True)
    use = CodebookUse(spec)
    ids = torch.tensor([[0, 0, 3, 3] * 4, [1, 2, -1, -1] * 4])[..., None]
    use.add(Codes(ids, ids[..., 0] >= 0, spec))
    scores = use.scores()
    assert scores["usage"]["pixel"] == 4 / 16
    assert scores["uniform_usage"]["pixel"] == pytest.approx(1 - (15 / 16) ** 24)
    shares = torch.tensor([8, 4, 4, 8]) / 24
    assert scores["perplexity"]["pixel"] == pytest.approx(float((-(shares * shares.log()).sum()).exp()))
    assert (scores["tokens"], scores["bits"]) == (12, 48)


def test_pictures_of_one_size_need_no_crop_and_others_are_refused():
    arrays = [np.full((8, 6, 3), level, np.uint8) for level in (1, 2, 3)]
    pictures = PictureSet(ArraySource(arrays), "x")
    assert pictures.describe() == {"size": [8, 6], "mode": "none"}
    assert torch.equal(torch.cat(list(pictures.batches(2)))[:, 0, 0, 0], torch.tensor([1, 2, 3], dtype=torch.uint8))
    assert all(np.array_equal(a, b) for a, b in zip(pictures.arrays(), arrays, strict=True))
    mixed = PictureSet(ArraySource([*arrays, np.zeros((6, 8, 3), np.uint8)]), "x")
    with pytest.raises(ValueError, match=r"of one size, got 8x6 \(height x width\) in picture 0 and 6x8 in picture 3"):
        list(mixed.batches(2))


def test_files_and_other_sources_one_after_the_other(tmp_path):
    for level in (1, 2):
        Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(tmp_path / f"{level}.png")
    files = Files([str(tmp_path / "2.png"), str(tmp_path / "1.png")])
    joined = Joined([files, ArraySource([np.full((4, 4, 3), 7, np.uint8)]), files])
    assert [np.asarray(joined.picture(index))[0, 0, 0] for index in range(len(joined))] == [2, 1, 7, 2, 1]
    assert [joined.name(index).rpartition("/")[2] for index in range(3)] == ["2.png", "1.png", "picture 0"]
    assert joined.caption(0) is None
    with pytest.raises(IndexError, match=r"expected an index in \[0, 5\), got 5"):
        joined.picture(5)
    with pytest.raises(FileNotFoundError, match=r"a picture was expected at .*3\.png"):
        Files([str(tmp_path / "3.png")])
