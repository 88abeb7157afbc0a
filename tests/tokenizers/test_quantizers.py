import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F

from smalti.tokenizers.quantizers import FiniteScalarQuantizer, VectorQuantizer

SQUARE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def table(quantizer, depth=0):
    return quantizer.table.layers[depth]._codebook


def over_square(**options):
    """A quantizer whose four codes are the corners of the unit square."""
    quantizer = VectorQuantizer(2, 4, kmeans_init=False, revive_below=0, **options)
    with torch.no_grad():
        table(quantizer).embed.copy_(SQUARE[None])
        table(quantizer).embed_avg.copy_(SQUARE[None])
    return quantizer


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


LATENTS = torch.tensor([[[0.1, 0.2], [0.9, 0.1], [0.2, 0.6]]])
NEAREST = torch.tensor([[[0], [1], [2]]])


def test_nearest_codes():
    quantized = over_square().eval()(LATENTS)
    assert torch.equal(quantized.ids, NEAREST)
    assert torch.equal(quantized.latents, SQUARE[NEAREST[..., 0]])
    assert float(quantized.usage) == 0.75


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("training", [True, False])
def test_loss_by_hand(update, training):
    loss = over_square(update=update).train(training)(LATENTS).loss
    error = (0.01 + 0.04 + 0.01 + 0.01 + 0.04 + 0.16) / 6
    torch.testing.assert_close(loss, torch.tensor(error * (1.25 if update == "gradient" else 0.25)))


def test_gradients_by_hand():
    """A quarter of the pull goes to the latents, a whole one to the codes."""
    quantizer, latents = over_square(update="gradient"), LATENTS.clone().requires_grad_()
    quantizer(latents).loss.backward()
    away = (LATENTS - SQUARE[NEAREST[..., 0]]) * 2 / 6
    torch.testing.assert_close(latents.grad, 0.25 * away)
    torch.testing.assert_close(table(quantizer).embed.grad[0, :3], -away[0])
    assert not table(quantizer).embed.grad[0, 3].any()


def test_straight_through():
    latents = LATENTS.clone().requires_grad_()
    over_square()(latents).latents.backward(slope := torch.randn(1, 3, 2))
    torch.testing.assert_close(latents.grad, slope)


