"""Verdicts written out by hand, and every recorded verdict of the official scorer where the recordings are at hand."""

import json
from pathlib import Path

import pytest

from smalti.eval.geneval import TASKS, Detection, Summary, TaskScore, Verdict, aggregate, judge, main, replay

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "geneval"
BOX = (0.0, 0.0, 10.0, 10.0)


def dog(score: float = 0.95, box: tuple[float, float, float, float] = BOX, color: str | None = None) -> Detection:
    return Detection(box, score, color)


def single(count: int = 1, tag: str = "single_object", **more: object) -> dict[str, object]:
    return {"tag": tag, "include": [{"class": "dog", "count": count, **more}], "prompt": "a photo of a dog"}


def counting(count: int) -> dict[str, object]:
    return {**single(count, "counting"), "exclude": [{"class": "dog", "count": count + 1}]}


def position(relation: str) -> dict[str, object]:
    return {
        "tag": "position",
        "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": [relation, 0]}],
        "prompt": f"a photo of a dog {relation} a cat",
    }


def golden_cases() -> list[dict[str, object]]:
    if not GOLDEN.is_dir():
        pytest.skip(f"needs the recorded GenEval cases in {GOLDEN.name}/ beside the checkout")
    return [json.loads(line) for line in (GOLDEN / "cases.jsonl").read_text().splitlines()]


def test_a_score_must_exceed_the_threshold():
    assert judge(single(), {"dog": [dog(0.31)]}) == Verdict(True, "")
    assert judge(single(), {"dog": [dog(0.3)]}) == Verdict(False, "expected dog>=1, found 0")
    assert judge(single(), {}) == Verdict(False, "expected dog>=1, found 0")
    assert judge(single(), {"dog": [dog(0.2)]}, threshold=0.1).correct


def test_counting_uses_its_own_threshold_and_is_exact():
    assert judge(counting(2), {"dog": [dog(0.95), dog(0.92), dog(0.9)]}).correct
    assert judge(counting(2), {"dog": [dog(), dog(), dog()]}).reason == "expected dog<3, found 3"
    assert judge(counting(2), {"dog": [dog(), dog(0.5)]}).reason == "expected dog>=2, found 1"


def test_other_tasks_allow_more_than_was_asked_for():
    assert judge(single(), {"dog": [dog(), dog()], "cat": [dog()]}).correct


def test_at_most_sixteen_of_a_class_are_looked_at():
    many = [dog(0.9 + i / 1000) for i in range(20)]
    assert judge(counting(4), {"dog": many}).reason == "expected dog<5, found 16"
    assert judge(counting(4), {"dog": many}, max_objects=4).correct


def test_only_the_best_objects_are_looked_at_for_their_colour():
    found = {"dog": [dog(0.5, color="red"), dog(0.9, color="blue")]}
    assert judge(single(tag="colors", color="blue"), found).correct
    verdict = judge(single(tag="colors", color="red"), found)
    assert verdict.reason == "expected red dog>=1, found 0 red; and 1 blue"


def test_colours_in_a_reason_stand_in_geneval_s_order():
    found = {"dog": [dog(0.9, color="black"), dog(0.8, color="orange"), dog(0.7, color="black")]}
    verdict = judge(single(3, "colors", color="black"), found)
    assert verdict.reason == "expected black dog>=3, found 2 black; and 1 orange, 2 black"


def test_a_classifier_may_name_the_colours():
    found = {"dog": [dog(color="red")]}
    assert judge(
        single(tag="colors", color="pink"), found, color=lambda name, _: "pink" if name == "dog" else None
    ).correct


def test_an_unnamed_colour_is_no_colour():
    verdict = judge(single(tag="colors", color="red"), {"dog": [dog()]})
    assert verdict == Verdict(False, "expected red dog>=1, found 0 red; and ")


@pytest.mark.parametrize(
    ("offset", "held"),
    [
        ((-30, 0), {"left of"}),
        ((30, 0), {"right of"}),
        ((0, -30), {"above"}),
        ((0, 30), {"below"}),
        ((30, 30), {"right of", "below"}),
        ((2, 0), set()),  # exactly the margin: a tenth of both widths
        ((3, 0), set()),  # what exceeds the margin must be more than half of the offset
        ((5, 0), {"right of"}),
    ],
)
def test_positions_by_hand(offset, held):
    x, y = offset
    found = {"cat": [dog()], "dog": [dog(box=(x, y, x + 10, y + 10))]}
    for relation in ("left of", "right of", "above", "below"):
        verdict = judge(position(relation), found)
        assert verdict.correct == (relation in held)
        if not verdict.correct:
            assert verdict.reason == f"expected dog {relation} target, found {' and '.join(sorted(held))} target"


