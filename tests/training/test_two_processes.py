"""Adversarial training on two processes against one with the same global batch, and on half batches against whole."""

from __future__ import annotations

import os

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn import functional as F

from smalti.tokenizers.codes import Codebook, CodeLayout, Codes, CodeSpec
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.discriminator import PatchDiscriminator
from smalti.tokenizers.losses import PixelLoss
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.adversarial import AdversarialSettings
from smalti.training.optimizer import OptimizerSettings
from smalti.training.processes import averaged, interleaved, share
from smalti.training.resume import ResumableData
from smalti.training.seeding import Place, step_generator
from smalti.training.tokenizer import TokenizerTraining
from smalti.training.unfinished import unfinished_gradients
from smalti.training.usage import CodeUsage

SIZE, STEPS = 8, 20
#: Not the hinge: inside its margins the gradients of a bias from real and fake cancel, and Adam scales up the rounding.
EVERYTHING = {
    "loss": "non-saturating",
    "weight": 0.5,
    "start": 3,
    "warmup": 1,
    "ramp": 0,
    "clamp": (0.0, 1e4),
    "augment": ("color", "translation", "cutout"),
    "lecam": 0.3,
    "lecam_decay": 0.9,
    "r1": 0.1,
    "r1_every": 4,
}


class Pictures(ResumableData):
    """Patches of colour; 40 are ten batches of four."""

    def __init__(self, batch_size: int) -> None:
        super().__init__(batch_size)
        coarse = torch.rand(40, 3, 2, 2, generator=torch.Generator().manual_seed(5)) * 2 - 1
        self.items = [{"images": image} for image in F.interpolate(coarse, (SIZE, SIZE))]

    def train_set(self):
        return self.items

    def validation_set(self):
        return None


def training(settings: dict, update: str) -> TokenizerTraining:
    """Width 64 has two channels to a norm: with one, biases before it have a gradient of nothing but rounding."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {"dim": 8, "width": 64, "multipliers": (1, 1), "blocks": 1}
        quantizer = VectorQuantizer(dim=4, codebook_size=16, update=update, revive_below=0.0, kmeans_init=False)
        tokenizer = VQTokenizer(ConvEncoder(**parts), quantizer, ConvDecoder(**parts), SIZE)
        judge = PatchDiscriminator(width=8, layers=1)
    return TokenizerTraining(
        tokenizer, PixelLoss(), discriminator=judge, adversarial=AdversarialSettings(**EVERYTHING | settings),
        optimizer=OptimizerSettings(learning_rate=1e-3, warmup_steps=5, weight_decay=0.1),
    )  # fmt: skip


def state(module: nn.Module) -> dict[str, Tensor]:
    """All weights and buffers but the biases of keys, which cancel out of attention: Adam scales their rounding up."""
    found = {name: value.detach().float().clone() for name, value in module.state_dict().items()}
    for name in [name for name in found if name.endswith("qkv.bias")]:
        query, _, value = found[name].chunk(3)
        found[name] = torch.cat([query, value])
    pending = found["anchors.pending"]  # sums over batches, of which a step may have any number
    return found | {"anchors.pending": pending[:2] / pending[2]}


def trained(folder, settings: dict, update: str, batch_size: int, accumulate: int = 1, **options) -> dict[str, Tensor]:
    module = training(settings, update)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=STEPS,
        enable_model_summary=False, default_root_dir=folder, limit_val_batches=0, accumulate_grad_batches=accumulate,
        **options,
    )  # fmt: skip
    trainer.fit(module, Pictures(batch_size))
    assert trainer.global_step == STEPS
    assert module.guard.skipped == module.guard.rollbacks == 0
    assert {"train/adversarial", "train/lecam", "train/logits_real"} <= set(trainer.callback_metrics)
    return state(module)


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    assert one.keys() == other.keys()
    return {name: float((one[name] - other[name]).abs().max()) for name in one}


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # tells Lightning that processes are started by others
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    options = {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": 2}
    torch.save((_shared(rank), trained(folder, {}, "ema", 2, **options)), f"{folder}/{rank}.pt")


def _shared(rank: int) -> dict[str, object]:
    """What the two processes make of numbers that differ between them."""
    module, meter = nn.Linear(2, 1), CodeUsage()
    module.weight.grad = torch.tensor([[1.0, 2.0]]) * (rank + 1)
    if rank == 0:
        module.bias.grad = torch.tensor([4.0])
    spec = CodeSpec(CodeLayout("sequence", (2,)), (Codebook("pixel", 8),))
    meter.update(Codes.full(torch.tensor([[[rank], [rank + 2]]]), spec))
    rows = interleaved(torch.arange(3 - rank)[:, None] + 10 * rank)
    return {
        "averaged": averaged(torch.tensor([1.0 + rank, 5.0])),
        "rows": rows[:, 0],
        "own": share(rows)[:, 0],
        "gradients": unfinished_gradients(module),
        "usage": meter.state_dict()["recent"][:, 0],
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    mp.spawn(_worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_learn_what_one_does(tmp_path, pair):
    alone, (first, second) = trained(tmp_path, {}, "ema", 4), [weights for _, weights in pair]
    assert max(furthest(first, second).values()) == 0
    assert max(furthest(first, alone).values()) < 1e-5
    moved = furthest(alone, state(training({}, "ema")))
    for part in ("tokenizer.encoder", "tokenizer.decoder", "discriminator"):
        assert max(value for name, value in moved.items() if name.startswith(part)) > 5e-3, part


def test_half_batches_learn_what_whole_ones_do(tmp_path):
    settings = {"adaptive": False}
    whole, halves = (trained(tmp_path, settings, "gradient", 4 // n, n) for n in (1, 2))
    assert max(furthest(whole, halves).values()) < 1e-5


def test_numbers_of_two_processes(pair):
    (first, _), (second, _) = pair
    assert first["averaged"].tolist() == second["averaged"].tolist() == [1.5, 5.0]
    assert first["rows"].tolist() == second["rows"].tolist() == [0, -1, 1, 10, 2, 11]
    assert (first["own"].tolist(), second["own"].tolist()) == ([0, 1, 2], [10, 11])
    assert first["usage"].tolist() == second["usage"].tolist() == [0, 1, 2, 3]
    for found in (first["gradients"], second["gradients"]):
        assert found["weight"].tolist() == [[1.5, 3.0]]
        assert found["bias"].tolist() == [2.0]  # none in the second process


def test_one_process_keeps_its_numbers():
    rows = torch.tensor([[0], [-1], [1], [10], [2], [11]])
    assert share(rows)[:, 0].tolist() == [0, 1, 10, 2, 11]
    assert torch.equal(interleaved(rows), rows)
    assert averaged(rows) is rows


def test_samples_are_numbered_alike_however_they_are_dealt_out():
    def numbers(count: int, world: int, parts: int) -> list[list[int]]:
        places = [(Place(7, part, parts).rows(count, rank, world)) for part in range(parts) for rank in range(world)]
        assert {total for _, total in places} == {8}
        return [list(range(8))[rows] for rows, _ in places]

    assert numbers(8, 1, 1) == [list(range(8))]
    assert numbers(4, 2, 1) == numbers(4, 1, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert numbers(2, 2, 2) == [[0, 1], [2, 3], [4, 5], [6, 7]]  # both processes' first batches come first


def test_a_step_draws_by_its_number_alone():
    draws = [torch.rand(4, generator=step_generator(seed, step)) for seed, step in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])