def test_cosine_compares_directions():
    quantizer = VectorQuantizer(2, 2, cosine=True, kmeans_init=False, revive_below=0).eval()
    table(quantizer).embed.copy_(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    quantized = quantizer(torch.tensor([[[9.0, 1.0], [0.1, 0.2]]]))
    assert quantized.ids.flatten().tolist() == [0, 1]
    unit = F.normalize(torch.tensor([[9.0, 1.0], [0.1, 0.2]]), dim=-1)
    torch.testing.assert_close(quantized.loss, 0.25 * F.mse_loss(unit, torch.eye(2)))


def residual(**options):
    """Three depths fitted to Gaussian latents."""
    quantizer = VectorQuantizer(4, 16, depth=3, decay=0.8, **options)
    latents = torch.randn(8, 32, 4)
    for _ in range(20):
        quantizer(latents)
    return quantizer.eval(), latents


@pytest.mark.parametrize("shared", [False, True])
def test_each_depth_lowers_the_error(shared):
    quantizer, latents = residual(shared=shared)
    quantized = quantizer(latents)
    books = [table(quantizer, depth).embed[0] for depth in range(3)]
    errors, sum_so_far = [], torch.zeros_like(latents)
    for depth, book in enumerate(books):
        distances = torch.cdist(latents - sum_so_far, book[None].expand(8, -1, -1))
        assert torch.equal(quantized.ids[..., depth], distances.argmin(-1))
        sum_so_far = sum_so_far + book[quantized.ids[..., depth]]
        errors.append(F.mse_loss(sum_so_far, latents))
    assert errors[0] > errors[1] > errors[2]
    torch.testing.assert_close(quantized.loss, 0.25 * torch.stack(errors).mean())
    torch.testing.assert_close(quantizer.lookup(quantized.ids), sum_so_far)
    torch.testing.assert_close(quantized.latents, sum_so_far)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_shared_table_is_saved_once(update):
    quantizer, latents = residual(shared=True, update=update)
    saved = state(quantizer)
    assert sum(name.endswith(".embed") for name in saved) == 1
    other = VectorQuantizer(4, 16, depth=3, decay=0.8, shared=True, update=update).eval()
    other.load_state_dict(saved, strict=True)
    assert torch.equal(other(latents).ids, quantizer(latents).ids)
    assert all(table(other, depth).embed is table(other).embed for depth in range(3))


def test_projected_codebook():
    quantizer = VectorQuantizer(6, 8, codebook_dim=2, depth=2)
    quantized = quantizer(torch.randn(2, 20, 6))
    assert quantized.latents.shape == (2, 20, 6)
    quantizer.eval()
    ids = quantizer(latents := torch.randn(2, 20, 6)).ids
    torch.testing.assert_close(quantizer(latents).latents, quantizer.lookup(ids))


def test_moving_average_by_a_slow_loop():
    quantizer, decay, counts, sums = over_square(decay=0.9), 0.9, [1.0] * 4, [row.clone() for row in SQUARE]
    for _ in range(3):
        codes, latents = table(quantizer).embed[0].clone(), torch.rand(2, 10, 2)
        quantizer(latents)
        found = [((row - codes) ** 2).sum(-1).argmin().item() for row in latents.view(-1, 2)]
        for code in range(4):
            members = [row for row, id_ in zip(latents.view(-1, 2), found, strict=True) if id_ == code]
            counts[code] = decay * counts[code] + (1 - decay) * len(members)
            sums[code] = decay * sums[code] + (1 - decay) * sum(members, torch.zeros(2))
        total = sum(counts)
        expected = [sums[i] / ((counts[i] + 1e-5) / (total + 4e-5) * total) for i in range(4)]
        torch.testing.assert_close(table(quantizer).embed[0], torch.stack(expected))


def test_dead_codes_are_revived():
    quantizer = VectorQuantizer(2, 4, kmeans_init=False, revive_below=0.5, decay=0.5)
    table(quantizer).embed.copy_(torch.cat([SQUARE[:3], torch.tensor([[99.0, 99.0]])])[None])
    table(quantizer).embed_avg.copy_(table(quantizer).embed)
    latents = SQUARE[:3].repeat(8, 1)[None] + 0.1 * torch.randn(1, 24, 2)
    for _ in range(3):
        quantizer(latents)
    assert float(table(quantizer).embed.max()) < 2
    assert float(quantizer.eval()(latents).usage) == 1


@pytest.mark.parametrize("shared", [False, True])
def test_kmeans_starts_with_training(shared):
    quantizer = VectorQuantizer(2, 4, depth=2, shared=shared)
    latents = SQUARE.repeat(8, 1)[None] * 10 + 0.01 * torch.randn(1, 32, 2)
    before = state(quantizer.eval())
    untrained = F.mse_loss(quantizer(latents).latents, latents)
    assert all(torch.equal(value, before[name]) for name, value in state(quantizer).items())
    quantizer.train()(latents)
    started = table(quantizer).embed.clone()
    assert F.mse_loss(quantizer.eval()(latents).latents, latents) < 0.5 * untrained
    quantizer.train()(latents + 100)
    assert 0 < float((table(quantizer).embed - started).abs().max()) < 50  # an average moves; k-means would jump


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_damaged_latents_never_reach_the_average(bad):
    quantizer, latents = over_square(), LATENTS.clone()
    latents[0, 1, 0] = bad
    before = state(quantizer)
    with pytest.raises(FloatingPointError, match=r"latents must be finite to be quantized, got NaN or infinity; skip"):
        quantizer(latents)
    assert all(torch.equal(value, before[name]) for name, value in state(quantizer).items())


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3)])
def test_latents_of_another_width(shape):
    with pytest.raises(ValueError, match=r"latents must be \[B, N, 2\], got \["):
        over_square()(torch.zeros(shape))


