"""Whatever a command cannot do is told in one line, with exit code 2, before anything is written."""

from __future__ import annotations

import copy
import errno
import os
from pathlib import Path

import pytest
import yaml
from PIL import Image

from smalti.cli.main import main
from smalti.data.scenes import Scenes
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers import base
from smalti.tokenizers.base import VisualTokenizer
from smalti.training.encode import encode_source, texts_of

PART = {"dim": 8, "width": 8, "multipliers": [1, 1], "blocks": 1}
TOKENIZER = {
    "image_size": 16,
    "encoder": {"class_path": "ConvEncoder", "init_args": PART},
    "quantizer": {"class_path": "VectorQuantizer", "init_args": {"dim": 4, "codebook_size": 16}},
    "decoder": {"class_path": "ConvDecoder", "init_args": PART},
}
LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def workplace(tmp_path, monkeypatch, model, other_tokenizer) -> Path:
    """The current folder: pictures without captions, a vocabulary, and codes of the tiny model's tokenizer."""
    monkeypatch.chdir(tmp_path)
    for name in ("pictures", "empty"):
        (tmp_path / name).mkdir()
    for number in range(4):
        Image.effect_noise((20, 20), 20 + number).convert("RGB").save(tmp_path / "pictures" / f"{number}.png")
    Vocabulary.train(texts_of(Scenes("small", "train", 100))).save_pretrained("vocabulary")
    tokenizer = VisualTokenizer.from_pretrained(model / "tokenizer")
    encode_source(tokenizer, Scenes("small", "train", 4)).save("codes")
    (tmp_path / "other").symlink_to(other_tokenizer)
    (tmp_path / "own").symlink_to(model / "tokenizer")
    return tmp_path


def source(kind: str, **arguments) -> dict:
    return {"class_path": kind, "init_args": arguments}


def config(model: dict, data: dict, **trainer) -> dict:
    trainer = {"default_root_dir": "run", "max_steps": 2, "accelerator": "cpu"} | trainer
    return {"trainer": trainer, "model": copy.deepcopy(model), "data": copy.deepcopy(data)}


def tokenizer_training() -> dict:
    pixel_loss = source("PixelLoss", l1=1.0)
    tokenizer = source("VQTokenizer", **TOKENIZER)
    return source("TokenizerTraining", tokenizer=tokenizer, pixel_loss=pixel_loss, save_to="saved")


def teacher(image_size: int) -> dict:
    vocabulary = source("smalti.lm.vocabulary.Vocabulary.from_pretrained", folder="vocabulary")
    sizes = {"image_size": image_size, "patch_size": 8, "width": 16, "layers": 1, "heads": 2}
    return source("TeacherTraining", vocabulary=vocabulary, save_to="saved", **sizes)


def language_model(tokenizer: str, **backbone) -> dict:
    vocabulary = source("smalti.lm.vocabulary.Vocabulary.from_pretrained", folder="vocabulary")
    fields = {"model_type": "llama", **LLAMA, **backbone}
    return source("LanguageModelTraining", tokenizer=tokenizer, vocabulary=vocabulary, backbone=fields)


def pictures(train: dict | None = None, **arguments) -> dict:
    train = train or source("ImageFolder", path="pictures")
    return source("ImageData", **{"train": train, "size": 16, "batch_size": 2} | arguments)


