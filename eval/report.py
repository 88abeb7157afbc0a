"""One HTML file that shows what a run learned: scores beside their baselines, pictures, curves, and the protocol.

The file needs nothing else: pictures are embedded, plots are inline SVG, there is no script and nothing is fetched.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from ..data.files import atomic_file
from .page import STYLE, bar, duration, picture, table, tree, verdict
from .plots import Curve, frequency_plot, line_plot
from .protocol import Protocol
from .tables import Table

_LONG = 16  # rows from which a table is folded


@dataclass(frozen=True)
class Headline:
    """A score and what it must be read against, drawn as bars of one scale.

    Raises:
        ValueError: if a value is not finite, or ``full`` is not positive.
    """

    name: str
    value: float
    baselines: Mapping[str, float] = field(default_factory=dict[str, float])  #: chance, untrained, blind, ceiling, ...
    full: float = 1.0  #: the value a full bar stands for
    unit: str = ""  #: written after the numbers
    digits: int = 3  #: decimals
    note: str = ""  #: one line on what is measured, and on how many
    protocol: Protocol | None = None  #: how it was measured, folded under it

    def __post_init__(self) -> None:
        for name, value in {self.name: self.value, **self.baselines}.items():
            if not math.isfinite(value):
                raise ValueError(f"headline {name} must be finite, got {value}; leave it out of the report")
        if not self.full > 0:
            raise ValueError(f"the full bar of {self.name} must be positive, got {self.full}; pass the best value")


@dataclass(frozen=True)
class TaskScore:
    """One row of the per-task table; ``None`` where not measured."""

    name: str
    score: float  #: fraction of images, in [0, 1]
    count: int  #: images
    low: float | None = None  #: confidence interval
    high: float | None = None
    seen: float | None = None  #: on attribute combinations that were in training
    unseen: float | None = None  #: on those held out


@dataclass(frozen=True)
class Sample:
    """A generated picture, its prompt, and whether it shows it (``None``: nobody judged)."""

    image: Image.Image
    prompt: str
    correct: bool | None = None
    reason: str = ""  #: why not correct


@dataclass(frozen=True)
class Rebuilt:
    """An original beside its reconstruction."""

    original: Image.Image
    reconstruction: Image.Image
    label: str = ""


@dataclass(frozen=True)
class Answer:
    """What the model said about a picture: to a question, or as its caption (then ``question`` is empty)."""

    expected: str
    given: str
    question: str = ""
    image: Image.Image | None = None
    correct: bool | None = None


@dataclass(frozen=True)
class Chart:
    """Curves that share one pair of axes."""

    title: str
    curves: Mapping[str, Curve]
    log: bool = False  #: logarithmic y
    unit: str = ""  #: beside the y axis
    over: str = "step"  #: under the x axis


@dataclass(frozen=True)
class CodeUsage:
    """How often each code of one codebook occurs over a whole set, not a batch.

    Raises:
        ValueError: if no code occurs.
    """

    name: str
    counts: Sequence[int]  #: occurrences per code; its length is the codebook's size

    def __post_init__(self) -> None:
        if sum(self.counts) < 1:
            raise ValueError(f"expected codes of codebook {self.name}, got none in {len(self.counts)}; count a set")

    @property
    def tokens(self) -> int:
        """Codes counted."""
        return sum(self.counts)

    @property
    def usage(self) -> float:
        """Fraction of the codebook that occurs at least once."""
        return sum(count > 0 for count in self.counts) / len(self.counts)

    @property
    def uniform_usage(self) -> float:
        """What `usage` would be on average for uniform codes: ``1 - (1 - 1/K)^tokens``."""
        return 1 - (1 - 1 / len(self.counts)) ** self.tokens

    @property
    def perplexity(self) -> float:
        """``2^H`` of the frequencies, between 1 and the codebook's size."""
        shares = (count / self.tokens for count in self.counts if count)
        return 2 ** -sum(share * math.log2(share) for share in shares)


