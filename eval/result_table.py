"""Several results side by side, if they were measured alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .protocol import Result, flat, paths, require_alike
from .tables import Table


def compare_results(results: Mapping[str, Result], ignore: Collection[str] = (), only: Collection[str] = ()) -> Table:
    """A row for every score, a column for every result.

    Args:
        results: at least two, by the name of their column.
        ignore: fields of the protocol that may differ: whole ones (``sampler``) or dotted (``versions.torch``).
        only: scores to show, by dotted name or by the name of a group of them; all by default.

    Raises:
        ValueError: fewer than two results, protocols that differ outside ``ignore`` (the sentence names the results and
            every field), a field to ignore that no protocol has, or a score to show that no result has.
    """
    if len(results) < 2:
        raise ValueError(f"a comparison needs at least two results, got {len(results)}; name another file")
    (first, one), *others = results.items()
    _check_ignored(results, ignore)
    for name, other in others:
        try:
            require_alike(one.protocol, other.protocol, ignore)
        except ValueError as error:
            raise ValueError(f"{first} and {name} cannot be compared: {error}") from error
    scores = {name: flat(result.scores) for name, result in results.items()}
    rows = list(dict.fromkeys(score for found in scores.values() for score in found if _shown(score, only)))
    if not rows:
        known = ", ".join(dict.fromkeys(score.split(".")[0] for found in scores.values() for score in found))
        raise ValueError(f"no result has a score named {' or '.join(only)}; they have {known}")
    lines = [[row, *(_number(scores[name].get(row)) for name in results)] for row in rows]
    return Table(["score", *results], lines, frozenset(range(1, len(results) + 1)))


def _check_ignored(results: Mapping[str, Result], ignore: Collection[str]) -> None:
    known = {field for result in results.values() for name in flat(result.protocol.to_dict()) for field in paths(name)}
    unknown = sorted(set(ignore) - known)
    if unknown:
        tops = sorted(field for field in known if "." not in field)
        raise ValueError(f"no protocol here has a field {unknown[0]!r} to ignore; they have {', '.join(tops)}")


def _shown(score: str, only: Collection[str]) -> bool:
    return not only or any(score == name or score.startswith(f"{name}.") for name in only)


def _number(value: float | None) -> str:
    """Whole numbers whole, others with four significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.4g}"
