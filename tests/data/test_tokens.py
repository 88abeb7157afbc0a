"""The token store: what is written comes back, and files that do not belong together are refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from smalti.data.tokens import FILES, TokenRecord, TokenStore

RECORDS = [
    TokenRecord("a red circle", (("how many ?", "two"), ("what color ?", "red"))),
    TokenRecord(None, (("how many ?", "one"),)),
    TokenRecord("naïve\u2028line \n break"),
]
SPEC = {"layout": {"kind": "grid", "shape": [1, 2]}, "codebooks": [], "dynamic": False}


def store() -> TokenStore:
    ids = torch.tensor([[[0, 16383]], [[1, 2]], [[3, 4]]])
    return TokenStore(ids, RECORDS, SPEC, "f00d", {"source": "scenes", "count": 3})


def test_an_item_has_codes_and_texts():
    found = store()
    assert len(found) == 3
    item = found[0]
    assert (item["ids"].dtype, item["ids"].tolist()) == (torch.int64, [[0, 16383]])
    assert (item["caption"], item["questions"]) == (RECORDS[0].caption, RECORDS[0].questions)
    assert found[1]["caption"] is None


def test_texts_are_captions_questions_and_answers():
    assert sorted(store().texts()) == sorted(
        ["a red circle", RECORDS[2].caption, "how many ?", "two", "what color ?", "red", "how many ?", "one"]
    )


def test_saved_and_opened_is_the_same(tmp_path):
    before = store()
    before.save(tmp_path / "tokens")
    after = TokenStore.open(tmp_path / "tokens")
    assert torch.equal(after.ids, before.ids)
    assert after.ids.dtype == torch.int32
    assert after.records == RECORDS
    assert (after.spec, after.fingerprint, after.origin) == (SPEC, "f00d", {"source": "scenes", "count": 3})
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == sorted(FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_saving_again_replaces_the_store(tmp_path):
    store().save(tmp_path / "tokens")
    TokenStore(torch.zeros(1, 1, 2), RECORDS[:1], SPEC, "beef", {}).save(tmp_path / "tokens")
    assert (len(TokenStore.open(tmp_path / "tokens")), TokenStore.open(tmp_path / "tokens").fingerprint) == (1, "beef")


def test_one_record_per_image():
    with pytest.raises(ValueError, match="one record per image, got 3 for 2 images; an empty TokenRecord"):
        TokenStore(torch.zeros(2, 1, 2), RECORDS, SPEC, "f00d", {})


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    store().save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"which lacks {name}; encode the images first"):
        TokenStore.open(tmp_path)


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"which lacks ids.safetensors, records.jsonl, store.json"):
        TokenStore.open(tmp_path / "nowhere")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [5, -5])
def test_a_truncated_file_is_an_error(tmp_path, name, keep):
    store().save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:keep])
    with pytest.raises(ValueError, match=r"is no readable token store .*; encode the images again"):
        TokenStore.open(tmp_path)


def test_a_file_without_its_keys_is_an_error(tmp_path):
    store().save(tmp_path)
    save_file({"codes": torch.zeros(3, 1, 2)}, tmp_path / FILES[0])
    with pytest.raises(ValueError, match=r"is no readable token store .*ids"):
        TokenStore.open(tmp_path)


def test_files_that_disagree_are_an_error(tmp_path):
    store().save(tmp_path)
    lines = (tmp_path / FILES[1]).read_text().splitlines()
    (tmp_path / FILES[1]).write_text("\n".join(lines[:2]))
    with pytest.raises(ValueError, match="should hold 3 images, got 3 rows of codes and 2 records; encode"):
        TokenStore.open(tmp_path)


def test_a_store_that_counts_otherwise_is_an_error(tmp_path):
    store().save(tmp_path)
    about = json.loads((tmp_path / FILES[2]).read_text())
    (tmp_path / FILES[2]).write_text(json.dumps(about | {"images": 4}))
    with pytest.raises(ValueError, match="should hold 4 images, got 3 rows of codes and 3 records"):
        TokenStore.open(tmp_path)
