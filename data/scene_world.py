"""What a rendered world is made of: its presets, its things, and the combinations kept out of training."""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from types import MappingProxyType
from typing import Any, Literal, Self

from .scene_relations import MIRROR, RELATIONS, Box, possible_relations

Split = Literal["train", "validation", "heldout"]

SPLITS: tuple[Split, ...] = ("train", "validation", "heldout")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "star", "heart")
PALETTE = MappingProxyType(
    {
        "red": (220, 30, 30),
        "orange": (250, 140, 0),
        "yellow": (250, 225, 20),
        "green": (30, 160, 50),
        "blue": (30, 70, 220),
        "purple": (140, 40, 180),
        "pink": (255, 150, 200),
        "brown": (120, 70, 25),
        "black": (15, 15, 15),
        "white": (245, 245, 245),
    }
)
JITTER = 1.5  # pixels by which a detector may misread a box

_LOOKALIKES = ("circle", "ring", "square", "diamond", "triangle", "heart", "cross", "star")


@dataclass(frozen=True)
class World:
    """One preset of the embedded world; lengths are fractions of the picture's side unless stated.

    Raises:
        ValueError: if a field is out of range, or names a shape or colour that does not exist.
    """

    size: int = 64  #: side of the square picture in pixels
    shapes: tuple[str, ...] = SHAPES  #: at least 4, an even number, so that every shape has a lookalike
    colors: tuple[str, ...] = tuple(PALETTE)  #: at least 4 of the ten GenEval colour names
    max_count: int = 4  #: most things of one shape in a picture, 2 to 4
    radius: tuple[float, float] = (0.10, 0.17)  #: half the side of a thing's box, smallest and largest
    gap: float = 0.03  #: least distance between two boxes, and between a box and the border
    background: int = 128  #: gray level, 0 to 255
    noise: float = 0.0  #: standard deviation of the pixel noise in gray levels
    thickness: float = 0.36  #: width of a ring's band and half width of a cross's bars, in radii

    def __post_init__(self) -> None:
        _check_names("shapes", self.shapes, SHAPES)
        _check_names("colors", self.colors, tuple(PALETTE))
        if len(self.shapes) % 2:
            raise ValueError(f"shapes must be an even number, got {len(self.shapes)}; add or drop one shape")
        if not 2 <= self.max_count <= 4:
            raise ValueError(
                f"max_count must lie in 2 to 4, got {self.max_count}; counts are written as words up to four"
            )
        if self.size < 16:
            raise ValueError(f"size must be at least 16 pixels, got {self.size}; shapes are not told apart below that")
        if not 0 < self.radius[0] <= self.radius[1] <= 0.22:
            raise ValueError(f"radius must be two rising fractions in (0, 0.22], got {self.radius}; lower the second")
        if not 0 <= self.gap <= 0.1:
            raise ValueError(f"gap must be a fraction in [0, 0.1], got {self.gap}; two pixels' worth keeps boxes apart")
        if not 0 < self.thickness < 1:
            raise ValueError(f"thickness must be a fraction in (0, 1), got {self.thickness}; 0.36 is the default")
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0 gray levels, got {self.noise}; 0 draws none")
        if not 0 <= self.background <= 255:
            raise ValueError(f"background must be a gray level in 0 to 255, got {self.background}; 128 is the default")

    @classmethod
    def full(cls) -> Self:
        """64 pixels, 8 shapes, 10 colours, counts 1 to 4."""
        return cls()

    @classmethod
    def small(cls) -> Self:
        """30 pixels, 4 shapes, 6 colours, counts 1 to 3: the quickstart's world, exact under the analytic detector."""
        return cls(
            size=30,
            shapes=("circle", "square", "triangle", "cross"),
            colors=("red", "yellow", "green", "blue", "black", "white"),
            max_count=3,
            radius=(0.15, 0.19),
            gap=0.067,
        )

    @classmethod
    def named(cls, name: str) -> Self:
        """The preset called ``full`` or ``small``.

        Raises:
            ValueError: if there is no preset of that name.
        """
        presets = {"full": cls.full, "small": cls.small}
        if name not in presets:
            raise ValueError(f"world must be one of {', '.join(presets)}, got {name!r}; or pass a World")
        return presets[name]()

    def resized(self, size: int) -> Self:
        """The same world drawn at ``size`` pixels."""
        return replace(self, size=size)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into a protocol; ``from_dict`` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """The world that ``to_dict`` described; lists, as JSON has them, become tuples."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**values)

    def lookalike(self, shape: str) -> str:
        """The shape most easily taken for ``shape``; the relation is mutual."""
        order = [name for name in _LOOKALIKES if name in self.shapes]
        return order[order.index(shape) ^ 1]

    def color_held_out(self, shape: str, color: str) -> bool:
        """Whether this shape never has this colour in training: one combination in four."""
        return (self.shapes.index(shape) + self.colors.index(color)) % 4 == 0

    def count_held_out(self, shape: str, count: int) -> bool:
        """Whether training never shows this many of the shape: one combination of two or more in three."""
        return count > 1 and (self.shapes.index(shape) + count) % 3 == 0

    def pair_held_out(self, first: str, second: str) -> bool:
        """Whether these two shapes never share a training picture: each shape misses exactly one partner."""
        return abs(self.shapes.index(first) - self.shapes.index(second)) == len(self.shapes) // 2

    def relation_held_out(self, subject: str, relation: str, target: str) -> bool:
        """Whether training never shows ``subject`` in this relation to ``target``: one combination in four.

        A relation and its mirror are one fact, so the rule reads both as ``left of`` or ``above``.
        """
        if relation in ("right of", "below"):
            subject, relation, target = target, MIRROR[relation], subject
        first, second = self.shapes.index(subject), self.shapes.index(target)
        return (first + 2 * second + (relation == "above")) % 4 == 0


@dataclass(frozen=True)
class Thing:
    """One coloured shape; its box is ``(x - radius, y - radius, x + radius, y + radius)``, in pixels, y downwards."""

    shape: str
    color: str
    x: float
    y: float
    radius: float

    @property
    def box(self) -> Box:
        """``(x0, y0, x1, y1)``: every shape touches all four sides of it."""
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius


@dataclass(frozen=True)
class Scene:
    """What one picture shows, and what may be said about it."""

    things: tuple[Thing, ...]
    caption: str  #: lower case, words and spaces only
    tag: str  #: GenEval's task name
    metadata: dict[str, Any]  #: the caption as an entry of GenEval's JSONL file
    noise_seed: int = 0  #: decides the pixel noise, where the world has any


def held_out_facts(things: tuple[Thing, ...], world: World) -> list[str]:
    """The held-out combinations that a picture shows, whatever its caption says.

    Four kinds are looked for: the colour of each thing, how many there are of each shape, which two shapes appear
    together, and every relation that holds between two things of different shapes. A relation counts as soon as a
    detector that misreads a box by ``JITTER`` pixels could see it, and mirrors are one fact.

    Args:
        things: the contents of one picture.
        world: the preset that decides what is held out.

    Returns:
        One readable sentence part per combination; empty for anything allowed in training.
    """
    facts = [f"{thing.color} {thing.shape}" for thing in things if world.color_held_out(thing.shape, thing.color)]
    shapes = [thing.shape for thing in things]
    counts = sorted(Counter(shapes).items())
    facts += [f"{count} {shape}" for shape, count in counts if world.count_held_out(shape, count)]
    for first, second in combinations(things, 2):
        if first.shape != second.shape:
            facts.extend(_held_out_between(first, second, world))
    return facts


def _held_out_between(first: Thing, second: Thing, world: World) -> list[str]:
    facts = [f"{first.shape} and {second.shape}"] if world.pair_held_out(first.shape, second.shape) else []
    held = possible_relations(first.box, second.box, JITTER)
    named = (name for name in RELATIONS if name in held)
    return facts + [
        f"{first.shape} {name} {second.shape}"
        for name in named
        if world.relation_held_out(first.shape, name, second.shape)
    ]


def _check_names(field: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{field} must come from {', '.join(known)}, got {unknown[0]!r}; correct or drop it")
    if len(names) < 4 or len(set(names)) < len(names):
        raise ValueError(f"{field} must be at least 4 different names, got {names}; add some or drop the repeated")
