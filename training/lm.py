"""Training of the shared language model: text to image and image to text in every batch, from stored codes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import Dataset

from ..data.files import atomic_file
from ..data.store import OneCrop, TokenStore
from ..generation.orders import Order, Raster, order_parts
from ..generation.pipeline import TextToImagePipeline
from ..generation.sampling import Sampling
from ..generation.text import ANSWER, write_text
from ..lm.conditions import check_one_kind, class_number
from ..lm.embedding import CodebookEmbedding
from ..lm.losses import BlockLoss, total_loss
from ..lm.model import SharedLM
from ..lm.plans import Plan, PlanRows
from ..lm.sequences import Batch, Example, Rows
from ..lm.vocabulary import Vocabulary
from ..tokenizers.base import VisualTokenizer
from .base import TrainingModule
from .coding import TUNING, Coder, Tuning
from .encode import saved_tokenizer
from .guard import GUARD, GuardSettings
from .optimizer import OPTIMIZER, OptimizerSettings, Trained
from .precision import SaveDtype, rounded
from .pretrained import Pretrained
from .processes import token_shares
from .resume import ResumableData
from .sharding import gathered, sharded

Item = dict[str, Any]

_log = logging.getLogger(__name__)


class TokenData(ResumableData):
    """Stored codes with their captions and questions.

    Args:
        train: folder of the token store to train on.
        validation: folder of another one to validate on.
        batch_size: images per process.
        workers: processes that read.
        seed: of the order, and of which crop is shown, >= 0.
        near: for a store that is larger than memory, how many groups of 4,096 rows are shuffled together; all rows are
            shuffled alike by default.

    Raises:
        FileNotFoundError: a folder is no token store.
        ValueError: a damaged store, or ``near`` below 1.
    """

    def __init__(
        self,
        train: str,
        validation: str | None = None,
        batch_size: int = 32,
        workers: int = 0,
        seed: int = 0,
        near: int | None = None,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        if near is not None and near < 1:
            raise ValueError(f"expected near >= 1 group, got {near}; leave it out to shuffle all rows alike")
        self.near = near
        self.train = TokenStore(train)
        self.validation = None if validation is None else TokenStore(validation)
        if near is None and self.train.decoded > self.train.memory:
            _log.warning(
                "the codes of %s take %.1f GiB decoded, of which %.1f are kept in memory; set near: 16, or most rows "
                "are decoded again and again",
                train, self.train.decoded / 2**30, self.train.memory / 2**30,
            )  # fmt: skip

    def train_set(self) -> Dataset[Item]:
        """The store to train on: one crop of every picture, another in each epoch where there are several."""
        return OneCrop(self.train, self.seed)

    def validation_set(self) -> Dataset[Item] | None:
        """The store to validate on, or None."""
        return None if self.validation is None else OneCrop(self.validation, self.seed)

    def near_rows(self) -> dict[str, Any]:
        """Groups of the store, where they are shuffled near each other."""
        return {} if self.near is None else {"groups": OneCrop(self.train).groups, "near": self.near}

    def describe_data(self) -> dict[str, Any]:
        """The store to train on."""
        return {"token store": self.train.plan.digest}

    def check_tokenizer(self, tokenizer: VisualTokenizer) -> None:
        """Raise unless a tokenizer made the codes.

        Raises:
            ValueError: another one, or a changed one; the sentence names the difference.
        """
        identity = tokenizer.identity()
        for store in filter(None, (self.train, self.validation)):
            store.check_tokenizer(identity)

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
    (https://arxiv.org/abs/2207.12598). A model of classes learns ``class -> codes`` alone; captions are then numbers.

    Args:
        tokenizer: folder of the tokenizer that made the codes.
        vocabulary: text ids; blocks for the codebooks are added here. None for a model of classes.
        backbone: fields of a ``transformers`` configuration, ``model_type`` among them, to train from scratch.
        pretrained: a language model to go on from, in place of ``backbone``.
        head: how codes are written, see :func:`~smalti.lm.heads.code_head`; by default as the codes suggest.
        embedding: how codes enter, see :func:`~smalti.lm.embedding.code_embedding`; ``dims`` may be left out.
        rotary: where steps stand, see :mod:`~smalti.lm.positions`.
        classes: number of classes, for a model of classes.
        order: in which pictures are written; raster by default. Others need a head that writes whole positions, learn
            nothing of the codes of pictures that are read, and so learn to write from nothing by ``caption_dropout``
            alone. What is read stands in raster order always.
        weights: of the losses ``text`` and every codebook; 1 where absent.
        reading: share of the images that are read and not written from their caption, in [0, 1].
        questions: most questions asked about an image in one sequence.
        describing: share of the images read that are described without any question before, in [0, 1].
        caption_dropout: share of the images written that are written from nothing, in [0, 1].
        pack: put several sequences in a row of so many steps; one a row by default.
        tune_tokenizer: train the tokenizer too, on pictures in place of stored codes (``PictureTextData``).
        tuning: how it is held to its pictures.
        gradient_checkpointing: compute activations of the backbone twice to keep fewer of them.
        optimizer: learning rate, schedule, decay and clipping.
        guard: patience with steps that are not finite.
        seed: of all that training draws, except the order of the data.
        sampling: kept in the model's configuration: how it draws where nobody says otherwise.
        save_to: folder that receives tokenizer and model together when training ends.
        save_dtype: precision of the written weights; half of it halves the file. The tokenizer is written in it only
            where that changes none of its weights, because the codes must stay the same.

    Raises:
        ValueError: weights for unknown losses, a share outside [0, 1], a vocabulary beside classes or neither, a
            tokenizer that cannot be tuned, an order that its codes or the head do not allow, or stored codes of another
            tokenizer.
    """

    def __init__(
        self,
        tokenizer: str,
        vocabulary: Vocabulary | None,
        backbone: dict[str, Any] | None = None,
        *,
        pretrained: Pretrained | None = None,
        head: dict[str, Any] | None = None,
        embedding: dict[str, Any] | None = None,
        rotary: str = "sequence",
        classes: int = 0,
        order: Order | None = None,
        weights: dict[str, float] | None = None,
        reading: float = 0.4,
        questions: int = 6,
        describing: float = 0.25,
        caption_dropout: float = 0.0,
        pack: int | None = None,
        tune_tokenizer: bool = False,
        tuning: Tuning = TUNING,
        gradient_checkpointing: bool = False,
        sampling: Sampling | None = None,
        optimizer: OptimizerSettings = OPTIMIZER,
        guard: GuardSettings = GUARD,
        seed: int = 0,
        save_to: str | None = None,
        save_dtype: SaveDtype = "float32",
    ) -> None:
        super().__init__(optimizer, guard, seed)
        shares = (
            ("reading", reading, 0.4),
            ("describing", describing, 0.25),
            ("caption_dropout", caption_dropout, 0.1),
        )
        for name, share, usual in shares:
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}; {usual} is usual")
        check_one_kind(vocabulary, classes)
        coded = saved_tokenizer(tokenizer)
        self.order = order or Raster()
        self.order.check(coded.spec)
        self.coder = Coder(coded, tuning if tune_tokenizer else None)
        self.reading, self.questions, self.describing = reading, questions, describing
        self.caption_dropout, self.pack, self.save_to = caption_dropout, pack, save_to
        self.save_dtype: SaveDtype = save_dtype
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = {"embedding": _with_dims(embedding or {}, coded), "rotary": rotary, "classes": classes}
            parts |= order_parts(self.order, coded.spec)
            texts = Vocabulary(None) if vocabulary is None else vocabulary
            self.model = _language_model(backbone, pretrained, texts, coded, head, parts)
        self.order.check(coded.spec, self.model.layout.per_step)
        self.model.config.sampling = asdict(sampling or Sampling())
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        if tune_tokenizer and not isinstance(self.model.embedding, CodebookEmbedding):
            raise ValueError(
                f"a tokenizer is tuned through what the language model reads of it, got embedding "
                f"{(embedding or {}).get('kind', 'sum')!r}; set embedding to {{kind: codebook}}"
            )
        self.weights = _checked(weights or {}, ["text", *(book.name for book in coded.spec.codebooks)])
        self._before: float | None = None
        self._after: float | None = None
        self._fixed: Plan | None = None

    def trained(self) -> Mapping[str, Trained]:
        """The language model and, where it is tuned, the tokenizer."""
        rate = self.settings.learning_rate
        parts = {"model": Trained(self.model, rate)}
        if self.coder.tuned is not None and self.coder.tuning is not None:
            parts["tokenizer"] = Trained(self.coder.tuned, self.coder.tuning.learning_rate or rate)
        return parts

    def check_run(self, trainer: Trainer, data: LightningDataModule | None) -> None:
        """As every module does; and the stored codes must be those of the tokenizer, and not stored if it is tuned."""
        super().check_run(trainer, data)
        if self.coder.tuned is not None and isinstance(data, TokenData):
            raise ValueError("a tokenizer is tuned on pictures, got a store of codes; use PictureTextData")
        if isinstance(data, TokenData):
            data.check_tokenizer(self.coder.tokenizer)

    def training_loss(self, batch: list[Item]) -> Tensor:
        """Sum of the weighted block losses over both directions, and of the terms of a tokenizer that is tuned."""
        draws = self.draws(len(batch))
        reads, coded = draws.chosen(self.reading), self.coder(batch, self.device)
        written, reading = list[Example](), list[Example]()
        rows = zip(batch, coded.ids, coded.read_as, reads, draws.samples, strict=True)
        for item, ids, read_as, read, generator in rows:
            if not self.model.config.classes and (read or item["caption"] is None):
                reading.append(self._read(item, ids, read_as, generator))
            else:
                written.append(self._written(item, ids, read_as, generator))
        blocks = _over_all(self.model(self._collate(*self._passes(written, reading))).blocks)
        terms = {name: block.mean for name, block in blocks.items()}
        terms |= {f"tokenizer/{name}": value for name, value in coded.losses.items()}
        self.show({f"train/{name}": value for name, value in terms.items()})
        losses = (total_loss(blocks, self.weights), *(value.float() for value in coded.losses.values()))
        return torch.stack(losses).sum()

    def validation_step(self, batch: list[Item], batch_idx: int) -> None:
        """Block losses, and the share of questions answered word for word."""
        layout, coded = self.model.layout, self.coder(batch, self.device)
        pairs, fixed = list(zip(batch, coded.ids, strict=True)), self.validation_draws(len(batch), batch_idx).samples
        if self.model.config.classes:
            written = [
                layout.class_to_image(self._class(item), ids, self._rows(generator))
                for (item, ids), generator in zip(pairs, fixed, strict=True)
            ]
            reading = list[Example]()
        else:
            told = [
                (i["caption"], ids, g) for (i, ids), g in zip(pairs, fixed, strict=True) if i["caption"] is not None
            ]
            written = [
                layout.text_to_image(caption, ids, rows=self._rows(generator)) for caption, ids, generator in told
            ]
            reading = [layout.image_to_text(ids, item["caption"], item["questions"]) for item, ids in pairs]
        for name, block in self.model(self._collate(written, reading)).blocks.items():
            self.score({f"val/{name}": block.mean}, block.tokens)
        asked = [(ids, question, answer) for item, ids in pairs for question, answer in item["questions"]]
        if asked:
            right = self._answers(asked)
            self.score({"val/answers": right.float().mean()}, len(asked))
        if self.coder.tuned is not None:
            images = torch.stack([item["images"] for item in batch]).to(self.device)
            self.score({"val/psnr": self.coder.psnr(images).mean()}, len(batch))

    def on_validation_start(self) -> None:
        """As every module; and read what the tokenizer embeds now."""
        super().on_validation_start()
        self._follow_tokenizer()

    def on_fit_start(self) -> None:
        """As every module; and note how the tokenizer reconstructs before it is tuned."""
        super().on_fit_start()
        if self._before is None:
            self._before = self._reconstruction()

    def on_fit_end(self) -> None:
        """As every module; and note how the tokenizer reconstructs after, where it was tuned."""
        if self.coder.tuned is not None:
            with gathered(self):
                self._follow_tokenizer()
        self._after = self._reconstruction()
        super().on_fit_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every module; and how the tokenizer reconstructed before."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["reconstruction_before"] = self._before

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every module; and how the tokenizer reconstructed before."""
        super().on_load_checkpoint(checkpoint)
        self._before = checkpoint.get("reconstruction_before")

    def save(self, folder: Path) -> None:
        """Write tokenizer and model, and beside them what tuning did to reconstruction."""
        tokenizer = self.coder.tokenizer.eval()
        if self.coder.tuned is not None:
            self.model.config.tokenizer_fingerprint = tokenizer.fingerprint()
        with rounded(tokenizer, self._tokenizer_dtype()), rounded(self.model, self.save_dtype):
            TextToImagePipeline(tokenizer, self.model).save_pretrained(folder)
        if self.coder.tuned is not None:
            told = {"psnr_before": self._before, "psnr_after": self._after}
            with atomic_file(folder / "tuning.json") as file:
                file.write_text(json.dumps(told, indent=2))

    def _follow_tokenizer(self) -> None:
        if self.coder.tuned is not None and isinstance(self.model.embedding, CodebookEmbedding):
            self.model.embedding.set_vectors(self.coder.tuned.code_vectors())

    def _reconstruction(self) -> float | None:
        """Mean PSNR over the validation pictures of a tokenizer that is tuned; None for others, or without pictures."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.coder.tuned is None or data is None or data.validation_set() is None:
            return None
        pictures = data.validation_set()
        parts = torch.arange(len(pictures)).split(64)
        with gathered(self):
            found = [
                self.coder.psnr(torch.stack([pictures[int(i)]["images"] for i in part]).to(self.device))
                for part in parts
            ]
        return float(torch.cat(found).mean())

    def _read(self, item: Item, ids: Tensor, read_as: Tensor | None, generator: torch.Generator) -> Example:
        asked = self._asked(item, generator)
        raster = isinstance(self.order, Raster)
        return self.model.layout.image_to_text(ids, item["caption"], asked, learn_codes=raster, read_as=read_as)

    def _written(self, item: Item, ids: Tensor, read_as: Tensor | None, generator: torch.Generator) -> Example:
        dropped = float(torch.rand((), generator=generator)) < self.caption_dropout
        if self.model.config.classes:
            number = self._class(item)
            return self.model.layout.class_to_image(None if dropped else number, ids, self._rows(generator))
        caption, rows = None if dropped else item["caption"], self._rows(generator)
        return self.model.layout.text_to_image(caption, ids, read_as, rows)

    def _passes(self, written: list[Example], reading: list[Example]) -> list[list[Example]]:
        """The groups that are computed together: where weights are sharded, as many in every process.

        Processes gather the parts of each other in each pass. Where one has nothing to write, or nothing to read, an
        example of the other group stands in, of which nothing is learned.
        """
        groups = [written, reading]
        if not sharded(self) or self.model.config.classes or self.pack is not None:
            return groups
        spare = next(iter(written + reading))
        return [group or [replace(spare, learned=torch.zeros_like(spare.learned))] for group in groups]

    def _rows(self, generator: torch.Generator) -> PlanRows | None:
        """How a picture is written; None for raster."""
        if isinstance(self.order, Raster):
            return None
        if self._fixed is None or self.order.random:
            self._fixed = self.order.plan(self.model.spec.layout, generator)
        return self._fixed.rows()

    def _class(self, item: Item) -> int:
        return class_number(item["caption"], self.model.config.classes)

    def _tokenizer_dtype(self) -> SaveDtype:
        """The precision that the tokenizer can be written in without becoming another one."""
        with rounded(self.coder.tokenizer, self.save_dtype):
            same = self.coder.tokenizer.fingerprint() == self.model.config.tokenizer_fingerprint
        return self.save_dtype if same else "float32"

    def _asked(self, item: Item, generator: torch.Generator) -> list[tuple[str, str]]:
        asked = item["questions"]
        if item["caption"] is not None and float(torch.rand((), generator=generator)) < self.describing:
            return []
        return [asked[index] for index in torch.randperm(len(asked), generator=generator)[: self.questions].tolist()]

    def _answers(self, asked: list[tuple[Tensor, str, str]]) -> Tensor:
        layout = self.model.layout
        prompts = [Rows(torch.cat([layout.image(ids), layout.question(question)])) for ids, question, _ in asked]
        given = write_text(self.model, prompts, ANSWER)
        return torch.tensor([a == answer for a, (_, _, answer) in zip(given, asked, strict=True)])

    def _collate(self, *groups: list[Example]) -> list[Batch]:
        layout = self.model.layout
        if self.pack is not None:
            return [layout.pack([example for examples in groups for example in examples], self.pack).to(self.device)]
        return [layout.collate(examples).to(self.device) for examples in groups if examples]


