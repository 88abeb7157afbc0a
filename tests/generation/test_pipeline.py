"""Tokenizer and language model in one folder: pictures for prompts, text for pictures."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from smalti.generation.pictures import seeded
from smalti.generation.pipeline import TextToImagePipeline
from smalti.generation.sampling import Sampling
from smalti.generation.text import TextSampling
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
PROMPTS = ["a red circle", "a blue square", "two red square"]


def tokenizer(seed: int = 0) -> VQTokenizer:
    torch.manual_seed(seed)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    return VQTokenizer(ConvEncoder(**parts), VectorQuantizer(dim=4, codebook_size=16), ConvDecoder(**parts), 8).eval()


def pipeline() -> TextToImagePipeline:
    codes = tokenizer()
    vocabulary = Vocabulary.train(["a red circle", "a blue square", "how many ? two"])
    lm = SharedLM.build(LLAMA, vocabulary, codes.spec, codes.fingerprint())
    with torch.no_grad():
        lm.outputs.pieces[0].mul_(30)
    return TextToImagePipeline(codes, lm)


@pytest.fixture(scope="module")
def pipe() -> TextToImagePipeline:
    return pipeline()


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_pixels_do_not_depend_on_the_batch(pipe):
    together = pipe.generate(PROMPTS, 3, progress=False)
    assert (together.shape, together.dtype) == ((3, 3, 8, 8), torch.float32)
    assert -1 <= float(together.min()) <= float(together.max()) <= 1
    torch.testing.assert_close(pipe.generate(PROMPTS, 3, batch_size=2, progress=False), together)
    torch.testing.assert_close(pipe.generate(PROMPTS[1], 3, progress=False)[0], together[1])
    assert not torch.equal(pipe.generate(PROMPTS, 4, progress=False), together)


def test_calling_gives_pictures_of_the_same_pixels(pipe):
    pictures = pipe(PROMPTS[:2], 3, Sampling(guidance=1.0), progress=False)
    assert [picture.size for picture in pictures] == [(8, 8), (8, 8)]
    pixels = pipe.generate(PROMPTS[:2], 3, Sampling(guidance=1.0), progress=False)
    first = torch.tensor(list(pictures[0].tobytes())).view(8, 8, 3).permute(2, 0, 1)
    assert bool(((pixels[0] + 1) * 127.5 - first).abs().max() <= 1)


def test_a_seed_is_a_generator_for_each_prompt(pipe):
    by_seed = pipe.generate(PROMPTS, 5, progress=False)
    torch.testing.assert_close(pipe.generate(PROMPTS, seeded(5, 3), progress=False), by_seed)
    alone = pipe.generate(PROMPTS[0], torch.Generator().manual_seed(5), progress=False)
    torch.testing.assert_close(alone, by_seed[:1])


def test_another_number_of_generators_is_an_error(pipe):
    with pytest.raises(ValueError, match="one generator per prompt is needed, got 2 for 3 prompts; pass a seed"):
        pipe.generate(PROMPTS, seeded(0, 2), progress=False)
    with pytest.raises(ValueError, match="got 1 for 3 prompts"):
        pipe.generate(PROMPTS, torch.Generator(), progress=False)


def test_no_prompt_is_an_error(pipe):
    with pytest.raises(ValueError, match="at least one prompt is needed, got none"):
        pipe([])


def test_an_unknown_word_is_named_before_anything_is_drawn(pipe, monkeypatch):
    monkeypatch.setattr(SharedLM, "next_state", lambda *args: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=r"got 'cirkle' \(near: circle\)"):
        pipe(["a red circle", "a red cirkle"], batch_size=1, progress=False)


def test_pictures_are_read(pipe):
    short = TextSampling(limit=3)
    captions = pipe.caption(images(2), short)
    answers = pipe.ask(images(2), ["how many ?", "a red circle ?"], short)
    assert [type(text) for text in captions + answers] == [str] * 4
    ids = pipe.encode(images(2)).ids
    assert pipe.answer_ids(ids, ["how many ?", "a red circle ?"], short) == answers
    assert pipe.answer_ids(ids[1:], ["a red circle ?"], short) == answers[1:]


def test_words_are_drawn_from_a_seed(pipe):
    drawn = TextSampling(limit=6, temperature=3.0)
    assert pipe.caption(images(8), drawn, 1) == pipe.caption(images(8), drawn, 1) != pipe.caption(images(8), drawn, 2)
    asked = ["how many ?"] * 8
    assert pipe.ask(images(8), asked, drawn, 1) == pipe.ask(images(8), asked, drawn, 1)
    assert pipe.ask(images(8), asked, drawn, 1) != pipe.ask(images(8), asked, drawn, 2)


def test_answers_are_chosen(pipe):
    questions, choices = ["how many ?", "a red circle ?"], [["two", "a"], ["red", "blue", "square"]]
    chosen = pipe.choose(images(2), questions, choices)
    layout, ids = pipe.lm.layout, pipe.encode(images(2)).ids
    for row, (question, texts, answer) in enumerate(zip(questions, choices, chosen, strict=True)):
        read = [layout.image_to_text(ids[row], None, [(question, text)]) for text in texts]
        likelihoods = pipe.lm.text_likelihood(layout.collate(read))
        assert answer == texts[int(likelihoods.argmax())]
    assert pipe.choose_ids(ids[1:], questions[1:], choices[1:]) == chosen[1:]


def test_one_question_per_image(pipe):
    with pytest.raises(ValueError, match="one question per image is needed, got 1 for 2 images; repeat an image"):
        pipe.ask(images(2), ["how many ?"])
    with pytest.raises(ValueError, match="one question per image is needed, got 1 for 2 images; repeat an image"):
        pipe.choose(images(2), ["how many ?"], [["two", "a"]])


def test_saved_and_loaded_is_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["lm", "model_index.json", "tokenizer"]
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["_class_name"] == "TextToImagePipeline"
    assert (index["tokenizer"][1], index["lm"][1]) == ("VQTokenizer", "SharedLM")
    loaded = TextToImagePipeline.from_pretrained(tmp_path / "model")
    for part in ("tokenizer", "lm"):
        before, after = getattr(pipe, part).state_dict(), getattr(loaded, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(loaded.generate(PROMPTS, 1, progress=False), pipe.generate(PROMPTS, 1, progress=False))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("part", ["model_index.json", "tokenizer", "lm"])
def test_a_missing_part_is_named(pipe, tmp_path, part):
    pipe.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=f"should hold a text-to-image model but lacks {part}; check the path"):
        TextToImagePipeline.from_pretrained(tmp_path / "model")


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks model_index.json, tokenizer, lm; check the path"):
        TextToImagePipeline.from_pretrained(tmp_path / "nowhere")


def test_another_tokenizer_is_refused(pipe, tmp_path):
    other = tokenizer(seed=1)
    with pytest.raises(
        ValueError, match=rf"trained with tokenizer {tokenizer().fingerprint()} .* {other.fingerprint()}"
    ):
        TextToImagePipeline(other, pipe.lm)
    pipe.save_pretrained(tmp_path / "model")
    other.save_pretrained(tmp_path / "model" / "tokenizer")
    with pytest.raises(ValueError, match=r"load the tokenizer it was trained with or train it again"):
        TextToImagePipeline.from_pretrained(tmp_path / "model")


def test_a_model_of_classes_is_prompted_with_numbers(tmp_path):
    codes = tokenizer()
    lm = SharedLM.build(LLAMA, Vocabulary(None), codes.spec, codes.fingerprint(), classes=3)
    TextToImagePipeline(codes, lm).save_pretrained(tmp_path / "classes")
    loaded = TextToImagePipeline.from_pretrained(tmp_path / "classes")
    drawn = loaded.generate(["0", "2"], 5, progress=False)
    assert drawn.shape == (2, 3, *codes.image_size)
    torch.testing.assert_close(drawn[1], loaded.generate("2", 5, progress=False)[0])
    for wrong in ("3", "a dog", "-1"):
        with pytest.raises(ValueError, match=rf"draws classes in \[0, 3\), got '{wrong}'; prompt it with a number"):
            loaded.generate(wrong)
