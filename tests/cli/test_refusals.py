"""Whatever a command cannot do is told in one line, with exit code 2, and nothing is written.

The table is ``refusals.yaml``: by command, what is wrong, the arguments, and what the line says.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from smalti.cli.evaluate import KINDS
from smalti.cli.main import COMMANDS, main
from smalti.data.scenes import Scenes
from smalti.data.transforms import Crop
from smalti.eval.protocol import Protocol, write_result
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers import base
from smalti.tokenizers.base import VisualTokenizer
from smalti.training.encode import texts_of
from smalti.training.tokenize import TokenizeSettings, tokenize_source

PART = {"dim": 8, "width": 8, "multipliers": [1, 1], "blocks": 1}
TOKENIZER = {
    "image_size": 16,
    "encoder": {"class_path": "ConvEncoder", "init_args": PART},
    "quantizer": {"class_path": "VectorQuantizer", "init_args": {"dim": 4, "codebook_size": 16}},
    "decoder": {"class_path": "ConvDecoder", "init_args": PART},
}
LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
WEIGHTS = "diffusion_pytorch_model.safetensors"
PROTOCOL = Protocol("generation", "scenes", "ab" * 32, 10, "float32", 0, {"size": [8, 8]}, "inception", "c" * 64)


def source(kind: str, **arguments) -> dict:
    return {"class_path": kind, "init_args": arguments}


def config(model: dict, data: dict, **trainer) -> dict:
    trainer = {"default_root_dir": "run", "max_steps": 2, "accelerator": "cpu"} | trainer
    return {"trainer": trainer, "model": copy.deepcopy(model), "data": copy.deepcopy(data)}


def tokenizer_training(**options) -> dict:
    pixel_loss = source("PixelLoss", l1=1.0)
    tokenizer = source("VQTokenizer", **TOKENIZER)
    return source("TokenizerTraining", tokenizer=tokenizer, pixel_loss=pixel_loss, save_to="saved", **options)


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
    "a rate that is no number": (
        config(tokenizer_training(optimizer={"learning_rate": float("nan")}), pictures()),
        "learning_rate must be above 0, got nan; 1e-4 to 1e-3 is usual",
    ),
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


class Touch:
    """Whose pickle makes a file when it is opened."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.fixture(scope="module")
