"""Two processes against one with the same global batch: weights whole (DDP) and sharded (FSDP2), saved and resumed."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from smalti.generation.orders import Random
from smalti.generation.pipeline import TextToImagePipeline
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.discriminator import PatchDiscriminator
from smalti.tokenizers.losses import PixelLoss
from smalti.tokenizers.quantizers import VectorQuantizer, of_first
from smalti.tokenizers.vq import VQTokenizer
from smalti.training import lm as lm_module
from smalti.training.adversarial import AdversarialSettings
from smalti.training.guard import GuardSettings
from smalti.training.interrupt import GracefulInterrupt, check_parts
from smalti.training.lm import LanguageModelTraining
from smalti.training.optimizer import OptimizerSettings, ShardedMuon
from smalti.training.processes import collected, everywhere, token_shares
from smalti.training.resume import ResumableData
from smalti.training.scores import Scores
from smalti.training.sharding import blocks, local, shard, whole
from smalti.training.tokenizer import TokenizerTraining

SIZE, STEPS, HALF = 8, 20, 13
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
#: Most pictures are read, so that one process of two often asks for none.
QUERIES = {"order": Random(), "reading": 0.8}
WORDS = ("red", "blue", "green", "circle", "square", "two", "one", "many", "how", "?")


class Items(ResumableData):
    """Lists of items; the validation data are an odd number of them."""

    def __init__(self, items: list[dict], batch_size: int, held_out: int) -> None:
        super().__init__(batch_size)
        self.items, self.held_out = items, held_out

    def train_set(self):
        return self.items[self.held_out :]

    def validation_set(self):
        return self.items[: self.held_out]


class Codes(Items):
    @staticmethod
    def collate(items):
        return items

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


class Curve(Callback):
    """The loss of every step as it is logged."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(trainer.callback_metrics["train/loss"].item())


def codes(batch_size: int) -> Codes:
    """Pictures of one to three questions, captions of one to four words: ranks hold different numbers of tokens."""
    draw, items = torch.Generator().manual_seed(3), []
    for number in range(37):
        words = [WORDS[i] for i in torch.randint(len(WORDS), (7,), generator=draw).tolist()]
        asked = tuple((f"how many {word} ?", words[0]) for word in words[: 1 + number % 3])
        ids = torch.randint(16, (16, 1), generator=draw)
        items.append({"ids": ids, "caption": " ".join(words[: 1 + number % 4]), "questions": asked})
    return Codes(items, batch_size, held_out=5)


def pictures(batch_size: int) -> Items:
    images = torch.rand(37, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return Items([{"images": image} for image in images], batch_size, held_out=5)


def small_tokenizer(update: str = "gradient") -> VQTokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {"dim": 8, "width": 64, "multipliers": (1, 1), "blocks": 1}
        quantizer = VectorQuantizer(dim=4, codebook_size=16, update=update, revive_below=0.0, kmeans_init=False)
        return VQTokenizer(ConvEncoder(**parts), quantizer, ConvDecoder(**parts), SIZE)


def lm(folder: Path, **options) -> LanguageModelTraining:
    optimizer = OptimizerSettings(learning_rate=3e-3, warmup_steps=5, weight_decay=0.1)
    usual = {"reading": 0.5, "describing": 0.3, "caption_dropout": 0.3, "questions": 2, "optimizer": optimizer}
    return LanguageModelTraining(str(folder / "tokenizer"), Vocabulary.train(WORDS), dict(LLAMA), **usual | options)


def tokenizer_training() -> TokenizerTraining:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        judge = PatchDiscriminator(width=8, layers=1)
    adversarial = AdversarialSettings(
        loss="non-saturating", weight=0.5, start=3, warmup=1, ramp=0, clamp=(0.0, 1e4), lecam=0.3, r1=0.1, r1_every=4
    )
    optimizer = OptimizerSettings(learning_rate=1e-3, warmup_steps=5, weight_decay=0.1)
    return TokenizerTraining(
        small_tokenizer("ema"), PixelLoss(), discriminator=judge, adversarial=adversarial, optimizer=optimizer
    )


def state(module) -> dict[str, Tensor]:
    """All weights and buffers, whole; of attention without the biases of keys, which cancel out of it."""
    found = {name: whole(value.detach()).float().clone() for name, value in module.state_dict().items()}
    for name in [name for name in found if name.endswith("qkv.bias")]:
        query, _, value = found[name].chunk(3)
        found[name] = torch.cat([query, value])
    return {name: value for name, value in found.items() if name != "anchors.pending"}


def fitted(module, data, folder: Path, callbacks=(), resume: Path | None = None, **options) -> dict:
    """What a run leaves behind: its loss curve, its metrics and its weights."""
    curve, options = Curve(), {"max_steps": STEPS} | options
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, num_sanity_val_steps=0, check_val_every_n_epoch=None, val_check_interval=STEPS,
        log_every_n_steps=1, callbacks=[curve, *callbacks], **options,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resume)
    assert trainer.global_step == options["max_steps"]
    counts = {"skipped": module.guard.skipped, "rollbacks": module.guard.rollbacks}
    scores = {name: value.item() for name, value in trainer.callback_metrics.items()}
    return {"curve": curve.losses, "scores": scores, "state": state(module), **counts}


