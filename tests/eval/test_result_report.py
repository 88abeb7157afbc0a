"""A page made of result files: what is measured alike shares a table, and a real browser shows it without complaint."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from smalti.cli.main import main
from smalti.eval.protocol import Protocol, write_result
from smalti.eval.result_report import read_evidence, result_report

PROTOCOL = Protocol("generation", "scenes", "ab" * 32, 1000, "float32", 0, extractor="inception")
GENERATION = {"fid": 12.5, "precision": 0.75, "growth": {"1": 10.0, "2": 15.0, "10": 40.0}}


@pytest.fixture
def files(tmp_path):
    """Three results (two measured alike), verdicts on two pictures, and a sheet beside the first result."""
    write_result(tmp_path / "a.json", GENERATION, PROTOCOL)
    write_result(tmp_path / "b.json", {**GENERATION, "fid": 9.75}, PROTOCOL)
    write_result(tmp_path / "c.json", GENERATION, replace(PROTOCOL, count=500, extractor="siglip"))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    rows = [("a dog", True, ""), ("two cats", False, "expected cat>=2, found 1")]
    lines = []
    for at, (prompt, correct, reason) in enumerate(rows):
        Image.fromarray(pixels[at]).save(tmp_path / f"{at}.png")
        lines.append({"filename": f"{at}.png", "prompt": prompt, "correct": correct, "reason": reason, "tag": "x"})
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Image.new("RGB", (64, 32), "navy").save(tmp_path / "a.samples.png")
    return tmp_path


def named(folder, *names):
    return {name.partition(".")[0]: folder / name for name in names}


def test_results_measured_alike_share_a_table(files):
    report = result_report("T", read_evidence(named(files, "a.json", "b.json", "c.json")))
    assert list(report.tables) == ["a, b", "c"]
    assert report.tables["a, b"].rows == [["fid", "12.5", "9.75"], ["precision", "0.75", "0.75"]]
    assert report.tables["c"].rows == [["fid", "12.5"], ["precision", "0.75"]]
    assert report.bars["fid (generation)"] == {"a": 12.5, "b": 9.75}
    assert report.notes == ["a, b and c were measured differently (count, extractor)."]


def test_every_number_on_a_card_carries_its_protocol(files):
    report = result_report("T", read_evidence(named(files, "a.json", "c.json")))
    assert [(card.name, card.value) for card in report.headlines][:2] == [("a: fid", 12.5), ("a: precision", 0.75)]
    assert [card.protocol.count for card in report.headlines if card.protocol] == [1000, 1000, 500, 500]


def test_the_quoted_score_comes_first(tmp_path):
    scores = {"psnr": 30.0, "ssim": 0.9, "l1": 0.1, "capped": 0, "rfid": 2.5, "kid": {"mean": 0.25, "std": 0.1}}
    write_result(tmp_path / "r.json", scores, PROTOCOL)
    cards = result_report("T", read_evidence(named(tmp_path, "r.json"))).headlines
    assert [(card.name, card.value) for card in cards] == [("rfid", 2.5), ("psnr", 30.0), ("ssim", 0.9), ("l1", 0.1)]


def test_pictures_of_another_result_are_left_out(files):
    write_result(files / "a.samples.json", GENERATION, PROTOCOL)
    assert result_report("T", read_evidence(named(files, "a.json"))).sheets == {}


def test_answers_stand_beside_the_blind_guesser(tmp_path):
    scores = {"pope": {"f1": 0.75, "accuracy": 0.5, "splits": {"random": 0.5}}, "blind": {"f1": 0.5, "accuracy": 0.25}}
    write_result(tmp_path / "p.json", scores, PROTOCOL)
    cards = result_report("T", read_evidence(named(tmp_path, "p.json"))).headlines
    assert [(card.name, card.value, card.baselines, card.full) for card in cards] == [
        ("pope f1", 0.75, {"blind": 0.5}, 1.0),
        ("pope accuracy", 0.5, {"blind": 0.25}, 1.0),
    ]


def test_judged_tasks_have_their_intervals(tmp_path):
    tasks = {"tasks": {"colors": 0.5}, "task_intervals": {"colors": {"low": 0.4, "high": 0.6}}}
    write_result(tmp_path / "g.json", {"overall": 0.5, **tasks, "task_images": {"colors": 376}}, PROTOCOL)
    (row,) = result_report("T", read_evidence(named(tmp_path, "g.json"))).tasks
    assert (row.name, row.score, row.count, row.low, row.high) == ("colors", 0.5, 376, 0.4, 0.6)


def test_groups_of_numbered_scores_are_curves(files):
    curve = [(1.0, 10.0), (2.0, 15.0), (10.0, 40.0)]
    (chart,) = result_report("T", read_evidence(named(files, "a.json", "b.json"))).charts
    assert (chart.title, chart.curves) == ("growth", {"a": curve, "b": curve})
    charts = result_report("T", read_evidence(named(files, "a.json", "c.json"))).charts  # measured differently
    assert [(chart.title, list(chart.curves)) for chart in charts] == [("growth (a)", ["a"]), ("growth (c)", ["c"])]


def test_verdicts_and_pictures_are_shown(files):
    report = result_report("T", read_evidence(named(files, "a.json", "results.jsonl")))
    assert [(sample.prompt, sample.correct, sample.reason) for sample in report.samples] == [
        ("a dog", True, ""),
        ("two cats", False, "expected cat>=2, found 1"),
    ]
    assert list(report.sheets) == ["a: a.samples.png"]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.txt", "x", "made of .json, .jsonl and .png files, got .*a.txt; leave it out"),
        ("r.jsonl", "{}", "r.jsonl:1 must be a verdict with filename, prompt, correct and reason, got '{}'"),
        ("r.jsonl", "no json", "r.jsonl:1 must be a verdict"),
        (
            "r.jsonl",
            '{"filename": "0.png", "prompt": "a", "correct": "false", "reason": ""}',
            "r.jsonl:1 must be a verdict",
        ),
        ("r.jsonl", '{"filename": 5, "prompt": "a", "correct": true, "reason": ""}', "r.jsonl:1 must be a verdict"),
    ],
)
def test_other_files_are_refused(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_evidence({"x": tmp_path / name})


def test_missing_pictures_are_named(files):
    (files / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"judges the picture 1\.png, which is not there; run from where"):
        read_evidence(named(files, "results.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"expected verdicts, found none at .*none\.jsonl"):
        read_evidence(named(files, "none.jsonl"))


def test_nothing_is_no_report():
    with pytest.raises(ValueError, match="a report needs at least one result, got none"):
        result_report("T", read_evidence({}))


@pytest.fixture
def look(tmp_path):
    """Shows a page in a real browser: the pixels, and what the page complained of."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"the page is looked at in a browser, and none of {', '.join(names)} is installed")

    def shown(page, height):
        shot = tmp_path / "shot.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        flags += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
        flags += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [browser, *flags, f"--window-size=1200,{height}", f"--screenshot={shot}", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return np.asarray(Image.open(shot).convert("RGB")), re.findall(r"CONSOLE.*", done.stderr)

    return shown


def test_a_browser_shows_it_from_the_disk(files, look, capsys):
    out = files / "report.html"
    inputs = [str(files / name) for name in ("a.json", "b.json", "c.json", "results.jsonl")]
    assert main(["report", *inputs, "--out", str(out), "--title", "Looked at"]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {out}: 3 results, 2 pictures with verdicts")
    assert not re.search(r"https?://|<script|<link|@import", out.read_text())
    pixels, complaints = look(out, 3000)
    assert complaints == []
    assert pixels.shape == (3000, 1200, 3)
    assert (pixels == (0, 0, 128)).all(-1).sum() > 1900  # the navy sheet of 64 x 32 is drawn, but for its round corners
    assert np.unique(pixels.reshape(-1, 3), axis=0).shape[0] > 100


def test_a_page_with_errors_is_noticed(tmp_path, look):
    page = tmp_path / "page.html"
    page.write_text("<script>missing()</script>")
    _, complaints = look(page, 100)
    assert "missing is not defined" in complaints[0]
