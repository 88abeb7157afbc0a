"""Everything that is measured about a model of scenes, in one run and beside its baselines."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..data.files import atomic_file
from ..data.processes import ALONE, Processes
from ..data.scene_prompts import prompts, prompts_sha256
from ..data.scene_questions import Question
from ..data.scene_world import World
from ..data.scenes import Scenes
from ..data.transforms import from_uint8, to_uint8
from ..generation.pictures import PicturePipeline
from ..generation.pipeline import TextToImagePipeline
from ..generation.sampler import model_order
from ..generation.sampling import Sampling, model_sampling
from ..tokenizers.base import VisualTokenizer
from .detector import THRESHOLDS
from .images.metrics import ReconstructionMetrics
from .new_scenes import NewScenes
from .protocol import Protocol, state_hash, text_hash, write_result
from .qa import blind_baseline, score_answers
from .scene_captions import score_captions
from .scene_eval import Prompt, SceneScores, ceiling, chance, references, score_images
from .sheets import reconstruction_sheet, sample_sheet, save_png

Images = NDArray[np.uint8]
Report = Callable[[str], None]
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class SuiteSettings:
    """What is measured on how much.

    Args:
        world: preset of the embedded world, ``full`` or ``small``.
        pictures: new scenes that are reconstructed and asked about; as many of them as of the prompts, in proportion,
            are built around a combination that training never shows.
        per_prompt: pictures drawn for every prompt.
        training_pictures: training scenes that the blind baseline learns its habits from.
        sampling: how codes are drawn; the model's own way by default.
        seed: of the prompts' pictures and of the references.
        batch_size: pictures or prompts handled together.
    """

    world: Literal["full", "small"] = "full"
    pictures: int = 256
    per_prompt: int = 4
    training_pictures: int = 4000
    sampling: Sampling | None = None
    seed: int = 0
    batch_size: int = 64


@dataclass(frozen=True)
class Evidence:
    """What the scores were read off, for the report."""

    originals: Images  #: [M, H, W, 3] new scenes
    rebuilt: Images  #: [M, H, W, 3] after the tokenizer
    samples: Images  #: [P * per_prompt, H, W, 3]
    verdicts: Sequence[dict[str, Any]]  #: prompt, correct, strict and reason of every sample
    answers: Sequence[dict[str, Any]]  #: picture, kind, question, expected and given
    captions: Sequence[dict[str, Any]]  #: picture, expected, given, and whether that is right
    usage: dict[str, list[int]]  #: occurrences of every code, by codebook

    def save(self, folder: str | Path) -> None:
        """Write ``evidence.safetensors`` and ``evidence.json`` into a folder."""
        arrays = {"originals": self.originals, "rebuilt": self.rebuilt, "samples": self.samples}
        with atomic_file(Path(folder) / "evidence.safetensors") as file:
            save_file({name: torch.from_numpy(array).contiguous() for name, array in arrays.items()}, file)
        texts = {name: getattr(self, name) for name in ("verdicts", "answers", "captions", "usage")}
        with atomic_file(Path(folder) / "evidence.json") as file:
            file.write_text(json.dumps(texts))

    def write_sheets(self, folder: str | Path, pictures: int = 16, samples: int = 48) -> None:
        """Write ``reconstructions.png`` and ``samples.png``, the samples spread evenly over the prompts."""
        some = spread(len(self.originals), pictures)
        rebuilt = reconstruction_sheet(_tensor(self.originals[some]), _tensor(self.rebuilt[some]))
        save_png(rebuilt, Path(folder) / "reconstructions.png")
        shown = spread(len(self.samples), samples)
        verdicts = [self.verdicts[index] for index in shown]
        texts, marks = [v["prompt"] for v in verdicts], [v["correct"] for v in verdicts]
        save_png(sample_sheet(self.samples[shown], texts, marks), Path(folder) / "samples.png")

    @classmethod
    def load(cls, folder: str | Path) -> Evidence:
        """Read what :meth:`save` wrote."""
        arrays = load_file(Path(folder) / "evidence.safetensors")
        texts = json.loads((Path(folder) / "evidence.json").read_text())
        return cls(**{name: tensor.numpy() for name, tensor in arrays.items()}, **texts)


def score_scenes(
    model: TextToImagePipeline,
    folder: str | Path,
    settings: SuiteSettings,
    announce: Report | None = None,
    processes: Processes = ALONE,
) -> Evidence:
    """Measure a model and write ``scores.json`` and the evidence to a folder.

    No scene was shown in training. ``unseen`` numbers come from those built around a combination of attributes that
    training never shows, ``seen`` numbers from the others, and the rest from both in the proportion of the prompts.
    Beside the model stand an untrained one of the same shape, the model's own pictures under shuffled prompts
    (``chance``), answers without pictures (``blind``), and the tokenizer's ceiling.

    Args:
        model: tokenizer and language model.
        folder: of the results.
        settings: what is measured on how much.
        announce: told in a line what is being measured.
        processes: share the drawing, coding and answering; the first writes, and each gets what one process would.
    """
    tell = announce or (lambda line: None)
    share = _Share(processes, settings.batch_size)
    scenes = NewScenes.drawn(settings, model.tokenizer)
    tell("reconstruction")
    originals, rebuilt, codes = _rebuild(model, scenes, share)
    reconstruction = _reconstruction(originals, rebuilt)
    tell("questions")
    qa, answers = _questions(model, scenes, codes, settings, share)
    tell("samples")
    entries = prompts(scenes.world, settings.seed)
    samples = draw_prompts(model, [entry["prompt"] for entry in entries], settings, processes)
    scene_eval, scores = scene_scores(samples, entries, scenes.world, settings, model, processes)
    tell("untrained baseline")
    baseline = _untrained(model, originals, codes, scenes, settings, share)
    tell("captions")
    caption_scores, captions = _captions(model, scenes, originals, settings, share)
    results = {
        "reconstruction": reconstruction,
        "qa": qa,
        "captions": caption_scores,
        "scene_eval": scene_eval,
        "baselines": {"untrained": baseline},
    }
    evidence = Evidence(originals, rebuilt, samples, _verdicts(scores), answers, captions, _usage(model, codes))
    if processes.first:
        write_result(Path(folder) / "scores.json", results, _protocol(model, scenes, settings), _model(model))
        evidence.save(folder)
    return evidence


def spread(total: int, count: int) -> list[int]:
    """At most ``count`` indices that cover ``range(total)`` evenly."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def _tensor(images: Images) -> Tensor:
    return from_uint8(torch.from_numpy(images).permute(0, 3, 1, 2))


