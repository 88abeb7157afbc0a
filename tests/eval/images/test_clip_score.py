"""Angles by hand, towers asked one pair at a time, prompts that are too long, and folders that are no CLIP."""

import json
import math
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from smalti.eval.images.clip_score import PAPER_PREFIX, PAPER_WEIGHT, CLIPScoreMetric, CLIPScorer, clip_score
from smalti.eval.protocol import state_hash

WORDS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "a", "red", "blue", "circle", "ring", "photo", "depicts", "A"]
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = SIZES | {"vocab_size": len(WORDS), "max_position_embeddings": 8}
SPECIAL = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
VISION = SIZES | {"image_size": 16, "patch_size": 8}
PROMPTS = ["a red circle", "a blue ring", "ring"]


def tokenizer(folder: Path, template: str) -> None:
    pieces = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pieces.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("[BOS]", 2), ("[EOS]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


def processor(folder: Path, kind: str, size: dict[str, int]) -> None:
    stated = {"image_processor_type": kind, "size": size, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    crop = {"crop_size": {"height": 16, "width": 16}} if "shortest_edge" in size else {}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated | crop))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    config = CLIPConfig(text_config=TEXT | SPECIAL, vision_config=VISION, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    tokenizer(folder, "[BOS] $A [EOS]")
    processor(folder, "CLIPImageProcessor", {"shortest_edge": 16})
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    SiglipModel(SiglipConfig(text_config=TEXT | {"projection_size": 16}, vision_config=VISION)).save_pretrained(folder)
    tokenizer(folder, "$A [EOS]")
    processor(folder, "SiglipImageProcessor", {"height": 16, "width": 16})
    return folder


@pytest.fixture(scope="module")
def scorer(clip: Path) -> CLIPScorer:
    return CLIPScorer(clip)


@pytest.fixture(scope="module")
def other(siglip: Path) -> CLIPScorer:
    return CLIPScorer(siglip)


def pictures(count: int, height: int = 16, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    return (images.float() / 255 - mean) / std


def test_angles_by_hand():
    images = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    texts = torch.tensor([[5.0, 0.0], [1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])  # 0, 90, 45 and 180 degrees
    expected = [100, 0, 100 / math.sqrt(2), 0]
    assert clip_score(images, texts).tolist() == pytest.approx(expected, abs=1e-9)
    assert clip_score(images, texts, PAPER_WEIGHT).tolist() == pytest.approx([s / 40 for s in expected], abs=1e-9)
    assert clip_score(images.half(), texts.half()).dtype == torch.float64


@torch.no_grad()
def test_clip_equals_one_pair_at_a_time(clip: Path, scorer: CLIPScorer):
    model, words = CLIPModel.from_pretrained(clip).eval(), PreTrainedTokenizerFast.from_pretrained(clip)
    expected = []
    for image, prompt in zip(pictures(3), PROMPTS, strict=True):
        seen = model.vision_model(pixel_values=normalised(image)[None]).pooler_output @ model.visual_projection.weight.T
        states = model.text_model(input_ids=words(prompt, return_tensors="pt")["input_ids"]).last_hidden_state
        read = states[:, -1] @ model.text_projection.weight.T  # the last token is the end of the text
        expected.append(100 * max(0.0, float((seen @ read.T) / (seen.norm() * read.norm()))))
    assert scorer(pictures(3), PROMPTS).tolist() == pytest.approx(expected, abs=1e-4)
    assert scorer.weights_hash == state_hash(model.state_dict())
    assert scorer.name.startswith("CLIPModel at 16 pixels in patches of 8, CLIPImageProcessor")


@torch.no_grad()
def test_siglip_equals_one_pair_at_a_time(siglip: Path, other: CLIPScorer):
    model = SiglipModel.from_pretrained(siglip).eval()
    expected = []
    for image, prompt in zip(pictures(3), PROMPTS, strict=True):
        seen = model.vision_model(pixel_values=normalised(image)[None]).pooler_output
        ids = [*(WORDS.index(word) for word in prompt.split()), 3]
        padded = torch.tensor([ids + [0] * (8 - len(ids))])  # always the whole length, and read without a mask
        read = model.text_model(input_ids=padded).pooler_output
        expected.append(100 * max(0.0, float((seen @ read.T) / (seen.norm() * read.norm()))))
    assert other(pictures(3), PROMPTS).tolist() == pytest.approx(expected, abs=1e-4)


def test_wide_pictures_are_cut_for_clip_and_squeezed_for_siglip(scorer: CLIPScorer, other: CLIPScorer):
    wide = pictures(1, 16, 32)
    middle = wide[..., 8:24]
    assert torch.allclose(scorer.images(wide), scorer.images(middle), atol=1e-6)
    squeezed = Image.fromarray(wide[0].permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BICUBIC)
    levels = torch.frombuffer(bytearray(squeezed.tobytes()), dtype=torch.uint8).reshape(16, 16, 3).permute(2, 0, 1)
    assert torch.allclose(other.images(wide), other.images(levels[None]), atol=1e-5)


def test_batches_change_nothing(scorer: CLIPScorer):
    whole, parts = CLIPScoreMetric(scorer), CLIPScoreMetric(scorer)
    whole.update(pictures(3), PROMPTS)
    for at in range(3):
        parts.update(pictures(3)[at : at + 1], PROMPTS[at : at + 1])
    first, second = whole.compute(), parts.compute()
    assert first["clip_score"].item() == pytest.approx(second["clip_score"].item(), abs=1e-4)
    assert first["clip_score"].item() == pytest.approx(scorer(pictures(3), PROMPTS).mean().item(), abs=1e-9)
    assert first["clip_s"].item() == pytest.approx(first["clip_score"].item() / 40)
    assert (first["count"].item(), first["truncated"].item(), first["clip_score"].dtype) == (3, 0, torch.float64)


def test_uneven_parts_add_up(scorer: CLIPScorer):
    """As processes add their states: one saw three pairs, one a single long prompt."""
    texts = [*PROMPTS, " ".join(["red"] * 20)]
    whole, parts = CLIPScoreMetric(scorer), [CLIPScoreMetric(scorer) for _ in range(2)]
    for metric, rows in ((whole, range(3)), (parts[0], range(3))):
        for at in rows:
            metric.update(pictures(4)[at : at + 1], texts[at : at + 1])
    for metric in (whole, parts[1]):
        metric.update(pictures(4)[3:], texts[3:])
    parts[0].merge_state(parts[1])
    with pytest.warns(UserWarning, match="1 of 4 prompts are longer than the model's 8 tokens and were cut off"):
        found = {name: value.item() for name, value in parts[0].compute().items()}
    with pytest.warns(UserWarning, match="1 of 4 prompts"):
        expected = {name: value.item() for name, value in whole.compute().items()}
    assert found == pytest.approx(expected, rel=1e-12)
    assert (found["count"], found["truncated"]) == (4, 1)


def test_long_prompts_are_cut_and_told_once(scorer: CLIPScorer):
    six, seven = "a red circle a blue ring", "a red circle a blue ring ring"  # beside a beginning and an end
    assert scorer.too_long([six, seven, ""]) == [1]
    assert scorer.too_long([]) == []
    features = scorer.texts([six, seven])
    assert torch.allclose(features[0], features[1], atol=1e-6)  # the seventh word is never seen, the end is
    short, long = CLIPScoreMetric(scorer), CLIPScoreMetric(scorer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short.update(pictures(1), [six])
        short.compute()
        for _ in range(3):
            long.update(pictures(1), [seven])
    with pytest.warns(UserWarning, match="3 of 3 prompts are longer than the model's 8 tokens") as caught:
        long.compute()
    assert len(caught) == 1


def test_the_papers_prefix(clip: Path, scorer: CLIPScorer):
    paper = CLIPScorer(clip, prefix=PAPER_PREFIX)
    assert torch.allclose(paper.texts(["red ring"]), scorer.texts(["A photo depicts red ring"]), atol=1e-6)
    assert paper.name == scorer.name + ", prompts after 'A photo depicts '"


def test_description_is_json(scorer: CLIPScorer):
    metric = CLIPScoreMetric(scorer)
    assert json.loads(json.dumps(metric.describe())) == metric.describe()
    assert metric.describe()["weights_hash"] == metric.scorer.weights_hash
    assert not metric.state_dict()


def test_description_tells_how_pictures_are_prepared(clip: Path, scorer: CLIPScorer, other: CLIPScorer, tmp_path: Path):
    levels = {"resample": "bicubic", "rescale_factor": 1 / 255, "image_mean": [0.5, 0.4, 0.3]}
    levels["image_std"] = [0.2, 0.3, 0.4]
    side = {"height": 16, "width": 16}
    found = CLIPScoreMetric(scorer).describe()["preparation"]
    assert found == levels | {"size": {"shortest_edge": 16}, "crop_size": side}
    assert CLIPScoreMetric(other).describe()["preparation"] == levels | {"size": side}
    shutil.copytree(clip, tmp_path / "near")
    stated = json.loads((clip / "preprocessor_config.json").read_text()) | {"resample": 2, "do_normalize": False}
    (tmp_path / "near" / "preprocessor_config.json").write_text(json.dumps(stated))
    near = CLIPScoreMetric(CLIPScorer(tmp_path / "near")).describe()
    assert near["preparation"]["resample"] == "bilinear"
    assert "image_mean" not in near["preparation"]
    assert near | {"preparation": found} == CLIPScoreMetric(scorer).describe()


def test_description_tells_which_tokenizer(clip: Path, scorer: CLIPScorer, tmp_path: Path):
    shutil.copytree(clip, tmp_path / "same")
    (tmp_path / "same" / "README.md").write_text("not read")
    assert CLIPScoreMetric(CLIPScorer(tmp_path / "same")).describe() == CLIPScoreMetric(scorer).describe()
    words = (tmp_path / "same" / "tokenizer.json").read_text()
    (tmp_path / "same" / "tokenizer.json").write_text(words.replace('"red"', '"green"'))
    changed = CLIPScorer(tmp_path / "same")
    assert changed.tokenizer_hash != scorer.tokenizer_hash
    assert changed.weights_hash == scorer.weights_hash
    assert CLIPScoreMetric(changed).describe()["tokenizer_hash"] == changed.tokenizer_hash


def test_convolutions_are_whole(scorer: CLIPScorer, precisions: set[str]):
    scorer.images(pictures(1))
    assert precisions == {"ieee"}


def test_wrong_pictures_and_prompts(scorer: CLIPScorer):
    with pytest.raises(ValueError, match="a prompt for each of 2 pictures, got 3; pair them up"):
        scorer(pictures(2), PROMPTS)
    with pytest.raises(TypeError, match=r"reads uint8 pictures, got torch\.float32; use data\.transforms"):
        scorer.images(pictures(1).float())
    with pytest.raises(ValueError, match=r"of shape \(B, 3, H, W\), got \(1, 16, 16, 3\); move"):
        scorer.images(pictures(1).permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match=r"as many pictures as texts, got \(2, 4\) and \(3, 4\); pass"):
        clip_score(torch.ones(2, 4), torch.ones(3, 4))
    with pytest.raises(ValueError, match="features must be finite, got NaN or infinity; check"):
        clip_score(torch.ones(1, 4), torch.full((1, 4), math.nan))
    with (
        pytest.warns(UserWarning, match="before the ``update`` method"),
        pytest.raises(ValueError, match="at least one picture, got none; call update"),
    ):
        CLIPScoreMetric(scorer).compute()


def test_folders_that_are_no_clip(clip: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"expected a clip model in .*none, found no config\.json"):
        CLIPScorer(tmp_path / "none")
    ViTModel(ViTConfig(**VISION)).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"expected a clip model in .*vit, got one of the type vit; pass another"):
        CLIPScorer(tmp_path / "vit")
    shutil.copytree(clip, tmp_path / "blind")
    (tmp_path / "blind" / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"the image processor of the model in .*blind, which cannot be read"):
        CLIPScorer(tmp_path / "blind")
    shutil.copytree(clip, tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(FileNotFoundError, match=r"expected a tokenizer in .*mute, found none of tokenizer\.json"):
        CLIPScorer(tmp_path / "mute")
    shutil.copytree(clip, tmp_path / "listed")
    (tmp_path / "listed" / "config.json").write_text("[]")
    with pytest.raises(
        ValueError, match=r"expected a JSON object in .*listed.*, got list; copy the folder of the model"
    ):
        CLIPScorer(tmp_path / "listed")
    shutil.copytree(clip, tmp_path / "cut")
    weights = load_file(tmp_path / "cut" / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "cut" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"which lack 1 entries such as text_projection\.weight"):
        CLIPScorer(tmp_path / "cut")
