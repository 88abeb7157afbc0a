"""Questions about scenes, drawn so that knowing the question without the picture helps little."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, TypeVar, get_args

import numpy as np

from .scene_relations import clear_relation
from .scene_requests import COUNT_WORDS, plural
from .scene_world import JITTER, Scene, Thing, World

Kind = Literal["existence", "adversarial", "binding", "color", "relation", "count"]

KINDS: tuple[Kind, ...] = get_args(Kind)
SIDES = {"left of": "left", "right of": "right", "above": "above", "below": "below"}

_YES_NO = ("yes", "no")
# Both answers then stay below .30 of all counts in every split, and so do the others but for one: two of the three
# counts that the small world holds out are of three things, so "three" is right for .49 of its held-out split's.
_ZERO_RATE, _ONE_RATE = 0.25, 0.8
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Question:
    """One question about one picture."""

    kind: Kind
    question: str  #: lower case words and spaces
    answer: str  #: one word
    choices: tuple[str, ...]  #: every answer this kind of question can have


def questions(scene: Scene, world: World, generator: np.random.Generator) -> list[Question]:
    """At most one question of each kind that the scene supports.

    Existence asks for a shape that is there or not. Its adversarial form denies with a lookalike of a shape that is
    there, and binding with the colour of another thing, where an exchange of both colours would leave it as it is what
    is held out. Each answers yes and no equally often, so neither shape nor split gives the answer away. Colour and
    relation ask about things that are the only ones of their shape. Counts are asked in counting scenes, where answers
    zero and one are thinned to about the frequency of the others.

    Args:
        scene: what the picture shows.
        world: the preset the scene was drawn in.
        generator: decides what is asked.
    """
    makers: tuple[Callable[[Scene, World, np.random.Generator], Question | None], ...]
    makers = (_existence, _adversarial, _binding, _color, _relation, _count)
    made = (maker(scene, world, generator) for maker in makers)
    return [question for question in made if question is not None]


def _existence(scene: Scene, world: World, generator: np.random.Generator) -> Question | None:
    present, absent = _presence(scene, world)
    if not absent:
        return None
    true = generator.random() < 0.5
    return _yes_no("existence", f"is there a {_draw(present if true else absent, generator)}", true)


def _adversarial(scene: Scene, world: World, generator: np.random.Generator) -> Question | None:
    present, absent = _presence(scene, world)
    lonely = [shape for shape in present if world.lookalike(shape) in absent]
    if not lonely:
        return None
    true = generator.random() < 0.5
    shape = _draw(lonely, generator)
    return _yes_no("adversarial", f"is there a {shape if true else world.lookalike(shape)}", true)


def _binding(scene: Scene, world: World, generator: np.random.Generator) -> Question | None:
    """Two things that could exchange colours: what is denied of them is affirmed of another scene just as often."""
    pairs = [(thing, other) for thing, other in permutations(scene.things, 2) if _exchangeable(thing, other, world)]
    if not pairs:
        return None
    thing, other = _draw(pairs, generator)
    true = generator.random() < 0.5
    color = thing.color if true else other.color
    return _yes_no("binding", f"is there {'an' if color[0] in 'aeiou' else 'a'} {color} {thing.shape}", true)


def _exchangeable(first: Thing, second: Thing, world: World) -> bool:
    """Whether exchanging the colours would change the scene, but not what of it is held out."""
    if first.shape == second.shape or first.color == second.color:
        return False
    return all(
        world.color_held_out(thing.shape, thing.color) == world.color_held_out(thing.shape, other.color)
        for thing, other in ((first, second), (second, first))
    )


def _color(scene: Scene, world: World, generator: np.random.Generator) -> Question | None:
    single = _single(scene)
    if not single:
        return None
    thing = _draw(single, generator)
    return Question("color", f"what color is the {thing.shape}", thing.color, world.colors)


def _relation(scene: Scene, world: World, generator: np.random.Generator) -> Question | None:
    """A pair that stands in exactly one relation, however its boxes are misread."""
    pairs = permutations(_single(scene), 2)
    read = [(one, other, clear_relation(one.box, other.box, JITTER)) for one, other in pairs]
    clear = [(one, other, relation) for one, other, relation in read if relation is not None]
    if not clear:
        return None
    subject, target, relation = _draw(clear, generator)
    text = f"which side of the {target.shape} is the {subject.shape}"
    return Question("relation", text, SIDES[relation], tuple(SIDES.values()))


def _count(scene: Scene, world: World, generator: np.random.Generator) -> Question | None:
    if scene.tag != "counting":
        return None
    present, absent = _presence(scene, world)
    count = len(scene.things)
    if absent and generator.random() < _ZERO_RATE:
        present, count = absent, 0
    elif count == 1 and generator.random() >= _ONE_RATE:
        return None
    text = f"how many {plural(_draw(present, generator))}"
    return Question("count", text, COUNT_WORDS[count], COUNT_WORDS[: world.max_count + 1])


def _presence(scene: Scene, world: World) -> tuple[list[str], list[str]]:
    """The world's shapes that the scene shows, and those it does not."""
    shown = {thing.shape for thing in scene.things}
    return [shape for shape in world.shapes if shape in shown], [shape for shape in world.shapes if shape not in shown]


def _single(scene: Scene) -> list[Thing]:
    """The things that are the only ones of their shape."""
    counts = Counter(thing.shape for thing in scene.things)
    return [thing for thing in scene.things if counts[thing.shape] == 1]


def _yes_no(kind: Kind, text: str, true: bool) -> Question:
    return Question(kind, text, _YES_NO[0 if true else 1], _YES_NO)


def _draw(items: list[_Item], generator: np.random.Generator) -> _Item:
    return items[int(generator.integers(len(items)))]
