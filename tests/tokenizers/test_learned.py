import math

import pytest
import torch
from torch.nn import functional as F

from smalti.tokenizers.ibq import IndexBackpropagationQuantizer
from smalti.tokenizers.learned import GradientQuantizer, straight_through
from smalti.tokenizers.search import entropies
from smalti.tokenizers.tokenflow import SharedMappingQuantizer
from smalti.tokenizers.unitok import MultiCodebookQuantizer

SQUARE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
LATENTS = torch.tensor([[[0.1, 0.2], [0.9, 0.1], [0.2, 0.6]]])
NEAREST = torch.tensor([[[0], [1], [2]]])


def set_table(quantizer, rows):
    with torch.no_grad():
        quantizer.table.copy_(rows)
    return quantizer


def test_losses_and_gradients_by_hand():
    quantizer = set_table(GradientQuantizer(2, 4), SQUARE)
    latents = LATENTS.clone().requires_grad_()
    quantized = quantizer(latents)
    assert torch.equal(quantized.ids, NEAREST)
    assert torch.equal(quantized.latents, SQUARE[NEAREST[..., 0]])
    torch.testing.assert_close(quantized.loss, torch.tensor(1.25 * 0.27 / 6))
    quantized.loss.backward()
    away = (LATENTS - SQUARE[NEAREST[..., 0]]) * 2 / 6
    torch.testing.assert_close(latents.grad, 0.25 * away)
    torch.testing.assert_close(quantizer.table.grad[:3], -away[0])
    assert not quantizer.table.grad[3].any()


def test_beta_at_the_other_term_as_seed_released_it():
    quantizer = set_table(GradientQuantizer(2, 4, codebook=0.25, commitment=1.0), SQUARE)
    latents = LATENTS.clone().requires_grad_()
    quantizer(latents).loss.backward()
    away = (LATENTS - SQUARE[NEAREST[..., 0]]) * 2 / 6
    torch.testing.assert_close(latents.grad, away)
    torch.testing.assert_close(quantizer.table.grad[:3], -0.25 * away[0])


def test_unit_length_makes_the_choice_by_angle():
    quantizer = set_table(GradientQuantizer(2, 2, cosine=True), torch.tensor([[5.0, 0.0], [0.0, 0.1]]))
    quantized = quantizer(torch.tensor([[[9.0, 1.0], [0.1, 0.2]]]))
    assert quantized.ids.flatten().tolist() == [0, 1]
    assert torch.equal(quantized.latents, torch.eye(2)[None])
    assert torch.equal(quantizer.vectors("pixel")["pixel"], torch.eye(2))


def test_entropy_term_is_for_training():
    latents, options = torch.randn(2, 9, 4), {"codebook": 0.0, "commitment": 0.0, "entropy": 0.5, "temperature": 0.4}
    quantizer = GradientQuantizer(4, 8, **options)
    measured = entropies(latents.flatten(0, 1), quantizer.table, 0.4)
    torch.testing.assert_close(quantizer(latents).loss, 0.5 * (measured.sample - measured.batch))
    assert float(quantizer.eval()(latents).loss.detach()) == 0


def shared(weight):
    quantizer = SharedMappingQuantizer(3, 2, 16, distance_weight=weight)
    return set_table(quantizer, torch.randn(16, 5))


@pytest.mark.parametrize(("weight", "part"), [(0.0, slice(0, 3)), (math.inf, slice(3, 5))])
def test_shared_mapping_at_its_limits_is_a_single_codebook(weight, part):
    quantizer, latents = shared(weight), torch.randn(2, 20, 5)
    single = set_table(GradientQuantizer(part.stop - part.start, 16, cosine=True), quantizer.table[:, part])
    assert torch.equal(quantizer(latents).ids, single(latents[..., part]).ids)


@pytest.mark.parametrize("weight", [0.3, 1.0, 4.0])
def test_shared_mapping_adds_two_distances(weight):
    quantizer, latents = shared(weight), torch.randn(2, 20, 5)
    rows = [F.normalize(part, dim=-1) for part in quantizer.table.split([3, 2], dim=1)]
    seen = [F.normalize(part, dim=-1).flatten(0, 1) for part in latents.split([3, 2], dim=2)]
    apart = [torch.cdist(*pair).square() for pair in zip(seen, rows, strict=True)]
    ids = (apart[0] + weight * apart[1]).argmin(1)
    quantized = quantizer(latents)
    assert torch.equal(quantized.ids.flatten(), ids)
    torch.testing.assert_close(quantized.loss, 1.25 * (apart[0] + apart[1])[torch.arange(40), ids].mean() / 5)


def test_multi_codebook_is_one_quantizer_per_chunk():
    quantizer, latents = MultiCodebookQuantizer(6, 10, 3), torch.randn(2, 7, 6)
    quantized = quantizer(latents)
    alone = [table(part) for table, part in zip(quantizer.tables, latents.chunk(3, -1), strict=True)]
    assert torch.equal(quantized.ids, torch.cat([one.ids for one in alone], dim=-1))
    assert torch.equal(quantized.latents, torch.cat([one.latents for one in alone], dim=-1))
    torch.testing.assert_close(quantized.loss, sum(one.loss for one in alone) / 3)
    assert [(book.name, book.size, book.depth) for book in quantizer.codebooks("code")] == [
        (f"code.{chunk}", 10, 1) for chunk in range(3)
    ]


def test_unitok_codes():
    quantizer = MultiCodebookQuantizer()
    assert quantizer(torch.randn(2, 256, 64)).ids.shape == (2, 256, 8)
    assert {book.size for book in quantizer.codebooks("code")} == {4096}


def test_index_backpropagation_moves_every_row():
    quantizer, latents = IndexBackpropagationQuantizer(4, 64, entropy=0.0), torch.randn(2, 10, 4, requires_grad=True)
    quantized = quantizer(latents)
    assert torch.equal(quantized.ids[..., 0], (latents @ quantizer.table.T).argmax(-1))
    rows = quantizer.table[quantized.ids[..., 0]]
    torch.testing.assert_close(quantized.loss, 2.25 * F.mse_loss(rows, latents))
    (quantized.latents * torch.randn(4)).sum().backward()
    assert bool(quantizer.table.grad.any(1).all())
    assert bool(latents.grad.any())


def test_straight_through_is_exact():
    inputs, values = torch.randn(50, requires_grad=True), 1e4 * torch.randn(50)
    found = straight_through(inputs, values)
    assert torch.equal(found, values)
    found.backward(slope := torch.randn(50))
    assert torch.equal(inputs.grad, slope)


def test_refusals():
    with pytest.raises(ValueError, match=r"distance_weight must be >= 0, got -1; 1 is TokenFlow's"):
        SharedMappingQuantizer(3, 2, 16, distance_weight=-1)
    with pytest.raises(ValueError, match="dim must be a multiple of chunks, got dim 10 and 4 chunks"):
        MultiCodebookQuantizer(10, 16, 4)