@dataclass(frozen=True)
class Report:
    """What a report may hold. A section without data is left out."""

    title: str
    subtitle: str = ""  #: one line: which model, data, device
    headlines: Sequence[Headline] = ()
    protocols: Mapping[str, Protocol] = field(default_factory=dict[str, Protocol])  #: by score; folded
    tables: Mapping[str, Table] = field(default_factory=dict[str, Table])  #: by title
    tasks: Sequence[TaskScore] = ()
    reconstructions: Sequence[Rebuilt] = ()
    samples: Sequence[Sample] = ()
    answers: Sequence[Answer] = ()
    captions: Sequence[Answer] = ()
    bars: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, dict[str, float]])  #: score, by result
    charts: Sequence[Chart] = ()
    codebooks: Sequence[CodeUsage] = ()
    stages: Mapping[str, float] = field(default_factory=dict[str, float])  #: seconds by stage, in order
    sheets: Mapping[str, Image.Image] = field(default_factory=dict[str, Image.Image])  #: further pictures by title
    notes: Sequence[str] = ()  #: paragraphs at the end


def write_report(path: str | Path, report: Report) -> None:
    """Write a report as one self-contained HTML file, whole or not at all.

    Args:
        path: the file; its folder is made.
        report: what to show.

    Raises:
        ValueError: if a chart has no value to draw.
    """
    page = _page(report)
    with atomic_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _page(report: Report) -> str:
    sections = {
        "Scores": _headlines(report.headlines) + _tables(report.tables) + _protocols(report.protocols),
        "Comparison": _bars(report.bars),
        "Tasks": _tasks(report.tasks),
        "Reconstructions": _reconstructions(report.reconstructions),
        "Samples": _samples(report.samples),
        "Questions": _answers(report.answers),
        "Captions": _answers(report.captions),
        "Curves": "".join(map(_chart, report.charts)),
        "Codes": "".join(map(_codebook, report.codebooks)),
        "Pictures": "".join(f"<h3>{escape(name)}</h3>{picture(it, name)}" for name, it in report.sheets.items()),
        "Time": _stages(report.stages),
        "Notes": "".join(f"<p>{escape(note)}</p>" for note in report.notes),
    }
    present = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in present)
    subtitle = f'<p class="lead">{escape(report.subtitle)}</p>' if report.subtitle else ""
    parts = "".join(f'<section id="{name.lower()}"><h2>{name}</h2>{it}</section>' for name, it in present.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{escape(report.title)}</h1>{subtitle}<nav>{links}</nav></header><main>{parts}</main></body></html>\n"
    )


def _headlines(headlines: Sequence[Headline]) -> str:
    return f'<div class="cards">{"".join(map(_headline, headlines))}</div>' if headlines else ""


def _headline(headline: Headline) -> str:
    def number(value: float) -> str:
        return f"{value:.{headline.digits}f}"

    unit = f"<small>{escape(headline.unit)}</small>" if headline.unit else ""
    rows = [bar("this model", headline.value / headline.full, number(headline.value), "own")]
    rows += [bar(name, value / headline.full, number(value)) for name, value in headline.baselines.items()]
    note = f'<p class="note">{escape(headline.note)}</p>' if headline.note else ""
    note += _folded("Protocol", headline.protocol) if headline.protocol else ""
    bars = f'<div class="bars">{"".join(rows)}</div>' if headline.baselines else ""
    return (
        f'<article class="card"><h3>{escape(headline.name)}</h3><p class="number">{number(headline.value)}{unit}</p>'
        f"{bars}{note}</article>"
    )


def _bars(groups: Mapping[str, Mapping[str, float]]) -> str:
    """A block of bars for every score, the longest full."""
    blocks = list[str]()
    for title, values in groups.items():
        full = max(*map(abs, values.values()), 1e-12)
        rows = "".join(bar(name, value / full, f"{value:.4g}") for name, value in values.items())
        blocks.append(f'<h3>{escape(title)}</h3><div class="bars wide">{rows}</div>')
    return "".join(blocks)


def _tables(tables: Mapping[str, Table]) -> str:
    return "".join(_titled(title, it) for title, it in tables.items())


def _titled(title: str, it: Table) -> str:
    """A table under its title; a long one is folded."""
    body = table([escape(name) for name in it.head], [list(map(escape, row)) for row in it.rows], it.numeric)
    if len(it.rows) > _LONG:
        return f"<details><summary>{escape(title)}: all {len(it.rows)} rows</summary>{body}</details>"
    return f"<h3>{escape(title)}</h3>{body}"


def _protocols(protocols: Mapping[str, Protocol]) -> str:
    return "".join(_folded(f"Protocol: {name}", protocol) for name, protocol in protocols.items())


