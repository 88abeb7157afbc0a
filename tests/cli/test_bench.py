"""``smalti bench``: what its file stands for, and what is refused; carried out by tests/test_configs.py."""

from __future__ import annotations

import pytest
import torch
import yaml
from transformers import ViTConfig, ViTModel

from smalti.cli.bench import bench_recipe, time_step_apart
from smalti.data.store import TokenRecord, write_store
from smalti.eval.protocol import read_result
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.base import VisualTokenizer

FILE = {
    "folder": "somewhere",
    "before": {"vocabulary": {"run": "vocabulary", "with": {"source": "x"}}},
    "training": {
        "model": {"pixel_loss": "loss", "seed": 1},
        "data": {"class_path": "ImageData"},
        "trainer": {"max_steps": 3},
    },
    "families": {"one": {"tokenizer": "first"}, "two": {"tokenizer": "second", "seed": 2}},
    "compare": {"size": 64},
}


LM_FILE = FILE | {
    "codes": {"train": "scenes", "workers": 2},
    "lm": {"model": {"reading": 0.3}, "data": {"batch_size": 4}, "trainer": {"max_steps": 5}},
    "score": {"world": "small"},
    "compare": {"title": "both"},
}


def written(tmp_path, file=FILE, **changed):
    path = tmp_path / "bench.yaml"
    path.write_text(yaml.safe_dump({**file, **changed}))
    return path


def test_a_file_stands_for_a_recipe(tmp_path):
    recipe = bench_recipe("tokenizers", written(tmp_path))
    assert [(stage.name, stage.run) for stage in recipe.stages] == [
        ("vocabulary", "vocabulary"),
        ("one", "fit"),
        ("two", "fit"),
        ("comparison", "compare"),
    ]
    first, second = (stage.arguments for stage in recipe.stages[1:3])
    assert first["data"] == second["data"] == FILE["training"]["data"]
    assert first["trainer"] == second["trainer"] == FILE["training"]["trainer"]
    common = {"pixel_loss": "loss", "seed": 1, "tokenizer": "first", "save_to": "${one}/model"}
    assert first["model"] == {"class_path": "TokenizerTraining", "init_args": common}
    assert second["model"]["init_args"]["seed"] == 2  # a family's own come last
    assert recipe.stages[3].arguments == {"models": {"one": "${one}/model", "two": "${two}/model"}, "size": 64}
    assert str(bench_recipe("tokenizers", written(tmp_path), tmp_path / "other").folder) == str(tmp_path / "other")


def test_a_file_of_language_models_stands_for_a_recipe(tmp_path):
    recipe = bench_recipe("lm", written(tmp_path, LM_FILE))
    of_one = [("one", "fit"), ("one-codes", "encode"), ("one-lm", "fit"), ("one-scores", "score")]
    of_two = [(name.replace("one", "two"), run) for name, run in of_one]
    before, after = ("vocabulary", "vocabulary"), ("comparison", "compare")
    assert [(stage.name, stage.run) for stage in recipe.stages] == [before, *of_one, *of_two, after]
    stages = {stage.name: stage for stage in recipe.stages}
    plain = bench_recipe("tokenizers", written(tmp_path)).stages
    assert stages["one"] == next(stage for stage in plain if stage.name == "one")
    assert stages["two-codes"].arguments == {"tokenizer": "${two}/model", "train": "scenes", "workers": 2}
    assert stages["two-lm"].arguments == {
        "model": {
            "class_path": "LanguageModelTraining",
            "init_args": {"reading": 0.3, "tokenizer": "${two}/model", "save_to": "${two-lm}/model"},
        },
        "data": {"class_path": "TokenData", "init_args": {"batch_size": 4, "train": "${two-codes}/train"}},
        "trainer": {"max_steps": 5},
    }
    assert stages["two-scores"].arguments == {"model": "${two-lm}/model", "settings": {"world": "small"}}
    assert stages["comparison"].arguments == {
        "scores": {"one": "${one-scores}", "two": "${two-scores}"},
        "training": {"one": "${one-lm}", "two": "${two-lm}"},
        "title": "both",
    }
    assert stages["comparison"].publish == ("lm.json", "lm.html", "lm.png", "lm.md")