def test_a_wider_margin_forgets_small_offsets():
    found = {"cat": [dog()], "dog": [dog(box=(12, 0, 22, 10))]}
    assert judge(position("right of"), found).correct
    assert not judge(position("right of"), found, position_threshold=0.5).correct


def test_a_missing_target_is_named():
    assert (
        judge(position("above"), {"dog": [dog()]}).reason == "expected cat>=1, found 0\nno target for dog to be above"
    )


def test_a_position_must_refer_back():
    entry = {"tag": "position", "include": [{"class": "dog", "count": 1, "position": ["above", 1]}], "prompt": ""}
    with pytest.raises(
        ValueError, match="a position must refer to an earlier entry of include, got entry 1 from entry 0"
    ):
        judge(entry, {"dog": [dog()]})


def test_aggregate_by_hand():
    other = {**counting(2), "prompt": "two dogs"}
    verdicts = [Verdict(True, ""), Verdict(False, "no"), Verdict(False, "no"), Verdict(False, "no")]
    summary = aggregate([single(), single(), single(), other], verdicts)
    assert summary == Summary(
        tasks={"single_object": TaskScore(1, 3), "counting": TaskScore(0, 1)},
        overall=(1 / 3 + 0) / 2,
        correct_images=1 / 4,
        correct_prompts=1 / 2,
        images=4,
        prompts=2,
    )
    assert list(summary.tasks) == [name for name in TASKS if name in summary.tasks]


def test_an_incomplete_run_is_not_summed_up():
    right = Verdict(True, "")
    with pytest.raises(ValueError, match="got 1 verdicts for 2 entries; judge every image once"):
        aggregate([single(), single()], [right])
    with pytest.raises(ValueError, match="got 0 verdicts for 0 entries"):
        aggregate([], [])
    with pytest.raises(ValueError, match="expected 553 prompts, got 1"):
        aggregate([single()], [right], prompts=553)
    with pytest.raises(ValueError, match="expected 4 images of every prompt, got 1 of 'a photo of a dog'"):
        aggregate([single()], [right], images_per_prompt=4)
    assert aggregate([single()] * 4, [right] * 4, prompts=1, images_per_prompt=4).overall == 1


def test_every_recorded_verdict_and_reason_agrees():
    cases = golden_cases()
    assert len(cases) == 409
    differing = [case["id"] for case in cases if replay(case) != Verdict(case["correct"], case["reason"])]
    assert differing == []


def test_the_recorded_summary_agrees():
    cases = golden_cases()
    expected = json.loads((GOLDEN / "summary.json").read_text())
    summary = aggregate([case["metadata"] for case in cases], [replay(case) for case in cases])
    assert (summary.images, summary.prompts) == (expected["total_images"], expected["total_prompts"])
    assert summary.overall == pytest.approx(expected["overall"], abs=1e-12)
    assert summary.correct_images == pytest.approx(expected["correct_images"], abs=1e-12)
    assert summary.correct_prompts == pytest.approx(expected["correct_prompts"], abs=1e-12)
    assert set(summary.tasks) == set(expected["tasks"])
    for name, task in summary.tasks.items():
        assert (task.correct, task.total) == (expected["tasks"][name]["correct"], expected["tasks"][name]["total"])
        assert task.score == pytest.approx(expected["tasks"][name]["score"], abs=1e-12)


def recorded(**changes: object) -> dict[str, object]:
    case = {
        "id": 7,
        "metadata": single(tag="colors", color="red"),
        "detections": {"dog": [[0, 0, 5, 5, 0.2], [0, 0, 10, 10, 0.4], [0, 0, 9, 9, 0.8]]},
        "colors": {"dog": ["red", "blue"]},
        "correct": True,
        "reason": "",
    }
    return {**case, **changes}


def test_recordings_need_a_colour_for_every_box_that_counts():
    with pytest.raises(
        ValueError, match="case 7 must name a colour for each of the 2 boxes kept of 'dog', got 1; record"
    ):
        replay(recorded(colors={"dog": ["red"]}))


def test_the_command_checks_recordings(tmp_path, capsys):
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps(recorded()))
    assert main([str(path), "--check"]) == 0
    assert capsys.readouterr().out == "colors 1.0000 (1/1)\nagree 1/1, overall 1.00000\n"


def test_the_command_fails_on_a_differing_reason(tmp_path, capsys):
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps(recorded()) + "\n" + json.dumps(recorded(reason="another")))
    assert main([str(path), "--check"]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == ["case 7 differs", "agree 1/2, overall 1.00000"]


def test_the_command_scores_recordings_without_verdicts(tmp_path, capsys):
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps({k: v for k, v in recorded().items() if k not in ("correct", "reason")}))
    assert main([str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "overall 1.00000"
