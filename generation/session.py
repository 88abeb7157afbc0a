"""One run of decoding: prompts that were read, what is cached of them, and where the next steps stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..lm.model import SharedLM
from ..lm.ordering import Ordering, causal
from ..lm.sequences import EXTRA, TEXT, Batch, Rows
from .cache import PrefixCache


@dataclass(frozen=True)
class Prompts:
    """Prompts of any lengths as one batch; shorter ones are padded on the left."""

    rows: Tensor  #: [B, T, W + 1] int64: the tokens of a step, then its slot
    mask: Tensor  #: [B, T] int64, 0 where a step is padding
    vectors: Tensor | None  #: [F, C] of the steps that are vectors, row by row


def left_padded(model: SharedLM, prompts: Sequence[Rows]) -> Prompts:
    """Prompts on the device of the model that reads them.

    Args:
        model: the language model.
        prompts: at least one, rows of the model's layout.
    """
    longest = max(len(prompt.rows) for prompt in prompts)
    pad = model.layout.rows(torch.tensor([[0]]), TEXT)[0]
    missing = [longest - len(prompt.rows) for prompt in prompts]
    rows = [torch.cat([pad.expand(n, -1), prompt.rows]) for n, prompt in zip(missing, prompts, strict=True)]
    mask = [[0] * n + [1] * (longest - n) for n in missing]
    vectors = [prompt.vectors for prompt in prompts if prompt.vectors is not None]
    given = torch.cat(vectors).to(model.device) if vectors else None
    return Prompts(torch.stack(rows).to(model.device), torch.tensor(mask, device=model.device), given)


def unlearned(rows: Tensor, vectors: Tensor | None = None, asked: Tensor | None = None) -> Batch:
    """Rows ``[B, T, W + 1]`` as a batch that is only read; some may be queries, ``asked`` ``[B, T]`` bool."""
    slots = rows[..., -1]
    ordering = None if asked is None else Ordering(slots, asked, slots[..., None])  # only what is asked is read of it
    return Batch(rows[..., :-1], slots, torch.zeros_like(slots, dtype=torch.bool), vectors=vectors, ordering=ordering)


class Session:
    """The cache of a batch of prompts, in the order of generation. It dies with the call that made it.

    Args:
        model: the language model, in eval mode.
        prompts: rows of the model's layout, of any lengths; shorter ones are padded on the left and masked.
        steps: that are going to follow; more are possible and cost a copy.
        extras: learned vectors among them, which stand nowhere.

    Raises:
        ValueError: prompts and steps that are longer than the backbone was built for.
    """

    def __init__(self, model: SharedLM, prompts: Sequence[Rows], steps: int, extras: int = 0) -> None:
        given = left_padded(model, prompts)
        length = given.rows.shape[1] + steps
        model.check_length(length)
        layers = int(model.backbone.config.num_hidden_layers) + model.config.directions - 1
        self.model, self.cache = model, PrefixCache(layers, length + extras)
        self._pending, self._vectors = given.rows, given.vectors
        self._history = given.rows[..., -1]  # slots of all steps, those of images in raster order
        self._mask = given.mask.bool()  # of what is pending or cached
        self._known = self._mask  # of the history
        self._padded = not bool(self._mask.all())
        self._places: Tensor | None = None

    def open_image(self) -> None:
        """The steps that follow are those of one image."""
        batch, count = len(self._history), self.model.layout.steps
        image = torch.tensor([*range(count), EXTRA], device=self._history.device).expand(batch, -1)
        slots = torch.cat([self._history, image], dim=1)
        present = torch.cat([self._known, torch.ones_like(image).bool()], dim=1)
        self._places = self.model.places(slots, present)[..., -count - 1 :]

    def close_image(self, steps: int | None = None) -> None:
        """The image is finished; what follows is text.

        Args:
            steps: of the image; as many as an image has by default.
        """
        batch, count = len(self._history), self.model.layout.steps if steps is None else steps
        image = torch.arange(count, device=self._history.device).expand(batch, -1)
        self._history = torch.cat([self._history, image], dim=1)
        self._known = torch.cat([self._known, torch.ones_like(image).bool()], dim=1)
        self._places = None

    def text(self, tokens: Tensor) -> None:
        """Add one step of text, ``[B]`` ids, to what the next pass reads."""
        rows = self.model.layout.rows(tokens[:, None], TEXT)
        self._pending = torch.cat([self._pending, rows], dim=1)
        self._history = torch.cat([self._history, rows[..., -1]], dim=1)
        present = torch.ones_like(tokens, dtype=torch.bool)[:, None]
        self._mask, self._known = torch.cat([self._mask, present], dim=1), torch.cat([self._known, present], dim=1)

    def read(
        self,
        rows: Tensor | None = None,
        queries: Tensor | None = None,
        present: Tensor | None = None,
        apart: bool = False,
    ) -> Tensor:
        """Read text that is pending, then rows of the image, then queries, which are forgotten again.

        Args:
            rows: ``[B, R, W + 1]`` of codes and extras, which see each other.
            queries: ``[B, Q]`` slots that are asked for; they see each other unless ``apart``.
            present: ``[B]`` bool, false for sequences that have ended; all go on by default.
            apart: whether queries see no other query.

        Returns:
            States ``[B, T, directions, C]`` of the T rows of all three.
        """
        text, batch, width = self._pending, len(self._pending), self.model.layout.per_step
        nothing = text[:, :0]
        codes = nothing if rows is None else rows
        asking = nothing
        if queries is not None and queries.shape[1]:
            none = torch.full((*queries.shape, width), -1, device=queries.device)
            asking = torch.cat([none, queries[..., None]], dim=-1)
        every = torch.cat([text, codes, asking], dim=1)
        sizes = text.shape[1], codes.shape[1], asking.shape[1]
        asked = None
        if sizes[2]:
            asked = torch.zeros(batch, every.shape[1], dtype=torch.bool, device=every.device)
            asked[:, -sizes[2] :] = True
        going = torch.ones(batch, sizes[1] + sizes[2], dtype=torch.bool, device=every.device)
        if present is not None:
            going &= present[:, None]
            self._padded = self._padded or not bool(present.all())
        self._mask = torch.cat([self._mask, going], dim=1)
        embedded = self.model.embed(unlearned(every, self._vectors, asked))
        found = self.model.through(embedded, self._standing(every), self._allowed(sizes, apart), self.cache)
        self._pending, self._vectors = nothing, None
        if sizes[2]:
            self.cache.forget(sizes[2])
            self._mask = self._mask[:, : -sizes[2]]
        return found

    def beside(self, prompt: Rows) -> None:
        """Add one sequence that has read a prompt of its own and nothing else; :meth:`keep` ends it.

        Args:
            prompt: rows of the model's layout without vectors, no more than the steps that are read or pending.
        """
        rows, pending = prompt.rows.to(self._pending), self._pending.shape[1]
        ahead = max(0, len(rows) - pending)
        alone = Session(self.model, [Rows(rows[:ahead])], 0)
        if ahead:
            alone.read()
        for layer, read in zip(self.cache.layers, alone.cache.layers, strict=True):
            layer.join(read, 1)
        pad = self.model.layout.rows(torch.zeros_like(rows[:1, :1]), TEXT)[0]
        own = torch.cat([pad.expand(max(0, pending - len(rows)), -1), rows[ahead:]])
        slots = F.pad(rows[:, -1], (self._history.shape[1] - len(rows), 0), value=TEXT)
        self._pending = torch.cat([self._pending, own[None]])
        self._history = torch.cat([self._history, slots[None]])
        self._mask, self._known = (
            torch.cat([seen, (torch.arange(seen.shape[1], device=seen.device) >= seen.shape[1] - len(rows))[None]])
            for seen in (self._mask, self._known)
        )
        self._padded = not bool(self._mask.all())

    def keep(self, count: int) -> None:
        """Go on with the first ``count`` sequences alone."""
        self.cache.keep(count)
        self._pending, self._mask, self._known = self._pending[:count], self._mask[:count], self._known[:count]
        self._history = self._history[:count]
        self._padded = not bool(self._mask.all())
        if self._places is not None:
            self._places = self._places[..., :count, :]

    def _standing(self, rows: Tensor) -> Tensor:
        """Position ids of rows, text first."""
        slots = rows[..., -1]
        text = self._pending.shape[1]
        found = list[Tensor]()
        if text:
            found.append(self.model.places(self._history, self._known)[..., -text:])
        if text < slots.shape[1]:
            assert self._places is not None
            image = slots[:, text:]
            index = torch.where(image == EXTRA, self._places.shape[-1] - 1, image)
            found.append(self._places.gather(-1, index.expand(*self._places.shape[:-1], -1)))
        return found[0] if len(found) == 1 else torch.cat(found, dim=-1)

    def _allowed(self, sizes: tuple[int, int, int], apart: bool) -> Tensor | None:
        """What the new rows see, None where that needs no mask: text those before, codes each other, queries all, or
        all but other queries.
        """
        new, before = sum(sizes), self.cache.get_seq_length()
        kinds = sum(size > 0 for size in sizes)
        if kinds == 1 and sizes[0]:
            return causal(self._mask, new)
        apart = apart and sizes[2] > 1
        if kinds == 1 and not self._padded and not apart and (before or new == 1):
            return None
        device = self._mask.device
        ranks = torch.cat(
            [
                torch.arange(sizes[0], device=device),
                torch.full((sizes[1],), sizes[0], device=device),
                torch.full((sizes[2],), sizes[0] + 1, device=device),
            ]
        )
        inner = ranks[None, :] <= ranks[:, None]
        if apart:
            inner[-sizes[2] :, -sizes[2] :] = torch.eye(sizes[2], dtype=torch.bool, device=device)
        every = torch.cat([torch.ones(new, before, dtype=torch.bool, device=device), inner], dim=1)
        own = torch.eye(before + new, dtype=torch.bool, device=device)[-new:]
        return (every & self._mask[:, None, :] | own)[:, None]
