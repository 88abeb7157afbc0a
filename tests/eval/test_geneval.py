"""Verdicts written out by hand, and every recorded verdict of the official scorer where the recordings are at hand."""

import json
from pathlib import Path

import pytest

from smalti.eval.geneval import (
    TASKS,
    Detection,
    Summary,
    TaskScore,
    Verdict,
    aggregate,
    intervals,
    judge,
    main,
    replay,
    summary_differences,
)

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


def test_rewritten_texts_of_one_prompt_stay_together():
    entries = [{**single(), "prompt": f"a dog, take {number}"} for number in range(4)]
    verdicts = [Verdict(number == 0, "") for number in range(4)]
    apart, together = aggregate(entries, verdicts), aggregate(entries, verdicts, rewritten=True)
    assert (apart.prompts, apart.correct_prompts) == (4, 0.25)
    assert (together.prompts, together.correct_prompts, together.overall) == (1, 1.0, 0.25)
    assert intervals(entries, verdicts).overall != (0.25, 0.25)
    assert intervals(entries, verdicts, rewritten=True).overall == (0.25, 0.25)  # the only prompt is always drawn
    assert aggregate(entries, verdicts, prompts=1, images_per_prompt=4, rewritten=True) == together
    with pytest.raises(ValueError, match="expected 3 images of every prompt, got 4 of 'a dog, take 0'"):
        aggregate(entries, verdicts, images_per_prompt=3, rewritten=True)


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
    assert summary_differences(summary, expected) == []
    assert summary.overall == pytest.approx(expected["overall"], abs=1e-12)
    assert summary.tasks["counting"] == TaskScore(27, 60)


