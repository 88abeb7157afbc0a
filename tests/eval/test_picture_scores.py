"""SceneEval of models that only draw: one that renders what is asked, one that draws nothing, and one of codes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.data.scene_prompts import prompts
from smalti.data.scene_render import render
from smalti.data.scene_world import World
from smalti.data.scenes import sample_scene
from smalti.data.transforms import from_uint8
from smalti.eval import picture_scores
from smalti.eval.picture_scores import memory_scores, score_pictures
from smalti.eval.protocol import read_result
from smalti.eval.scene_eval import render_prompt
from smalti.eval.suite import SuiteSettings
from smalti.generation.enat import ENATPipeline, MaskedSampling
from smalti.generation.pictures import PicturePipeline
from smalti.lm.enat import ENAT
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

WORLD = World.named("small")
PEN = torch.nn.Linear(1, 1)
SETTINGS = SuiteSettings(world="small", per_prompt=1, batch_size=16)


class Renderer(PicturePipeline):
    """Draws what a prompt of the small world says."""

    def __init__(self, pen: torch.nn.Module) -> None:
        super().__init__()
        self.register_modules(pen=pen)
        self.calls = []

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def check_prompt(self, prompt):
        pass

    def rebuild(self, images):
        return images

    def untrained(self, seed=0):
        return Blank(PEN)

    @property
    def sampling(self):
        return MaskedSampling()

    def draw(self, wanted, generators, sampling):
        self.calls.append((list(wanted), [each.initial_seed() for each in generators], sampling))
        known = {entry["prompt"]: entry for seed in (0, 7) for entry in prompts(WORLD, seed)}
        drawn = [render_prompt(known[text], WORLD, np.random.default_rng(0)) for text in wanted]
        return from_uint8(torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2))


class Blank(Renderer):
    """Draws an empty picture."""

    side = WORLD.size

    def draw(self, wanted, generators, sampling):
        return torch.ones(len(wanted), 3, self.side, self.side)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Some prompts of every task."""
    monkeypatch.setattr(picture_scores, "prompts", lambda world, seed=0: prompts(world, seed)[::5])


def test_a_renderer_is_right_and_an_empty_picture_is_not(tmp_path):
    pipeline = Renderer(PEN)
    found = score_pictures(pipeline, tmp_path, SETTINGS)
    scores = found["scene_eval"]
    assert scores["overall"] == scores["strict"] == scores["oracle"] == scores["seen"] == scores["unseen"] == 1
    assert set(scores["tasks"].values()) == {1.0}
    assert scores["near_miss"] == 0
    assert 0 < scores["chance"] < 0.5
    assert found["baselines"]["untrained"]["scene_eval"] == {"overall": 0.0, "strict": 0.0}
    assert found["images_per_second"] > 0
    assert scores["ceiling"] == 1  # nothing is lost on the way

    texts = [entry["prompt"] for entry in prompts(WORLD)[::5]]
    assert [text for call in pipeline.calls for text in call[0]] == texts
    assert [seed for call in pipeline.calls for seed in call[1]] == [*range(len(texts))]
    assert len(pipeline.calls[0][0]) == 16
    result = read_result(tmp_path / "scores.json")
    assert result.scores == found
    assert set(result.model) == {"pipeline", "pen", "pen_hash", "timed_on"}
    assert (result.model["pipeline"], result.model["pen"]) == ("Renderer", "Linear")
    assert result.protocol.count == scores["images"] == len(texts)
    assert result.protocol.extra["world"]["size"] == WORLD.size
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.width > 4 * WORLD.size


def test_prompts_are_drawn_several_times_from_seeds_of_their_own(tmp_path):
    pipeline = Renderer(PEN)
    settings = SuiteSettings(world="small", per_prompt=2, seed=7, batch_size=1000)
    found = score_pictures(pipeline, tmp_path, settings)
    (texts, seeds, _) = pipeline.calls[0]
    assert texts[0::2] == texts[1::2]
    assert seeds == [*range(7, 7 + len(texts))]
    assert found["scene_eval"]["images"] == sum(found["scene_eval"]["task_images"].values()) == len(texts)


def test_a_model_of_codes_is_described_and_has_a_ceiling(tmp_path):
    torch.manual_seed(0)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    codes = VQTokenizer(ConvEncoder(**parts), VectorQuantizer(4, 16), ConvDecoder(**parts), WORLD.size).eval()
    vocabulary = Vocabulary.train(entry["prompt"] for entry in prompts(WORLD))
    sizes = {"width": 8, "heads": 1, "encoder_blocks": 1, "decoder_blocks": 1, "sampling": {"steps": 2}}
    pipeline = ENATPipeline(codes, ENAT.build(codes.spec, codes.fingerprint(), vocabulary, **sizes))
    found = score_pictures(pipeline, tmp_path, SETTINGS)
    assert 0 <= found["scene_eval"]["ceiling"] < 0.2  # nobody trained the tokenizer
    assert set(found["scene_eval"]["ceiling_tasks"]) == set(found["scene_eval"]["tasks"])
    result = read_result(tmp_path / "scores.json")
    assert (result.model["pipeline"], result.model["model"], result.model["tokenizer"]) == (
        "ENATPipeline",
        "ENAT",
        "VQTokenizer",
    )
    assert {len(result.model[f"{part}_hash"]) for part in ("model", "tokenizer")} == {16}
    expected = {"kind": "MaskedSampling", "per_prompt": 1, "steps": 2, "guidance": 2.5, "reuse": True}
    expected |= {"sampling_temperature": 6.0, "mask_temperature": 1.5}
    assert result.protocol.sampler == expected


def test_settings_in_place_of_the_models_own_are_used_and_written(tmp_path):
    pipeline, cold = Renderer(PEN), MaskedSampling(guidance=1.0)
    values = SimpleNamespace(**(vars(SETTINGS) | {"sampling": cold}))
    score_pictures(pipeline, tmp_path, values)
    assert {call[2] for call in pipeline.calls} == {cold}
    assert read_result(tmp_path / "scores.json").protocol.sampler["guidance"] == 1.0


def test_pictures_of_another_size_are_an_error(tmp_path):
    blank = Blank(PEN)
    blank.side = 16
    with pytest.raises(ValueError, match="30"):
        score_pictures(blank, tmp_path, SETTINGS)
    assert not [*tmp_path.iterdir()]


def test_copies_of_training_pictures_are_counted():
    copies = np.stack([render(sample_scene(WORLD, "train", index), WORLD) for index in (3, 7)])
    grays = np.full_like(copies[:1], 128)
    scores = memory_scores(np.concatenate([copies, grays]), WORLD, 10)
    assert (scores["copies"], scores["nearest"], scores["training_pictures"]) == (2, 0.0, 10)
    assert scores["nearest_render"] > 5
    assert memory_scores(copies, WORLD, 3)["copies"] == 0  # the first three do not hold them
