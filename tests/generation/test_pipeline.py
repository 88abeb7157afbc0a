"""Tokenizer and language model in one folder: pictures for prompts, text for pictures."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from smalti.generation import pictures
from smalti.generation.interleaved import write
from smalti.generation.orders import Masked, Neighbouring, Raster, order_parts
from smalti.generation.pictures import seeded
from smalti.generation.pipeline import TextToImagePipeline
from smalti.generation.sampler import Progress
from smalti.generation.sampling import Sampling
from smalti.generation.text import TextSampling
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, Codes, CodeSpec
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
    made = pipe(PROMPTS[:2], 3, Sampling(guidance=1.0), progress=False)
    assert [picture.size for picture in made] == [(8, 8), (8, 8)]
    pixels = pipe.generate(PROMPTS[:2], 3, Sampling(guidance=1.0), progress=False)
    first = torch.tensor(list(made[0].tobytes())).view(8, 8, 3).permute(2, 0, 1)
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


def neighbours() -> TextToImagePipeline:
    codes, order = tokenizer(), Neighbouring()
    vocabulary = Vocabulary.train(["a red circle", "a blue square", "how many ? two"])
    parts = order_parts(order, codes.spec)
    lm = SharedLM.build(LLAMA, vocabulary, codes.spec, codes.fingerprint(), **parts)
    with torch.no_grad():
        for _, table in lm.heads:
            for piece in table.pieces:
                torch.nn.init.normal_(piece, std=0.6)
    return TextToImagePipeline(codes, lm)


def test_an_order_may_be_asked_for(pipe):
    drawn = pipe.generate(PROMPTS, 3, progress=False, order=Raster())
    assert torch.equal(drawn, pipe.generate(PROMPTS, 3, progress=False))
    with pytest.raises(ValueError, match="predicts in 2 directions, got a model of 1; use the order that the model"):
        pipe.generate(PROMPTS, 3, progress=False, order=Neighbouring())
    with pytest.raises(ValueError, match="needs 1 learned vectors of its kind, got a model of raster order with 0"):
        pipe(PROMPTS, 3, order=Masked(4))


def test_every_pass_is_told_and_may_be_looked_at():
    found, told = neighbours(), list[Progress]()
    drawn = found.generate(PROMPTS[:2], 3, batch_size=1, progress=told.append)
    assert [(one.done, one.total) for one in told] == [(number, 7) for number in range(1, 8)] * 2  # of a grid of 4 x 4
    assert [int((one.ids >= 0).sum()) for one in told[:7]] == [1, 3, 6, 10, 13, 15, 16]
    assert torch.equal(found.preview(told[-1]), drawn[1:])
    early = Codes.full(told[8].ids.clamp_min(0), found.lm.spec)
    assert torch.equal(found.preview(told[8]), found.tokenizer.decode(early))
    made = found(PROMPTS[:2], 3, progress=told.append)
    assert [picture.size for picture in made] == [(8, 8)] * 2
    assert told[-1].ids.shape == (2, 16, 1)


def test_a_preview_of_dynamic_codes_ends_where_they_have_come_to(monkeypatch):
    spec = CodeSpec(CodeLayout("sequence", (3,)), (Codebook("pixel", 5),), dynamic=True)
    found = neighbours()
    monkeypatch.setattr(found.lm, "spec", spec)
    monkeypatch.setattr(found.tokenizer, "decode", lambda codes: codes.ids)
    ids = torch.tensor([[[4], [-1], [-1]], [[2], [3], [-1]], [[-1], [-1], [-1]]])
    expected = torch.tensor([[[4], [-1], [-1]], [[2], [3], [-1]], [[0], [-1], [-1]]])
    assert torch.equal(found.preview(Progress(1, 3, ids)), expected.float())


@pytest.mark.parametrize(("moment", "seen"), [(0.0, True), (60.0, False)])
def test_bars_are_shown_where_the_work_takes_its_time(pipe, monkeypatch, capsys, moment, seen):
    monkeypatch.setattr(pictures, "MOMENT", moment)
    pipe.generate(PROMPTS, 3, batch_size=2)
    printed = capsys.readouterr().err
    assert ("/3 " in printed, "/16 " in printed) == (seen, seen)  # prompts and passes
    pipe.generate(PROMPTS, 3, progress=False)
    pipe.generate(PROMPTS, 3, progress=lambda told: None)
    assert not capsys.readouterr().err


def test_documents_are_continued_with_text_and_pictures():
    found, text, order = neighbours(), TextSampling(limit=4), Neighbouring()
    given, how = ["a red", images(1)[0], "two"], Sampling(guidance=1.5)
    options = {"text": text, "images": how, "open_image": True, "generator": 3, "limit_images": 2, "order": order}
    made = found.write(given, **options)
    coded = ["a red", found.encode(images(1)).ids[0], "two"]
    expected = write(found.lm, coded, **options)
    assert len(made) == len(expected) > 1
    for part, other in zip(made, expected, strict=True):
        if isinstance(other, str):
            assert part == other
        else:
            assert torch.equal(part, found.tokenizer.decode(other)[0])
            assert part.shape == (3, 8, 8)
    told = list[Progress]()
    found.write(given, **options, progress=told.append)
    assert [one.done for one in told[:7]] == [1, 2, 3, 4, 5, 6, 7]


def test_no_prompt_is_an_error(pipe):
    with pytest.raises(ValueError, match="at least one prompt is needed, got none"):
        pipe([])


def test_an_unknown_word_is_named_before_anything_is_drawn(pipe, monkeypatch):
    monkeypatch.setattr(SharedLM, "through", lambda *args: pytest.fail("sampled"))
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
        with pytest.raises(ValueError, match=rf"draws classes in \[0, 3\), got '{wrong}'; pass a number of those"):
            loaded.generate(wrong)
