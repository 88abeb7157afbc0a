"""How ids are drawn: temperature and filters, guidance and its schedule, candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..lm.model import SharedLM
from ..tokenizers.codes import CodeSpec


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn from logits.

    Args:
        guidance: classifier-free guidance scale s in ``u + s (c - u)`` (https://arxiv.org/abs/2207.12598); 1 is off.
        temperature: >= 0; 0 takes the most likely id.
        top_k: keep the k most likely ids and their equals; 0 keeps all.
        top_p: keep the most likely ids up to the one whose probability passes p; 1 keeps all.
        candidates: >= 1, drawings of a prompt, of which the model keeps the one that it reads the prompt from most
            surely: the ranking of DALL-E (https://arxiv.org/abs/2102.12092) with the model as its own judge.
        temperatures: of single codebooks by name, in place of ``temperature``: where things stand may be left to chance
            while their edges are not.
        guided_steps: >= 0, the step from which on guidance has ended; all are guided by default. The others do without
            the unconditional half of the batch.
        guided_from: >= 0, the first step that is guided: an interval with ``guided_steps``
            (https://arxiv.org/abs/2404.07724).
        guidance_start: scale of the first step, from which it goes to ``guidance`` in equal parts, as in VAR and
            RandAR; constant by default.

    Raises:
        ValueError: a value outside its range.
    """

    guidance: float = 3.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    candidates: int = 1
    temperatures: Mapping[str, float] | None = None
    guided_steps: int | None = None
    guided_from: int = 0
    guidance_start: float | None = None

    def __post_init__(self) -> None:
        heats = {"": self.temperature, **(self.temperatures or {})}
        if min(heats.values()) < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1, "
                f"got {min(heats.values())}, {self.top_k}, {self.top_p}; 1, 0 and 1 leave the distribution as it is"
            )
        if self.guided_steps is not None and self.guided_steps < 0:
            raise ValueError(f"sampling needs guided_steps >= 0, got {self.guided_steps}; None guides all of them")
        if self.guided_from < 0:
            raise ValueError(f"sampling needs guided_from >= 0, got {self.guided_from}; 0 guides from the first step")
        if self.candidates < 1:
            raise ValueError(f"sampling needs candidates >= 1, got {self.candidates}; 1 keeps the first drawing")

    def of(self, codebook: str) -> Sampling:
        """How ids of one codebook are drawn."""
        return replace(self, temperature=(self.temperatures or {}).get(codebook, self.temperature), temperatures=None)

    def scales(self, steps: int) -> list[float]:
        """The guidance scale of each of so many steps; 1 where a step is not guided."""
        start = self.guidance if self.guidance_start is None else self.guidance_start
        ramp = [start + (self.guidance - start) * step / max(1, steps - 1) for step in range(steps)]
        end = steps if self.guided_steps is None else self.guided_steps
        return [scale if self.guided_from <= step < end else 1.0 for step, scale in enumerate(ramp)]

    def check(self, spec: CodeSpec) -> None:
        """Raise unless every temperature is one of a codebook.

        Raises:
            ValueError: it is not; the codebooks are named.
        """
        known = [book.name for book in spec.codebooks]
        unknown = [name for name in self.temperatures or {} if name not in known]
        if unknown:
            raise ValueError(
                f"temperatures must be given for codebooks of the model, which are {', '.join(known)}, got "
                f"{unknown[0]!r}; correct the name"
            )


def model_sampling(model: SharedLM) -> Sampling:
    """What a model draws with where nobody says otherwise: its configuration's ``sampling``, else the defaults."""
    return Sampling(**model.config.sampling)