def _folded(title: str, protocol: Protocol) -> str:
    return f"<details><summary>{escape(title)}</summary>{tree(protocol.to_dict())}</details>"


def _tasks(tasks: Sequence[TaskScore]) -> str:
    if not tasks:
        return ""
    weakest = min(tasks, key=lambda task: task.score)
    rows = [
        [
            escape(task.name),
            f"<b>{task.score:.3f}</b>",
            _interval(task),
            _fraction(task.seen),
            _fraction(task.unseen),
            f"{task.count:,}",
        ]
        for task in tasks
    ]
    rows_as_table = table(["task", "correct", "interval", "seen", "unseen", "images"], rows, numeric={1, 3, 4, 5})
    return f"<p>Weakest task: <b>{escape(weakest.name)}</b>, {weakest.score:.3f} correct.</p>{rows_as_table}"


def _interval(task: TaskScore) -> str:
    """The interval as a band on a 0..1 track, the score as a tick on it, both also as numbers."""
    tick = f'<i class="tick" style="left:{100 * task.score:.1f}%"></i>'
    if task.low is None or task.high is None:
        return f'<span class="range">{tick}</span>'
    band = f'<i class="band" style="left:{100 * task.low:.1f}%;width:{100 * (task.high - task.low):.1f}%"></i>'
    return f'<span class="range">{band}{tick}</span><span class="ends">{task.low:.2f} to {task.high:.2f}</span>'


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _reconstructions(pairs: Sequence[Rebuilt]) -> str:
    if not pairs:
        return ""
    figures = "".join(
        f"<figure>{picture(pair.original, 'original')}{picture(pair.reconstruction, 'reconstruction')}"
        f"<figcaption>{escape(pair.label)}</figcaption></figure>"
        for pair in pairs
    )
    return f'<p>Original on the left, rebuilt from its codes on the right.</p><div class="pairs">{figures}</div>'


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    figures = "".join(
        f'<figure><div class="judged">{picture(sample.image, sample.prompt)}{verdict(sample.correct)}</div>'
        f"<figcaption>{escape(sample.prompt)}{_reason(sample.reason)}</figcaption></figure>"
        for sample in samples
    )
    tally = _tally([sample.correct for sample in samples], "shown pictures match their prompt")
    return f'{tally}<div class="samples">{figures}</div>'


def _reason(reason: str) -> str:
    return f"<br><small>{escape('; '.join(reason.splitlines()))}</small>" if reason else ""


def _answers(answers: Sequence[Answer]) -> str:
    if not answers:
        return ""
    asked = any(answer.question for answer in answers)
    rows = [
        [
            "" if answer.image is None else picture(answer.image, "picture asked about"),
            *([escape(answer.question)] if asked else []),
            escape(answer.expected),
            verdict(answer.correct) + escape(answer.given),
        ]
        for answer in answers
    ]
    head = ["", *(["question"] if asked else []), "expected", "model"]
    return _tally([answer.correct for answer in answers], "shown answers are right") + table(head, rows)


def _tally(verdicts: Iterable[bool | None], words: str) -> str:
    judged = [verdict for verdict in verdicts if verdict is not None]
    return f"<p>{sum(judged)} of {len(judged)} {words}.</p>" if judged else ""


def _chart(chart: Chart) -> str:
    title = escape(chart.title) + (" <small>(logarithmic)</small>" if chart.log else "")
    return (
        f'<figure class="chart"><h3>{title}</h3>{line_plot(chart.curves, chart.over, chart.unit, chart.log)}</figure>'
    )


def _codebook(book: CodeUsage) -> str:
    size = len(book.counts)
    facts = (
        f"usage <b>{book.usage:.1%}</b> of {size:,} (uniform codes: {book.uniform_usage:.1%}), "
        f"perplexity <b>{book.perplexity:,.1f}</b>, over {book.tokens:,} tokens; dashed: the uniform share"
    )
    return (
        f'<figure class="chart"><h3>{escape(book.name)}</h3>{frequency_plot(book.counts)}'
        f"<figcaption>{facts}</figcaption></figure>"
    )


def _stages(stages: Mapping[str, float]) -> str:
    if not stages:
        return ""
    longest = max(*stages.values(), 1e-9)
    rows = "".join(bar(name, seconds / longest, duration(seconds)) for name, seconds in stages.items())
    return f'<p>{duration(sum(stages.values()))} in all.</p><div class="bars wide">{rows}</div>'
