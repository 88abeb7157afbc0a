"""``smalti doctor`` on folders of a run and of a model."""

from __future__ import annotations

import shutil

import pytest

from smalti.cli.main import main


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