CODES = source("TokenData", train="codes", batch_size=2)
REFUSED = {
    "missing folder": (
        config(tokenizer_training(), pictures(source("ImageFolder", path="nowhere"))),
        "expected a folder of pictures, got 'nowhere', which is no folder; check it",
    ),
    "empty folder": (
        config(tokenizer_training(), pictures(source("ImageFolder", path="empty"))),
        "below 'empty', got none; check the path",
    ),
    "captions asked for": (
        config(tokenizer_training(), pictures(source("ImageFolder", path="pictures", captions=True))),
        "no captions: expected <name>.txt beside the pictures in 'pictures', got none; add them",
    ),
    "captions needed": (
        config(teacher(16), pictures()),
        "a teacher needs a caption for every picture, got one without; add the missing captions",
    ),
    "size of the tokenizer": (
        config(tokenizer_training(), pictures(size=17)),
        "images must be divisible by 2 in height and width, got 17x17; resize or pad to 18x18",
    ),
    "size of the teacher": (
        config(teacher(32), pictures(source("Scenes", world="small", count=4))),
        "images must be 32x32 for a teacher of image_size 32, got 16x16; set the data's size to 32",
    ),
    "nothing left to train on": (
        config(tokenizer_training(), pictures(held_out=4)),
        "expected held_out < 4 pictures, got 4; leave some to train on",
    ),
    "clipping twice": (
        config(tokenizer_training(), pictures(), gradient_clip_val=1.0),
        "gradients are clipped by the model, part by part, got trainer.gradient_clip_val 1.0",
    ),
    "unknown class": (
        config(source("TokenizrTraining"), pictures()),
        "got the unknown name 'TokenizrTraining'; did you mean TokenizerTraining",
    ),
    "unknown option": (
        config(tokenizer_training(), pictures(batchsize=3)),
        "data (ImageData) has no option 'batchsize'; did you mean batch_size",
    ),
    "codes of another tokenizer": (
        config(language_model("other"), CODES),
        "the token store must come from tokenizer",
    ),
    "no tokenizer": (
        config(language_model("nowhere"), CODES),
        "a tokenizer was expected in nowhere, which is no folder; train it or check the path",
    ),
    "no codes": (
        config(language_model("own"), source("TokenData", train="nowhere")),
        "a token store was expected in nowhere, which lacks",
    ),
    "unknown field of the backbone": (
        config(language_model("own", hiden_size=8), CODES),
        "got 'hiden_size'; near are hidden_size",
    ),
}


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("name", REFUSED)
def test_fit_refuses_in_one_line_and_writes_nothing(name, workplace, fails):
    refused, line = REFUSED[name]
    (workplace / "config.yaml").write_text(yaml.safe_dump(refused))
    before = tree(workplace)
    assert line in fails("fit", "-c", "config.yaml")
    assert tree(workplace) == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("sample", "--gudance", "3", "x"), "smalti sample has no option --gudance; did you mean --guidance?"),
        (("sample", "x", "--zzz"), "smalti sample has no option --zzz; known are --help, --prompts"),
        (("sample", "x", "--seed"), "--seed expected one argument; see smalti sample --help"),
        (("ask",), "the following arguments are required: picture, question; see smalti ask --help"),
        (("run", "a.yaml", "b.yaml"), "smalti run takes no further argument, got 'b.yaml'; put text"),
        (("--bogus",), "smalti has no option --bogus; did you mean --debug?"),
        (("fit",), "the following arguments are required: fit.data, fit.model; give them, or a file with them as -c"),
        (("fit", "-c", "nowhere.yaml"), "File does not exist"),
        (("encode", "nowhere"), "a picture was expected at nowhere, got no such file"),
        (("encode", "empty", "--tokenizer", "own"), "expected pictures"),
        (("encode", "pictures", "--tokenizer", "empty"), "empty should hold a tokenizer but lacks config.json"),
        (("sample", "a red circle", "--model", "own"), "own should hold a model that draws pictures but lacks"),
    ],
)
def test_wrong_commands_are_one_line_and_write_nothing(arguments, line, workplace, fails):
    before = tree(workplace)
    assert line in fails(*arguments)
    assert tree(workplace) == before


def test_a_full_disk_while_saving_the_result_keeps_the_earlier_one(workplace, monkeypatch, capsys):
    (workplace / "config.yaml").write_text(yaml.safe_dump(config(tokenizer_training(), pictures())))
    assert main(["fit", "-c", "config.yaml"]) == 0
    before = {path: path.read_bytes() for path in (workplace / "saved").iterdir()}

    def full(self, folder, *arguments, **options):
        (Path(folder) / "config.json").write_text("{")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(base.ModelMixin, "save_pretrained", full)
    with pytest.raises(SystemExit) as end:
        main(["fit", "-c", "config.yaml"])
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "error: saved needs more room than its disk has left, so nothing was written; free some space"
    assert {path: path.read_bytes() for path in (workplace / "saved").iterdir()} == before