def test_models_are_validated_where_pictures_for_it_are_coded(tmp_path):
    codes = {"train": "scenes", "validation": "others"}
    recipe = bench_recipe("lm", written(tmp_path, LM_FILE, codes=codes))
    data = next(stage for stage in recipe.stages if stage.name == "one-lm").arguments["data"]["init_args"]
    assert data["validation"] == "${one-codes}/validation"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"families": {"one": {"tokenizer": "x"}}}, "at least two families to compare"),
        ({"families": {"one": {"tokenizer": "x"}, "two": {}}}, "family 'two' in .* must have a tokenizer"),
        ({"training": {"model": {}}}, "training must have model, data and trainer, got .*; correct it"),
        ({"more": 1}, "must be a mapping with folder, before, training, families, compare, got"),
    ],
)
def test_files_of_another_form(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        bench_recipe("tokenizers", written(tmp_path, **changed))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="recipe file was expected"):
        bench_recipe("tokenizers", tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lm": {"model": {}}}, "lm must have model, data and trainer, got .*; correct it"),
        ({"codes": None}, "codes must be a mapping without tokenizer, which every family has of its own, got NoneType"),
        ({"codes": {"tokenizer": "x"}}, "codes must be a mapping without tokenizer, .*, got tokenizer; correct it"),
        (
            {"lm": LM_FILE["lm"] | {"model": {"save_to": "x"}}},
            "lm.model must be a mapping without tokenizer, save_to, which every family has of its own, got save_to; ",
        ),
        (
            {"lm": LM_FILE["lm"] | {"data": {"train": "x"}}},
            "lm.data must be a mapping without train, which every family has of its own, got train; correct it",
        ),
        ({"more": 1}, "with folder, before, training, families, codes, lm, score, compare, got"),
    ],
)
def test_files_of_language_models_of_another_form(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        bench_recipe("lm", written(tmp_path, LM_FILE, **changed))


VARIANTS = {
    "folder": "somewhere",
    "before": {"vocabulary": {"run": "vocabulary", "with": {"source": "x"}}},
    "lm": {"model": {"reading": 0.5}, "data": {"class_path": "PictureTextData"}, "trainer": {"max_steps": 3}},
    "variants": {"frozen": None, "tuned": {"tune_tokenizer": True, "data": {"size": 8}}},
    "seeds": [0, 7],
    "score": {"world": "small"},
    "compare": {"title": "both"},
}


def test_variants_are_trained_with_every_seed(tmp_path):
    recipe = bench_recipe("variants", written(tmp_path, VARIANTS))
    runs = [f"{name}-{seed}" for name in ("frozen", "tuned") for seed in (0, 7)]
    names = [name for run in runs for name in (run, f"{run}-scores")]
    assert [stage.name for stage in recipe.stages] == ["vocabulary", *names, "comparison"]
    stages = {stage.name: stage for stage in recipe.stages}
    common = {"reading": 0.5, "seed": 7, "save_to": "${tuned-7}/model"}
    assert stages["tuned-7"].arguments == {
        "model": {"class_path": "LanguageModelTraining", "init_args": {**common, "tune_tokenizer": True}},
        "data": {"class_path": "PictureTextData", "init_args": {"size": 8}},
        "trainer": {"max_steps": 3},
    }
    assert stages["frozen-0"].arguments["data"] == {"class_path": "PictureTextData"}
    assert stages["frozen-0-scores"].arguments == {"model": "${frozen-0}/model", "settings": {"world": "small"}}
    assert stages["comparison"].arguments == {
        "scores": {name: [f"${{{name}-{seed}-scores}}" for seed in (0, 7)] for name in ("frozen", "tuned")},
        "models": {name: [f"${{{name}-{seed}}}/model" for seed in (0, 7)] for name in ("frozen", "tuned")},
        "title": "both",
    }


DECODERS = FILE | {
    "training": FILE["training"] | {"model": {"denoiser": "network", "seed": 1}},
    "families": {"one": {"tokenizer": "${vocabulary}/model"}, "two": {"tokenizer": "second", "seed": 2}},
    "compare": {"teacher": "third"},
}


def test_decoders_are_trained_beside_every_tokenizer(tmp_path):
    recipe = bench_recipe("decoders", written(tmp_path, DECODERS))
    names = [("vocabulary", "vocabulary"), ("one-decoder", "fit"), ("two-decoder", "fit"), ("comparison", "compare")]
    assert [(stage.name, stage.run) for stage in recipe.stages] == names
    first, second, last = (stage.arguments for stage in recipe.stages[1:])
    common = {"denoiser": "network", "seed": 1, "tokenizer": "${vocabulary}/model"}
    common |= {"save_to": "${one-decoder}/decoder"}
    assert first["model"] == {"class_path": "DecoderTraining", "init_args": common}
    assert (first["data"], first["trainer"]) == (FILE["training"]["data"], FILE["training"]["trainer"])
    assert second["model"]["init_args"]["seed"] == 2  # a family's own come last
    assert last == {
        "tokenizers": {"one": "${vocabulary}/model", "two": "second"},
        "training": {"one": "${one-decoder}", "two": "${two-decoder}"},
        "teacher": "third",
    }
    assert recipe.stages[-1].publish == ("decoders.json", "decoders.html", "decoders.png", "decoders.md")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"families": {}}, "must name at least one family whose codes are decoded, none of them 'references', got {}"),
        ({"families": {"references": {"tokenizer": "x"}}}, "none of them 'references', got"),
        ({"families": {"one": {}}}, "family 'one' in .* must have the folder of its tokenizer, got {}; add it"),
        ({"families": {"one": {"tokenizer": {}}}}, "family 'one' in .* must have the folder of its tokenizer"),
        ({"training": {"model": {}}}, "training must have model, data and trainer, got .*; correct it"),
        (
            {"families": {"one": {"tokenizer": "x", "save_to": "y"}}},
            "mapping without tokenizer, save_to, .*, got save_to",
        ),
        ({"more": 1}, "must be a mapping with folder, before, training, families, compare, got"),
    ],
)
def test_files_of_decoders_of_another_form(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        bench_recipe("decoders", written(tmp_path, DECODERS, **changed))


def test_decoders_are_trained_and_compared(model, tmp_path, answers):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "vit")
    unet = {"sample_size": 16, "block_out_channels": [8, 8], "cross_attention_dim": 8, "layers_per_block": 1}
    unet |= {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": 4}
    unet |= {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 4}
    unet |= {"in_channels": 3, "out_channels": 3}

    def scenes(split, count):
        return {"class_path": "Scenes", "init_args": {"world": "small", "split": split, "count": count, "size": 16}}

    train = {"train": scenes("train", 8), "size": 16, "batch_size": 4}
    file = {
        "folder": str(tmp_path / "run"),
        "before": None,
        "training": {
            "model": {
                "denoiser": {"class_path": "diffusers.UNet2DConditionModel", "init_args": unet},
                "scheduler": {"class_path": "diffusers.FlowMatchEulerDiscreteScheduler"},
                "sampling": {"steps": 2},
            },
            "data": {"class_path": "ImageData", "init_args": train},
            "trainer": {"max_steps": 2, "accelerator": "cpu"},
        },
        "families": {"vq": {"tokenizer": str(model / "tokenizer")}},
        "compare": {
            "pictures": scenes("validation", 6),
            "teacher": str(tmp_path / "vit"),
            "batch_size": 4,
            "device": "cpu",
        },
    }
    lines = answers("bench", "decoders", "-c", written(tmp_path, file))
    assert [line.split(" | ")[1] for line in lines if line.startswith("| vq")] == [
        "its own",
        "trained beside it",
        "the same, untrained",
    ]
    result = read_result(tmp_path / "run" / "decoders.json")
    assert list(result.scores) == ["vq", "references"]
    trained = result.scores["vq"]["trained"]
    assert trained["steps"] == 2
    assert trained["seconds"] > 0
    assert result.scores["references"]["gray"]["objects"]["right"] == 0
    assert result.protocol.sampler["vq"]["sampling"] == {"steps": 2, "guidance": 1.0}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"variants": {"one": {}}}, "at least two variants to compare, got .*; add some"),
        ({"seeds": []}, r"must be a list of different numbers, got \[\]; name one at least"),
        ({"seeds": [1, 1]}, r"must be a list of different numbers, got \[1, 1\]"),
        ({"lm": {}}, "lm must have model, data and trainer, got"),
        ({"variants": {"a": {"seed": 3}, "b": {}}}, "variants.a must be a mapping without seed, save_to, which every"),
    ],
)
def test_files_of_variants_of_another_form(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        bench_recipe("variants", written(tmp_path, VARIANTS, **changed))


@pytest.fixture
def configuration(model, tmp_path):
    """The ``fit.yaml`` of a language model on four coded pictures."""
    tokenizer = VisualTokenizer.from_pretrained(model / "tokenizer")
    records = [TokenRecord("a red circle", (("how many squares", "two"),))] * 4
    ids, spec = torch.randint(0, 16, (4, 16, 1)), tokenizer.spec.to_dict()
    write_store(tmp_path / "codes", ids, records, {"spec": spec, "fingerprint": tokenizer.fingerprint()})
    Vocabulary.train(["a red circle", "how many squares", "two"]).save_pretrained(tmp_path / "vocabulary")
    words = {"class_path": "smalti.lm.vocabulary.Vocabulary.from_pretrained"}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    arguments = {
        "tokenizer": str(model / "tokenizer"),
        "vocabulary": words | {"init_args": {"folder": str(tmp_path / "vocabulary")}},
        "backbone": {"model_type": "llama", **sizes},
        "save_to": str(tmp_path / "saved"),
    }
    data = {"train": str(tmp_path / "codes"), "batch_size": 2}
    content = {
        "model": {"class_path": "LanguageModelTraining", "init_args": arguments},
        "data": {"class_path": "TokenData", "init_args": data},
        "trainer": {"max_steps": 9, "precision": "bf16-mixed", "accelerator": "cpu", "val_check_interval": 3},
    }
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "fit.yaml")


def test_a_step_is_timed_as_the_run_was_configured_in_another_process(configuration, tmp_path):
    speed = time_step_apart(configuration, 2)
    assert (speed.steps, speed.batch, speed.precision, speed.device) == (2, 2, "bf16-mixed", "cpu")
    assert speed.seconds > 0
    assert not (tmp_path / "saved").exists()
