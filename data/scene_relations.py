"""On which side of one box another box lies: GenEval's rule (arXiv 2310.11513), for scenes and for scoring alike."""

from itertools import product

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels, y downwards

RELATIONS = ("left of", "right of", "above", "below")
MIRROR = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def relations(subject: Box, target: Box, margin: float = 0.1) -> frozenset[str]:
    """Every relation in which ``subject`` stands to ``target``.

    The centre offset is shortened on each axis by ``margin`` times the sum of both extents, then divided by the
    length of the full offset; more than one half along an axis is a relation. A diagonal may satisfy two, and boxes
    whose centres are closer than the margin satisfy none.

    Args:
        subject: box ``(x0, y0, x1, y1)`` of the thing whose place is described.
        target: box of the thing it is compared with.
        margin: share of the extents that does not count as an offset, >= 0.

    Returns:
        A subset of ``RELATIONS``.
    """
    dx, far_x = _offset(subject[0], subject[2], target[0], target[2], margin)
    dy, far_y = _offset(subject[1], subject[3], target[1], target[3], margin)
    if abs(far_x) < 1e-3 and abs(far_y) < 1e-3:
        return frozenset()
    length = (dx * dx + dy * dy) ** 0.5
    across, down = far_x / length, far_y / length
    holds = (across < -0.5, across > 0.5, down < -0.5, down > 0.5)
    return frozenset(name for name, true in zip(RELATIONS, holds, strict=True) if true)


def clear_relation(subject: Box, target: Box, jitter: float) -> str | None:
    """The relation that is seen, and the only one, even when either box is misread by ``jitter`` pixels; else None."""
    readings = [relations(box, target) for box in _misread(subject, jitter, jitter)]
    certain = frozenset.intersection(*readings)
    return next(iter(certain)) if len(certain) == 1 and certain == possible_relations(subject, target, jitter) else None


def possible_relations(subject: Box, target: Box, jitter: float) -> frozenset[str]:
    """The relations that some misreading of the boxes by ``jitter`` pixels could see; see ``relations``."""
    readings = [relations(box, target) for box in _misread(subject, jitter, -jitter)]
    return frozenset.union(relations(subject, target), *readings)


def _offset(low: float, high: float, other_low: float, other_high: float, margin: float) -> tuple[float, float]:
    """Centre offset along one axis, and what remains of it beyond the margin."""
    offset = (low + high) / 2 - (other_low + other_high) / 2
    beyond = max(abs(offset) - margin * (abs(high - low) + abs(other_high - other_low)), 0.0)
    return offset, beyond if offset >= 0 else -beyond


def _misread(box: Box, shift: float, grow: float) -> list[Box]:
    """The box moved by ``shift`` towards each corner, each side moved outwards by ``grow``."""
    x0, y0, x1, y1 = box
    return [
        (x0 + sx - grow, y0 + sy - grow, x1 + sx + grow, y1 + sy + grow)
        for sx, sy in product((-shift, shift), repeat=2)
    ]
