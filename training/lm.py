"""Training of the shared language model: text to image and image to text in every batch, from stored codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import Dataset

from ..data.tokens import TokenStore
from ..generation.pipeline import TextToImagePipeline
from ..generation.sampler import Sampling, write_text
from ..lm.layout import Batch, Example
from ..lm.model import SharedLM
from ..lm.vocabulary import Vocabulary
from .base import TrainingModule
from .encode import saved_tokenizer
from .guard import GUARD, GuardSettings
from .optimizer import OPTIMIZER, OptimizerSettings
from .precision import SaveDtype, rounded
from .resume import ResumableData

Item = dict[str, Any]


class TokenData(ResumableData):
    """Stored codes with their captions and questions.

    Args:
        train: folder of the token store to train on.
        validation: folder of another one to validate on.
        batch_size: images per process.
        workers: processes that read.
        seed: of the order, >= 0.

    Raises:
        FileNotFoundError: a folder is no token store.
    """

    def __init__(
        self, train: str, validation: str | None = None, batch_size: int = 32, workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(batch_size, workers, seed)
        self.train = TokenStore.open(train)
        self.validation = None if validation is None else TokenStore.open(validation)

    def train_set(self) -> Dataset[Item]:
        """The store to train on."""
        return self.train

    def validation_set(self) -> Dataset[Item] | None:
        """The store to validate on, or None."""
        return self.validation

    @staticmethod
    def collate(items: list[Item]) -> list[Item]:
        """A batch stays a list of images: sequences are built where the vocabulary is."""
        return items

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Codes stay where they are: sequences are built on the CPU and moved as a whole."""
        return batch