def _array(images: Tensor) -> Images:
    return to_uint8(images).permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True)
class _Share:
    """Batches that processes share."""

    processes: Processes
    batch: int

    def each(self, count: int, work: Callable[[slice], _Result]) -> list[_Result]:
        """What ``work`` gives for each batch of ``count`` things, in order."""
        parts = [slice(start, start + self.batch) for start in range(0, count, self.batch)]
        return [*self.processes.shared(parts, work)]


@torch.inference_mode()
def _rebuild(model: TextToImagePipeline, scenes: NewScenes, share: _Share) -> tuple[Images, Images, Tensor]:
    originals = scenes.pixels()
    images = _tensor(originals)

    def rebuild(part: slice) -> tuple[Tensor, Tensor]:
        codes = model.encode(images[part])
        return codes.ids.cpu(), to_uint8(model.tokenizer.decode(codes).float().cpu())

    found = share.each(len(images), rebuild)
    pixels = torch.cat([levels for _, levels in found]).permute(0, 2, 3, 1).numpy()
    return originals, pixels, torch.cat([ids for ids, _ in found])


def _reconstruction(originals: Images, rebuilt: Images) -> dict[str, float]:
    metrics = ReconstructionMetrics()
    metrics.update(_tensor(rebuilt), _tensor(originals))
    return {name: float(value) for name, value in metrics.compute().items()}


def _answers(
    model: TextToImagePipeline, asked: Sequence[tuple[int, Question]], ids: Tensor, share: _Share
) -> list[str]:
    def answer(part: slice) -> list[str]:
        questions = [question.question for _, question in asked[part]]
        return model.answer_ids(ids[[index for index, _ in asked[part]]], questions)

    return [text for texts in share.each(len(asked), answer) for text in texts]


