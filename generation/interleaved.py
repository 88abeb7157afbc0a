"""Documents of text and pictures, continued by one model: text until it opens a picture, the picture, text again.

A picture is begun by ``<image>``, which the model draws like any word. The positions are then written in the model's
order, and text goes on behind ``</image>``. Knows nothing about pixels: pair it with a tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from ..lm.model import SharedLM
from ..lm.sequences import TEXT, Picture, Rows, Words
from ..tokenizers.codes import PADDING, Codes
from .filters import draw
from .orders import Order
from .sampler import Chances, ImageWriter, Watch, model_order
from .sampling import Sampling, model_sampling
from .session import Session
from .text import GREEDY, TextSampling


@torch.inference_mode()
def write(
    model: SharedLM,
    parts: Sequence[str | Tensor],
    *,
    text: TextSampling = GREEDY,
    images: Sampling | None = None,
    order: Order | None = None,
    limit_images: int = 1,
    open_image: bool = False,
    generator: torch.Generator | int = 0,
    progress: Watch | None = None,
) -> list[str | Codes]:
    """Continue a document of sentences and pictures, until ``<eos>`` or a limit.

    Guidance leads away from a picture that follows nothing: its unconditional branch reads neither text nor earlier
    pictures.

    Args:
        model: the language model, in eval mode.
        parts: what the document begins with: sentences, and codes ``[N, D]`` of pictures, which are read in raster
            order; none for a document from its first word.
        text: how text is drawn, and the limit of all tokens of text that are drawn, ``<image>`` and ``<eos>`` among
            them; greedily by default.
        images: how codes are drawn; the model's own by default.
        order: of the positions of a picture; the model's own by default.
        limit_images: >= 0, most pictures that are written; then ``<image>`` is not drawn any more.
        open_image: begin with a picture at once.
        generator: a seed or a generator of the CPU, which alone decides what is left to chance.
        progress: called after every pass that writes a picture.

    Returns:
        What follows: text without special tokens, where there is any, and the codes of one picture each.

    Raises:
        ValueError: a model without text, parts or an order that it cannot take, settings that a document has no use
            for, a limit out of range, or a document that leaves no room for all that it may become.
    """
    settings = model_sampling(model) if images is None else images
    _check(model, text, settings, limit_images, open_image)
    writer = _DocumentWriter(model, text, settings, order or model_order(model), generator, progress)
    writer.begin(_prompt(model, parts, open_image), limit_images)
    if open_image:
        writer.picture()
    while writer.count < text.limit:
        token = writer.token(may_open=writer.pictures < limit_images)
        if token == model.vocabulary.special("<eos>"):
            break
        if token == model.vocabulary.special("<image>"):
            writer.picture()
    return writer.finished()


class _DocumentWriter:
    """One document that is being written. It dies with the call that made it."""

    session: Session

    def __init__(
        self,
        model: SharedLM,
        text: TextSampling,
        images: Sampling,
        order: Order,
        generator: torch.Generator | int,
        progress: Watch | None,
    ) -> None:
        self.model, self.text, self.images, self.order, self.progress = model, text, images, order, progress
        seeded = isinstance(generator, int)
        self.generator = torch.Generator().manual_seed(generator) if seeded else generator
        self.penalty: Any = RepetitionPenaltyLogitsProcessor(float(text.repetition_penalty))
        self.drawn = list[int]()  # every token of text
        self.said = list[int]()  # those since the last picture
        self.found = list[str | Codes]()

    @property
    def count(self) -> int:
        """Tokens of text that were drawn."""
        return len(self.drawn)

    @property
    def pictures(self) -> int:
        """How many were written."""
        return sum(isinstance(part, Codes) for part in self.found)

    def begin(self, prompt: Rows, limit_images: int) -> None:
        """Open the session behind a prompt.

        Raises:
            ValueError: an order that the codes or the model do not allow, or no room.
        """
        plan = Chances.of(self.model, self.order, [torch.Generator()]).plan  # what is wrong with it is said at once
        more = self.text.limit + limit_images * (self.model.layout.steps + 1)
        _check_room(self.model, len(prompt.rows), self.text.limit, limit_images)
        self.session = Session(self.model, [prompt], more, limit_images * plan.extras)

    def token(self, *, may_open: bool) -> int:
        """Draw one token of text."""
        state = self.session.read()[:, -1, 0]
        logits = self.model.logits(state, torch.empty(1, 0, dtype=torch.int64, device=state.device), TEXT)
        if self.drawn and self.text.repetition_penalty != 1:
            logits = self.penalty(torch.tensor([self.drawn], device=state.device), logits)
        if not may_open:
            logits[:, self.model.vocabulary.special("<image>")] = -torch.inf
        how, chance = self.text, torch.zeros(1, dtype=torch.float64)
        if how.temperature:
            chance = torch.rand(1, generator=self.generator, dtype=torch.float64)
        token = draw(logits, chance.to(state.device), how.temperature, how.top_k, how.top_p)
        self.drawn.append(int(token))
        self.said.append(int(token))
        self.session.text(token)
        return int(token)

    def picture(self) -> None:
        """Write one picture behind ``<image>``, and close it."""
        self._tell()
        chances = Chances.of(self.model, self.order, [self.generator])
        if any(scale != 1 for scale in self.images.scales(len(chances.plan.sizes))):
            self.session.beside(self.model.layout.prompt(None))
        writer = ImageWriter(self.session, chances, self.images)
        self.found.append(Codes.full(writer.write_all(self.progress), self.model.spec))
        self._close(writer)

    def finished(self) -> list[str | Codes]:
        """All that was written."""
        self._tell()
        return self.found

    def _close(self, writer: ImageWriter) -> None:
        """Read what the last pass wrote, which no pass has read, and go on behind ``</image>``."""
        self.session.keep(1)
        if bool(writer.going.all()):  # what ends a picture of dynamic length is no code
            start = writer.plan.starts[-2]
            self.session.read(torch.cat([writer.tokens[:, start:], writer.positions[:, start:, None]], dim=-1))
        self.session.close_image(int((writer.ids[0, :, 0] != PADDING).sum()))
        end = self.model.vocabulary.special("</image>")
        self.session.text(torch.tensor([end], device=self.model.device))

    def _tell(self) -> None:
        """The text since the last picture is finished."""
        if told := self.model.vocabulary.decode(self.said):
            self.found.append(told)
        self.said = []


def _prompt(model: SharedLM, parts: Sequence[str | Tensor], open_image: bool) -> Rows:
    """A document that begins with parts, and with the opening of a picture behind them."""
    given = [Words(p, learned=False) if isinstance(p, str) else Picture(p.cpu(), learned=False) for p in parts]
    built = model.layout.build(given)
    rows = torch.cat([built.tokens, built.slots[:, None]], dim=1)
    if open_image:
        opener = torch.tensor([[model.vocabulary.special("<image>")]])
        rows = torch.cat([rows, model.layout.rows(opener, TEXT)[0]])
    return Rows(rows)


def _check(model: SharedLM, text: TextSampling, images: Sampling, limit_images: int, open_image: bool) -> None:
    images.check(model.spec)
    if not model.layout.brackets:
        raise ValueError("documents need a model that writes text beside its pictures, got one without; train one")
    if text.beams != 1 or images.candidates != 1:
        raise ValueError(
            f"a document is written once, without beams or candidates, got {text.beams} and {images.candidates}; set "
            "both to 1"
        )
    if limit_images < int(open_image):
        raise ValueError(
            f"a document needs limit_images >= 0, and >= 1 where it begins with a picture, got {limit_images}; 1 is "
            "usual"
        )


def _check_room(model: SharedLM, prompt: int, limit: int, limit_images: int) -> None:
    picture = model.layout.steps + 1
    if prompt + limit + limit_images * picture > model.context:
        raise ValueError(
            f"a document must have at most {model.context} steps in this model, got {prompt} that are given, {limit} "
            f"of text and {limit_images} x {picture} of pictures; give or write less, or raise max_position_embeddings "
            "of the backbone"
        )
