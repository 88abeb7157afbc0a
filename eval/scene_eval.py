"""SceneEval: GenEval's tasks and rules (arXiv 2310.11513) on the embedded world, with an analytic detector.

Its numbers are not GenEval's and are never called so. A generator's score means something only beside the reference
points: the world's own renders, renders with one attribute changed, the same images under other prompts, and what is
left of the renders after the tokenizer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.processes import ALONE, Processes
from ..data.scene_relations import MIRROR
from ..data.scene_render import render
from ..data.scene_requests import Request
from ..data.scene_world import World
from ..data.scenes import scene_for
from ..data.transforms import from_uint8, to_uint8
from .bootstrap import bootstrap_intervals
from .detector import COUNTING_THRESHOLD, THRESHOLD, SceneDetector
from .geneval import Detection, Summary, Verdict, aggregate, judge, kept_detections

Images = NDArray[np.uint8]
Prompt = Mapping[str, Any]
Found = Mapping[str, Sequence[Detection]]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class SceneVerdict:
    """What was found about one image."""

    prompt: str
    correct: bool  #: by GenEval's rules, which allow objects nobody asked for
    strict: bool  #: correct, and nothing but what was asked for
    reason: str  #: why not correct, one sentence a line


@dataclass(frozen=True)
class SceneScores:
    """SceneEval's table; a mean over tasks is unweighted and covers the tasks that have images."""

    overall: float  #: mean of the task scores
    interval: tuple[float, float]  #: 95 % interval of ``overall`` when prompts are resampled within their tasks
    tasks: dict[str, float]  #: share of correct images, by tag
    task_intervals: dict[str, tuple[float, float]]  #: 95 % intervals of ``tasks``
    strict: float  #: mean over tasks of the share of strictly correct images
    strict_tasks: dict[str, float]  #: the same by tag
    seen: float | None  #: ``overall`` of the prompts whose combinations training showed; None without such prompts
    unseen: float | None  #: ``overall`` of the others; ``single_object`` has none
    seen_tasks: dict[str, float]  #: ``tasks`` of the seen prompts, for the tags that have some
    unseen_tasks: dict[str, float]  #: the same of the others
    correct_prompts: float  #: share of prompts with at least one correct image
    images: int
    prompts: int
    verdicts: tuple[SceneVerdict, ...]  #: one per image, in the order of the images

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values, without the verdicts."""
        return {
            "overall": self.overall,
            "interval": list(self.interval),
            "tasks": dict(self.tasks),
            "task_intervals": {name: list(ends) for name, ends in self.task_intervals.items()},
            "strict": self.strict,
            "strict_tasks": dict(self.strict_tasks),
            "seen": self.seen,
            "unseen": self.unseen,
            "seen_tasks": dict(self.seen_tasks),
            "unseen_tasks": dict(self.unseen_tasks),
            "correct_prompts": self.correct_prompts,
            "images": self.images,
            "prompts": self.prompts,
        }


def score_images(
    images: Images, prompts: Sequence[Prompt], world: World, *, resamples: int = 1000, seed: int = 0
) -> SceneScores:
    """Detect, judge and sum up.

    Args:
        images: ``(P * n, size, size, 3)`` uint8, the n images of the first prompt first.
        prompts: P entries of the world's prompt file; without the field ``seen`` the world decides it.
        world: the world the prompts speak of.
        resamples: bootstrap resamples of the prompts.
        seed: decides the resamples.

    Raises:
        ValueError: if the number of images is not a multiple of the number of prompts, or a picture has another size.
    """
    return _score(detect_images(images, world), prompts, world, resamples, seed)


def detect_images(images: Images, world: World) -> list[dict[str, list[Detection]]]:
    """What the analytic detector finds in each of ``(N, size, size, 3)`` uint8 images."""
    detector = SceneDetector(world)
    return [detector.detect(image) for image in images]


def render_prompt(prompt: Prompt, world: World, generator: np.random.Generator) -> Images:
    """A correct picture of a prompt and nothing else: ``(size, size, 3)`` uint8."""
    return render(scene_for(Request.from_metadata(prompt), world, generator), world)


def render_near_miss(prompt: Prompt, world: World, generator: np.random.Generator) -> Images:
    """A picture of a prompt with one attribute changed: a shape, the count, a colour, or the relation to its mirror."""
    changed = _changed(Request.from_metadata(prompt), world, generator)
    return render(scene_for(changed, world, generator), world)


def references(world: World, prompts: Sequence[Prompt], per_prompt: int = 4, seed: int = 0) -> dict[str, SceneScores]:
    """The scale's ends: the world's own renders, near misses of them, and the renders under other prompts.

    Args:
        world: the world the prompts speak of.
        prompts: different entries of its prompt file.
        per_prompt: pictures of each prompt.
        seed: decides the pictures and which prompts are exchanged.

    Returns:
        ``oracle`` (1 unless the detector errs), ``near_miss`` (0 likewise) and ``chance``.
    """
    oracle = _renders(render_prompt, world, prompts, per_prompt, seed)
    near_miss = _renders(render_near_miss, world, prompts, per_prompt, seed)
    return {
        "oracle": score_images(oracle, prompts, world, seed=seed),
        "near_miss": score_images(near_miss, prompts, world, seed=seed),
        "chance": chance(oracle, prompts, world, seed=seed),
    }


def chance(images: Images, prompts: Sequence[Prompt], world: World, *, rounds: int = 16, seed: int = 0) -> SceneScores:
    """Score images under prompts they were not made for.

    Args:
        images: as for ``score_images``.
        prompts: at least two, all different; in every round each one's images are judged by another one.
        world: the world the prompts speak of.
        rounds: number of exchanges; their images are scored together.
        seed: decides the exchanges.

    Raises:
        ValueError: if there are fewer than two prompts, or two ask for the same.
    """
    texts = {prompt["prompt"] for prompt in prompts}
    if len(prompts) < 2 or len(texts) < len(prompts):
        raise ValueError(
            f"chance needs at least two prompts, all different, got {len(prompts)} with {len(texts)} different texts; "
            "drop the repeated ones"
        )
    found = detect_images(images, world)
    each = _per_prompt(len(found), len(prompts))
    generator = np.random.default_rng(seed)
    sources = np.stack([_exchange(len(prompts), generator) for _ in range(rounds)], axis=1)
    exchanged = [found[source * each + image] for row in sources for source in row for image in range(each)]
    return _score(exchanged, prompts, world, 1000, seed)


def ceiling(
    roundtrip: Callable[[Tensor], Tensor],
    world: World,
    prompts: Sequence[Prompt],
    *,
    per_prompt: int = 4,
    batch_size: int = 64,
    seed: int = 0,
    processes: Processes = ALONE,
) -> SceneScores:
    """Score the world's own renders after a tokenizer: no generator on that tokenizer can be expected to do better.

    Args:
        roundtrip: encodes and decodes ``(B, 3, H, W)`` float32 in [-1, 1]; the same shape and range come back.
        world: the world the prompts speak of.
        prompts: entries of its prompt file.
        per_prompt: pictures of each prompt.
        batch_size: pictures handed over at a time.
        seed: decides the pictures.
        processes: share the batches; each gets the scores of all.

    Raises:
        ValueError: if what comes back has another shape, or is NaN.
    """
    pictures = _renders(render_prompt, world, prompts, per_prompt, seed)
    parts = [pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size)]
    rebuilt = torch.cat([*processes.shared(parts, lambda part: _rebuilt(roundtrip, part))])
    return score_images(rebuilt.numpy(), prompts, world, seed=seed)


def verdict(prompt: Prompt, found: Found) -> SceneVerdict:
    """Judge what the detector found in one image by an entry of the world's prompt file."""
    judged = judge(prompt, found, threshold=THRESHOLD, counting_threshold=COUNTING_THRESHOLD)
    limit = COUNTING_THRESHOLD if prompt["tag"] == "counting" else THRESHOLD
    asked = sum(wanted["count"] for wanted in prompt["include"])
    shown = sum(len(kept_detections(detections, limit)) for detections in found.values())
    return SceneVerdict(prompt["prompt"], judged.correct, judged.correct and shown == asked, judged.reason)


