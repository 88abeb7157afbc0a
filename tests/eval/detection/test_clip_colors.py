"""What CLIP sees of an object, pixel by pixel, and the averaging over templates against a slow loop."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from smalti.eval.detection.clip_colors import ClipColors, object_crop
from smalti.eval.geneval import COLORS
from smalti.eval.protocol import state_hash

TEXTS = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    words = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", *COLORS, "a", "photo", "of", "-", "colored", "object", "hot", "dog"]
    pieces = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|-"), "removed", invert=True)
    pieces.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    text = sizes | special | {"vocab_size": len(words), "max_position_embeddings": 12}
    torch.manual_seed(2)
    vision = sizes | {"image_size": 16, "patch_size": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and not name.endswith(("q_proj.weight", "k_proj.weight")):
            weight.data.mul_(10)  # so that words and pictures disagree
    model.save_pretrained(path)
    return path


def picture(width=9, height=7, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_an_object_stands_on_gray_inside_its_box():
    image = picture()
    mask = torch.zeros(7, 9, dtype=torch.bool)
    mask[2:5, 3:8] = True
    mask[3, 4] = False
    seen = np.asarray(object_crop(image, torch.tensor([2.0, 1.0, 8.0, 5.0]), mask))
    source = np.asarray(image)
    assert seen.shape == (4, 6, 3)
    for y in range(4):
        for x in range(6):
            expected = source[y + 1, x + 2].tolist() if mask[y + 1, x + 2] else [0x99] * 3
            assert seen[y, x].tolist() == expected


def test_without_a_mask_the_surroundings_are_seen():
    image = picture()
    seen = np.asarray(object_crop(image, torch.tensor([1.6, 0.4, 5.4, 6.6])))
    assert np.array_equal(seen, np.asarray(image)[0:7, 2:5])


@pytest.mark.parametrize("box", [[4.0, 4.0, 4.2, 4.3], [9.0, 7.0, 9.0, 7.0]])
def test_a_thin_box_has_a_pixel(box):
    assert object_crop(picture(), torch.tensor(box)).size == (1, 1)


def test_classifiers_equal_a_slow_loop(folder):
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), PreTrainedTokenizerFast.from_pretrained(folder)
    classifier = ClipColors(folder).classifier("hot dog")
    assert classifier.shape == (10, 8)
    for row, color in enumerate(COLORS):
        total = torch.zeros(8)
        for text in TEXTS:
            tokens = tokenizer(text.format(color, "hot dog"), return_tensors="pt")
            assert 1 not in tokens["input_ids"]  # no unknown word
            hidden = model.text_model(input_ids=tokens["input_ids"]).last_hidden_state[0, -1]
            feature = model.text_projection(hidden)
            total += (feature / feature.norm()).detach()
        mean = total / 3
        assert torch.allclose(classifier[row], mean / mean.norm(), atol=1e-5)


def test_texts_are_read_once_a_class(folder, monkeypatch):
    colors = ClipColors(folder)
    first = colors.classifier("dog")
    monkeypatch.setattr(colors, "_tokenizer", None)
    assert colors.classifier("dog") is first


@torch.no_grad()
def test_the_chosen_colour_is_nearest_in_angle(folder):
    colors, model = ClipColors(folder), CLIPModel.from_pretrained(folder).eval()
    image, count = picture(40, 20), 18  # more than one batch
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([24.0, 10.0])
    boxes = torch.cat([corner, corner + 4 + 6 * torch.rand(count, 2, generator=generator)], 1).round()
    masks = torch.rand(count, 20, 40, generator=generator) > 0.3
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    expected = []
    for box, mask in zip(boxes, masks, strict=True):
        crop = object_crop(image, box, mask)
        scale = 16 / min(crop.size)
        crop = crop.resize((int(crop.width * scale + 1e-6), int(crop.height * scale + 1e-6)), Image.Resampling.BICUBIC)
        left, top = round((crop.width - 16) / 2), round((crop.height - 16) / 2)
        levels = np.asarray(crop.crop((left, top, left + 16, top + 16)))
        pixels = torch.from_numpy((levels / 255 - mean) / std).permute(2, 0, 1).float()
        feature = model.visual_projection(model.vision_model(pixel_values=pixels[None]).pooler_output)[0]
        expected.append(COLORS[int((colors.classifier("dog") @ feature).argmax())])
    assert colors.classify("dog", image.convert("RGBA"), boxes, masks) == expected
    assert len(set(expected)) > 1


def test_masks_must_fit(folder):
    with pytest.raises(ValueError, match=r"expected 1 masks of 7x9, got \(1, 9, 7\); pass one mask for each box"):
        ClipColors(folder).classify("dog", picture(), torch.zeros(1, 4), torch.ones(1, 9, 7, dtype=torch.bool))


def test_a_folder_without_clip_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a clip model in"):
        ClipColors(tmp_path)


def test_weights_are_identified(folder):
    assert ClipColors(folder).weights_hash == state_hash(CLIPModel.from_pretrained(folder).state_dict())


def test_preparation_and_tokenizer_are_part_of_what_it_is(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bright")
    shutil.copytree(folder, tmp_path / "words")
    stated = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
    (tmp_path / "bright" / "preprocessor_config.json").write_text(json.dumps(stated))
    text = (tmp_path / "words" / "tokenizer.json").read_text()
    text = text.replace('"red"', '"x"').replace('"blue"', '"red"').replace('"x"', '"blue"')
    (tmp_path / "words" / "tokenizer.json").write_text(text)
    plain, bright, words = (ClipColors(path) for path in (folder, tmp_path / "bright", tmp_path / "words"))
    found = plain.describe()
    assert (found["name"], found["weights_hash"], found["size"]) == ("clip-colors", plain.weights_hash, 16)
    assert found["mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert json.loads(json.dumps(found)) == found == ClipColors(folder).describe()
    assert bright.describe() == {**found, "mean": [0.0] * 3, "std": [1.0] * 3}
    assert words.describe() == {**found, "tokens_hash": words.describe()["tokens_hash"]} != found


def test_weights_that_are_not_numbers_name_no_colour(folder):
    colors = ClipColors(folder)
    colors._net.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(
        ValueError, match="expected finite features of the colours of 'dog', got NaN or infinity; check"
    ):
        colors.classify("dog", picture(), torch.tensor([[0.0, 0, 4, 4]]))
