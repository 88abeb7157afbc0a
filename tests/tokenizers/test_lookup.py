"""Codes to vectors by the vectors alone, written out; which families it holds for is in test_contract.py."""

import pytest
import torch

from smalti.tokenizers.averaged import AveragedQuantizer
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec
from smalti.tokenizers.lookup import looked_up
from smalti.tokenizers.quantizers import VectorQuantizer

SPEC = CodeSpec(CodeLayout("sequence", (2,)), (Codebook("a", 3, depth=2), Codebook("b", 2)), dynamic=True)
VECTORS = {"b": torch.tensor([[7.0], [8.0]]), "a": torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])}


def test_rows_of_a_codebook_are_added_and_codebooks_stand_side_by_side():
    ids = torch.tensor([[[0, 2, 1], [1, 1, 0]]])
    assert looked_up(VECTORS, ids, SPEC).tolist() == [[[4.0, 40.0, 8.0], [4.0, 40.0, 7.0]]]


def test_padding_adds_nothing():
    ids = torch.tensor([[[0, 2, 1], [-1, -1, -1]], [[0, -1, -1], [-1, 1, 0]]])
    expected = [[[4.0, 40.0, 8.0], [0.0, 0.0, 0.0]], [[1.0, 10.0, 0.0], [2.0, 20.0, 7.0]]]
    assert looked_up(VECTORS, ids, SPEC).tolist() == expected


def test_single_positions_and_longer_shapes():
    ids = torch.tensor([0, 2, 1])
    assert looked_up(VECTORS, ids, SPEC).tolist() == [4.0, 40.0, 8.0]
    assert looked_up(VECTORS, ids.expand(2, 3, 4, 3), SPEC).shape == (2, 3, 4, 3)


def test_gradients_reach_the_rows_that_are_read():
    rows = {name: table.clone().requires_grad_() for name, table in VECTORS.items()}
    looked_up(rows, torch.tensor([[[2, 2, 0], [-1, 0, -1]]]), SPEC).sum().backward()
    assert rows["a"].grad.tolist() == [[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]]
    assert rows["b"].grad.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("quantizer", [AveragedQuantizer(4, 16, depth=8), VectorQuantizer(4, 16, depth=8, shared=True)])
def test_deep_sums_are_the_quantizers_own(quantizer):
    """To the last bit where they are added one after the other; vector-quantize-pytorch adds them together."""
    spec = CodeSpec(CodeLayout("grid", (3, 3)), quantizer.codebooks("pixel"))
    ids = torch.randint(0, 16, (5, 9, 8))
    tolerance = 0 if isinstance(quantizer, AveragedQuantizer) else 1e-6
    found = looked_up(quantizer.vectors("pixel"), ids, spec)
    torch.testing.assert_close(found, quantizer.lookup(ids), atol=tolerance, rtol=0)


def test_projected_sums_are_not_sums_of_projected_rows():
    """Each row brings the bias of the projection, the sum has it once."""
    quantizer = VectorQuantizer(6, 16, depth=3, codebook_dim=4, shared=True)
    spec = CodeSpec(CodeLayout("grid", (3, 3)), quantizer.codebooks("pixel"))
    ids = torch.randint(0, 16, (5, 9, 3))
    excess = looked_up(quantizer.vectors("pixel"), ids, spec) - quantizer.lookup(ids)
    torch.testing.assert_close(excess, (2 * quantizer.table.project_out.bias).expand_as(excess), atol=1e-5, rtol=0)


def test_refusals():
    ids = torch.zeros(1, 2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"sizes {'a': 3, 'b': 2}, got {'a': 3}; take those of the tokenizer"):
        looked_up({"a": VECTORS["a"]}, ids, SPEC)
    with pytest.raises(ValueError, match=r"sizes {'a': 3, 'b': 2}, got {'b': 2, 'a': 2}"):
        looked_up(VECTORS | {"a": torch.zeros(2, 2)}, ids, SPEC)
    with pytest.raises(ValueError, match=r"ids must end in 3 codes per position, got \[1, 2, 2\]; keep every column"):
        looked_up(VECTORS, ids[..., :2], SPEC)