def _rebuilt(roundtrip: Callable[[Tensor], Tensor], pictures: Images) -> Tensor:
    """``[B, H, W, 3]`` uint8."""
    batch = from_uint8(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    with torch.no_grad():
        out = roundtrip(batch)
    if out.shape != batch.shape:
        raise ValueError(
            f"roundtrip must return {tuple(batch.shape)}, got {tuple(out.shape)}; decode to the size that was encoded"
        )
    return to_uint8(out.float().cpu()).permute(0, 2, 3, 1).contiguous()


def _renders(
    draw: Callable[[Prompt, World, np.random.Generator], Images],
    world: World,
    prompts: Sequence[Prompt],
    per_prompt: int,
    seed: int,
) -> Images:
    """``(P * per_prompt, size, size, 3)``; every picture has a stream of its own, whatever else is drawn."""
    streams = ((prompt, [seed, i, j]) for i, prompt in enumerate(prompts) for j in range(per_prompt))
    return np.stack([draw(prompt, world, np.random.default_rng(stream)) for prompt, stream in streams])


def _score(found: Sequence[Found], prompts: Sequence[Prompt], world: World, resamples: int, seed: int) -> SceneScores:
    each = _per_prompt(len(found), len(prompts))
    entries = [prompt for prompt in prompts for _ in range(each)]
    verdicts = [verdict(entry, detections) for entry, detections in zip(entries, found, strict=True)]
    summary = _summary(entries, [judged.correct for judged in verdicts])
    strict = _summary(entries, [judged.strict for judged in verdicts])
    known = [bool(entry.get("seen", not Request.from_metadata(entry).held_out(world))) for entry in entries]
    seen = _summary_where(known, entries, verdicts)
    unseen = _summary_where([not showed for showed in known], entries, verdicts)
    correct = [sum(judged.correct for judged in verdicts[at : at + each]) for at in range(0, len(verdicts), each)]
    tags = [prompt["tag"] for prompt in prompts]
    intervals = bootstrap_intervals(tags, correct, [each] * len(prompts), resamples=resamples, seed=seed)
    return SceneScores(
        overall=summary.overall,
        interval=intervals.overall,
        tasks=_task_scores(summary),
        task_intervals=intervals.tasks,
        strict=strict.overall,
        strict_tasks=_task_scores(strict),
        seen=None if seen is None else seen.overall,
        unseen=None if unseen is None else unseen.overall,
        seen_tasks=_task_scores(seen),
        unseen_tasks=_task_scores(unseen),
        correct_prompts=summary.correct_prompts,
        images=len(verdicts),
        prompts=len(prompts),
        verdicts=tuple(verdicts),
    )


def _summary(entries: Sequence[Prompt], correct: Sequence[bool]) -> Summary:
    return aggregate(entries, [Verdict(value, "") for value in correct])


def _summary_where(
    wanted: Sequence[bool], entries: Sequence[Prompt], verdicts: Sequence[SceneVerdict]
) -> Summary | None:
    chosen = [i for i, take in enumerate(wanted) if take]
    if not chosen:
        return None
    return _summary([entries[i] for i in chosen], [verdicts[i].correct for i in chosen])


def _task_scores(summary: Summary | None) -> dict[str, float]:
    return {} if summary is None else {name: task.score for name, task in summary.tasks.items()}


def _per_prompt(images: int, prompts: int) -> int:
    if not prompts or not images or images % prompts:
        raise ValueError(
            f"expected the same number of images for each prompt, got {images} for {prompts}; add the rest"
        )
    return images // prompts


def _exchange(count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """For each prompt another one, each used once: the next on a circle in random order."""
    circle = generator.permutation(count)
    other = np.empty(count, dtype=np.int64)
    other[circle] = np.roll(circle, 1)
    return other


def _changed(request: Request, world: World, generator: np.random.Generator) -> Request:
    if request.relation is not None:
        return replace(request, relation=MIRROR[request.relation])
    if request.tag == "counting":
        counts = [count for count in (request.count - 1, request.count + 1) if 1 <= count <= world.max_count]
        return replace(request, count=_draw(counts, generator))
    place = int(generator.integers(len(request.shapes)))
    if request.colors[place] is not None:
        colors = list(request.colors)
        colors[place] = _draw([color for color in world.colors if color != colors[place]], generator)
        return replace(request, colors=tuple(colors))
    shapes = list(request.shapes)
    shapes[place] = _draw([shape for shape in world.shapes if shape not in shapes], generator)
    return replace(request, shapes=tuple(shapes))


def _draw(items: Sequence[_Item], generator: np.random.Generator) -> _Item:
    return items[int(generator.integers(len(items)))]
