"""Every quantizer keeps what training and storage rely on; and each check sees what it is for."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from smalti.tokenizers.averaged import AveragedQuantizer
from smalti.tokenizers.checks import Latents, _memory, check_quantizer
from smalti.tokenizers.ibq import IndexBackpropagationQuantizer
from smalti.tokenizers.learned import GradientQuantizer
from smalti.tokenizers.product import ProductQuantizer
from smalti.tokenizers.quantizers import FiniteScalarQuantizer, VectorQuantizer
from smalti.tokenizers.scales import MultiScaleQuantizer
from smalti.tokenizers.tokenflow import SharedMappingQuantizer
from smalti.tokenizers.unitok import MultiCodebookQuantizer

QUANTIZERS = {
    "vector": lambda: VectorQuantizer(4, 16),
    "vector-cosine": lambda: VectorQuantizer(4, 16, cosine=True),
    "vector-gradient": lambda: VectorQuantizer(4, 16, update="gradient"),
    "vector-residual": lambda: VectorQuantizer(4, 16, depth=2),
    "vector-shared": lambda: VectorQuantizer(4, 16, depth=2, shared=True),
    "finite-scalar": lambda: FiniteScalarQuantizer(4, [5, 3]),
    "averaged": lambda: AveragedQuantizer(4, 16),
    "averaged-residual": lambda: AveragedQuantizer(4, 16, depth=2, schedule="depth"),
    "gradient": lambda: GradientQuantizer(4, 16),
    "gradient-cosine": lambda: GradientQuantizer(4, 16, cosine=True, entropy=0.1),
    "index-backpropagation": lambda: IndexBackpropagationQuantizer(4, 16),
    "multi-codebook": lambda: MultiCodebookQuantizer(4, 16, 2),
    "product": lambda: ProductQuantizer([VectorQuantizer(1, 16), GradientQuantizer(3, 16)]),
    "shared-mapping": lambda: SharedMappingQuantizer(3, 2, 16),
    "scales": lambda: MultiScaleQuantizer(SharedMappingQuantizer(3, 2, 16), [1, 2, 4]),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_in_one_process(name):
    check_quantizer(QUANTIZERS[name](), processes=False)


def test_on_two_processes():
    check_quantizer(*(build() for build in QUANTIZERS.values()))


class Wrong(GradientQuantizer):
    """A quantizer with one fault."""

    def __init__(self, fault: str) -> None:
        super().__init__(4, 16)
        self.fault, self.calls = fault, 0
        self.register_buffer("seen", torch.zeros(1))

    def quantize(self, latents):
        values, ids, loss = super().quantize(latents)
        if self.fault == "blind":
            values, loss = values.detach(), loss.detach() + self.table.sum() * 0
        if self.fault == "restless":
            self.seen += 1
        if self.fault == "other values":
            values = values + 1e-3
        if self.fault == "rounded":
            values = values.to(torch.bfloat16)
        if self.fault == "other codes":
            ids = (ids + 1) % self.size
            values = self.lookup(ids) + (latents - latents.detach())
        return values, ids, loss


FAULTS = {
    "blind": "let gradients reach its input, got none",
    "restless": "change nothing in evaluation, got another state",
    "other values": r"look up the values that it quantizes to, got values 1.0e-03 apart",
    "rounded": r"compute in float32 inside autocast, got torch.bfloat16 under torch.bfloat16",
    "other codes": "give a code's value that code again, got the same for",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault):
    with pytest.raises(ValueError, match=rf"Wrong must .*{FAULTS[fault]}"):
        check_quantizer(Wrong(fault), processes=False)


class Idle(GradientQuantizer):
    """Has a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__(4, 16)
        self.spare = nn.Parameter(torch.zeros(1))


def test_idle_parameters_are_named():
    with pytest.raises(ValueError, match="Idle must let gradients reach its parameters, got none at spare"):
        check_quantizer(Idle(), processes=False)


class Apart(AveragedQuantizer):
    """Follows its own process only."""

    def __init__(self) -> None:
        super().__init__(4, 16, revive_below=0.0)

    def _follow(self, vectors, ids):
        self.table += 0.01 * vectors.mean(0)


def test_processes_that_drift_apart_are_seen():
    said = "Apart must .*end with one state on two processes that do not broadcast buffers, got two of table"
    with pytest.raises(ValueError, match=said):
        check_quantizer(Apart())


LARGE = {
    "vector": lambda: VectorQuantizer(4, 2048),
    "vector-gradient": lambda: VectorQuantizer(4, 2048, update="gradient"),
    "vector-residual": lambda: VectorQuantizer(4, 2048, depth=2, shared=True),
    "averaged": lambda: AveragedQuantizer(4, 2048, depth=2),
    "gradient": lambda: GradientQuantizer(4, 2048, cosine=True, entropy=0.1),
    "index-backpropagation": lambda: IndexBackpropagationQuantizer(4, 2048),
    "multi-codebook": lambda: MultiCodebookQuantizer(4, 2048, 2, entropy=0.1),
    "product": lambda: ProductQuantizer([VectorQuantizer(1, 2048), GradientQuantizer(3, 2048)]),
    "scales": lambda: MultiScaleQuantizer(SharedMappingQuantizer(3, 2, 2048), [1, 2, 4]),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_codebooks_are_compared_in_parts(name):
    quantizer = LARGE[name]()
    assert _memory(quantizer, Latents((4, 16, quantizer.dim))) is None


class Whole(GradientQuantizer):
    """Counts its codes by one-hot vectors."""

    def quantize(self, latents):
        values, ids, loss = super().quantize(latents)
        return values, ids, loss + 0 * F.one_hot(ids, self.size).float().mean()


@pytest.mark.parametrize(
    ("build", "where"), [(lambda: Whole(4, 2048), "evaluation"), (lambda: VectorQuantizer(4, 2048), "training")]
)
def test_codebooks_compared_at_once_are_seen(build, where):
    quantizer = build()
    quantizer.chunked = True  # what the library's training is said not to be
    said = _memory(quantizer, Latents((4, 16, quantizer.dim)))
    assert said.startswith("compare 2048 vectors with 2048 codes in parts, got a tensor of ")
    assert said.endswith(where)


class Forgetful(AveragedQuantizer):
    """Says that it revives codes and does not."""

    def __init__(self) -> None:
        super().__init__(4, 16, revive_below=0.0)
        self.revives = True
        self.table[1:] += 1000
        self.sums.copy_(self.table)


def test_codes_that_stay_dead_are_seen():
    with pytest.raises(ValueError, match=r"Forgetful must bring dead codes back within 400 steps, got \d of 4 in use"):
        check_quantizer(Forgetful(), processes=False)


def test_the_quantizer_stays_as_it_was():
    quantizer = VectorQuantizer(4, 16).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    check_quantizer(quantizer, processes=False)
    assert not quantizer.training
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
