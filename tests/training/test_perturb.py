"""Codes with errors: how many, how far, which never, and what the decoder learns from them."""

from __future__ import annotations

import pytest
import torch

from smalti.tokenizers.codes import Codebook, CodeLayout, Codes, CodeSpec
from smalti.training.perturb import CodeNoise, perturbed

SPEC = CodeSpec(CodeLayout("sequence", (50,)), (Codebook("a", 32, 2), Codebook("b", 16)), dynamic=True)
LINE = {"a": torch.arange(32.0)[:, None], "b": torch.arange(16.0)[:, None]}  # codes on a line: neighbours differ by one


def some_codes(count: int = 200) -> Codes:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([book.size for book in SPEC.columns])
    ids = (torch.rand(count, 50, 3, generator=generator) * sizes).long()
    ids[:, 40:] = -1
    return Codes.full(ids, SPEC)


def test_pictures_draw_their_share_up_to_the_rate():
    torch.manual_seed(0)
    before = some_codes()
    after = perturbed(before, LINE, CodeNoise(rate=0.6, near=4))
    share = (after.ids != before.ids)[:, :40].float().mean((1, 2))
    assert float(share.mean()) == pytest.approx(0.3, abs=0.04)  # uniform up to the rate
    assert float(share.min()) < 0.05
    assert 0.55 < float(share.max()) < 0.75
    assert torch.equal(after.ids[:, 40:], before.ids[:, 40:])
    assert torch.equal(after.mask, before.mask)


def test_an_exchanged_code_is_one_of_its_nearest_and_never_itself():
    before = some_codes()
    after = perturbed(before, LINE, CodeNoise(rate=1.0, near=2))
    inner = (before.ids > 0) & (before.ids < torch.tensor([31, 31, 15]))
    changed = inner & (after.ids != before.ids)
    assert set((after.ids - before.ids)[changed].unique().tolist()) == {-1, 1}
    everywhere = perturbed(before, LINE, CodeNoise(rate=1.0, near=10_000))  # more than there are
    assert set(everywhere.ids[:, :40, 2].unique().tolist()) == set(range(16))


def test_the_same_state_draws_the_same_errors_and_leaves_the_codes_alone():
    before, kept = some_codes(), some_codes().ids
    torch.manual_seed(3)
    first = perturbed(before, LINE, CodeNoise())
    torch.manual_seed(3)
    assert torch.equal(first.ids, perturbed(before, LINE, CodeNoise()).ids)
    assert torch.equal(before.ids, kept)


def test_a_codebook_of_one_code_has_nothing_to_exchange():
    spec = CodeSpec(CodeLayout("grid", (2, 2)), (Codebook("only", 1),))
    codes = Codes.full(torch.zeros(3, 4, 1, dtype=torch.int64), spec)
    assert not perturbed(codes, {"only": torch.zeros(1, 4)}, CodeNoise(rate=1.0)).ids.any()


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"rate": 1.1}, {"near": 0}, {"weight": 0.0}])
def test_noise_out_of_range_is_an_error(wrong):
    with pytest.raises(ValueError, match=r"needs a rate in \(0, 1\], near >= 1 and a weight above 0, got"):
        CodeNoise(**wrong)