def _questions(
    model: TextToImagePipeline, scenes: NewScenes, ids: Tensor, settings: SuiteSettings, share: _Share
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    asked = scenes.questions()
    given = _answers(model, asked, ids, share)
    training = Scenes(settings.world, "train", settings.training_pictures)
    habits = [question for index in range(len(training)) for question in training.questions(index)]
    first = sum(index < len(scenes.seen) for index, _ in asked)
    questions = [question for _, question in asked]
    scores, blind = score_answers(questions, given), blind_baseline(habits, questions)
    summary = {
        "accuracy": scores.overall,
        "seen": score_answers(questions[:first], given[:first]).overall,
        "unseen": score_answers(questions[first:], given[first:]).overall,
        "blind": blind.overall,
        "blind_seen": blind_baseline(habits, questions[:first]).overall,
        "blind_unseen": blind_baseline(habits, questions[first:]).overall,
        "kinds": scores.kinds,
        "blind_kinds": blind.kinds,
        "count": len(asked),
    }
    rows = [
        {"picture": index, "kind": q.kind, "question": q.question, "expected": q.answer, "given": text}
        for (index, q), text in zip(asked, given, strict=True)
    ]
    return summary, rows


def draw_prompts(
    pipeline: PicturePipeline, texts: Sequence[str], settings: SuiteSettings, processes: Processes = ALONE
) -> Images:
    """Pictures ``[P * per_prompt, H, W, 3]`` of P prompts, each from a seed of its own, however many processes draw."""
    wanted = [text for text in texts for _ in range(settings.per_prompt)]
    generators = [torch.Generator().manual_seed(settings.seed + index) for index in range(len(wanted))]
    bar = sys.stderr.isatty()
    drawn = pipeline.generate(
        wanted, generators, settings.sampling, settings.batch_size, progress=bar, processes=processes
    )
    return _array(drawn)


def scene_scores(
    images: Images,
    entries: Sequence[Prompt],
    world: World,
    settings: SuiteSettings,
    drawer: PicturePipeline,
    processes: Processes = ALONE,
) -> tuple[dict[str, Any], SceneScores]:
    """Scores of pictures with the ends of their scale, and the verdict on each picture.

    Args:
        images: ``[P * per_prompt, H, W, 3]``, those of the first prompt first.
        entries: P prompts of the world.
        world: the world the prompts speak of.
        settings: pictures per prompt, and the seed of the references.
        drawer: of the pictures, whose way from pixels to pixels is the ceiling.
        processes: share the rebuilding of the ceiling's pictures.

    Raises:
        ValueError: pictures of another size than the world's.
    """
    scores = score_images(images, entries, world, seed=settings.seed)
    ends = references(world, entries, settings.per_prompt, settings.seed)
    shuffled = chance(images, entries, world, seed=settings.seed)
    summary: dict[str, Any] = {
        "overall": scores.overall,
        "strict": scores.strict,
        "interval": {"low": scores.interval[0], "high": scores.interval[1]},
        "oracle": ends["oracle"].overall,
        "near_miss": ends["near_miss"].overall,
        "chance": shuffled.overall,
        "tasks": scores.tasks,
        "task_intervals": {name: {"low": low, "high": high} for name, (low, high) in scores.task_intervals.items()},
        "seen_tasks": scores.seen_tasks,
        "unseen_tasks": scores.unseen_tasks,
        "strict_tasks": scores.strict_tasks,
        "chance_tasks": shuffled.tasks,
        "task_images": dict(Counter(entry["tag"] for entry in entries for _ in range(settings.per_prompt))),
        "correct_prompts": scores.correct_prompts,
        "images": scores.images,
    }
    summary |= {name: value for name in ("seen", "unseen") if (value := getattr(scores, name)) is not None}
    best = ceiling(
        lambda part: drawer.rebuild(part).float().cpu(),
        world,
        entries,
        per_prompt=settings.per_prompt,
        processes=processes,
    )
    return summary | {"ceiling": best.overall, "ceiling_tasks": best.tasks}, scores


def _untrained(
    model: TextToImagePipeline,
    originals: Images,
    ids: Tensor,
    scenes: NewScenes,
    settings: SuiteSettings,
    share: _Share,
) -> dict[str, Any]:
    other = model.untrained(settings.seed)
    world, entries, asked = scenes.world, prompts(scenes.world, settings.seed), scenes.questions()
    images = draw_prompts(other, [entry["prompt"] for entry in entries], settings, share.processes)
    torch.manual_seed(settings.seed)
    blank = cast("VisualTokenizer", type(model.tokenizer).from_config(model.tokenizer.config)).eval()
    with torch.inference_mode():
        parts = _tensor(originals).split(settings.batch_size)
        rebuilt = np.concatenate([_array(blank.decode(blank.encode(part))) for part in parts])
    guesses = _answers(other, asked, ids, share)
    return {
        "scene_eval": {"overall": score_images(images, entries, world, seed=settings.seed).overall},
        "qa": {"accuracy": score_answers([question for _, question in asked], guesses).overall},
        "reconstruction": {"psnr": _reconstruction(originals, rebuilt)["psnr"]},
    }


def _captions(
    model: TextToImagePipeline,
    scenes: NewScenes,
    originals: Images,
    settings: SuiteSettings,
    share: _Share,
    shown: int = 16,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    images = _tensor(originals)
    given = [text for texts in share.each(len(images), lambda part: model.caption(images[part])) for text in texts]
    scores, expected = score_captions(given, originals, scenes.world, seed=settings.seed), scenes.captions()
    first = len(scenes.seen)
    summary = {
        "true": scores.true,
        "chance": scores.chance,
        "seen": sum(scores.verdicts[:first]) / first,
        "unseen": sum(scores.verdicts[first:]) / len(scenes.unseen),
        "count": len(given),
    }
    rows = [
        {"picture": i, "expected": expected[i], "given": given[i], "right": scores.verdicts[i]}
        for i in spread(len(originals), shown)
    ]
    return summary, rows


def _verdicts(scores: SceneScores) -> list[dict[str, Any]]:
    names = ("prompt", "correct", "strict", "reason")
    return [{name: getattr(verdict, name) for name in names} for verdict in scores.verdicts]


def _usage(model: TextToImagePipeline, ids: Tensor) -> dict[str, list[int]]:
    spec = model.tokenizer.spec
    return {
        book.name: torch.bincount(ids[..., spec.slices()[book.name]].flatten(), minlength=book.size).tolist()
        for book in spec.codebooks
    }


def _protocol(model: TextToImagePipeline, scenes: NewScenes, settings: SuiteSettings) -> Protocol:
    entries, sampling = prompts(scenes.world, settings.seed), settings.sampling or model_sampling(model.lm)
    return Protocol(
        task="SceneEval (GenEval rules)",
        dataset=f"scenes-{settings.world}",
        dataset_hash=text_hash(scenes.captions()),
        count=settings.pictures,
        dtype=str(model.lm.dtype).removeprefix("torch."),
        seed=settings.seed,
        crop={"size": list(model.tokenizer.image_size), "mode": "none"},
        reference="the world's own renders",
        extractor="analytic scene detector",
        prompts_hash=prompts_sha256(entries),
        rewritten=False,
        sampler={"order": model_order(model.lm).fields(), **asdict(sampling), "per_prompt": settings.per_prompt},
        extra={
            "world": scenes.world.to_dict(),
            "thresholds": dict(THRESHOLDS),
            "scenes": {"seen combinations": len(scenes.seen), "unseen combinations": len(scenes.unseen)},
            "questions": "exact match, greedy",
            "captions": "greedy; true of the picture by the rules of SceneEval, strictly",
            "reconstruction": "PSNR per image on [0, 1], mean",
        },
    )


def _model(model: TextToImagePipeline) -> dict[str, str]:
    return {
        "tokenizer": type(model.tokenizer).__name__,
        "tokenizer_fingerprint": model.tokenizer.fingerprint(),
        "lm": str(model.lm.config.backbone.get("model_type")),
        "lm_hash": state_hash(model.lm.state_dict())[:16],
    }
