"""Scenes that a model is measured on because training did not show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from ..data.scene_prompts import prompts
from ..data.scene_questions import Question
from ..data.scene_world import World
from ..data.scenes import Scenes
from ..tokenizers.base import VisualTokenizer

if TYPE_CHECKING:
    from .suite import SuiteSettings


@dataclass(frozen=True)
class NewScenes:
    """Scenes that training did not show, those of seen combinations first."""

    seen: Scenes  #: of combinations that training shows
    unseen: Scenes  #: each around a combination that it never shows

    @classmethod
    def drawn(cls, settings: SuiteSettings, tokenizer: VisualTokenizer) -> Self:
        """As many as the settings say.

        Raises:
            ValueError: a tokenizer for pictures of another size.
        """
        world = World.named(settings.world)
        if tokenizer.image_size != (world.size, world.size):
            raise ValueError(
                f"the {settings.world} world has pictures of {world.size}x{world.size} pixels, the model takes "
                f"{tokenizer.image_size[0]}x{tokenizer.image_size[1]}; name the world it was trained on"
            )
        known = [entry["seen"] for entry in prompts(world, settings.seed)]
        unseen = max(1, round(settings.pictures * known.count(False) / len(known)))
        seen = max(1, settings.pictures - unseen)
        return cls(Scenes(settings.world, "validation", seen), Scenes(settings.world, "heldout", unseen))

    @property
    def world(self) -> World:
        """What all of them are made of."""
        return self.seen.world

    def pixels(self) -> NDArray[np.uint8]:
        """``[M, H, W, 3]``."""
        return np.stack([part.pixels(index) for part in (self.seen, self.unseen) for index in range(len(part))])

    def captions(self) -> list[str]:
        """M captions."""
        return [part.caption(index) for part in (self.seen, self.unseen) for index in range(len(part))]

    def questions(self) -> list[tuple[int, Question]]:
        """Every question, with the number of its picture."""
        parts = ((0, self.seen), (len(self.seen), self.unseen))
        return [
            (start + index, q) for start, part in parts for index in range(len(part)) for q in part.questions(index)
        ]