def _language_model(
    backbone: dict[str, Any] | None,
    pretrained: Pretrained | None,
    vocabulary: Vocabulary,
    tokenizer: VisualTokenizer,
    head: dict[str, Any] | None,
    parts: dict[str, Any],
) -> SharedLM:
    spec, fingerprint, vectors = tokenizer.spec, tokenizer.fingerprint(), tokenizer.code_vectors()
    if (backbone is None) == (pretrained is None):
        came = "neither" if backbone is None else "both"
        raise ValueError(
            f"a language model is trained from backbone or from pretrained, got {came}; give one of the two"
        )
    if pretrained is not None:
        return pretrained.model(vocabulary, spec, fingerprint, head, vectors, parts)
    model = SharedLM.build(backbone or {}, vocabulary, spec, fingerprint, head, **parts)
    model.start_from_codebooks(vectors)
    return model


def _with_dims(embedding: dict[str, Any], tokenizer: VisualTokenizer) -> dict[str, Any]:
    """The way for codes to enter, with the widths of the tokenizer's vectors where it needs them."""
    if embedding.get("kind") != "codebook":
        return embedding
    return {"dims": {name: int(table.shape[1]) for name, table in tokenizer.code_vectors().items()}, **embedding}


def _over_all(blocks: Mapping[str, BlockLoss]) -> dict[str, BlockLoss]:
    """Block losses as terms whose average over processes is the mean over all tokens of the batch."""
    tokens = torch.stack([block.tokens for block in blocks.values()])
    shares = token_shares(tokens)
    found = zip(blocks, blocks.values(), shares, strict=True)
    return {name: BlockLoss(share * block.mean, block.tokens) for name, block, share in found}


def _checked(weights: Mapping[str, float], known: list[str]) -> dict[str, float]:
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise ValueError(
            f"weights must name the losses {', '.join(known)}, got {', '.join(unknown)}; correct or remove them"
        )
    return dict(weights)