class Troubled(LanguageModelTraining):
    """One step whose quantizer raises and one whose loss is not finite; either is one too many."""

    @classmethod
    def of(cls, folder: Path) -> Troubled:
        optimizer = OptimizerSettings(learning_rate=3e-3)
        guard = GuardSettings(max_bad_steps=1, cooling=1.0)
        options = {"reading": 0.5, "optimizer": optimizer, "guard": guard}
        return cls(str(folder / "tokenizer"), Vocabulary.train(WORDS), dict(LLAMA), **options)

    def training_loss(self, batch):
        loss = super().training_loss(batch)
        if self.global_step == 2:
            raise FloatingPointError("latents are not finite")
        return loss * (float("nan") if self.global_step == 4 else 1.0)


class CtrlC(Callback):
    """Presses Ctrl-C at the second process alone."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGINT)


def interrupted(folder: Path) -> tuple[bool, int | None]:
    """What a process knows of a run that was ended at the other one."""
    interrupt = GracefulInterrupt(path=str(folder / "interrupted.ckpt"))
    with pytest.raises(SystemExit, match=r"^1$"):
        fitted(lm(folder), codes(4), folder, [interrupt, CtrlC()], **strategies(2)["ddp"])
    return interrupt.interrupted, interrupt.saved_step


class SaveInMidStep(Callback):
    """Saves after the first of the two batches of a step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 6 and pl_module.guard.is_open and not self.path.exists():
            trainer.save_checkpoint(self.path)
            trainer.strategy.barrier()


def muon() -> tuple[Tensor, Tensor]:
    """A matrix after three steps of torch's Muon, and the same in parts."""
    torch.manual_seed(0)
    start, slopes = torch.randn(6, 4), torch.randn(3, 6, 4)
    cut = lambda tensor: distribute_tensor(tensor, init_device_mesh("cpu", (2,)))  # noqa: E731
    found = []
    for made in (lambda tensor: tensor, cut):
        matrix = nn.Parameter(made(start.clone()))
        optimizer = ShardedMuon([matrix], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for slope in slopes:
            matrix.grad = made(slope.clone())
            optimizer.step()
        found.append(whole(matrix.detach()))
    return found[0], found[1]


def exchanged(rank: int) -> dict[str, object]:
    """What the two processes make of numbers that differ between them."""
    scores, rows = Scores(), torch.tensor([[1.0 + rank]], requires_grad=True)
    scores.add({"both": torch.tensor(1.0 + 3 * rank)}, 1 + rank)
    if rank == 1:
        scores.add({"one": torch.tensor(7.0)}, 2)
    everyone = everywhere(rows)
    (everyone * torch.tensor([[1.0], [10.0]]) * (rank + 1)).sum().backward()
    return {
        "shares": token_shares(torch.tensor([3 - 2 * rank, 0, 4])).tolist(),
        "collected": collected([f"{rank}{number}" for number in range(3 - rank)]),
        "scores": {name: value.item() for name, value in scores.compute(torch.device("cpu")).items()},
        "everyone": everyone.flatten().tolist(),
        "gradient": rows.grad.item(),
        "first": of_first(rank + 5, torch.device("cpu")),
    }


def refused(folder: Path) -> str:
    """What is said of matrices that are to be cut over two processes."""
    cut = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2, process_group_backend="gloo")
    with pytest.raises(ValueError, match="tensor_parallel_size") as caught:
        fitted(lm(folder), codes(4), folder, strategy=cut, devices=2)
    return str(caught.value)