def test_the_command_agrees_with_all_recordings(capsys):
    golden_cases()
    assert main([str(GOLDEN / "cases.jsonl"), "--check"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "agree 409/409, overall 0.45130"


def test_intervals_draw_prompts():
    other = {**single(), "prompt": "a dog"}
    entries = [single()] * 3 + [other]
    verdicts = [Verdict(True, "")] * 3 + [Verdict(False, "no")]
    found = intervals(entries, verdicts)
    assert found.tasks["single_object"] == (0.0, 1.0)  # drawn images would leave the lower end above 0
    assert found == intervals(entries, verdicts, seed=0)
    assert intervals([single()] * 4, [Verdict(True, "")] * 4).overall == (1.0, 1.0)


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


SUMS = {
    "total_images": 1,
    "total_prompts": 1,
    "correct_images": 1.0,
    "correct_prompts": 1.0,
    "tasks": {"colors": {"score": 1.0, "correct": 1, "total": 1}},
    "overall": 1.0,
    "printed": "not compared",
}


def recordings(folder: Path, *cases: dict[str, object], sums: object = SUMS) -> str:
    (folder / "cases.jsonl").write_text("\n".join(map(json.dumps, cases)))
    (folder / "summary.json").write_text(json.dumps(sums))
    return str(folder / "cases.jsonl")


def test_the_command_checks_recordings(tmp_path, capsys):
    assert main([recordings(tmp_path, recorded()), "--check"]) == 0
    assert capsys.readouterr().out == "colors 1.0000 (1/1)\nagree 1/1, overall 1.00000\n"


def test_the_command_fails_on_a_differing_reason(tmp_path, capsys):
    tasks = {"colors": {"score": 1.0, "correct": 2, "total": 2}}
    sums = {**SUMS, "total_images": 2, "tasks": tasks}
    assert main([recordings(tmp_path, recorded(), recorded(reason="another"), sums=sums), "--check"]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == ["case 7 differs", "agree 1/2, overall 1.00000"]


def test_the_command_fails_on_a_differing_sum(tmp_path, capsys):
    assert main([recordings(tmp_path, recorded(), sums={**SUMS, "total_prompts": 2}), "--check"]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "summary differs in total_prompts: recorded 2, found 1",
        "agree 1/1, overall 1.00000",
    ]


def test_sums_are_compared_to_1e_12_and_counts_exactly():
    summary = aggregate([single()], [Verdict(True, "")])
    task = {"score": 1.0, "correct": 1, "total": 1}
    same = {**SUMS, "tasks": {"single_object": task}}
    assert summary_differences(summary, {**same, "overall": 1 + 1e-13}) == []
    assert summary_differences(summary, {**same, "overall": 1 + 1e-11}) == [
        f"summary differs in overall: recorded {1 + 1e-11}, found 1.0"
    ]
    assert summary_differences(summary, {**same, "total_images": 1 + 1e-13}) != []
    assert summary_differences(summary, {"tasks": {"single_object": task, "colors": task}}) == [
        *(f"summary differs in {name}: recorded None, found 1" for name in ("total_images", "total_prompts")),
        *(
            f"summary differs in {name}: recorded None, found 1.0"
            for name in ("correct_images", "correct_prompts", "overall")
        ),
        "summary differs in colors.score: recorded 1.0, found None",
        "summary differs in colors.correct: recorded 1, found None",
        "summary differs in colors.total: recorded 1, found None",
    ]


def test_the_command_names_files_it_cannot_use(tmp_path, capsys):
    assert main([str(tmp_path / "absent.jsonl")]) == 2
    assert "expected recorded cases in " in capsys.readouterr().err
    path = recordings(tmp_path, recorded(), {"id": 1, "metadata": single()})
    assert main([path]) == 2
    assert "cases.jsonl:2 must be a recorded case, got a line without detections" in capsys.readouterr().err
    path = recordings(tmp_path, recorded(), sums=[1])
    assert main([path, "--check"]) == 2
    assert "--check needs a JSON object in " in capsys.readouterr().err
    (tmp_path / "summary.json").unlink()
    assert main([path, "--check"]) == 2
    err = capsys.readouterr().err
    assert f"--check needs the recorded sums in {tmp_path / 'summary.json'}, found no such file" in err
    assert err.count("\n") == 1


def test_the_command_scores_recordings_without_verdicts(tmp_path, capsys):
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps({k: v for k, v in recorded().items() if k not in ("correct", "reason")}))
    assert main([str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "overall 1.00000"


BOXES = "detections that are not, by class, lists of five finite numbers"


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"metadata": {}}, "metadata without a tag"),
        ({"metadata": 5}, "metadata without a tag"),
        ({"metadata": single(tag=[1])}, "metadata without a tag"),
        (
            {"metadata": {"tag": "colors", "include": 5}},
            "metadata whose include is no list of classes with their counts",
        ),
        ({"metadata": {"tag": "colors", "include": [{"class": "dog"}]}}, "metadata whose include is no list"),
        ({"metadata": single(color=5)}, "metadata whose include is no list"),
        ({"metadata": single(position=["above", -1])}, "metadata whose include is no list"),
        ({"metadata": {**single(), "exclude": ["dog"]}}, "metadata whose exclude is no list"),
        ({"detections": []}, BOXES),
        ({"detections": {"dog": [[0, 0, 5]]}}, BOXES),
        ({"detections": {"dog": [[0, 0, 5, 5, float("nan")]]}}, BOXES),
        ({"detections": {"dog": [[0, 0, 5, 5, "1"]]}}, BOXES),
        ({"colors": ["red"]}, "colors that are not, by class, lists of names"),
        ({"colors": {"dog": [5]}}, "colors that are not, by class, lists of names"),
        ({"correct": "yes"}, "correct that is no bool"),
        ({"reason": None}, "reason that is no str"),
    ],
)
def test_the_command_names_what_is_wrong_with_a_case(tmp_path, capsys, changes, wrong):
    assert main([recordings(tmp_path, recorded(), recorded(**changes)), "--check"]) == 2
    err = capsys.readouterr().err
    assert f"cases.jsonl:2 must be a recorded case, got {wrong}" in err
    assert err.endswith("; record the case again\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"tasks": {"colors": 5}}, "tasks that are not objects of numbers"),
        ({"tasks": [1]}, "tasks that are not objects of numbers"),
        ({"tasks": {"colors": {"score": "1"}}}, "tasks that are not objects of numbers"),
        ({"overall": "1.0"}, "overall that is no number"),
    ],
)
def test_the_command_names_what_is_wrong_with_the_sums(tmp_path, capsys, changes, wrong):
    assert main([recordings(tmp_path, recorded(), sums={**SUMS, **changes}), "--check"]) == 2
    err = capsys.readouterr().err
    assert f"--check needs a JSON object in {tmp_path / 'summary.json'}, got {wrong}; record the sums again" in err
    assert err.count("\n") == 1


def test_sums_without_tasks_differ(tmp_path, capsys):
    sums = {name: value for name, value in SUMS.items() if name != "tasks"}
    assert main([recordings(tmp_path, recorded(), sums=sums), "--check"]) == 1
    assert "summary differs in colors.score: recorded None, found 1.0" in capsys.readouterr().out


def test_a_file_of_other_bytes_is_named(tmp_path, capsys):
    (tmp_path / "cases.jsonl").write_bytes(b"\xff\xfe{}")
    assert main([str(tmp_path / "cases.jsonl")]) == 2
    assert f"expected UTF-8 text in {tmp_path / 'cases.jsonl'}, got other bytes; write" in capsys.readouterr().err
