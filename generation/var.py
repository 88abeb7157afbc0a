"""Scale-by-scale decoding of :class:`~smalti.lm.var.VAR` with cached keys and values. Knows nothing about pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..lm.conditions import Wanted
from ..lm.var import VAR
from ..tokenizers.codes import Codes
from .filters import draw


class ScaleSession:
    """One run of decoding: keys and values of all scales so far, and their sum. It dies with the call that made it.

    Args:
        model: in eval mode.
        conditions: one for each picture.
    """

    def __init__(self, model: VAR, conditions: Sequence[Wanted]) -> None:
        self.model, self.given = model, model.prepare(conditions)
        self.memories, self.scale = model.memories(), 0
        self._total: Tensor | None = None

    def logits(self) -> Tensor:
        """``[B, n, K]`` float32 of the n codes of the next scale; call once before each :meth:`append`."""
        entered = self.given.first
        if self._total is not None:
            entered = self.model.enter(self.model.quantizer.shrunk(self._total, self.scale))
        return self.model.through(entered, self.given, memories=self.memories).float()

    def append(self, ids: Tensor) -> None:
        """Go on with the ids ``[B, n, 1]`` of that scale."""
        added = self.model.quantizer.added(ids, self.scale)
        self._total = added if self._total is None else self._total + added
        self.scale += 1


@torch.inference_mode()
def write_scales(
    model: VAR,
    conditions: Sequence[Wanted],
    generators: Sequence[torch.Generator],
    *,
    guidance: float = 1.5,
    top_k: int = 900,
    top_p: float = 0.96,
    temperature: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> Codes:
    """Write the codes of one picture per condition, all of a scale at once; the defaults are those of the paper's FID.

    Args:
        model: in eval mode.
        conditions: B classes or sentences.
        generators: B CPU generators, one per condition; each alone decides its picture.
        guidance: g in ``(1 + t) c - t u`` with ``t = g k / (S - 1)`` at scale k of S; 0 is off.
        top_k: keep the k most likely ids; 0 keeps all.
        top_p: keep the most likely ids whose probabilities reach p; 1 keeps all.
        temperature: >= 0; 0 takes the most likely id.
        progress: called with (scales done, scales in all) after every scale.

    Raises:
        ValueError: another number of generators than conditions, none at all, or a setting outside its range.
    """
    if len(generators) != len(conditions) or not conditions:
        raise ValueError(
            f"one generator per condition is needed and at least one condition, got {len(generators)} generators for "
            f"{len(conditions)} conditions; make one generator for each"
        )
    if min(guidance, temperature, top_k) < 0 or not 0 < top_p <= 1:
        raise ValueError(
            "drawing needs guidance, temperature and top_k >= 0 and 0 < top_p <= 1, "
            f"got {guidance}, {temperature}, {top_k} and {top_p}; 0, 1, 0 and 1 leave the distribution as it is"
        )
    sides, twice = model.sides, 2 if guidance else 1
    session = ScaleSession(model, [*conditions, *[None] * len(conditions)] if guidance else conditions)
    written: list[Tensor] = []
    for scale, side in enumerate(sides):
        logits = session.logits()
        if guidance:
            logits = guided(*logits.chunk(2), guidance, scale, len(sides))
        uniforms = torch.stack([torch.rand(side * side, generator=each, dtype=torch.float64) for each in generators])
        ids = draw(logits.flatten(0, 1), uniforms.flatten().to(logits.device), temperature, top_k, top_p)
        written.append(ids.view(len(conditions), -1, 1))
        if scale + 1 < len(sides):
            session.append(written[-1].repeat(twice, 1, 1))
        if progress is not None:
            progress(scale + 1, len(sides))
    return Codes.full(torch.cat(written, dim=1), model.spec)


def guided(conditional: Tensor, free: Tensor, guidance: float, scale: int, scales: int) -> Tensor:
    """Logits of one scale led away from those of no condition; the further, the finer the scale.

    Args:
        conditional: ``[..., K]`` of the condition.
        free: ``[..., K]`` of no condition.
        guidance: g in ``(1 + t) c - t u`` with ``t = g k / (S - 1)``.
        scale: k.
        scales: S.
    """
    strength = guidance * scale / max(scales - 1, 1)
    return (1 + strength) * conditional - strength * free