def test_impossible_options():
    with pytest.raises(
        ValueError, match=r"cosine comparison needs depth 1, got depth 2: residuals have no unit length"
    ):
        VectorQuantizer(2, 4, depth=2, cosine=True)
    with pytest.raises(ValueError, match=r"cosine comparison needs update='ema' in vector-quantize-pytorch, got"):
        VectorQuantizer(2, 4, cosine=True, update="gradient")


@pytest.mark.parametrize("build", [lambda: VectorQuantizer(2, 4), lambda: FiniteScalarQuantizer(2, [3, 3])])
def test_float32_inside_autocast_and_casts(build):
    quantizer = build()
    weights = state(quantizer)
    quantizer.to(torch.bfloat16)
    assert all(torch.equal(value, weights[name]) for name, value in state(quantizer).items())
    with torch.autocast("cpu", torch.bfloat16):
        quantized = quantizer(torch.randn(1, 8, 2).bfloat16())
        assert quantized.latents.dtype == quantized.loss.dtype == torch.float32
        assert quantizer.lookup(quantized.ids).dtype == torch.float32


def test_finite_scalar_table():
    """Levels (3, 3): all nine codes, written out."""
    quantizer = FiniteScalarQuantizer(2, [3, 3])
    assert (quantizer.size, quantizer.depth) == (9, 1)
    ids = torch.arange(9)[None, :, None]
    expected = [[-1, -1], [0, -1], [1, -1], [-1, 0], [0, 0], [1, 0], [-1, 1], [0, 1], [1, 1]]
    assert quantizer.lookup(ids)[0].tolist() == expected
    assert torch.equal(quantizer(quantizer.lookup(ids)).ids, ids)
    assert float(quantizer(quantizer.lookup(ids)).usage) == 1


def test_finite_scalar_projection():
    quantizer, latents = FiniteScalarQuantizer(6, [5, 4, 3]), torch.randn(2, 10, 6, requires_grad=True)
    quantized = quantizer(latents)
    assert quantized.ids.shape == (2, 10, 1)
    assert 0 <= int(quantized.ids.min()) <= int(quantized.ids.max()) < quantizer.size == 60
    torch.testing.assert_close(quantizer.lookup(quantized.ids), quantized.latents)
    quantized.latents.sum().backward()
    assert latents.grad.any()
    assert float(quantized.loss) == 0


OPTIONS = {
    "plain": {"depth": 1},
    "cosine": {"depth": 1, "cosine": True},
    "residual": {"depth": 2},
    "shared": {"depth": 2, "shared": True},
    "exact": {"depth": 1, "kmeans_init": False, "revive_below": 0},
}


def batch(rank, step):
    """Latents ``[1, 12, 3]`` of one process; few and far between, so that codes die."""
    return torch.randn(1, 12, 3, generator=torch.Generator().manual_seed(10 * rank + step)) + rank


def build_all():
    torch.manual_seed(0)
    return {name: VectorQuantizer(3, 16, **options) for name, options in OPTIONS.items()}


def worker(rank, folder):
    torch.set_num_threads(1)
    quantizers = build_all()  # before the process group exists, as under Lightning
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)
    for step in range(4):
        for quantizer in quantizers.values():
            quantizer(batch(rank, step))
    latents = batch(rank, 9)
    latents[0, 0, 0] = float("nan") if rank else 0.0
    with pytest.raises(FloatingPointError, match=r"latents must be finite"):
        quantizers["plain"](latents)
    torch.save({name: quantizer.state_dict() for name, quantizer in quantizers.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_share_one_codebook(tmp_path):
    mp.start_processes(worker, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in OPTIONS:
        for key, value in first[name].items():
            assert torch.equal(value, second[name][key]), (name, key)
    alone = build_all()["exact"]
    for step in range(4):
        alone(torch.cat([batch(0, step), batch(1, step)]))
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(first["exact"][key], value)
