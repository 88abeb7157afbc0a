"""Training of ENAT's masked prediction (https://arxiv.org/abs/2411.06959) from stored codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from ..generation.enat import ENATPipeline, MaskedSampling
from ..lm.conditions import Wanted, check_one_kind
from ..lm.enat import ENAT, Pass, rows_at
from ..lm.vocabulary import Vocabulary
from ..tokenizers.held import Shared
from .base import TrainingModule
from .encode import saved_tokenizer
from .guard import GUARD, GuardSettings
from .lm import Item, TokenData
from .optimizer import OPTIMIZER, OptimizerSettings, Trained
from .precision import SaveDtype, rounded
from .seeding import Draws

#: Of the share of positions that is hidden, one for a batch: https://arxiv.org/abs/2411.06959.
_HIDDEN = (12, 3)


class ENATTraining(TrainingModule):
    """Learns the codes of hidden positions from those of visible ones.

    One share of hidden positions, drawn from Beta(12, 3), serves all batches of a step, and each picture hides its own.
    In a part of the steps some of the visible positions have been looked at before: the averaged model sees them alone,
    without gradient, and the trained one goes on from what it found, as in generation. The averaged model is the one
    that is written.

    Published and released training differ: the released loop drops conditions twice, in the data (0.15) and in the
    model (0.1), and skips every second batch. Here they are dropped once and no batch is skipped, as published.

    Args:
        tokenizer: folder of the tokenizer that made the codes, which must be a grid.
        vocabulary: that captions are written in; None for a model of classes.
        classes: number of classes, for a model of classes; captions are then numbers.
        width: C.
        encoder_blocks: that visible positions go through.
        decoder_blocks: that hidden positions go through.
        heads: of the attention.
        dropout: of embedded codes.
        label_smoothing: of the loss, in [0, 1].
        reuse: share of the steps that go on from an earlier pass, in [0, 1].
        condition_dropout: share of the pictures that are learned for nothing, in [0, 1].
        ema: decay of the averaged model in [0, 1], 0.9999 for 500,000 steps. At step t it is at most
            ``(1 + t) / (10 + t)``, so that a short run forgets where it began.
        sampling: kept in the model's configuration: how it draws where nobody says otherwise.
        optimizer: learning rate, schedule, decay and clipping.
        guard: patience with steps that are not finite.
        seed: of all that training draws, except the order of the data.
        save_to: folder that receives tokenizer and averaged model together when training ends.
        save_dtype: precision of the model's written weights; half of it halves the file.

    Raises:
        ValueError: a share outside [0, 1], a vocabulary beside classes or neither, codes that are no grid, or stored
            codes of another tokenizer.
    """

    def __init__(
        self,
        tokenizer: str,
        vocabulary: Vocabulary | None = None,
        classes: int = 0,
        width: int = 768,
        encoder_blocks: int = 15,
        decoder_blocks: int = 1,
        heads: int = 8,
        *,
        dropout: float = 0.1,
        label_smoothing: float = 0.1,
        reuse: float = 0.5,
        condition_dropout: float = 0.1,
        ema: float = 0.9999,
        sampling: MaskedSampling | None = None,
        optimizer: OptimizerSettings = OPTIMIZER,
        guard: GuardSettings = GUARD,
        seed: int = 0,
        save_to: str | None = None,
        save_dtype: SaveDtype = "float32",
    ) -> None:
        super().__init__(optimizer, guard, seed)
        shares = (
            ("dropout", dropout, 0.1),
            ("label_smoothing", label_smoothing, 0.1),
            ("reuse", reuse, 0.5),
            ("condition_dropout", condition_dropout, 0.1),
            ("ema", ema, 0.9999),
        )
        for name, share, usual in shares:
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}; {usual} is usual")
        check_one_kind(vocabulary, classes)
        coded = saved_tokenizer(tokenizer)
        self._tokenizer = Shared(coded)  # not part of the checkpoint
        self.label_smoothing, self.reuse, self.condition_dropout = label_smoothing, reuse, condition_dropout
        self.ema, self.save_to = ema, save_to
        self.save_dtype: SaveDtype = save_dtype
        sizes = {"width": width, "heads": heads, "encoder_blocks": encoder_blocks, "decoder_blocks": decoder_blocks}
        kept = asdict(sampling or MaskedSampling())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model, self.averaged = (
                ENAT.build(
                    coded.spec,
                    coded.fingerprint(),
                    vocabulary,
                    classes=classes,
                    dropout=dropout,
                    sampling=kept,
                    **sizes,
                )
                for _ in range(2)
            )
        self.averaged.load_state_dict(self.model.state_dict())
        self.averaged.requires_grad_(False)

    def trained(self) -> dict[str, Trained]:
        """The model; its average follows."""
        return {"model": Trained(self.model, self.settings.learning_rate)}

    def check_run(self, trainer: Trainer, data: LightningDataModule | None) -> None:
        """As every module does; and the stored codes must be those of the tokenizer."""
        super().check_run(trainer, data)
        if isinstance(data, TokenData):
            data.check_tokenizer(self._tokenizer.network)

    def setup(self, stage: str) -> None:
        """Tell DDP, unless the run says otherwise, that what goes on from an earlier pass does not learn every step."""
        strategy: Any = self.trainer.strategy
        if isinstance(strategy, DDPStrategy):
            strategy._ddp_kwargs.setdefault("find_unused_parameters", True)

    def training_loss(self, batch: list[Item]) -> Tensor:
        """Cross-entropy of the codes of hidden positions, smoothed; the mean over columns."""
        draws = self.draws(len(batch))
        dropped = draws.chosen(self.condition_dropout)
        wanted = [None if drop else self._wanted(item) for item, drop in zip(batch, dropped, strict=True)]
        given = float(torch.rand((), generator=draws.step)) < self.reuse
        losses = self._losses(self.model, batch, wanted, self.label_smoothing, draws, reuse=given)
        self.show({f"train/{name}": value for name, value in self._by_codebook(losses).items()})
        return losses.mean()

    def validation_step(self, batch: list[Item], batch_idx: int) -> None:
        """Nats of the averaged model for each codebook, of positions that a seed hides."""
        draws = self.validation_draws(len(batch), batch_idx)
        losses = self._losses(self.averaged, batch, [*map(self._wanted, batch)], 0, draws, reuse=False)
        self.score({f"val/{name}": value for name, value in self._by_codebook(losses).items()}, len(batch))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Lightning's hook around a step: the average follows, unless the step was left out."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.guard.consecutive:
            return
        decay = min(self.ema, (1 + self.global_step) / (10 + self.global_step))
        with torch.no_grad():
            for mean, weight in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(weight, 1 - decay)

    def save(self, folder: Path) -> None:
        """Write tokenizer and averaged model."""
        self.averaged.eval()
        with rounded(self.averaged, self.save_dtype):
            ENATPipeline(self._tokenizer.network, self.averaged).save_pretrained(folder)

    def _losses(
        self, model: ENAT, batch: list[Item], wanted: Sequence[Wanted], smoothing: float, draws: Draws, *, reuse: bool
    ) -> Tensor:
        """``[D]`` mean cross-entropies of hidden codes."""
        ids = torch.stack([item["ids"] for item in batch])
        positions = ids.shape[1]
        share = _hidden_share(draws.step)
        visible = positions - min(max(round(positions * share), 1), positions - 1)
        order = torch.stack([torch.rand(positions, generator=generator) for generator in draws.samples]).argsort(1)
        ids, places = ids.to(self.device), order[:, :visible].to(self.device)
        earlier, seen = None, 0
        if reuse:
            seen = visible - round(visible * float(torch.rand((), generator=draws.step)))
            earlier = self._looked(ids, places[:, :seen], wanted)
        found = model(ids, places[:, seen:], model.conditions(wanted), earlier)
        targets = rows_at(ids, found.hidden)
        terms = [
            F.cross_entropy(logits.flatten(0, 1), targets[..., column].flatten(), label_smoothing=smoothing)
            for column, logits in enumerate(model.logits(found.of_hidden()))
        ]
        return torch.stack(terms)

    @torch.no_grad()
    def _looked(self, ids: Tensor, places: Tensor, wanted: Sequence[Wanted]) -> Pass:
        """What the averaged model finds where only some positions are visible."""
        averaged = self.averaged.eval()
        return averaged(ids, places, averaged.conditions(wanted))

    def _by_codebook(self, losses: Tensor) -> dict[str, Tensor]:
        return {name: losses[part].mean() for name, part in self.model.spec.slices().items()}

    def _wanted(self, item: Item) -> Wanted:
        return self.model.conditions.wanted(item["caption"])


def _hidden_share(generator: torch.Generator) -> float:
    """A draw from the beta distribution of :data:`_HIDDEN`; the 12th smallest of 14 even numbers is one."""
    hidden, visible = _HIDDEN
    return float(torch.rand(hidden + visible - 1, generator=generator).sort().values[hidden - 1])
