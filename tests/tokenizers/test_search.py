import pytest
import torch
from torch.nn import functional as F

from smalti.tokenizers import search
from smalti.tokenizers.search import entropies, nearest, soft_index


@pytest.fixture(params=[2**20, 64], ids=["one block", "many blocks"])
def budget(request, monkeypatch):
    monkeypatch.setitem(search.BUDGET, "cpu", request.param)
    monkeypatch.setattr(search, "_WIDEST", 8 if request.param == 64 else 2**13)


@pytest.mark.usefixtures("budget")
def test_nearest_by_distance_and_by_dot():
    vectors, table = torch.randn(50, 5), 2 * torch.randn(37, 5)
    assert torch.equal(nearest(vectors, table), torch.cdist(vectors, table).argmin(1))
    assert torch.equal(nearest(vectors, table, "dot"), (vectors @ table.T).argmax(1))


@pytest.mark.usefixtures("budget")
def test_the_first_of_equals():
    table = torch.tensor([[3.0], [1.0]] + [[1.0]] * 30)
    assert nearest(torch.tensor([[1.1], [2.9]]), table).tolist() == [1, 0]


@pytest.mark.usefixtures("budget")
@pytest.mark.parametrize("comparison", ["distance", "dot"])
def test_entropies_and_their_gradients(comparison):
    vectors, table = torch.randn(50, 5, requires_grad=True), torch.randn(37, 5, requires_grad=True)
    affinity = -torch.cdist(vectors, table).square() if comparison == "distance" else vectors @ table.T
    logs = (affinity / 0.3).log_softmax(1)
    sample, mean = -(logs.exp() * logs).sum(1).mean(), logs.exp().mean(0)
    batch = -(mean * (mean + 1e-5).log()).sum()
    found = entropies(vectors, table, 0.3, comparison)
    torch.testing.assert_close((found.sample, found.batch), (sample, batch))
    expected = torch.autograd.grad(sample - batch, (vectors, table))
    torch.testing.assert_close(torch.autograd.grad(found.sample - found.batch, (vectors, table)), expected)


@pytest.mark.usefixtures("budget")
def test_gradient_through_the_soft_index():
    vectors, table = torch.randn(50, 5, requires_grad=True), torch.randn(37, 5, requires_grad=True)
    slope, scores = torch.randn(50, 5), vectors @ table.T
    shares, ids = scores.softmax(1), scores.argmax(1)
    naive = (F.one_hot(ids, 37) - shares.detach() + shares) @ table
    found = soft_index(vectors, table, ids)
    assert torch.equal(found, table[ids])
    expected = torch.autograd.grad((naive * slope).sum(), (vectors, table))
    torch.testing.assert_close(torch.autograd.grad((found * slope).sum(), (vectors, table)), expected)
    assert bool(expected[1].any(1).all())  # every row learns
