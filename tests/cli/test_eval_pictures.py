"""``smalti eval reconstruction``, ``generation`` and ``statistics``: numbers, files, and one line for wrong input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, ViTConfig, ViTModel

from smalti.cli.main import main
from smalti.data.scenes import Scenes
from smalti.data.transforms import Crop, to_tensor
from smalti.eval import presets
from smalti.eval.images import extractors
from smalti.eval.images.clip_score import CLIPScorer
from smalti.eval.images.exports import read_images, write_adm, write_png_folder
from smalti.eval.images.extractors import load_extractor
from smalti.eval.images.feature_statistics import Reference
from smalti.eval.images.frechet import frechet_distance
from smalti.eval.images.kernel_distance import SUBSETS, kernel_distance, subset_size
from smalti.eval.presets import Preset
from smalti.eval.protocol import file_hash, read_result, text_hash

SIDE = 16


def vit(folder, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        ViTModel(ViTConfig(image_size=SIDE, patch_size=8, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vision(tmp_path_factory):
    return vit(tmp_path_factory.mktemp("vision"), 0)


@pytest.fixture(scope="session")
def other_vision(tmp_path_factory):
    return vit(tmp_path_factory.mktemp("vision"), 1)


def noise(count, seed, shape=(SIDE, SIDE)):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Twelve pictures of 20x24."""
    folder = tmp_path_factory.mktemp("photos") / "val"
    write_png_folder(folder, noise(12, 0, (20, 24)))
    return folder


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Ten pictures of 16x16."""
    folder = tmp_path_factory.mktemp("drawn") / "samples"
    write_png_folder(folder, noise(10, 1))
    return folder


def features(vision, images):
    levels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return load_extractor(str(vision))(levels)


def cropped(folder, size=SIDE):
    return [np.asarray(Crop(size)(Image.fromarray(picture))) for picture in read_images(folder)]


def kid(after, before, seed=3):
    found = kernel_distance(after, before, SUBSETS, subset_size(min(len(after), len(before))), seed=seed)
    return {"mean": pytest.approx(found.mean, rel=1e-4), "std": pytest.approx(found.std, rel=1e-4)}


def test_reconstruction_of_a_folder(model, vision, photos, tmp_path, answers):
    out = tmp_path / "result.json"
    exports = {"--export-npz": tmp_path / "r.npz", "--export-folder": tmp_path / "r"}
    exports["--export-originals"] = tmp_path / "o"
    options = [item for pair in exports.items() for item in pair]
    lines = answers(
        *("eval", "reconstruction", photos, "--tokenizer", model, "--out", out, "--extractor", vision),
        *("--batch", 5, "--compatibility", "--kid", "--seed", 3, "--device", "cpu", *options),
    )
    result = read_result(out)
    originals, rebuilt = list(read_images(tmp_path / "o")), list(read_images(tmp_path / "r"))
    assert all(np.array_equal(a, b) for a, b in zip(originals, cropped(photos), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(read_images(tmp_path / "r.npz"), rebuilt, strict=True))
    distance = frechet_distance(features(vision, rebuilt), features(vision, originals))
    assert result.scores["rfid"] == pytest.approx(distance, rel=1e-4)
    assert result.scores["kid"] == kid(features(vision, rebuilt), features(vision, originals))
    errors = np.mean((np.stack(rebuilt) / 255.0 - np.stack(originals) / 255.0) ** 2, (1, 2, 3))
    assert result.scores["psnr"] == pytest.approx(np.mean(-10 * np.log10(errors)), rel=1e-5)
    assert (result.protocol.dataset, result.protocol.count, result.protocol.seed) == ("val", 12, 3)
    assert lines[0] == "12 pictures"
    assert f"psnr                  {result.scores['psnr']:.2f} dB" in lines[1]
    assert lines[-4:] == [
        *(f"wrote {tmp_path / name}: 12 pictures" for name in ("r.npz", "r", "o")),
        f"wrote {out}",
    ]


def test_reconstruction_of_the_embedded_world_without_an_extractor(model, tmp_path, answers):
    out = tmp_path / "result.json"
    lines = answers("eval", "reconstruction", "scenes:small", "--tokenizer", model, "--limit", 6, "--out", out)
    assert lines[-2] == "  no rFID without features: pass --extractor inception:FILE, or the folder of a vision model"
    result = read_result(out)
    assert "rfid" not in result.scores
    assert (result.protocol.dataset, result.protocol.count) == ("scenes-small validation", 6)


def test_files_folders_and_scenes_together(model, photos, tmp_path, answers):
    out = tmp_path / "result.json"
    files = [photos / "000003.png", photos / "000001.png"]
    answers(
        *("eval", "reconstruction", *files, photos, "scenes", "--tokenizer", model, "--limit", 16, "--out", out),
        *("--dataset", "mixed", "--export-originals", tmp_path / "o.npz", "--crop", "adm"),
    )
    kept = list(read_images(tmp_path / "o.npz"))
    crop, pictures = Crop(SIDE, "adm"), read_images(photos)
    expected = [crop(Image.fromarray(pictures[index])) for index in (3, 1, *range(12))]
    expected += [crop(Scenes("full", "validation", 2).picture(index)) for index in range(2)]
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(kept, expected, strict=True))
    assert read_result(out).protocol.dataset == "mixed"


def test_statistics_serve_reconstruction_and_generation(model, vision, photos, drawn, tmp_path, answers):
    stats = tmp_path / "stats.safetensors"
    common = ("--extractor", vision, "--device", "cpu")
    line = answers("eval", "statistics", photos, *common, "--split", "test", "--size", SIDE, "--out", stats)
    assert line == [f"wrote {stats}: 8 features of 12 pictures, val (test)"]
    reference = Reference.load(stats)
    expected = features(vision, cropped(photos)).double()
    torch.testing.assert_close(reference.statistics.covariance, expected.T.cov(), rtol=1e-5, atol=1e-9)
    assert (reference.crop, reference.split) == (Crop(SIDE).describe(), "test")
    direct, stored = tmp_path / "direct.json", tmp_path / "stored.json"
    answers("eval", "reconstruction", photos, "--tokenizer", model, *common, "--out", direct)
    answers("eval", "reconstruction", photos, "--tokenizer", model, *common, "--reference", stats, "--out", stored)
    assert read_result(stored).scores["rfid"] == pytest.approx(read_result(direct).scores["rfid"], rel=1e-6)
    answers("eval", "generation", drawn, "--reference", stats, *common, "--out", tmp_path / "gen.json")
    result = read_result(tmp_path / "gen.json")
    distance = frechet_distance(features(vision, list(read_images(drawn))), features(vision, cropped(photos)))
    assert result.scores == {"fid": pytest.approx(distance, rel=1e-6)}
    assert result.protocol.extra["reference_split"] == "test"
    assert result.protocol.dataset_hash == reference.dataset_hash


def test_generation_against_pictures(vision, photos, drawn, tmp_path, answers):
    out, prompts = tmp_path / "result.json", tmp_path / "prompts.txt"
    prompts.write_text("".join(f"picture {index}\n" for index in range(10)))
    lines = answers(
        *("eval", "generation", drawn, "--reference", photos, "--crop", "center", "--extractor", vision, "--out", out),
        *("--kid", "--precision-recall", "--limit", 8, "--prompts", prompts, "--rewritten"),
        *("--sampler", "guidance=7.5", "--sampler", "order=raster", "--seed", 3),
    )
    result = read_result(out)
    distance = frechet_distance(features(vision, list(read_images(drawn))[:8]), features(vision, cropped(photos)))
    assert result.scores["fid"] == pytest.approx(distance, rel=1e-5)
    assert set(result.scores) == {"fid", "kid", "precision", "recall"}
    assert result.scores["kid"] == kid(
        features(vision, list(read_images(drawn))[:8]), features(vision, cropped(photos))
    )
    protocol = result.protocol
    assert protocol.seed == 3
    assert (protocol.count, protocol.extra["reference_count"]) == (8, 12)
    assert protocol.prompts_hash == text_hash(f"picture {index}" for index in range(8))
    assert (protocol.rewritten, protocol.sampler) == (True, {"guidance": 7.5, "order": "raster"})
    assert protocol.crop == {"size": [SIDE, SIDE], "mode": "none"}
    assert lines[0] == "8 pictures"


def test_a_set_has_no_distance_to_itself_however_it_is_stored(vision, drawn, tmp_path, answers):
    write_adm(tmp_path / "same.npz", iter(read_images(drawn)), 10)
    out = tmp_path / "result.json"
    answers("eval", "generation", drawn, "--reference", tmp_path / "same.npz", "--extractor", vision, "--out", out)
    result = read_result(out)
    assert result.scores["fid"] == pytest.approx(0, abs=1e-9)
    assert result.protocol.dataset_hash == json.loads(out.read_text())["model"]["pictures_hash"]


def test_a_folder_is_the_same_reference_with_and_without_a_crop(vision, drawn, tmp_path, answers):
    for index, picture in enumerate(noise(12, 5)):
        file = tmp_path / "set" / ("", "a", "b/c")[index % 3] / f"{index}.{('png', 'bmp', 'tif')[index // 4]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    found = []
    for options in ((), ("--size", SIDE)):
        out = tmp_path / "result.json"
        common = ("--reference", tmp_path / "set", "--extractor", vision, "--out", out)
        answers("eval", "generation", drawn, *common, *options)
        result = read_result(out)
        assert result.protocol.extra["reference_count"] == 12
        found.append((result.scores["fid"], result.protocol.dataset_hash))
    assert found[0] == found[1]
    expected = frechet_distance(features(vision, list(read_images(drawn))), features(vision, noise(12, 5)))
    assert found[0][0] == pytest.approx(expected, rel=1e-5)


def test_an_npz_is_read_by_every_command(model, vision, drawn, tmp_path, answers):
    write_adm(tmp_path / "set.NPZ", iter(noise(5, 6)), 5)
    out, stats = tmp_path / "result.json", tmp_path / "stats.safetensors"
    common = ("--tokenizer", model, "--out", out, "--export-originals", tmp_path / "o")
    answers("eval", "reconstruction", drawn / "000000.png", tmp_path / "set.NPZ", *common)
    kept = read_images(tmp_path / "o")
    expected = [read_images(drawn)[0], *noise(5, 6)]
    assert all(np.array_equal(a, b) for a, b in zip(kept, expected, strict=True))
    assert read_result(out).protocol.dataset == "000000.png, set.NPZ"
    answers("eval", "statistics", tmp_path / "set.NPZ", "--extractor", vision, "--split", "test", "--out", stats)
    statistics = Reference.load(stats).statistics
    torch.testing.assert_close(statistics.mean, features(vision, noise(5, 6)).double().mean(0))


@pytest.fixture
def clip(tmp_path):
    """A CLIP of five words and eight tokens."""
    folder = tmp_path / "clip"
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    text = sizes | special | {"vocab_size": 6, "max_position_embeddings": 8}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    ).save_pretrained(folder)
    words = {word: at for at, word in enumerate(("[PAD]", "[UNK]", "[BOS]", "[EOS]", "red", "ring"))}
    pieces = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("[BOS]", 2), ("[EOS]", 3)]
    pieces.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=ends)
    PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    side = {"height": 16, "width": 16}
    stated = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}, "crop_size": side}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return folder


def test_generation_with_prompts_and_clip(vision, drawn, clip, tmp_path, capsys):
    out, prompts = tmp_path / "result.json", tmp_path / "prompts.jsonl"
    texts = [("red " * (index + 1)).strip() for index in range(10)]
    prompts.write_text("".join(json.dumps({"tag": "x", "prompt": text}) + "\n" for text in texts))
    common = ("eval", "generation", drawn, "--reference", drawn, "--extractor", vision, "--out", out)
    assert main([str(it) for it in (*common, "--clip", clip, "--prompts", prompts, "--batch", 4)]) == 0
    assert capsys.readouterr().err.count("note: 4 of 10 prompts are longer than the model's 8 tokens") == 1
    result = read_result(out)
    levels = torch.from_numpy(np.stack(list(read_images(drawn)))).permute(0, 3, 1, 2)
    expected = CLIPScorer(clip)(levels, texts).mean()
    assert result.scores["clip_score"] == pytest.approx(float(expected), rel=1e-5)
    assert result.scores["truncated"] == 4  # seven words and more, with both ends
    assert result.protocol.rewritten is False
    assert result.protocol.prompts_hash == text_hash(texts)


def test_statistics_of_adm_are_converted_with_what_they_do_not_say(drawn, tmp_path, answers, monkeypatch):
    class Inception:
        name, weights_hash, num_features = "Inception", "6726825d" + "0" * 56, 3

    monkeypatch.setattr(extractors, "load_extractor", lambda spec, device, unknown: Inception())
    np.savez(tmp_path / "adm.npz", mu=np.arange(3.0), sigma=np.eye(3))
    out = tmp_path / "stats.safetensors"
    lines = answers(
        *("eval", "statistics", "--from-adm", tmp_path / "adm.npz", "--split", "train", "--count", 1281167),
        *("--extractor", "inception:weights.pth", "--dataset", "ImageNet 256 train", "--out", out),
    )
    assert lines == [f"wrote {out}: 3 features of 1,281,167 pictures, ImageNet 256 train (train)"]
    reference = Reference.load(out)
    assert torch.equal(reference.statistics.mean, torch.arange(3.0).double())
    assert (reference.extractor, reference.weights_hash) == (Inception.name, Inception.weights_hash)
    assert (reference.dataset_hash, reference.crop) == (file_hash(tmp_path / "adm.npz"), None)


@pytest.mark.parametrize(("options", "mode"), [((), "adm"), (("--crop", "center"), "center")])
def test_statistics_of_adm_know_their_size_where_it_is_said(
    drawn, tmp_path, answers, fails, monkeypatch, options, mode
):
    class Inception:
        name, weights_hash, num_features = "Inception", "6726825d" + "0" * 56, 3

    monkeypatch.setattr(extractors, "load_extractor", lambda spec, device, unknown: Inception())
    np.savez(tmp_path / "adm.npz", mu=np.arange(3.0), sigma=np.eye(3))
    out, common = tmp_path / "stats.safetensors", ("--extractor", "inception:weights.pth")
    adm = ("--from-adm", tmp_path / "adm.npz", "--split", "train", "--count", 1281167, "--size", 256, *options)
    answers("eval", "statistics", *adm, *common, "--out", out)
    assert Reference.load(out).crop == Crop(256, mode).describe()
    line = fails("eval", "generation", drawn, "--reference", out, *common, "--out", tmp_path / "x.json")
    assert "pictures and reference must be of one size, got 16x16 and 256x256" in line


@pytest.fixture
def stats(vision, photos, tmp_path, answers):
    file = tmp_path / "stats.safetensors"
    answers("eval", "statistics", photos, "--extractor", vision, "--split", "train", "--size", SIDE, "--out", file)
    return file


def test_training_statistics_are_for_generation_only(model, vision, photos, drawn, stats, tmp_path, fails, answers):
    common = ("--extractor", vision, "--reference", stats, "--out", tmp_path / "result.json")
    line = fails("eval", "reconstruction", photos, "--tokenizer", model, *common)
    assert "reconstructions must be compared with their originals, got statistics of the train split of val" in line
    assert not (tmp_path / "result.json").exists()
    answers("eval", "generation", drawn, *common)
    assert "KID, precision and recall compare single pictures" in fails("eval", "generation", drawn, *common, "--kid")


def test_statistics_of_another_extractor(drawn, other_vision, stats, tmp_path, fails):
    line = fails("eval", "generation", drawn, "--reference", stats, "--extractor", other_vision, "--out", "x.json")
    assert "expected reference statistics of weights_hash" in line


def test_pictures_of_several_sizes(vision, drawn, photos, tmp_path, fails):
    for index, picture in enumerate([*noise(2, 3), *noise(1, 4, (16, 12))]):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    common = ("--extractor", vision, "--out", tmp_path / "x.json")
    line = fails("eval", "generation", tmp_path, "--reference", drawn, *common)
    assert "16x16 in 0.png and 16x12 in 2.png" in line
    line = fails("eval", "statistics", tmp_path, "--split", "test", "--extractor", vision, "--out", "s.safetensors")
    assert "must be of one size, got 16x16 (height x width) in 0.png and 16x12 in 2.png" in line
    line = fails("eval", "generation", drawn, "--reference", photos, *common)
    assert "pictures and reference must be of one size, got 16x16 and 20x24" in line


def test_a_preset_takes_its_own_pictures_only(model, photos, drawn, tmp_path, fails):
    """All of it is told before an extractor is loaded: there is none."""
    out = ("--out", tmp_path / "x.json", "--extractor", "nowhere")
    coded = ("--tokenizer", model, "--preset", "val50k-centercrop", *out)
    line = fails("eval", "reconstruction", photos, *coded)
    assert "the preset val50k-centercrop needs exactly 50,000 pictures, got 12; name those of the preset" in line
    line = fails("eval", "reconstruction", photos, "scenes:small", *coded)
    assert "the preset val50k-centercrop is of published pictures, got scenes:small of the embedded world" in line
    line = fails("eval", "reconstruction", photos, *coded, "--limit", 50000)
    assert "the preset val50k-centercrop takes all of 50,000 pictures, got --limit 50000" in line
    line = fails("eval", "reconstruction", photos, "--tokenizer", model, "--preset", "adm-256", *out)
    assert "the preset adm-256 is of generation, got a reconstruction" in line
    generated = ("--preset", "adm-256", *out)
    line = fails("eval", "generation", drawn, "--reference", photos, *generated)
    assert "the preset adm-256 needs exactly 50,000 pictures, got 10" in line
    line = fails("eval", "generation", drawn, "--reference", "scenes", *generated)
    assert "the preset adm-256 is of published pictures, got scenes of the embedded world" in line
    line = fails("eval", "generation", drawn, "--reference", photos, *generated, "--limit", 5)
    assert "the preset adm-256 takes all of 50,000 pictures, got --limit 5" in line
    line = fails("eval", "generation", drawn, "--reference", photos, "--preset", "adm-25", *out)
    assert "'adm-25' is no preset; did you mean adm-256?" in line


def test_a_preset_never_leaves_pictures_out(model, photos, drawn, tmp_path, answers, fails, monkeypatch):
    fields, defaults = {"crop": Crop(SIDE, "adm").describe()}, {"size": SIDE, "crop": "adm", "count": 12}
    twelve = Preset("twelve", "twelve pictures", "reconstruction", 12, fields, defaults=defaults)
    monkeypatch.setattr(presets, "get_preset", lambda name: twelve)
    out = tmp_path / "x.json"
    common = ("--tokenizer", model, "--preset", "twelve", "--out", out)
    answers("eval", "reconstruction", photos, *common)
    protocol = read_result(out).protocol
    assert (protocol.count, protocol.preset) == (12, "twelve")
    line = fails("eval", "reconstruction", photos, drawn, *common)
    assert "the preset twelve needs exactly 12 pictures, got 22" in line


@pytest.mark.parametrize("kind", ["reconstruction", "generation", "statistics"])
def test_inception_weights_of_another_hash(kind, model, photos, tmp_path, fails):
    torch.save({}, tmp_path / "weights.pth")
    options = {
        "reconstruction": ("--tokenizer", model),
        "generation": ("--reference", photos),
        "statistics": ("--split", "test"),
    }
    line = fails("eval", kind, photos, *options[kind], "--extractor", f"inception:{tmp_path / 'weights.pth'}")
    assert f"sha256 that begins 6726825d, got {file_hash(tmp_path / 'weights.pth')[:16]}" in line


def test_prompts_of_another_number(vision, drawn, tmp_path, fails):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    common = ("eval", "generation", drawn, "--reference", drawn, "--extractor", vision)
    line = fails(*common, "--prompts", tmp_path / "prompts.jsonl")
    assert "one prompt for each picture, got 2 prompts for 10 pictures" in line
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n\n{"text": "a"}\n')
    line = fails(*common, "--prompts", tmp_path / "prompts.jsonl")
    assert "an object with a prompt in every line, got another in line 3" in line
    (tmp_path / "prompts.jsonl").write_text('{"prompt": null}\n')
    line = fails(*common, "--prompts", tmp_path / "prompts.jsonl")
    assert "prompts that are text, got None in line 1" in line
    assert "prompts were expected in" in fails(*common, "--prompts", tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("Café\n".encode("latin-1"))
    line = fails(*common, "--prompts", tmp_path / "latin.txt")
    assert f"{tmp_path / 'latin.txt'} must be UTF-8, got another encoding" in line


TEXTS = ["red\u2028ring", "", "ring\x0cred", " two ", *(f"text {index}" for index in range(6))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.txt", "\n".join(TEXTS)),
        ("prompts.txt", "".join(f"{text}\n" for text in TEXTS) + "\n  \n"),
        ("prompts.txt", "".join(f"{text}\r\n" for text in TEXTS)),
        ("prompts.jsonl", "\n\n".join(json.dumps({"prompt": text}, ensure_ascii=False) for text in TEXTS) + "\n \n"),
    ],
    ids=["unended", "blank end", "crlf", "jsonl"],
)
def test_prompts_are_lines_whatever_they_hold(vision, drawn, tmp_path, answers, name, content):
    (tmp_path / name).write_bytes(content.encode())
    common = ("--reference", drawn, "--extractor", vision, "--out", tmp_path / "x.json")
    answers("eval", "generation", drawn, *common, "--prompts", tmp_path / name)
    assert read_result(tmp_path / "x.json").protocol.prompts_hash == text_hash(TEXTS)


def test_settings_of_the_sampler(vision, drawn, fails):
    common = ("eval", "generation", drawn, "--reference", drawn, "--extractor", vision)
    assert "--sampler must be NAME=VALUE, got 'greedy'" in fails(*common, "--sampler", "greedy")
    assert "--sampler must be NAME=VALUE, got 'top_k='" in fails(*common, "--sampler", "top_k=")
    line = fails(*common, "--sampler", "top_k=1", "--sampler", "guidance=2", "--sampler", "top_k=3")
    assert "--sampler must give every setting once, got 'top_k' more than once" in line
    assert "takes no further argument, got 'more.png'" in fails(*common, "--sampler", "top_k=1", "more.png")


def test_statistics_of_another_project_are_converted_first(vision, drawn, tmp_path, fails):
    np.savez(tmp_path / "adm.npz", mu=np.zeros(3), sigma=np.eye(3))
    common = ("--extractor", vision)
    line = fails("eval", "generation", drawn, "--reference", tmp_path / "adm.npz", *common)
    assert "holds statistics (mu, sigma); convert it with smalti eval statistics --from-adm" in line
    adm = ("eval", "statistics", "--from-adm", tmp_path / "adm.npz", "--split", "train", *common)
    assert "pass --count" in fails(*adm)
    assert "are of the published Inception, got --extractor" in fails(*adm, "--count", 100)
    assert "got both" in fails(*adm, drawn)
    assert "got neither" in fails("eval", "statistics", "--split", "train", *common)
    pictures = ("eval", "statistics", drawn, "--split", "train", *common)
    assert "--count is for --from-adm" in fails(*pictures, "--count", 5)
    assert "a crop needs a size" in fails(*pictures, "--crop", "adm")


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("reconstruction", ("--kid",), "--kid compares features, got no extractor; pass --extractor"),
        ("reconstruction", ("--reference", "s.safetensors"), "--reference compares features, got no extractor"),
        (
            "reconstruction",
            ("--unknown-weights",),
            "--unknown-weights is for --extractor inception:FILE, got no --extr",
        ),
        ("reconstruction", ("--lpips-net", "alex"), "--lpips-net is the network of --lpips, got alex without it"),
        (
            "generation",
            ("--reference", "DRAWN", "--rewritten"),
            "--rewritten is about prompts, got none; pass --prompts",
        ),
        ("generation", ("--reference", "DRAWN", "--clip", "x"), "--clip is about prompts, got none; pass --prompts"),
        (
            "generation",
            ("--reference", "DRAWN", "--unknown-weights"),
            "for --extractor inception:FILE, got --extractor x",
        ),
        ("generation", ("--reference", "s.safetensors", "--size", 8), "--size is for pictures as the reference, got"),
        ("generation", ("--reference", "s.safetensors", "--crop", "adm"), "--crop is for pictures as the reference"),
        (
            "generation",
            ("--reference", "s.safetensors", "--filter", "box"),
            "--filter is for pictures as the reference",
        ),
        ("generation", ("--reference", "s.safetensors", "--reference-name", "x"), "--reference-name is for pictures"),
        (
            "statistics",
            ("--unknown-weights",),
            "--unknown-weights is for --extractor inception:FILE, got --extractor x",
        ),
        ("statistics", ("--from-adm", "a.npz", "--count", 5, "--limit", 3), "--limit is for pictures, got an npz"),
    ],
)
def test_options_that_nothing_would_come_of(kind, options, said, drawn, fails):
    options = [drawn if option == "DRAWN" else option for option in options]
    needed = {"generation": ("--extractor", "x"), "statistics": ("--split", "train", "--extractor", "x")}
    if "--from-adm" in options:
        line = fails("eval", kind, *options, "--split", "train", "--extractor", "inception:x")
    else:
        line = fails("eval", kind, drawn, *options, *needed.get(kind, ()))
    assert said in line


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (("--export-folder", "same", "--export-originals", "same"), "--export-folder and --export-originals must lie"),
        (("--export-npz", "a.npz", "--export-originals", "b/../a.npz"), "--export-npz and --export-originals must lie"),
        (
            ("--export-folder", "a", "--export-originals", "a/b/"),
            "--export-folder and --export-originals must lie apart",
        ),
        (("--export-npz", "a/b.npz", "--export-folder", "a"), "--export-npz and --export-folder must lie apart"),
        (("--export-originals", "a", "--out", "a/x.json"), "--export-originals and --out must lie apart"),
        (("--export-folder", "x.json", "--out", "x.json"), "--export-folder and --out must lie apart"),
        (("in.npz", "--export-npz", "in.npz"), "--export-npz must be another file than the pictures, got"),
        (("--export-npz", "recon"), "--export-npz must end in .npz, got 'recon'"),
        (("--export-folder", "r.npz"), "--export-folder must be a folder of another ending than .npz, got 'r.npz'"),
        (("--export-originals", "r.npz/"), "--export-originals must be a folder of another ending than .npz"),
    ],
)
def test_exports_that_would_be_lost(model, places, said, tmp_path, fails, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_adm("in.npz", iter(noise(2, 7)), 2)
    Image.fromarray(noise(1, 8)[0]).save("in.png")
    assert said in fails("eval", "reconstruction", "--tokenizer", model, "in.png", *places)
    assert {file.name for file in tmp_path.iterdir()} == {"in.png", "in.npz"}


def test_wrong_words(model, drawn, photos, tmp_path, fails):
    common = ("eval", "reconstruction", "--tokenizer", model)
    assert "as in scenes:full:train, got 'scenes:big'" in fails(*common, "scenes:big")
    assert "pictures were expected at nowhere" in fails(*common, "nowhere.tar")
    assert "a picture was expected at nowhere.png" in fails(*common, "nowhere.png")
    assert "expected a filter of" in fails(*common, drawn, "--filter", "sharp")
    assert "leave the filter out" in fails(*common, drawn, "--filter", "box", "--crop", "adm")
    assert "--export-folder must be a new or empty folder" in fails(*common, drawn, "--export-folder", drawn)
    assert "a vision model was expected in nowhere" in fails(*common, drawn, "--extractor", "nowhere")
    assert "images must be divisible by 4 in height and width, got 18x18" in fails(*common, drawn, "--size", 18)


def test_the_tensor_of_a_crop_is_what_the_tokenizer_reads(photos):
    """The two ways from a picture to a tensor agree, so that originals exported are originals coded."""
    picture = Image.fromarray(read_images(photos)[0])
    levels = torch.from_numpy(np.array(Crop(SIDE)(picture))).permute(2, 0, 1)
    assert torch.equal(to_tensor(Crop(SIDE)(picture)), levels.float() / 127.5 - 1)
