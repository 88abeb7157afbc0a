"""The token store: codes of a data set, computed once, with the captions and questions that go with them.

A folder of ``ids.safetensors`` (int32 ``[M, N, D]``), ``records.jsonl`` (one line per image) and ``store.json`` (which
tokenizer made the ids, from what). Opening it checks that the three agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from .files import atomic_folder

FILES = ("ids.safetensors", "records.jsonl", "store.json")


@dataclass(frozen=True)
class TokenRecord:
    """What is known about one image besides its codes."""

    caption: str | None = None
    questions: tuple[tuple[str, str], ...] = ()  #: pairs of question and answer


class TokenStore(Dataset[dict[str, Any]]):
    """Codes and texts by index.

    Args:
        ids: ``[M, N, D]`` integer codes.
        records: M records.
        spec: of the codes, as a dict.
        fingerprint: of the tokenizer that made them.
        origin: what they were made from, for the record.

    Raises:
        ValueError: another number of records than of images.
    """

    def __init__(
        self,
        ids: Tensor,
        records: Sequence[TokenRecord],
        spec: Mapping[str, Any],
        fingerprint: str,
        origin: Mapping[str, Any],
    ) -> None:
        if len(ids) != len(records):
            raise ValueError(
                f"a token store needs one record per image, got {len(records)} for {len(ids)} images; "
                "an empty TokenRecord stands for an image without text"
            )
        self.ids, self.records = ids.to(torch.int32), list(records)
        self.spec, self.fingerprint, self.origin = dict(spec), fingerprint, dict(origin)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``ids`` ``[N, D]`` int64, ``caption`` and ``questions`` of one image."""
        record = self.records[index]
        return {"ids": self.ids[index].long(), "caption": record.caption, "questions": record.questions}

    def texts(self) -> list[str]:
        """Every caption, question and answer: what a vocabulary is trained on."""
        captions = [record.caption for record in self.records if record.caption]
        return captions + [text for record in self.records for pair in record.questions for text in pair]

    def save(self, folder: str | Path) -> None:
        """Write the store to a folder, whole or not at all."""
        about = {"spec": self.spec, "tokenizer": self.fingerprint, "origin": self.origin, "images": len(self)}
        with atomic_folder(folder) as partial:
            save_file({"ids": self.ids.contiguous()}, partial / FILES[0])
            lines = (json.dumps(asdict(record)) for record in self.records)
            (partial / FILES[1]).write_text("".join(f"{line}\n" for line in lines))
            (partial / FILES[2]).write_text(json.dumps(about, indent=2))

    @classmethod
    def open(cls, folder: str | Path) -> TokenStore:
        """Read a store.

        Raises:
            FileNotFoundError: one of its files is missing.
            ValueError: damaged files, or files that disagree about the number of images.
        """
        path = Path(folder)
        missing = [name for name in FILES if not (path / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"a token store was expected in {path}, which lacks {', '.join(missing)}; encode the images first"
            )
        try:
            about = json.loads((path / FILES[2]).read_text())
            images, rest = about["images"], (about["spec"], about["tokenizer"], about["origin"])
            records = [_record(json.loads(line)) for line in (path / FILES[1]).read_text().splitlines()]
            ids = load_file(path / FILES[0])["ids"]
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"{path} is no readable token store ({error}); encode the images again") from error
        if not len(ids) == len(records) == images:
            raise ValueError(
                f"the token store in {path} should hold {images} images, got {len(ids)} rows of codes and "
                f"{len(records)} records; encode the images again"
            )
        return cls(ids, records, *rest)


def _record(row: Mapping[str, Any]) -> TokenRecord:
    return TokenRecord(row["caption"], tuple((question, answer) for question, answer in row["questions"]))