class LanguageModelTraining(TrainingModule):
    """One run that learns to write pictures and to read them.

    Each image of a batch gives one sequence: ``caption -> codes`` or, with probability ``reading``,
    ``codes -> answers -> caption``, of which a share goes without questions, as a caption is asked for later. Codes are
    learned in all, so that a picture is also written from nothing, which classifier-free guidance needs
    (https://arxiv.org/abs/2207.12598).

    Args:
        tokenizer: folder of the tokenizer that made the codes.
        vocabulary: text ids; blocks for the codebooks are added here.
        backbone: fields of a ``transformers`` configuration, ``model_type`` among them.
        head: how codes are written, see :func:`~smalti.lm.heads.code_head`; ``flat`` by default.
        weights: of the losses ``text`` and every codebook; 1 where absent.
        reading: share of the images that are read and not written from their caption, in [0, 1].
        questions: most questions asked about an image in one sequence.
        describing: share of the images read that are described without any question before, in [0, 1].
        optimizer: learning rate, schedule, decay and clipping.
        guard: patience with steps that are not finite.
        seed: of all that training draws, except the order of the data.
        sampling: kept in the model's configuration: how it draws where nobody says otherwise.
        save_to: folder that receives tokenizer and model together when training ends.
        save_dtype: precision of the written weights; half of it halves the file. The tokenizer is written in it only
            where that changes none of its weights, because the codes must stay the same.

    Raises:
        ValueError: weights for unknown losses, a share outside [0, 1], or stored codes of another tokenizer.
    """

    def __init__(
        self,
        tokenizer: str,
        vocabulary: Vocabulary,
        backbone: dict[str, Any],
        *,
        head: dict[str, Any] | None = None,
        weights: dict[str, float] | None = None,
        reading: float = 0.4,
        questions: int = 6,
        describing: float = 0.25,
        sampling: Sampling | None = None,
        optimizer: OptimizerSettings = OPTIMIZER,
        guard: GuardSettings = GUARD,
        seed: int = 0,
        save_to: str | None = None,
        save_dtype: SaveDtype = "float32",
    ) -> None:
        super().__init__(optimizer, guard, seed)
        for name, share, usual in (("reading", reading, 0.4), ("describing", describing, 0.25)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}; {usual} is usual")
        self._tokenizer = [saved_tokenizer(tokenizer)]  # in a list: not part of the checkpoint
        spec = self._tokenizer[0].spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = SharedLM.build(backbone, vocabulary, spec, self._tokenizer[0].fingerprint(), head)
            self.model.config.sampling = asdict(sampling or Sampling())
            self.model.start_from_codebooks(self._tokenizer[0].code_vectors())
        self.weights = _checked(weights or {}, ["text", *(book.name for book in spec.codebooks)])
        self.reading, self.questions, self.describing = reading, questions, describing
        self.save_to = save_to
        self.save_dtype: SaveDtype = save_dtype

    def check_run(self, trainer: Trainer, data: LightningDataModule | None) -> None:
        """As every module does; and the stored codes must be those of the tokenizer."""
        super().check_run(trainer, data)
        stores = [data.train, data.validation] if isinstance(data, TokenData) else []
        expected = self.model.config.tokenizer_fingerprint
        for store in filter(None, stores):
            if store.fingerprint != expected:
                raise ValueError(
                    f"the token store must come from tokenizer {expected} of the language model, got one of "
                    f"{store.fingerprint}; encode the images again with this tokenizer"
                )

    def training_loss(self, batch: list[Item]) -> Tensor:
        """Sum of the weighted block losses over both directions."""
        read = torch.rand(len(batch)) < self.reading
        layout = self.model.layout
        written, reading = list[Example](), list[Example]()
        for item, reads in zip(batch, read.tolist(), strict=True):
            if reads or item["caption"] is None:
                reading.append(layout.image_to_text(item["ids"], item["caption"], self._asked(item), learn_codes=True))
            else:
                written.append(layout.text_to_image(item["caption"], item["ids"]))
        result = self.model(self._collate(written, reading), self.weights)
        for name, block in result.blocks.items():
            self.log(f"train/{name}", block.mean.detach())
        return result.loss

    def validation_step(self, batch: list[Item], batch_idx: int) -> None:
        """Block losses, and the share of questions answered word for word."""
        layout = self.model.layout
        written = [layout.text_to_image(i["caption"], i["ids"]) for i in batch if i["caption"] is not None]
        reading = [layout.image_to_text(item["ids"], item["caption"], item["questions"]) for item in batch]
        result = self.model(self._collate(written, reading), self.weights)
        self.log_dict({f"val/{n}": b.mean for n, b in result.blocks.items()}, batch_size=len(batch))
        asked = [(item["ids"], question, answer) for item in batch for question, answer in item["questions"]]
        if asked:
            right = self._answers(asked)
            self.log("val/answers", right.float().mean(), batch_size=len(asked), prog_bar=True)

    def on_fit_end(self) -> None:
        """Write tokenizer and model to ``save_to``, once."""
        super().on_fit_end()
        if self.save_to is not None and self.trainer.is_global_zero:
            with rounded(self._tokenizer[0], self._tokenizer_dtype()), rounded(self.model, self.save_dtype):
                TextToImagePipeline(self._tokenizer[0], self.model).save_pretrained(Path(self.save_to))

    def _tokenizer_dtype(self) -> SaveDtype:
        """The precision that the tokenizer can be written in without becoming another one."""
        with rounded(self._tokenizer[0], self.save_dtype):
            same = self._tokenizer[0].fingerprint() == self.model.config.tokenizer_fingerprint
        return self.save_dtype if same else "float32"

    def _asked(self, item: Item) -> list[tuple[str, str]]:
        asked = item["questions"]
        if item["caption"] is not None and float(torch.rand(())) < self.describing:
            return []
        return [asked[index] for index in torch.randperm(len(asked))[: self.questions].tolist()]

    def _answers(self, asked: list[tuple[Tensor, str, str]]) -> Tensor:
        layout = self.model.layout
        prompts = [torch.cat([layout.image(ids), layout.question(question)]) for ids, question, _ in asked]
        given = write_text(self.model, prompts, limit=8)
        return torch.tensor([a == answer for a, (_, _, answer) in zip(given, asked, strict=True)])

    def _collate(self, *groups: list[Example]) -> list[Batch]:
        return [self.model.layout.collate(examples).to(self.device) for examples in groups if examples]


def _checked(weights: Mapping[str, float], known: list[str]) -> dict[str, float]:
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise ValueError(
            f"weights must name the losses {', '.join(known)}, got {', '.join(unknown)}; correct or remove them"
        )
    return dict(weights)
