"""Local models are taken whole or refused, with one line that says why."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification

from smalti.eval.checkpoints import load_local, load_tokenizer, stated_type


@pytest.fixture
def saved(tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes))
    model.half().save_pretrained(tmp_path)
    return model


def load(folder, kind="vit"):
    return load_local(ViTForImageClassification, folder, kind)


def test_a_model_is_ready_to_be_asked(saved, tmp_path):
    model = load(tmp_path)
    assert not model.training
    assert {(weight.dtype, weight.requires_grad) for weight in model.parameters()} == {(torch.float32, False)}
    assert all(torch.equal(weight, saved.state_dict()[name].float()) for name, weight in model.state_dict().items())


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a vit model in .*, found no config.json there; pass a fold"):
        load(tmp_path / "nowhere")


def test_another_model_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match=r"expected a clip model in .*, got one of the type vit; pass another folder"):
        load(tmp_path, "clip")


def test_a_folder_without_weights_is_refused(saved, tmp_path):
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected weights of a vit model in .*, found no \*.safetensors ther"):
        load(tmp_path)


@pytest.mark.parametrize("lacking", [True, False])
def test_weights_must_be_those_of_the_model(saved, tmp_path, lacking):
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    extra = {} if lacking else {"another.weight": torch.zeros(1)}
    save_file(
        {name: weight for name, weight in state.items() if not lacking or name != "classifier.bias"} | extra, file
    )
    what = "lack 1 entries such as classifier.bias" if lacking else "have in excess 1 entries such as another.weight"
    with pytest.raises(ValueError, match=f"expected the weights of a vit model in .*, which {what}; copy the folder"):
        load(tmp_path)


def test_counters_of_training_steps_are_no_weights(saved, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"norm.num_batches_tracked": torch.tensor(3)}, file)
    assert load(tmp_path).config.hidden_size == 8


def test_no_tokenizer_is_made_up(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"expected a tokenizer in .*, found none of tokenizer.json, vocab.json"
    ):
        load_tokenizer(tmp_path)


def test_a_missing_package_is_named(saved, tmp_path):
    class NeedsMore(ViTForImageClassification):
        def __init__(self, config):
            raise ImportError("this needs\n\npackage X")

    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "vit"
    with pytest.raises(ImportError, match=r"the vit model in .* needs a package that is not installed: this needs pac"):
        load_local(NeedsMore, tmp_path, "vit")


def truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])


def junk(folder):
    (folder / "model.safetensors").write_bytes(b"junk")


def empty_bin(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").touch()


def no_heads(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 0}))


@pytest.mark.parametrize("damage", [truncated, junk, empty_bin, no_heads])
def test_damaged_files_are_one_sentence(saved, tmp_path, damage):
    damage(tmp_path)
    with pytest.raises(
        ValueError, match=r"expected a vit model in .*, got files that cannot be read \(.*\w\); copy"
    ) as told:
        load(tmp_path)
    assert str(tmp_path) in str(told.value)
    assert "\n" not in str(told.value)


def test_weights_of_another_size_are_refused(saved, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"classifier.bias": torch.zeros(7)}, file)
    with pytest.raises(ValueError, match=r"which have in another shape 1 entries such as classifier\.bias; copy the"):
        load(tmp_path)


@pytest.mark.parametrize(("text", "got"), [("[]", "list"), ("{", "text that does not parse"), ("5", "int")])
def test_a_configuration_that_is_none_is_named(saved, tmp_path, text, got):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"expected a JSON object in .*config\.json, got {got}; copy the folder of"):
        load(tmp_path)


def test_the_type_that_a_folder_states(saved, tmp_path):
    assert stated_type(tmp_path) == "vit"
    (tmp_path / "config.json").write_text("{}")
    assert stated_type(tmp_path) is None
    assert stated_type(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_tokenizer_is_one_sentence(saved, tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"expected a tokenizer in .*, got files that cannot be read \(.*\w.*\); copy the"
    ):
        load_tokenizer(tmp_path)
