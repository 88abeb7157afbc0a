"""``smalti doctor`` on folders of a run and of a model."""

from __future__ import annotations

import shutil

import pytest
import yaml

from smalti.cli.main import main
from smalti.eval import reference_curves


def test_a_log_with_dead_codes_and_a_model_beside_it(model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "model")
    logs = tmp_path / "logs" / "version_0"
    logs.mkdir(parents=True)
    (logs / "metrics.csv").write_text("step,usage/pixel\n" + "".join(f"{step},0.03\n" for step in range(20)))
    assert main(["doctor", str(tmp_path), "--count", "8", "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "log logs/version_0:\n  problem: pixel: 3.0% of its codes are in use" in said
    assert "    try: restart dead codes" in said
    assert "tokenizer model/tokenizer" in said


def test_a_healthy_log(tmp_path, capsys):
    (tmp_path / "metrics.csv").write_text("step,usage/pixel\n0,0.9\n1,0.9\n")
    assert main(["doctor", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "log .: nothing wrong found\n"


@pytest.mark.parametrize("there", [True, False])
def test_nothing_to_examine(tmp_path, there, capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor", str(tmp_path if there else tmp_path / "nowhere")])
    assert end.value.code == 2
    assert ("must hold training logs" if there else "which is no folder") in capsys.readouterr().err


def run_folder(folder, seed, discriminator=0.8, name="gan"):
    """A run of 40 logged steps of a made-up GAN."""
    place = folder / "logs" / "version_0"
    place.mkdir(parents=True)
    rows = [f"{step},{1 / (step + 9):.4f},{discriminator},{1 + seed / 100}" for step in range(40)]
    (place / "metrics.csv").write_text("\n".join(["step,train/l1,train/discriminator,train/loss", *rows]) + "\n")
    settings = {"seed": seed, "width": 8, "adversarial": {"loss": "hinge", "clamp": [0.3, 10.0]}, "kind": name}
    content = {"model": {"class_path": "TokenizerTraining", "init_args": settings}}
    (place / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture
def recorded(tmp_path, answers):
    folders = [run_folder(tmp_path / f"good-{seed}", seed) for seed in (0, 1)]
    command = ("--command", "smalti fit -c gan.yaml")
    lines = answers("doctor", *folders, "--record", tmp_path / "curves" / "gan.json", *command)
    assert lines == [f"wrote {tmp_path / 'curves' / 'gan.json'}: 3 curves of 2 runs"]
    return tmp_path / "curves" / "gan.json"


def test_a_healthy_copy_is_within_the_reference(recorded, tmp_path, answers):
    run = run_folder(tmp_path / "run", 5)
    lines = answers("doctor", run, "--against", recorded, "--out", tmp_path / "o.png")
    assert lines[1].startswith("reference gan: 2 runs of smalti fit -c gan.yaml (20")
    assert lines[1].endswith("4 of 4 settings are those of this run")
    assert "run .: within the reference" in lines
    assert f"wrote {tmp_path / 'o.png'}" in lines
    assert (tmp_path / "o.png").stat().st_size > 0
    assert "run .: within the reference" in answers("doctor", run, "--against", tmp_path / "good-0")


def test_a_run_whose_discriminator_wins_is_not(recorded, tmp_path, capsys):
    run = run_folder(tmp_path / "run", 5, discriminator=0.01, name="other")
    capsys.readouterr()
    assert main(["doctor", str(run), "--against", str(recorded), "--out", str(tmp_path / "o.html")]) == 1
    said = capsys.readouterr().out
    assert "problem: discriminator: its hinge loss is 0.010" in said
    assert "run .:\n  problem: train/discriminator: below the reference for the last third: 0.01 at step 38" in said
    assert "remark: settings: differ in kind other (reference gan)" in said
    assert (tmp_path / "o.html").is_file()


def test_the_shipped_reference_that_fits_best_is_taken(recorded, tmp_path, answers, monkeypatch):
    monkeypatch.setattr(reference_curves, "SHIPPED", recorded.parent)
    other = run_folder(tmp_path / "other", 0, name="other")
    answers("doctor", other, "--record", recorded.parent / "other.json", "--command", "smalti fit -c other.yaml")
    run = run_folder(tmp_path / "run", 5)
    assert answers("doctor", run, "--against", "reference")[1].startswith("reference gan: ")


def _unlike(tmp_path):
    """A reference with other curves."""
    place = tmp_path / "unlike"
    place.mkdir()
    (place / "metrics.csv").write_text("step,val/accuracy\n0,1\n")
    return place


def test_references_that_do_not_go_are_told_in_one_line(recorded, tmp_path, fails):
    run = run_folder(tmp_path / "run", 5)
    assert "which does not exist" in fails("doctor", run, "--against", tmp_path / "no.json")
    assert "--record needs the command" in fails("doctor", run, "--record", "x.json")
    both = ("--record", "x.json", "--command", "c", "--against", recorded)
    assert "--record writes a reference and --against reads one" in fails("doctor", run, *both)
    assert "--out draws the curves over those of --against" in fails("doctor", run, "--out", "o.png")
    assert "--out must end in .png or .html" in fails("doctor", run, "--against", recorded, "--out", "o.pdf")
    assert "one folder is examined at a time, got 2" in fails("doctor", run, tmp_path / "good-0")
    assert "no log in" in fails("doctor", tmp_path / "good-0", "--against", _unlike(tmp_path))
    (tmp_path / "empty").mkdir()
    command = ("--record", tmp_path / "x.json", "--command", "c")
    assert "must hold training logs (metrics.csv), got none" in fails("doctor", tmp_path / "empty", *command)