def strategies(world: int) -> dict[str, dict]:
    ddp = DDPStrategy(process_group_backend="gloo")
    fsdp = ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1, process_group_backend="gloo")
    return {"ddp": {"strategy": ddp, "devices": world}, "fsdp": {"strategy": fsdp, "devices": world}}


class Interrupt(GracefulInterrupt):
    """Keeps a copy of what is saved at step :data:`HALF`."""

    def _save(self, trainer):
        super()._save(trainer)
        if trainer.is_global_zero and trainer.global_step == HALF:
            target = self.checkpoint_path(trainer)
            shutil.copytree(target, target.with_name("half.ckpt"))
        trainer.strategy.barrier()


def _worker(rank: int, name: str) -> None:
    torch.set_num_threads(1)
    folder, found = Path(name), {}
    os.environ["LOCAL_RANK"] = str(rank)  # tells Lightning that processes are started by others
    dist.init_process_group("gloo", init_method=f"file://{folder}/pair", rank=rank, world_size=2)
    found["lm ddp"] = fitted(lm(folder), codes(4), folder, **strategies(2)["ddp"])
    module = lm(folder, save_to=str(folder / "model"))
    saved = [Interrupt(every=HALF)]
    found["lm fsdp"] = fitted(module, codes(4), folder, saved, **strategies(2)["fsdp"])
    found["parts"] = {name: list(local(p).shape) for name, p in module.named_parameters()}
    half = folder / "half.ckpt"
    found["lm resumed"] = fitted(lm(folder), codes(4), folder, resume=half, **strategies(2)["fsdp"])
    troubled, mid = {"accumulate_grad_batches": 2, "max_steps": 8}, folder / "mid.ckpt"
    for run, more in (("fsdp", {"callbacks": [SaveInMidStep(mid)]}), ("resumed", {"resume": mid})):
        options = troubled | more | strategies(2)["fsdp"]
        found[f"troubled {run}"] = fitted(Troubled.of(folder), codes(2), folder, **options)
    found["muon"], found["shares"] = muon(), exchanged(rank)
    found["refused"] = refused(folder)
    for kind in ("ddp", "fsdp"):
        found[f"queries {kind}"] = fitted(lm(folder, **QUERIES), codes(1), folder, max_steps=8, **strategies(2)[kind])
    found["interrupted"] = interrupted(folder)
    found["tokenizer fsdp"] = fitted(tokenizer_training(), pictures(4), folder, **strategies(2)["fsdp"])
    dist.destroy_process_group()
    if rank == 0:
        dist.init_process_group("gloo", init_method=f"file://{folder}/alone", rank=0, world_size=1)
        found["lm resumed alone"] = fitted(lm(folder), codes(8), folder, resume=half, **strategies(1)["fsdp"])
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    small_tokenizer().save_pretrained(root / "tokenizer")
    return root


@pytest.fixture(scope="module")
def pair(folder):
    mp.spawn(_worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone(folder):
    quiet = {"enable_checkpointing": False}
    runs = {"lm": (lm(folder), codes(8)), "tokenizer": (tokenizer_training(), pictures(8))}
    found = {name: fitted(*run, folder / "alone", **quiet) for name, run in runs.items()}
    troubled = {"accumulate_grad_batches": 2, "max_steps": 8, **quiet}
    found["queries"] = fitted(lm(folder, **QUERIES), codes(2), folder / "alone", max_steps=8, **quiet)
    return found | {"troubled": fitted(Troubled.of(folder), codes(4), folder / "alone", **troubled)}


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, str]:
    assert one.keys() == other.keys()
    return max((float((one[name] - other[name]).abs().max()), name) for name in one)


