import pytest
import torch
from torch.nn import functional as F

from smalti.tokenizers.averaged import AveragedQuantizer


def built(**options):
    torch.manual_seed(0)
    return AveragedQuantizer(3, 8, decay=0.9, revive_below=0.0, **options)


def averages(quantizer, vectors, ids):
    """Counts, sums and table after one update, written out."""
    hot = F.one_hot(ids, 8).float()
    counts = 0.9 * quantizer.counts + 0.1 * hot.sum(0)
    sums = 0.9 * quantizer.sums + 0.1 * hot.T @ vectors
    smoothed = counts.sum() * (counts + 1e-5) / (counts.sum() + 8e-5)
    return counts, sums, sums / smoothed[:, None]


def check(quantizer, expected):
    torch.testing.assert_close((quantizer.counts, quantizer.sums, quantizer.table), expected)


def passes(quantizer, latents):
    """Residuals and ids of every depth at a fixed table, and what is left."""
    left, met = latents.flatten(0, 1).clone(), []
    for _ in range(quantizer.depth):
        ids = torch.cdist(left, quantizer.table).argmin(1)
        met.append((left.clone(), ids))
        left = left - quantizer.table[ids]
    return met, left


def test_residuals_of_all_depths_move_the_table_once():
    quantizer, latents = built(depth=3), torch.randn(2, 6, 3)
    met, _ = passes(quantizer, latents)
    expected = averages(quantizer, torch.cat([m for m, _ in met]), torch.cat([ids for _, ids in met]))
    quantized = quantizer(latents)
    assert torch.equal(quantized.ids.flatten(0, 1), torch.stack([ids for _, ids in met], dim=1))
    check(quantizer, expected)


def test_a_table_that_moves_between_depths():
    quantizer, latents = built(depth=2, schedule="depth"), torch.randn(2, 6, 3)
    left = latents.flatten(0, 1)
    for _ in range(2):
        ids = torch.cdist(left, quantizer.table).argmin(1)
        values, expected = quantizer.table[ids], averages(quantizer, left, ids)
        quantizer.counts, quantizer.sums, quantizer.table = expected
        left = left - values
    moving = built(depth=2, schedule="depth")
    moving(latents)
    check(moving, expected)


def test_the_released_alias_averages_what_is_left():
    quantizer, latents = built(depth=3, schedule="final_residual"), torch.randn(2, 6, 3)
    met, left = passes(quantizer, latents)
    expected = averages(quantizer, torch.cat([left] * 3), torch.cat([ids for _, ids in met]))
    quantizer(latents)
    check(quantizer, expected)


def test_intended_averages_reconstruct_better_than_the_released_alias():
    torch.manual_seed(1)
    data, errors = torch.randn(64, 8, 4), {}
    for schedule in ("step", "final_residual"):
        torch.manual_seed(0)
        quantizer = AveragedQuantizer(4, 32, depth=3, decay=0.9, schedule=schedule, revive_below=0.01)
        for batch in data.split(8) * 12:
            quantizer(batch)
        errors[schedule] = float(F.mse_loss(quantizer.eval()(data).latents, data))
    assert errors["step"] < 0.8 * errors["final_residual"]


def test_loss_is_over_partial_sums_and_reaches_the_latents():
    quantizer, latents = built(depth=2).eval(), torch.randn(2, 6, 3, requires_grad=True)
    quantized = quantizer(latents)
    partial = [quantizer.lookup(quantized.ids[..., : depth + 1]) for depth in range(2)]
    torch.testing.assert_close(quantized.loss, 0.25 * sum(F.mse_loss(latents, part) for part in partial) / 2)
    quantized.latents.backward(slope := torch.randn(2, 6, 3), retain_graph=True)
    assert torch.equal(latents.grad, slope)
    assert bool(torch.autograd.grad(quantized.loss, latents)[0].any())


def test_evaluation_moves_nothing():
    quantizer = built().eval()
    before = quantizer.table.clone()
    quantizer(torch.randn(2, 6, 3))
    assert torch.equal(quantizer.table, before)


@pytest.mark.parametrize("keep", [False, True])
def test_smoothed_counts_are_kept_on_request(keep):
    quantizer, latents = built(keep_smoothed=keep), torch.randn(1, 2, 3)
    ids = torch.cdist(latents[0], quantizer.table).argmin(1)
    counts, _, _ = averages(quantizer, latents[0], ids)
    smoothed = counts.sum() * (counts + 1e-5) / (counts.sum() + 8e-5)
    quantizer(latents)
    torch.testing.assert_close(quantizer.counts, smoothed if keep else counts)


def test_revived_codes_are_vectors_of_the_step_and_stay():
    quantizer = AveragedQuantizer(3, 8, decay=0.5, revive_below=0.9)
    latents = torch.randn(1, 6, 3) + 20
    quantizer(latents)
    dead = quantizer.counts == 0.9
    assert bool(dead.any())
    apart = torch.cdist(quantizer.table[dead], latents[0]).amin(1)
    assert bool((apart < 0.01 * 20).all())  # up to the smoothing of the counts
    ids = quantizer.eval()(latents).ids
    assert len(ids.unique()) > 3


def test_refusals():
    with pytest.raises(ValueError, match=r"depth must be >= 1 and decay in \[0, 1\), got 0 and 0.99"):
        AveragedQuantizer(3, 8, depth=0)
    with pytest.raises(ValueError, match=r"decay in \[0, 1\), got 1 and 1.0"):
        AveragedQuantizer(3, 8, decay=1.0)
