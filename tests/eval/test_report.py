"""The report as a reader's browser parses it: well-formed, self-contained, escaped, and true to its numbers."""

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.eval.page import duration
from smalti.eval.plots import frequency_plot, line_plot, read_curves
from smalti.eval.protocol import Protocol
from smalti.eval.report import (
    Answer,
    Chart,
    CodeUsage,
    Headline,
    Rebuilt,
    Report,
    Sample,
    TaskScore,
    write_report,
)

VOID = {"meta", "img", "line", "polygon", "circle", "path"}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))


class Page(HTMLParser):
    """Collects tags and text; fails on tags that do not nest."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(content)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    def named(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag and kind in [*(attrs.get("class") or "").split(), ""]]


def page(path: Path, report: Report) -> Page:
    write_report(path / "report.html", report)
    return Page((path / "report.html").read_text(encoding="utf-8"))


def full() -> Report:
    return Report(
        "Quickstart",
        subtitle="two cores",
        headlines=[Headline("Generation", 0.75, {"chance": 0.07, "oracle": 1.0}, note="640 pictures")],
        protocols={
            "generation": Protocol("scene-eval", "scenes", "ab", 640, "float32", 0, sampler={"order": "raster"})
        },
        tasks=[TaskScore("counting", 0.9, 20, 0.8, 1.0, 0.95, 0.7), TaskScore("position", 0.5, 10)],
        reconstructions=[Rebuilt(PICTURE, PICTURE, "28.4 dB")],
        samples=[Sample(PICTURE, "a red circle", True), Sample(PICTURE, "a star", False), Sample(PICTURE, "a ring")],
        answers=[Answer("yes", "no", "is there a star", PICTURE, False)],
        captions=[Answer("a star", "a star", image=PICTURE, correct=True)],
        charts=[Chart("Loss", {"train": [(0, 2.0), (10, 1.0)]}, log=True, unit="nats")],
        codebooks=[CodeUsage("pixel", [3, 1, 0, 0])],
        stages={"tokenizer": 185.0, "language model": 30.0},
        sheets={"Orders": PICTURE},
        notes=["Held-out pairs never occur in training."],
    )


def test_full_report_is_well_formed_and_self_contained(tmp_path: Path):
    shown = page(tmp_path, full())
    content = (tmp_path / "report.html").read_text()
    headings = re.findall(r"<h2>(\w+)</h2>", content)
    assert headings == [
        *("Scores", "Tasks", "Reconstructions", "Samples", "Questions", "Captions"),
        *("Curves", "Codes", "Pictures", "Time", "Notes"),
    ]
    assert not re.search(r"https?:|//\w|@import|url\(|<script|<link", content)
    assert "prefers-color-scheme:dark" in content
    assert {attrs["href"] for attrs in shown.named("a")} == {f"#{name.lower()}" for name in headings}
    assert len(shown.named("details")) == 1
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_pictures_are_embedded_whole(tmp_path: Path):
    sources = [attrs["src"] or "" for attrs in page(tmp_path, full()).named("img")]
    assert len(sources) == 2 + 3 + 1 + 1 + 1
    for source in sources:
        kind, content = source.split(",")
        assert kind == "data:image/png;base64"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), np.asarray(PICTURE))


def test_sections_without_data_are_absent(tmp_path: Path):
    shown = page(tmp_path, Report("Bare", notes=["only this"]))
    assert [attrs["id"] for attrs in shown.named("section")] == ["notes"]
    assert page(tmp_path, Report("Empty")).named("section") == []


def test_bars_share_one_scale(tmp_path: Path):
    headline = Headline("PSNR", 30.0, {"untrained": 10.0, "beyond": 50.0}, full=40.0, unit="dB", digits=1)
    shown = page(tmp_path, Report("Bars", headlines=[headline]))
    assert [attrs["style"] for attrs in shown.named("i", "fill")] == ["width:75.0%", "width:25.0%", "width:100.0%"]
    assert [text for text in shown.text if text in ("30.0", "10.0", "50.0")] == ["30.0", "30.0", "10.0", "50.0"]


def test_weakest_task_and_its_numbers(tmp_path: Path):
    text = " ".join(page(tmp_path, full()).text)
    assert "Weakest task:  position , 0.500 correct." in text
    assert "0.80 to 1.00" in text
    assert "0.950 0.700 20" in text


def test_verdicts_are_counted(tmp_path: Path):
    shown = page(tmp_path, full())
    text = " ".join(shown.text)
    assert "1 of 2 shown pictures match their prompt." in text
    assert "0 of 1 shown answers are right." in text
    assert (len(shown.named("b", "right")), len(shown.named("b", "wrong"))) == (2, 2)


def test_everything_is_escaped(tmp_path: Path):
    evil = "<script>\"'&</script>"
    report = Report(
        evil,
        subtitle=evil,
        headlines=[Headline(evil, 0.5, {evil: 0.1}, unit=evil, note=evil)],
        protocols={evil: Protocol(evil, evil, evil, 1, evil, 0, sampler={evil: evil}, extra={"list": [evil]})},
        tasks=[TaskScore(evil, 0.5, 1)],
        reconstructions=[Rebuilt(PICTURE, PICTURE, evil)],
        samples=[Sample(PICTURE, evil, True)],
        answers=[Answer(evil, evil, evil, PICTURE)],
        captions=[Answer(evil, evil)],
        charts=[Chart(evil, {evil: [(0, 1.0)]}, unit=evil)],
        codebooks=[CodeUsage(evil, [1])],
        stages={evil: 1.0},
        sheets={evil: PICTURE},
        notes=[evil],
    )
    shown = page(tmp_path, report)
    assert shown.named("script") == []
    assert sum(evil in text for text in shown.text) >= 20
    assert not any(name.startswith("on") or "<" in name for _, attrs in shown.tags for name in attrs)


def test_code_usage_known_answers():
    even, skewed = CodeUsage("even", [5] * 8), CodeUsage("skewed", [4, 2, 1, 1, 0, 0, 0, 0])
    assert (even.usage, even.perplexity, even.tokens) == (1.0, pytest.approx(8.0), 40)
    assert (skewed.usage, skewed.perplexity) == (0.5, pytest.approx(2**1.75))
    assert CodeUsage("one", [1, 0]).uniform_usage == pytest.approx(0.5)
    assert skewed.uniform_usage == pytest.approx(1 - (7 / 8) ** 8)


def test_line_plot_places_points():
    svg = line_plot({"loss": [(0, 0.0), (10, 5.0), (20, 10.0)]})
    places = [tuple(map(float, place.split())) for place in re.findall(r"[ML]([\d.]+ [\d.]+)", svg)]
    assert len(places) == 3
    (x0, y0), (x1, y1), (x2, y2) = places
    assert (x1 - x0, y0 - y1) == pytest.approx((x2 - x1, y1 - y2), abs=0.11)
    assert y0 > y2
    assert all(f">{tick}<" in svg for tick in ("0", "2", "4", "6", "8", "10"))


def test_logarithmic_axis_makes_factors_equal_steps():
    svg = line_plot({"loss": [(0, 0.01), (1, 0.1), (2, 1.0)]}, log=True)
    heights = [float(place) for place in re.findall(r"[ML][\d.]+ ([\d.]+)", svg)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.11)
    assert all(f">{tick}<" in svg for tick in ("0.01", "0.1", "1"))


@pytest.mark.parametrize(("low", "high"), [(3.2e-7, 5.0), (1.0, 1.0), (0.4, 0.9), (7.0, 7e12)])
@pytest.mark.parametrize("log", [False, True])
def test_every_range_gets_ticks_inside_the_plot(low: float, high: float, log: bool):
    svg = line_plot({"loss": [(0, low), (1, high)]}, log=log)
    heights = [float(y) for y in re.findall(r'class="rule"[^>]* y1="([\d.]+)"', svg)]
    assert 2 <= len(heights) <= 12
    assert all(0 <= y <= 250 for y in heights)
    assert all(0 <= float(y) <= 250 for y in re.findall(r"[ML][\d.]+ ([\d.]+)", svg))


def test_gaps_lone_points_and_spikes_stay_visible():
    broken = line_plot({"loss": [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.5)]})
    assert (broken.count("<path"), broken.count("<circle")) == (1, 1)
    assert "nan" not in broken
    spiked = [(at, 100.0 if at == 3217 else 1.0) for at in range(10_000)]
    places = re.findall(r"[ML][\d.]+ ([\d.]+)", line_plot({"loss": spiked}))
    assert len(places) < 1000
    assert min(map(float, places)) == 12.0


def test_frequency_plot_is_sorted_and_sums_to_one():
    svg = frequency_plot([1, 6, 0, 3])
    corners = re.search(r'points="([^"]+)"', svg)
    assert corners is not None
    heights = [float(corner.split(",")[1]) for corner in corners[1].split()][1:-1]
    assert heights == sorted(heights)
    shares = [(116 - y) / (116 - 12) * 0.6 for y in heights[::2]]
    assert shares == pytest.approx([0.6, 0.3, 0.1, 0.0], abs=0.01)


def test_curves_come_from_the_loggers_table(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss,val/psnr,empty\n0,0,2.5,,\n0,5,1.5,,\n0,5,,21.5,\n1,9,nan,22,\n1,5,1.25,,\n")
    curves = read_curves(path)
    assert list(curves) == ["train/loss", "val/psnr"]
    assert curves["val/psnr"] == [(5, 21.5), (9, 22.0)]
    assert curves["train/loss"][:2] == [(0, 2.5), (5, 1.25)]
    assert math.isnan(curves["train/loss"][2][1])


def test_curves_written_by_the_logger_itself(tmp_path: Path):
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    logger = loggers.CSVLogger(tmp_path, name="run", version=0)
    logger.log_metrics({"train/loss": 2.0, "epoch": 0}, step=0)
    logger.log_metrics({"val/psnr": 20.0, "epoch": 0}, step=1)
    logger.log_metrics({"train/loss": 1.0, "epoch": 1}, step=2)
    logger.save()
    curves = read_curves(tmp_path / "run" / "version_0" / "metrics.csv")
    assert curves == {"train/loss": [(0, 2.0), (2, 1.0)], "val/psnr": [(1, 20.0)]}


def test_durations():
    assert [duration(seconds) for seconds in (8.24, 59.99, 185, 7800)] == [
        "8.2 s",
        "60.0 s",
        "3 min 05 s",
        "2 h 10 min",
    ]


def test_refusals(tmp_path: Path):
    with pytest.raises(ValueError, match="headline chance must be finite, got nan"):
        Headline("score", 0.5, {"chance": math.nan})
    with pytest.raises(ValueError, match="full bar of score must be positive, got 0"):
        Headline("score", 0.5, full=0.0)
    with pytest.raises(ValueError, match="codes of codebook pixel, got none in 2"):
        CodeUsage("pixel", [0, 0])
    with pytest.raises(ValueError, match=r"at least one finite value to draw, got none in \['loss'\]"):
        line_plot({"loss": [(0, math.nan)]})
    with pytest.raises(ValueError, match="at least one finite and positive value to draw"):
        write_report(tmp_path / "report.html", Report("x", charts=[Chart("y", {"loss": [(0, 0.0)]}, log=True)]))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="counts of at least one code, got none in 3"):
        frequency_plot([0, 0, 0])
    with pytest.raises(FileNotFoundError, match=r"expected training curves, found no file at .*metrics\.csv"):
        read_curves(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_text("epoch,loss\n0,1\n")
    with pytest.raises(ValueError, match=r"expected a step column in .* got \['epoch', 'loss'\]"):
        read_curves(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_text("step,loss\n0,high\n")
    with pytest.raises(ValueError, match=r"expected numbers for loss in .* got 'high'"):
        read_curves(tmp_path / "metrics.csv")