def apart(one: dict, other: dict) -> float:
    return max(abs(a - b) for a, b in zip(one["curve"], other["curve"], strict=True))


@pytest.mark.parametrize("run", ["lm ddp", "lm fsdp", "tokenizer fsdp"])
def test_two_processes_learn_what_one_does(pair, alone, run):
    expected, (first, second) = alone[run.split()[0]], (found[run] for found in pair)
    assert len(first["curve"]) == STEPS
    curve, weights = apart(first, expected), furthest(first["state"], expected["state"])[0]
    logging.getLogger(__name__).info("largest difference: loss %.1e, weights %.1e", curve, weights)
    assert curve < 1e-5
    assert weights < 1e-5
    assert furthest(first["state"], second["state"])[0] == 0  # codebooks among them
    assert first["curve"] == second["curve"]


@pytest.mark.parametrize("run", ["queries ddp", "queries fsdp"])
def test_a_process_that_asks_for_nothing_learns_with_the_other(pair, alone, run):
    for found in pair:
        assert apart(found[run], alone["queries"]) < 1e-5
        assert furthest(found[run]["state"], alone["queries"]["state"])[0] < 1e-5


def test_ctrl_c_at_one_process_ends_both(pair):
    assert [found["interrupted"] for found in pair] == [(True, 2), (True, 2)]


