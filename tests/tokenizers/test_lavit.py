import pytest
import torch

from smalti.tokenizers.lavit import LavitTokenizer, TokenMerger, TokenSelector
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.queries import GridReader
from smalti.tokenizers.vision import TransformerDecoder, VisionTower


def merger(leak=0.0):
    torch.manual_seed(0)
    return TokenMerger(16, 2, 4, 32, leak=leak).eval()


def moved(module, keep, at):
    """Which merged patches move when one patch does."""
    patches = torch.randn(1, len(keep), 16)
    other = patches.clone()
    other[0, at] = torch.randn(16)  # a uniform shift would be undone by the norm
    mask = torch.tensor([keep])
    return ((module(patches, mask) - module(other, mask)).abs().amax(2)[0] > 1e-7).tolist()


def test_kept_patches_look_back():
    assert moved(merger(), [True, True, False, True, True], 1) == [False, True, True, True, True]


def test_dropped_patches_reach_all():
    assert moved(merger(), [True, True, False, True, True], 2) == [True] * 5


@pytest.mark.parametrize("at", [1, 3])
def test_nothing_leaks_when_all_are_kept(at):
    assert moved(merger(), [True] * 5, at) == [place >= at for place in range(5)]


def test_the_released_softmax_leaks_when_all_are_kept():
    assert moved(merger(leak=1e-6), [True] * 5, 3) == [True] * 5


def test_released_and_exact_agree_where_some_are_dropped():
    exact, released, patches = merger(), merger(leak=1e-6), torch.randn(2, 9, 16)
    released.load_state_dict(exact.state_dict())
    keep = torch.rand(2, 9) < 0.5
    keep[:, 0], keep[:, 1] = True, False
    torch.testing.assert_close(released(patches, keep), exact(patches, keep), atol=1e-3, rtol=0)


def test_selector_gives_probabilities_in_context():
    selector, patches = TokenSelector(16, 8), torch.randn(2, 9, 16)
    found = selector(patches)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 9))
    patches[0, 4] = torch.randn(16)
    assert bool((selector(patches)[0] != found[0]).all())
    assert torch.equal(selector(patches)[1], found[1])


def tokenizer(**options):
    torch.manual_seed(0)
    parts = (VisionTower(16, 4, 16, 1, 2), VectorQuantizer(dim=4, codebook_size=8), GridReader(16, 16, 4, 1, 2))
    return LavitTokenizer(*parts, TransformerDecoder(8, 4, 4, 16, 1, 2), layers=1, heads=2, **options).eval()


def selecting(module, odds):
    """The tokenizer with a selector that keeps every patch with these probabilities."""
    likely = torch.tensor(odds).repeat(1, 16 // len(odds))
    module.selector.forward = lambda patches: (
        torch.stack([likely, 1 - likely], dim=-1).log().expand(len(patches), -1, -1)
    )
    return module


def test_as_many_as_expected_are_kept_and_always_the_same():
    """Patches that are all less likely kept than not are still worth a third of the codes."""
    module = selecting(tokenizer(), [0.3, 0.4, 0.2, 0.35])
    codes = module.encode(torch.rand(3, 3, 16, 16))
    assert codes.mask.sum(1).tolist() == [5, 5, 5]
    assert torch.equal(
        module._keep(module.selector(torch.zeros(1, 16, 16)))[0].nonzero().flatten(), torch.tensor([1, 3, 5, 9, 13])
    )


def test_a_sure_selector_keeps_what_it_is_sure_of():
    codes = selecting(tokenizer(), [1.0, 0.0, 0.0, 1.0]).encode(torch.rand(2, 3, 16, 16))
    assert codes.mask.sum(1).tolist() == [8, 8]


def test_the_released_way_draws():
    module = selecting(tokenizer(selection="drawn"), [0.3, 0.4, 0.2, 0.35])
    images = torch.rand(64, 3, 16, 16)
    counts = module.encode(images).mask.sum(1).float()
    assert counts.std() > 0.5
    assert 3 < counts.mean() < 7
