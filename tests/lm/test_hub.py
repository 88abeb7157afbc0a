"""Folders of shared models: several files, the hub up to the call, and configurations that do not fit their weights."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import hub

from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

SPEC = CodeSpec(CodeLayout("grid", (2, 2)), (Codebook("semantic", 5), Codebook("pixel", 7, 2)))
WIDTHS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {"model_type": "llama", **WIDTHS, "max_position_embeddings": 64}
INDEX = "model.safetensors.index.json"


def tokenizer() -> PreTrainedTokenizerFast:
    model = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "red": 2, "circle": 3}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]")


def built(head: str = "flat", hub_text: bool = False, **options) -> SharedLM:
    vocabulary = Vocabulary.from_tokenizer(tokenizer()) if hub_text else Vocabulary.train(["a red circle"])
    fields = {"kind": head} if head == "flat" else {"kind": head, "heads": 2}
    return SharedLM.build(LLAMA, vocabulary, SPEC, "f00d", fields, **options).eval()


def same(one: SharedLM, other: SharedLM) -> bool:
    before, after = one.state_dict(), other.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("hub_text", [False, True])
@pytest.mark.parametrize("new_rows", [False, True])
def test_weights_in_several_files_are_one_model(tmp_path, new_rows, hub_text):
    lm = built(new_rows=new_rows, hub_text=hub_text)
    lm.save_pretrained(tmp_path, max_shard_size="8KB")
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert same(SharedLM.from_pretrained(tmp_path), lm)
    lm.save_pretrained(tmp_path)  # in one file again
    assert [file.name for file in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    assert same(SharedLM.from_pretrained(tmp_path), lm)


def test_a_missing_one_of_several_files_is_named(tmp_path):
    built().save_pretrained(tmp_path, max_shard_size="8KB")
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"should hold a language model but lacks {gone.name}; save or train"):
        SharedLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}'])
def test_a_damaged_index_is_an_error(tmp_path, content):
    built().save_pretrained(tmp_path, max_shard_size="8KB")
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(ValueError, match=rf"a readable language model \({INDEX} is damaged\); save it again"):
        SharedLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["text_tokenizer/tokenizer.json", "text_tokenizer/tokenizer_config.json"])
def test_a_missing_file_of_the_text_tokenizer_is_named(tmp_path, name):
    built(hub_text=True).save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {name}; save or train"):
        SharedLM.from_pretrained(tmp_path)


def test_one_process_of_several_writes(tmp_path):
    built().save_pretrained(tmp_path / "lm", is_main_process=False)
    assert list(tmp_path.iterdir()) == []


class Calls:
    """What the hub would have been asked."""

    def __init__(self) -> None:
        self.created: list[str] = []
        self.uploaded: dict[str, bytes] = {}

    def create_repo(self, repo_id: str, **options) -> huggingface_hub.RepoUrl:
        self.created.append(repo_id)
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def create_commit(self, repo_id: str, operations, **options) -> None:
        self.uploaded = {item.path_in_repo: Path(item.path_or_fileobj).read_bytes() for item in operations}


@pytest.fixture
def calls(monkeypatch):
    """The hub, replaced where the network begins."""

    def no_card(*args, **options):
        raise EntryNotFoundError("there is none yet")

    found = Calls()
    monkeypatch.setattr(hub, "hf_api", lambda: found)
    monkeypatch.setattr(hub.ModelCard, "load", no_card)
    return found


@pytest.mark.parametrize("hub_text", [False, True])
def test_everything_that_makes_the_model_is_uploaded(tmp_path, calls, hub_text):
    lm = built(new_rows=True, hub_text=hub_text)
    lm.push_to_hub("someone/tiles", max_shard_size="8KB")
    assert calls.created == ["someone/tiles"]
    for name, content in calls.uploaded.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert {"config.json", "README.md", "vocabulary.json", INDEX} < set(calls.uploaded)
    assert same(SharedLM.from_pretrained(tmp_path), lm)
    assert SharedLM.from_pretrained(tmp_path).vocabulary.encode("a red circle") == lm.vocabulary.encode("a red circle")


def test_saving_a_folder_uploads_nothing(tmp_path, calls):
    with pytest.raises(ValueError, match=r"writes a folder alone, got push_to_hub; call push_to_hub\(repo_id\)"):
        built().save_pretrained(tmp_path / "lm", push_to_hub=True)
    assert calls.created == list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("saved", "said", "keys"),
    [
        ("depth", "flat", r"unexpected_keys head\.column\.weight, head\.enter_code\.weight, .* and \d+ more"),
        ("flat", "depth", r"missing_keys head\.column\.weight, head\.enter_code\.weight, .* and \d+ more"),
    ],
)
def test_a_checkpoint_of_another_head_is_one_clear_line(tmp_path, saved, said, keys):
    built(saved).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["head"] = built(said).config.head
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = (
        rf"^weights in .* key by key, got .*{keys}.*, while its config.json says head \{{'kind': '{said}'.*which must"
    )
    with pytest.raises(ValueError, match=message) as caught:
        SharedLM.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_weights_of_rows_that_are_apart_do_not_fit_joined_ones(tmp_path):
    built(new_rows=True).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "new_rows": False}))
    with pytest.raises(ValueError, match=r"key by key, got .*unexpected_keys new_inputs, new_outputs"):
        SharedLM.from_pretrained(tmp_path)