def place(tmp_path_factory, model, other_tokenizer) -> Path:
    """A folder of right and wrong inputs, which no row of the table changes."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(model, folder / "model")
    shutil.copytree(model / "tokenizer", folder / "own")
    shutil.copytree(other_tokenizer, folder / "other")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for write in (write_pictures, write_codes, write_models, write_texts, write_configurations):
            write()
    return folder


@pytest.fixture
def workplace(place, monkeypatch) -> Path:
    """The folder as the current one."""
    monkeypatch.chdir(place)
    return place


def halved(path: str | Path) -> bytes:
    whole = Path(path).read_bytes()
    return whole[: len(whole) // 2]


def write_pictures() -> None:
    for name in ("pictures", "empty", "sizes", "folder.json", "folder.yaml"):
        Path(name).mkdir()
    for number in range(4):
        Image.effect_noise((20, 20), 20 + number).convert("RGB").save(f"pictures/{number}.png")
        Image.effect_noise((8 + number, 8), 20).convert("RGB").save(f"sizes/{number}.png")
    Path("text.png").write_text("no picture")
    Path("cut.png").write_bytes(halved("pictures/0.png"))
    Path("circle.png").symlink_to("circle.png")
    np.savez("objects.npz", arr_0=np.array([None], dtype=object))
    Path("cut.npz").write_bytes(b"PK\x03\x04 and nothing more")
    Path("cut.tar").write_bytes(b"no tar")


def write_codes() -> None:
    Vocabulary.train(texts_of(Scenes("small", "train", 100))).save_pretrained("vocabulary")
    tokenizer = VisualTokenizer.from_pretrained("own")
    tokenize_source(tokenizer, Scenes("small", "train", 4), "codes", "scenes", TokenizeSettings(Crop(16)))
    assert main(["encode", "pictures", "--tokenizer", "own", "--out", "codes.safetensors", "--device", "cpu"]) == 0
    Path("cut.safetensors").write_bytes(halved("codes.safetensors"))
    stored = load_file("codes.safetensors")
    with safe_open("codes.safetensors", "pt") as file:
        about = file.metadata()
    save_file({**stored, "ids": torch.full_like(stored["ids"], 99)}, "wild.safetensors", about)
    save_file(stored, "other.safetensors", dict.fromkeys(about, "[1]"))


def write_models() -> None:
    changed("own", "cut", WEIGHTS, lambda path: path.write_bytes(halved(path)))
    changed("own", "garbled", "config.json", lambda path: path.write_bytes(halved(path)))
    changed("own", "listed", "config.json", lambda path: path.write_text("[1]"))
    changed("own", "misnamed", "config.json", lambda path: edited(path, _class_name="os.system"))
    changed("own", "oversized", "config.json", lambda path: edited(path, image_size=-3))
    changed("own", "pickled", WEIGHTS, Path.unlink)
    torch.save({"weight": Touch()}, "pickled/diffusion_pytorch_model.bin")
    changed("model", "cut-model", "lm/model.safetensors", lambda path: path.write_bytes(halved(path)))
    changed("model", "listed-model", "lm/config.json", lambda path: path.write_text("[1]"))
    changed("model", "speechless", "lm/vocabulary.model", lambda path: path.write_bytes(b"nothing"))
    for name in ("evil.pt", "evil.pth", "evil.ckpt"):
        torch.save({"state_dict": Touch()}, name)


def changed(model: str, name: str, file: str, change: Callable[[Path], object]) -> None:
    """A copy of a model with one other file."""
    shutil.copytree(model, name)
    change(Path(name) / file)


def edited(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def write_texts() -> None:
    Path("latin.txt").write_bytes("ein Kreis f\xfcr".encode("latin-1"))
    Path("blank.txt").write_text("\n\n")
    Path("cut.json").write_text('{"a": [1, ')
    Path("list.json").write_text("[1]")
    Path("deep.json").write_text("[" * 100_000)
    Path("latin.json").write_bytes(b'{"a": "\xfc"}')
    write_result("a.json", {"fid": 1.0}, PROTOCOL)
    write_result("b.json", {"fid": 2.0}, replace(PROTOCOL, seed=1))
    write_result("c.json", {"fid": 2.0}, PROTOCOL)
    Path("nan.json").write_text(Path("a.json").read_text().replace("1.0", "NaN"))
    for name, content in {"wordy-log": b"epoch,step,loss\n0,one,x\n", "latin-log": b"epoch,step,\xfc\n0,1,2\n"}.items():
        Path(name).mkdir()
        Path(name, "metrics.csv").write_bytes(content)


def write_configurations() -> None:
    Path("list.yaml").write_text("- a\n")
    Path("twice.yaml").write_text("folder: a\nfolder: b\nstages: {}\n")
    Path("tag.yaml").write_text("folder: !!python/object/apply:os.system ['touch ran']\n")
    Path("deep.yaml").write_text("[" * 2_000)
    Path("latin.yaml").write_bytes(b"folder: \xfc\n")
    for name, stage in STAGES.items():
        folder = {"occupied": ".", "marked": "marked"}.get(name, "run")
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"folder": folder, "stages": {"pictures": stage}}))
    Path("marked/pictures").mkdir(parents=True)
    Path("marked/pictures/.stage.json").write_text("{")
    Path("good.yaml").write_text(yaml.safe_dump(config(tokenizer_training(), pictures())))
    for name, (refused, _) in REFUSED.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(refused))


STAGES = {
    "evil": {"run": "vocabulary", "with": {"source": source("os.system", command="touch ran")}},
    "climbs": {"run": "vocabulary", "publish": ["../../x"]},
    "unknown": {"run": "vocabluary"},
    "lacking": {"run": "encode", "with": {"tokenizer": "nowhere"}},
    "misread": {"run": "encode", "with": {"tokenizer": "${later}", "train": source("Scenes")}},
    "occupied": {"run": "vocabulary", "with": {"source": source("Scenes")}},
    "marked": {"run": "vocabulary", "with": {"source": source("Scenes")}},
}
TABLE = {
    f"{command}: {what}": (arguments, line)
    for command, rows in yaml.safe_load(Path(__file__).with_name("refusals.yaml").read_text()).items()
    for what, (arguments, line) in rows.items()
} | {f"fit: {what}": (f"fit -c '{what}.yaml'", line) for what, (_, line) in REFUSED.items()}


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below one, with the size and time of files; those of folders change with trials."""
    found = sorted(folder.rglob("*"))
    return {str(path): (0, 0) if path.is_dir() else (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found}


@pytest.mark.parametrize("row", TABLE)
def test_bad_input_is_refused_in_one_line_and_writes_nothing(row, workplace, fails):
    arguments, line = TABLE[row]
    before = tree(workplace)
    assert line in fails(*shlex.split(arguments.replace("LONG", "x" * 300)))
    assert tree(workplace) == before


def test_every_command_and_kind_of_score_is_in_the_table():
    commands = {tuple(shlex.split(arguments)[:2]) for arguments, _ in TABLE.values() if arguments}
    assert {command for command, *_ in commands} >= set(COMMANDS)
    assert {kind for command, *rest in commands for kind in rest if command == "eval"} >= set(KINDS)
    assert len(TABLE) >= 60


def test_a_full_disk_while_saving_the_result_keeps_the_earlier_one(place, tmp_path, monkeypatch, capsys):
    workplace = tmp_path
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "pictures", "pictures")
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
