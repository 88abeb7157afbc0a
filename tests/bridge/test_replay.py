"""The published modules, where their golden data lie beside the checkout; and what is said of files that do not fit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from smalti.bridge.golden import Golden
from smalti.bridge.replay import SYSTEMS, main, replay

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden"


def published(system):
    """The golden data of a system, wherever they lie."""
    path = next(GOLDEN.glob(f"*/{system}.safetensors"), None)
    if path is None:
        pytest.skip(f"golden data of {system} expected beside the checkout, in a folder of {GOLDEN}")
    return path


@pytest.mark.parametrize("system", SYSTEMS)
def test_published_outputs(system):
    golden = Golden.load(published(system))
    deltas = replay(golden)
    assert {delta.name for delta in deltas} == set(golden.outputs)
    assert not [delta for delta in deltas if not delta.within]


def multi_codebook(path, **changes):
    """A file that this test makes: a multi-codebook quantizer, its outputs written out by hand."""
    tables = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 3.0], [-1.0, 0.0]]])
    features = torch.tensor([[[5.0, 1.0, -2.0, 0.5]]])
    rows = torch.tensor([[[1.0, 0.0, -1.0, 0.0]]])
    unit = torch.cat([torch.nn.functional.normalize(part, dim=-1) for part in features.split(2, dim=-1)], dim=-1)
    tensors = {
        "weights.codebooks.0.codebook.weight": tables[0],
        "weights.codebooks.1.codebook.weight": tables[1],
        "in.features": features,
        "in.cotangent": torch.ones_like(features),
        "out.indices": torch.tensor([[[0], [1]]]),
        "out.from_indices": rows,
        "out.vq_loss": 1.25 * (unit - rows).square().mean(),
        "out.usage_percent": torch.tensor(50.0),
    }
    config = {"vocab_size": 4, "vocab_width": 4, "num_codebooks": 2, "beta": 0.25, "use_entropy_loss": True}
    about = {
        "system": "unitok_mcq",
        "config": config | {"entropy_temp": 0.01},
        "tolerance": {"float_atol": 1e-6, "float_rtol": 0.0},
    }
    tensors |= {name: value for name, value in changes.get("tensors", {}).items() if value is not None}
    for name in [name for name, value in changes.get("tensors", {}).items() if value is None]:
        del tensors[name]
    save_file(tensors, path, {changes.get("key", "golden"): json.dumps(about | changes.get("about", {}))})
    return str(path)


@pytest.mark.parametrize("key", ["golden", "json"])
def test_a_file_of_ones_own(tmp_path, capsys, key):
    assert main([multi_codebook(tmp_path / "own.safetensors", key=key)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("own.safetensors: unitok_mcq")
    assert [line.split()[0] for line in lines[1:]] == ["from_indices", "indices", "usage_percent", "vq_loss"]
    assert all(line.endswith("ok") for line in lines[1:])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("out.vq_loss", torch.tensor(9.0)),
        ("out.indices", torch.tensor([[[1], [1]]])),
        ("out.from_indices", torch.zeros(1, 1, 3)),
        ("out.usage_percent", torch.tensor(50)),
    ],
)
def test_other_numbers_shapes_and_kinds_are_beyond(tmp_path, capsys, name, value):
    path = multi_codebook(tmp_path / "other.safetensors", tensors={name: value})
    assert main([path]) == 1
    beyond = [line for line in capsys.readouterr().out.splitlines() if line.endswith("BEYOND")]
    assert [line.split()[0] for line in beyond] == [name.removeprefix("out.")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"about": {"system": "cubist"}}, "system must be one of .*unitok_mcq.*, got 'cubist'"),
        ({"key": "notes"}, "needs metadata 'golden' or 'json' with system, config and tolerance"),
        (
            {"tensors": {"out.colour": torch.ones(1)}},
            "outputs of unitok_mcq must all be computed here, got none for colour",
        ),
        ({"tensors": {"weights.extra": torch.ones(1)}}, "weights of unitok_mcq must match .* not used: extra;"),
        ({"tensors": {"weights.codebooks.1.codebook.weight": None}}, "missing: tables.1.table"),
        (
            {"tensors": {"weights.codebooks.1.codebook.weight": torch.ones(3, 2)}},
            r"of another shape: tables.1.table \[3, 2\] for \[2, 2\]",
        ),
    ],
)
def test_files_that_do_not_fit(tmp_path, changes, said):
    path = multi_codebook(tmp_path / "odd.safetensors", **changes)
    assert main([path]) == 2
    with pytest.raises(ValueError, match=said):
        replay(Golden.load(path))


def test_tolerances_of_kinds(tmp_path, capsys):
    """A kind is what the name of an output, or of a part of it, begins with."""
    close, far = {"atol": 1e-6, "rtol": 0.0}, {"atol": 0.5, "rtol": 0.5}
    kinds = {"vq": close, "usage": far, "indices": "exact"}
    outputs = {"out.usage_percent": torch.tensor(50.25), "out.from_indices": None}
    path = multi_codebook(tmp_path / "kinds.safetensors", tensors=outputs, about={"tolerance": kinds})
    assert main([path]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(line[0], line[3], line[4]) for line in lines] == [
        ("indices", "0.0e+00", "ok"),
        ("usage_percent", "5.0e-01", "ok"),
        ("vq_loss", "1.0e-06", "ok"),
    ]
    del kinds["usage"]
    path = multi_codebook(tmp_path / "lacking.safetensors", tensors=outputs, about={"tolerance": kinds})
    assert main([path]) == 2
    said = "the tolerance must say how close usage_percent has to be, got vq, indices; name its kind"
    assert said in capsys.readouterr().err
    with pytest.raises(ValueError, match=said):
        replay(Golden.load(path))


def test_no_file(tmp_path, capsys):
    (tmp_path / "text.safetensors").write_text("no tensors")
    assert main([str(tmp_path / "text.safetensors"), str(tmp_path / "absent.safetensors")]) == 2
    said = capsys.readouterr().err
    assert "is no readable golden file" in said
    assert "a golden file was expected at" in said
    assert main([]) == 2


@pytest.mark.parametrize(("system", "weight"), [("slot_morph", "query.weight"), ("llamagen_c2i", "wqkv.weight")])
def test_weights_of_other_values_are_seen(system, weight):
    golden = Golden.load(published(system))
    next(tensor for name, tensor in golden.weights.items() if name.endswith(weight)).mul_(1.001)
    assert not all(delta.within for delta in replay(golden))
