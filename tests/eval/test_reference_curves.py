"""Reference curves: bands by hand, healthy copies pass, ill runs do not, and files hold what was recorded."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from PIL import Image

from smalti.eval.overlay import write_overlay
from smalti.eval.reference_curves import (
    ReferenceCurve,
    ReferenceCurves,
    choose_reference,
    compare_curves,
    shipped_references,
    windowed,
)
from smalti.eval.run_logs import RunLog

SETTINGS = {"adversarial.weight": 0.5, "adversarial.loss": "hinge"}


def made(seed, steps=700, settings=SETTINGS, **changed):
    """A made-up run of a GAN with noise of its own, logged every ten steps; ``changed`` replaces curves."""
    noise = random.Random(seed)

    def curve(value, share=0.05):
        return [(step, value(step) * (1 + noise.gauss(0, share))) for step in range(9, steps, 10)]

    curves = {
        "train/l2": curve(lambda step: 0.3 * math.exp(-step / 150) + 0.02),
        "train/discriminator": curve(lambda step: 1 - 0.3 * step / 700),
        "train/logits_real": curve(lambda step: step / 1000 - 0.2),
        "train/logits_fake": curve(lambda step: 0.2 - step / 1000),
        "train/adversarial": [(step, 0.1) for step, _ in curve(lambda step: 1.0) if step >= 150],
        "guard/rollbacks": curve(lambda step: 0.0),
        "guard/skipped": curve(lambda step: 0.0),
        "val/psnr": [(step, 20 + step / 100) for step in range(99, steps, 100)],
    }
    named = {name.replace("__", "/"): curve(value, 0.0) for name, value in changed.items()}
    return RunLog(Path(f"run-{seed}"), curves | named, dict(settings), seed)


@pytest.fixture(scope="module")
def reference():
    return ReferenceCurves.record([made(0), made(1), made(2)], "gan", "smalti fit -c gan.yaml", "2026-11-27")


def problems(run, reference):
    return {finding.where: finding.what for finding in compare_curves(run, reference) if finding.kind == "problem"}


@pytest.mark.parametrize("steps", [700, 300, 120, 1400])
def test_a_healthy_run_is_within_the_reference_however_long(reference, steps):
    assert compare_curves(made(7, steps), reference) == []


def test_a_run_whose_discriminator_wins_leaves_it(reference):
    ill = made(
        7,
        train__discriminator=lambda step: math.exp(-step / 80),
        train__logits_real=lambda step: step / 50,
        train__logits_fake=lambda step: -step / 50,
        train__l2=lambda step: 0.3,
    )
    found = problems(ill, reference)
    assert set(found) == {"train/discriminator", "train/logits_real", "train/logits_fake", "train/l2"}
    assert found["train/discriminator"].startswith("below the reference for the last third: 0.000")
    assert found["train/l2"].startswith("above the reference for the last third: 0.3 at step 6")
    assert "is healthy" in found["train/l2"]


def test_only_the_last_third_of_what_there_is_counts(reference):
    recovered = made(7, train__l2=lambda step: 5.0 if step < 300 else 0.3 * math.exp(-step / 150) + 0.02)
    assert problems(recovered, reference) == {}
    assert set(problems(made(7, 300, train__l2=lambda step: 5.0), reference)) == {"train/l2"}


def test_rollbacks_are_no_part_of_a_healthy_run_and_few_skipped_steps_are(reference):
    assert set(problems(made(7, guard__rollbacks=lambda step: 1.0), reference)) == {"guard/rollbacks"}
    assert problems(made(7, guard__skipped=lambda step: 2.0), reference) == {}
    assert set(problems(made(7, guard__skipped=lambda step: 100.0), reference)) == {"guard/skipped"}


def test_better_than_healthy_is_no_problem(reference):
    run = made(7, train__l2=lambda step: 0.001)
    run = RunLog(run.folder, {**run.curves, "val/psnr": [(step, 60.0) for step in range(99, 700, 100)]}, SETTINGS)
    found = compare_curves(run, reference)
    assert {finding.where: finding.kind for finding in found} == {"train/l2": "remark", "val/psnr": "remark"}


def test_what_differs_is_remarked(reference):
    curves = {name: curve for name, curve in made(7).curves.items() if name != "train/adversarial"}
    run = RunLog(Path("run"), curves, SETTINGS | {"adversarial.weight": 15.0, "other": 1})
    found = {finding.where: finding.what for finding in compare_curves(run, reference)}
    assert found == {
        "curves": "the run does not log train/adversarial, which the reference has",
        "settings": "differ in adversarial.weight 15.0 (reference 0.5), other 1 (reference None)",
    }


def test_bands_by_hand():
    curve = ReferenceCurve([0, 10], [1.0, 3.0], [0.0, 0.4])
    middle = curve.band("train/l1", 5)
    assert (middle.mean, middle.low, middle.high) == pytest.approx((2.0, 1.4, 2.6))  # 3 x 0.2 and 30 % agree
    assert curve.band("train/l1", 10).high == pytest.approx(4.2)
    assert curve.band("train/l1", -5).low == pytest.approx(0.7)
    signed = ReferenceCurve([0, 1, 2], [-2.0, 0.0, 1.0], [0.0] * 3)
    assert signed.band("train/logits_real", 1).high == pytest.approx(0.3)  # 30 % of the median, 1
    assert ReferenceCurve([0], [0.0], [0.0]).band("guard/skipped", 500).high == 5
    decibels = ReferenceCurve([0], [20.0], [0.0]).band("val/psnr", 0)
    assert 10 ** ((decibels.high - decibels.low) / 20) == pytest.approx(1.3)


def test_windows_hold_equally_many_points_and_nothing_broken():
    assert windowed([(1, 2.0), (2, math.nan), (3, 4.0)]) == [(1, 2.0), (3, 4.0)]
    long = windowed([(step, float(step)) for step in range(1000)])
    assert len(long) == 100
    assert long[0] == (4.5, 4.5)
    assert len(windowed([(step, 0.0) for step in range(70)])) == 20
    assert windowed([]) == []


def test_spreads_are_those_between_runs():
    curves = [{"train/l1": [(step, value) for step in range(5)]} for value in (1.0, 3.0)]
    runs = [RunLog(Path("run"), each) for each in curves]
    found = ReferenceCurves.record(runs, "x", "y", "z").curves["train/l1"]
    assert list(found.means) == [2.0] * 5
    assert list(found.spreads) == pytest.approx([math.sqrt(2)] * 5)
    alone = ReferenceCurves.record(runs[:1], "x", "y", "z").curves["train/l1"]
    assert list(alone.spreads) == [0.0] * 5


def test_a_file_holds_what_was_recorded(reference, tmp_path):
    reference.save(tmp_path / "gan.json")
    loaded = ReferenceCurves.load(tmp_path / "gan.json")
    assert (loaded.recipe, loaded.command, loaded.date) == ("gan", "smalti fit -c gan.yaml", "2026-11-27")
    assert (list(loaded.seeds), loaded.runs, loaded.settings) == ([0, 1, 2], 3, SETTINGS)
    assert loaded.curves.keys() == reference.curves.keys()
    for name, curve in reference.curves.items():
        assert loaded.curves[name].means == pytest.approx(list(curve.means), rel=1e-5)
        assert loaded.curves[name].spreads == pytest.approx(list(curve.spreads), rel=1e-5)
    assert (tmp_path / "gan.json").stat().st_size < 20_000


def test_the_most_similar_reference_is_chosen(reference):
    other = ReferenceCurves.record([made(0, settings={"adversarial.weight": 0.5, "width": 3})], "other", "c", "d")
    assert choose_reference([other, reference], SETTINGS) is reference
    assert choose_reference([other, reference], {"width": 3}) is other
    assert choose_reference([reference], {}) is reference
    assert reference.fit(SETTINGS | {"more": 1}) == (2, 3)
    with pytest.raises(ValueError, match="no reference curves are shipped in"):
        choose_reference([], SETTINGS)


def test_a_run_of_another_kind_does_not_suit(reference):
    assert reference.suits(made(7))
    assert not reference.suits(RunLog(Path("run"), {"train/loss": [(0, 1.0)], "train/l2": [(0, 1.0)]}))


def test_shipped_references_can_be_read():
    for found in shipped_references():
        assert found.runs >= 2
        assert found.command.startswith("smalti ")


def test_what_cannot_be_recorded_or_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a reference needs runs with common curves, got 0 runs without"):
        ReferenceCurves.record([], "x", "y", "z")
    broken = RunLog(Path("run"), {"train/l1": [(0, math.nan)]})
    with pytest.raises(ValueError, match="a reference must be finite, got train/l1 of run with other values"):
        ReferenceCurves.record([broken], "x", "y", "z")
    with pytest.raises(FileNotFoundError, match=r"reference curves were expected at .*nowhere"):
        ReferenceCurves.load(tmp_path / "nowhere.json")
    for content in ("[]", "{", json.dumps({"curves": {}}), json.dumps({"curves": {"a": {"b": 1}}})):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ValueError, match=r"x\.json holds no reference curves"):
            ReferenceCurves.load(tmp_path / "x.json")


def test_overlays_show_every_common_term(reference, tmp_path):
    run = made(7, train__l2=lambda step: 5.0)
    findings = compare_curves(run, reference)
    write_overlay(tmp_path / "o.html", run, reference, findings)
    page = (tmp_path / "o.html").read_text()
    assert page.count("<figure") == len(reference.curves)
    assert "above the reference for the last third" in page
    write_overlay(tmp_path / "o.png", run, reference, findings)
    picture = Image.open(tmp_path / "o.png").convert("RGB")
    assert picture.width > 3 * 460
    colors = {color for _, color in picture.getcolors(1 << 24)}
    assert {(43, 111, 148), (192, 91, 46), (219, 231, 238)} <= colors  # reference, run, band
    with pytest.raises(ValueError, match=r"an overlay is an \.html or a \.png, got o\.pdf"):
        write_overlay(tmp_path / "o.pdf", run, reference, findings)
    with pytest.raises(ValueError, match="has no curve of the reference gan"):
        write_overlay(tmp_path / "o.png", RunLog(Path("run"), {}), reference, [])
