"""What a token store is made of, from and by: written before the first shard, repeated in every shard, checked on use.

Knows no tokenizer: what tells one from another arrives as a mapping, the tokenizer's ``identity()``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any, Self

from .store_shards import books, positions

#: Of the files; raised when an older smalti could misread them.
FORMAT = 1

_ABSENT = "nothing"


@dataclass(frozen=True)
class StorePlan:
    """What decides the bytes of a token store.

    Args:
        tokenizer: what tells it from others: ``fingerprint`` and ``spec`` (of the codes) at least, of a saved tokenizer
            also ``class``, ``config`` and a digest of the ``weights`` of each part.
        source: ``name`` of the pictures, for people, and ``pictures``, their number.
        transform: what was done to them before they were coded: crop, filter and seed.
        dtype: in which the tokenizer computed.
        crops: rows of every picture.
        batch_size: rows coded together.
        shard_size: pictures of a shard.

    Raises:
        ValueError: a number below 1, or a tokenizer without fingerprint or spec.
    """

    tokenizer: Mapping[str, Any]
    source: Mapping[str, Any]
    transform: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    crops: int = 1
    batch_size: int = 64
    shard_size: int = 10_000

    def __post_init__(self) -> None:
        for name in ("crops", "batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"a token store needs {name} >= 1, got {getattr(self, name)}; choose another")
        if missing := sorted({"fingerprint", "spec"} - set(self.tokenizer)):
            raise ValueError(
                f"a token store needs fingerprint and spec of its tokenizer, got no {' and no '.join(missing)}; add it"
            )
        if self.source["pictures"] < 1:
            raise ValueError(f"a token store needs pictures, got {self.source['pictures']}; check the source")
        largest = max(depth for _, _, depth in books(self.tokenizer["spec"])) * positions(self.tokenizer["spec"])
        if self.shard_size * self.crops * largest >= 2**31:
            raise ValueError(
                f"a shard holds less than 2**31 codes, got {self.shard_size} pictures x {self.crops} crops x "
                f"{largest}; choose a smaller shard_size"
            )

    @property
    def shards(self) -> list[str]:
        """File names of the shards, in the order of their pictures."""
        count = -(-self.source["pictures"] // self.shard_size)
        return [f"tokens-{number:05}-of-{count:05}.parquet" for number in range(count)]

    def pictures(self, shard: int) -> range:
        """Indices into the source of the pictures of a shard."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.source["pictures"]))

    @property
    def digest(self) -> str:
        """Sixteen hex digits of all of it: the fingerprint of the store."""
        return sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` is the inverse."""
        return {"format": FORMAT, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a plan.

        Raises:
            ValueError: it was written by another version of the format.
            KeyError: it lacks a part.
            TypeError: it has a part that is not known.
        """
        if data["format"] != FORMAT:
            raise ValueError(f"token stores of format {FORMAT} can be read, got {data['format']}; use another smalti")
        return cls(**{name: value for name, value in data.items() if name != "format"})


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two mappings of JSON values disagree, by path: ``transform.size was [32, 32], got [64, 64]``."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    names = [*old, *(name for name in new if name not in old)]
    told = ((name, old.get(name, _ABSENT), new.get(name, _ABSENT)) for name in names)
    return [f"{name} was {before}, got {now}" for name, before, now in told if before != now]


def tokenizer_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two tokenizers differ, by their identities; empty for the same.

    The fingerprint decides. It is named where nothing else that both know explains it.
    """
    if before["fingerprint"] == now["fingerprint"]:
        return []
    shared = [name for name in before if name in now and name != "fingerprint"]
    found = differences({name: before[name] for name in shared}, {name: now[name] for name in shared})
    return found or differences({"fingerprint": before["fingerprint"]}, {"fingerprint": now["fingerprint"]})


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        yield path, value
        return
    for name, item in value.items():
        yield from _leaves(item, f"{path}.{name}" if path else str(name))
