"""``smalti compare``: one table under one protocol, and a refusal that names the field under two."""

import json
import re
from dataclasses import replace

import pytest

from smalti.cli.main import main
from smalti.eval.protocol import Protocol, write_result

PROTOCOL = Protocol(
    task="generation",
    dataset="scenes",
    dataset_hash="ab" * 32,
    count=1000,
    dtype="float32",
    seed=0,
    crop={"size": [64, 64], "mode": "center"},
    extractor="inception",
    weights_hash="6726825d" + "0" * 56,
    prompts_hash="cd" * 32,
    rewritten=False,
    sampler={"order": "raster"},
)


@pytest.fixture
def pair(tmp_path):
    """Two result files: of the protocol, and of a changed one."""

    def written(**changes):
        write_result(tmp_path / "a.json", {"fid": 12.5, "tasks": {"position": 0.25}, "images": 1000}, PROTOCOL)
        write_result(tmp_path / "b.json", {"fid": 9.75, "tasks": {"position": 0.5}}, replace(PROTOCOL, **changes))
        return [str(tmp_path / "a.json"), str(tmp_path / "b.json")]

    return written


def test_alike_results_stand_in_one_table(pair, tmp_path, capsys):
    assert main(["compare", *pair(), "--out", str(tmp_path / "table.md")]) == 0
    table = [
        "| score | a | b |",
        "| --- | ---: | ---: |",
        "| fid | 12.5 | 9.75 |",
        "| tasks.position | 0.25 | 0.5 |",
        "| images | 1,000 |  |",
    ]
    assert capsys.readouterr().out.splitlines()[:5] == table
    assert (tmp_path / "table.md").read_text().splitlines() == table


def test_scores_are_chosen_by_name_or_group(pair, capsys):
    assert main(["compare", *pair(), "--scores", "tasks"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["| tasks.position | 0.25 | 0.5 |"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"count": 500}, "count 1000 and 500"),
        ({"crop": {"size": [64, 64], "mode": "adm"}}, "crop.mode 'center' and 'adm'"),
        ({"weights_hash": "12" * 32}, "weights_hash '6726825d0000...' and '121212121212...'"),
        ({"rewritten": True}, "rewritten False and True"),
        ({"versions": {**PROTOCOL.versions, "torch": "1.0"}}, "versions.torch"),
    ],
)
def test_unlike_results_are_refused_by_the_field(pair, change, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", *pair(**change)])
    said = capsys.readouterr()
    assert (stop.value.code, said.out) == (2, "")
    assert said.err.startswith("error: a and b cannot be compared: expected two results of one protocol, got ")
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_every_field_that_differs_is_named(pair, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["compare", *pair(count=500, rewritten=True, sampler={"order": "neighbouring"})])
    named = "count 1000 and 500, rewritten False and True, sampler.order 'raster' and 'neighbouring'; evaluate both"
    assert named in capsys.readouterr().err


def test_a_field_is_ignored_knowingly(pair, capsys):
    assert main(["compare", *pair(sampler={"order": "neighbouring"}), "--ignore", "sampler.order"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "measured alike but for sampler.order"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a.json"], "at least two results, got 1"),
        (["a.json", "a.json"], "every result must be named once, got .*a.json twice"),
        (
            ["a.json", "b.json", "--ignore", "colour"],
            "no protocol here has a field 'colour' to ignore; they have count",
        ),
        (["a.json", "b.json", "--scores", "psnr"], "no result has a score named psnr; they have fid, tasks, images"),
        (["a.json", "c.json"], "expected a result file, found none at"),
        (["a.json", "b.json", "--out", "table.txt"], "--out must end in .md"),
    ],
)
def test_bad_input_is_one_line(pair, tmp_path, arguments, sentence, capsys):
    pair()
    with pytest.raises(SystemExit) as stop:
        main(["compare", *(str(tmp_path / given) if given.endswith(("json", "txt")) else given for given in arguments)])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.count("\n") == 1
    assert re.search(sentence, said)


def test_a_preset_decides_nothing_but_is_written(pair, capsys):
    assert main(["compare", *pair(preset="adm-256")]) == 0


def test_part_of_a_field_is_ignored(pair, capsys):
    assert main(["compare", *pair(extra={"kid": {"subsets": 100, "size": 50}}), "--ignore", "extra.kid"]) == 0
    assert capsys.readouterr().out.startswith("| score | a | b |")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"fid": "eleven"}, "a.json is no result: score fid must be a number, got str"),
        ({"fid": [1, 2]}, "a.json is no result: score fid must be a number, got list"),
        ({"fid": float("nan")}, "a.json is no result: score fid must be finite, got nan"),
        ({"protocol": {"task": "x"}}, "a.json is no result: expected a protocol with the fields .* got missing count"),
        ({"protocol": {**PROTOCOL.to_dict(), "count": "12"}}, "a.json is no result: protocol count must be a whole"),
        ({"protocol": {**PROTOCOL.to_dict(), "colour": 1}}, "a.json is no result: .* got unknown colour"),
    ],
)
def test_damaged_results_are_named(pair, change, sentence, tmp_path, capsys):
    files = pair()
    record = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(SystemExit, match="2"):
        main(["compare", *files])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(sentence, said)


def test_columns_are_named_by_what_differs(tmp_path, capsys):
    files = [tmp_path / name / "scores.json" for name in ("raster", "masked")]
    for file in files:
        write_result(file, {"fid": 1.0}, PROTOCOL)
    assert main(["compare", *map(str, files)]) == 0
    assert capsys.readouterr().out.startswith("| score | raster | masked |")