def test_nothing_is_gathered_at_the_end_where_no_tokenizer_is_tuned(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(lm_module, "gathered", lambda module: pytest.fail("weights were gathered"))
    fitted(lm(folder), codes(4), tmp_path, max_steps=1, enable_checkpointing=False)


@pytest.mark.parametrize("run", ["lm ddp", "lm fsdp", "tokenizer fsdp"])
def test_every_item_is_validated_once(pair, alone, run):
    """Five items: three for one process, two for the other."""
    expected, (first, second) = alone[run.split()[0]]["scores"], (found[run]["scores"] for found in pair)
    named = [name for name in expected if name.startswith("val/")]
    assert {"lm": {"val/text", "val/pixel", "val/answers"}, "tokenizer": {"val/psnr", "val/usage/pixel"}}[
        run.split()[0]
    ] <= set(named)
    assert {name: first[name] for name in named} == pytest.approx({name: expected[name] for name in named}, abs=1e-5)
    assert first == second


def test_each_process_has_a_part(pair, folder):
    expected = {name: list(p.shape) for name, p in lm(folder).named_parameters()}
    parts = [found["parts"] for found in pair]
    for name, shape in expected.items():
        assert [part[name][1:] for part in parts] == [shape[1:]] * 2
        assert sum(part[name][0] for part in parts) == shape[0]
    halves = {part["model.backbone.model.layers.0.self_attn.q_proj.weight"][0] for part in parts}
    assert halves == {LLAMA["hidden_size"] // 2}


def test_a_resumed_run_equals_an_uninterrupted_one(pair):
    for run in ("lm", "troubled"):
        for found in pair:
            whole_run, resumed = found[f"{run} fsdp"], found[f"{run} resumed"]
            assert resumed["curve"] == whole_run["curve"][-len(resumed["curve"]) :]
            assert furthest(resumed["state"], whole_run["state"])[0] == 0


def test_one_process_resumes_what_two_have_saved(pair, alone):
    resumed = pair[0]["lm resumed alone"]
    assert len(resumed["curve"]) == STEPS - HALF
    assert resumed["curve"] == pytest.approx(alone["lm"]["curve"][HALF:], abs=1e-5)
    assert furthest(resumed["state"], alone["lm"]["state"])[0] < 1e-5


def test_what_is_saved_in_parts_is_whole_or_not_there(pair, folder):
    assert {"meta.pt", ".metadata"} <= {file.name for file in (folder / "last.ckpt").iterdir()}
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []


def test_the_trained_model_is_written_whole(pair, folder):
    pipeline = TextToImagePipeline.from_pretrained(folder / "model")
    written, trained = pipeline.lm.state_dict(), pair[0]["lm fsdp"]["state"]
    assert len(written) > 20
    assert all(torch.equal(value, trained[f"model.{name}"]) for name, value in written.items())


def test_bad_steps_change_nothing_and_runs_go_back(pair, alone):
    expected = alone["troubled"]
    assert (expected["skipped"], expected["rollbacks"]) == (2, 2)
    for found in pair:
        first = found["troubled fsdp"]
        assert (first["skipped"], first["rollbacks"]) == (2, 2)
        assert furthest(first["state"], expected["state"])[0] < 1e-5


def test_muon_moves_parts_as_it_moves_whole_matrices(pair):
    for found in pair:
        torch.testing.assert_close(*found["muon"], atol=1e-6, rtol=0)


def test_numbers_of_two_processes(pair):
    first, second = (found["shares"] for found in pair)
    assert first["shares"] == [1.5, 0.0, 1.0]  # three of four tokens: the mean of 3 a / 4 * 2 and b / 4 * 2 is over all
    assert second["shares"] == [0.5, 0.0, 1.0]
    for found in (first, second):
        assert found["collected"] == ["00", "10", "01", "11", "02"]
        assert found["scores"] == {"both": 3.0, "one": 7.0}
        assert found["everyone"] == [1.0, 2.0]
        assert found["first"] == 5
    assert (first["gradient"], second["gradient"]) == (1.0 + 2.0, 10.0 + 20.0)


@pytest.mark.parametrize("saved", ["folder", "file"])
def test_a_run_goes_on_as_it_was_saved(tmp_path, saved):
    path, kinds = tmp_path / "last.ckpt", {"folder": {}, "file": strategies(1)["fsdp"]}
    path.mkdir() if saved == "folder" else path.touch()
    trainer = Trainer(accelerator="cpu", logger=False, **kinds[saved])
    message = "go on with ModelParallelStrategy" if saved == "folder" else "another strategy than ModelParallelStrategy"
    with pytest.raises(
        ValueError, match=r"expected a checkpoint of .* weights, which are (a folder|one file); go on with"
    ):
        check_parts(path, trainer)
    with pytest.raises(ValueError, match=message):
        check_parts(path, trainer)
    other = {"folder": "file", "file": "folder"}[saved]
    check_parts(path, Trainer(accelerator="cpu", logger=False, **{"folder": {}, "file": strategies(1)["fsdp"]}[other]))


def test_matrices_are_not_cut_in_themselves(pair):
    assert "no matrix is cut in itself, got a tensor_parallel_size of 2; set" in pair[0]["refused"]


def test_averages_beside_sharded_weights_are_refused(folder):
    options = strategies(1)["fsdp"]
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[EMAWeightAveraging()], **options)
    with pytest.raises(ValueError, match="averaged weights have no parts, got EMAWeightAveraging beside sharded"):
        lm(folder).check_run(trainer, None)


def test_a_codebook_that_a_step_would_set_is_refused():
    quantizer = VectorQuantizer(dim=4, codebook_size=16, update="gradient", kmeans_init=True)
    with pytest.raises(ValueError, match="cannot be started by k-means where it is sharded, got quantizer; set its"):
        shard(nn.ModuleDict({"quantizer": quantizer}), None, [])


def test_repeated_layers_are_units_and_what_is_looked_into_is_not(folder):
    model = lm(folder).model
    assert blocks(model) == list(model.backbone.model.layers)
    column = {"kind": "apart", "heads": 2}
    spec = CodeSpec(CodeLayout("sequence", (4,)), (Codebook("pixel", 8), Codebook("semantic", 8)))
    apart_heads = SharedLM.build(LLAMA, Vocabulary.train(WORDS), spec, "", column)
    assert blocks(apart_heads) == list(apart_heads.backbone.model.layers)
    assert blocks(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])) == []
