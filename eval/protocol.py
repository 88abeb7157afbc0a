"""How a number was measured, kept in the same file as the number.

A `Protocol` names everything that moves a score besides the model. Results are compared only under equal protocols, so
the model itself (its name, its weights' hash) is stored beside the protocol, not in it.
"""

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Self, TypeAlias, cast

import torch
from torch import Tensor

from ..data.files import atomic_file

Scores: TypeAlias = "Mapping[str, float | Scores]"

_PACKAGES = ("smalti", "torch", "torchmetrics", "transformers", "diffusers", "datasets", "numpy", "pillow")
_CHUNK = 1 << 20

QUANTISER = "floor(127.5 x + 128), clamped to 0..255"  #: `data.transforms.to_uint8`


def versions() -> dict[str, str]:
    """Versions of the installed packages that can move a score, by package name; absent ones are left out."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Protocol:
    """What was done to obtain a score. ``None`` means that a field does not apply to the task.

    Values must be JSON (tuples become lists), so that a protocol read back equals the one written.

    Raises:
        TypeError: if a value cannot be written as JSON.
        ValueError: if ``count`` is below 1, or a number is not finite.
    """

    task: str  #: "reconstruction", "scene-eval", "questions", ...
    dataset: str  #: name and split
    dataset_hash: str  #: `file_hash` or `folder_hash` of what was read, or of the generating settings
    count: int  #: images, or questions, scored
    dtype: str  #: of the forward pass, e.g. "float32" or "bfloat16-autocast"
    seed: int
    crop: Any = None  #: e.g. `Crop.describe()`
    filter: str | None = None  #: resize filter
    quantiser: str | None = None  #: how floats became 8-bit levels, e.g. `QUANTISER`
    reference: str | None = None  #: what the score compares with: the cropped originals, a statistics file, ...
    reference_hash: str | None = None  #: `file_hash` of the statistics file, or `dataset_hash` of the reference images
    extractor: str | None = None  #: feature extractor or detector
    weights_hash: str | None = None  #: of the extractor's weights
    prompts_hash: str | None = None  #: of the prompts in order: of the published file, or `text_hash` of the texts
    rewritten: bool | None = None  #: whether another model rewrote the prompts
    preset: str | None = None  #: name of the published protocol that this one was checked against; decides nothing
    sampler: Mapping[str, Any] | None = None  #: order, temperature, top-k, guidance, images per prompt, ...
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])  #: what only this task has: thresholds, ...
    versions: Mapping[str, str] = field(default_factory=versions)  #: software

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, _plain(getattr(self, item.name), item.name))
        if not isinstance(self.count, int):
            raise TypeError(f"protocol count must be a whole number, got {self.count!r}; count what was scored")
        if self.count < 1:
            raise ValueError(f"protocol count must be at least 1, got {self.count}; score something first")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {item.name: _plain(getattr(self, item.name), item.name) for item in fields(self)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ValueError: if a required field is missing, or a field is unknown.
        """
        known = {item.name for item in fields(cls)}
        required = {"task", "dataset", "dataset_hash", "count", "dtype", "seed", "versions"}
        missing, unknown = sorted(required - set(record)), sorted(set(record) - known)
        if missing or unknown:
            raise ValueError(
                f"expected a protocol with the fields {', '.join(sorted(required))}, got "
                f"{'missing ' + ', '.join(missing) if missing else 'unknown ' + ', '.join(unknown)}; "
                "read a result written by this version"
            )
        return cls(**record)

    def differences(self, other: "Protocol", ignore: Collection[str] = ()) -> dict[str, tuple[Any, Any]]:
        """Fields in which two protocols differ, dotted inside mappings (``versions.torch``), with both values.

        Args:
            other: the protocol to compare with.
            ignore: fields to leave out, whole ones (``versions``) or parts of them (``extra.world``, ``crop.size``).
        """
        mine, theirs = flat(self.to_dict()), flat(other.to_dict())
        left_out = {"preset", *ignore}
        names = [name for name in mine | theirs if left_out.isdisjoint(paths(name))]
        pairs = {name: (mine.get(name), theirs.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def require_alike(first: Protocol, second: Protocol, ignore: Collection[str] = ()) -> None:
    """Refuse to compare two results measured differently.

    Raises:
        ValueError: if the protocols differ outside ``ignore``; the message names every field that differs, with both
            values.
    """
    unlike = first.differences(second, ignore)
    if unlike:
        values = ", ".join(f"{name} {_short(mine)} and {_short(theirs)}" for name, (mine, theirs) in unlike.items())
        raise ValueError(
            f"expected two results of one protocol, got {values}; evaluate both alike, or ignore a field knowingly"
        )


@dataclass(frozen=True)
class Result:
    """A result file: scores, the protocol they were measured under, and what was measured."""

    scores: Scores
    protocol: Protocol
    model: Mapping[str, str]


def write_result(path: str | Path, scores: Scores, protocol: Protocol, model: Mapping[str, str] | None = None) -> None:
    """Write scores and protocol as one JSON file, whole or not at all.

    Args:
        path: the file; its folder is made.
        scores: numbers by name, nested as deep as needed.
        protocol: how they were measured.
        model: what was measured (names, weights' hashes); not part of the protocol.

    Raises:
        ValueError: if a score is NaN or infinite, or named ``model`` or ``protocol``; the message names it.
        TypeError: if a score is not a number.
    """
    _check_scores(scores)
    taken = sorted({"model", "protocol"} & set(scores))
    if taken:
        raise ValueError(f"a result keeps {taken[0]!r} for itself, got a score of that name; rename the score")
    record = {**scores, "model": dict(model or {}), "protocol": protocol.to_dict()}
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_result(path: str | Path) -> Result:
    """Read a file written by `write_result`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a result.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a result file, found none at {path}; write one with `smalti eval`")
    try:
        record: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected JSON in {path}, got text that does not parse; evaluate again") from error
    content = cast("dict[str, Any]", record) if isinstance(record, dict) else {}
    protocol, model = content.pop("protocol", None), content.pop("model", {})
    if not isinstance(protocol, dict) or not isinstance(model, dict) or not content:
        raise ValueError(f"expected scores and a protocol in {path}, got something else; evaluate again")
    try:
        _check_scores(content)
        return Result(content, Protocol.from_dict(protocol), model)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no result: {error}") from error


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a file to hash, found none at {path}; check the path")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def folder_hash(folder: str | Path) -> str:
    """SHA-256 over the sorted relative names and contents of all files below a folder, 64 hex digits.

    Independent of the folder's own name, of times and of permissions. Names that start with a dot are left out, also
    as folders: they are what file managers and caches leave behind.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if no file is in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder to hash, found none at {folder}; check the path")
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    if not shown:
        raise ValueError(f"expected files to hash in {folder}, got an empty folder; check the path")
    digest = hashlib.sha256()
    for name in shown:
        digest.update(_framed(name.encode()) + bytes.fromhex(file_hash(folder / name)))
    return digest.hexdigest()


def state_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of a state dict, 64 hex digits.

    Independent of the order of entries, of the device and of the file format; any changed bit of any weight changes it.

    Raises:
        TypeError: if an entry is not a tensor.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor: object = state[name]
        if not isinstance(tensor, Tensor):
            raise TypeError(f"state entry {name} must be a tensor, got {type(tensor).__name__}; leave it out")
        digest.update(_framed(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()))
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def text_hash(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text, 64 hex digits; equals `file_hash` of the UTF-8 file that holds them, one per line.

    Raises:
        ValueError: if a line contains a line break, which would make two lists hash alike.
    """
    digest = hashlib.sha256()
    for number, line in enumerate(lines):
        if "\n" in line:
            raise ValueError(f"expected one line per entry, got a line break in entry {number}; split or escape it")
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested mapping by dotted name (``crop.size``)."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _check_scores(scores: Mapping[str, Any]) -> None:
    for name, value in flat(scores).items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"score {name} must be a number, got {type(value).__name__}; convert it with float()")
        if not math.isfinite(value):
            raise ValueError(f"score {name} must be finite, got {value}; find out why before writing it down")


def paths(name: str) -> list[str]:
    """A dotted name and every name above it: ``a.b.c``, ``a.b``, ``a``."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _short(value: object) -> str:
    """A value for a message; hashes by their first twelve digits."""
    text = repr(value)
    return f"{text[:13]}...'" if isinstance(value, str) and re.fullmatch("[0-9a-f]{32,}", value) else text


def _framed(content: bytes) -> bytes:
    return len(content).to_bytes(8, "big") + content


def _plain(value: object, name: str) -> Any:
    """``value`` in JSON types, with names in errors."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"protocol field {name} must be finite, got {value}; leave it out or set it")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}") for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{name}[{at}]") for at, item in enumerate(cast("list[Any]", value))]
    raise TypeError(f"protocol field {name} must be a JSON value, got {type(value).__name__}; convert it to text")
