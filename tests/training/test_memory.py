"""The memory plan against what FSDP2 cuts on the meta device, and against what a block keeps."""

from __future__ import annotations

import pytest
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.distributed.fake_pg import FakeStore

from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec
from smalti.training.memory import memory_plan, whole_memory
from smalti.training.optimizer import OptimizerSettings
from smalti.training.sharding import blocks, local, shard

#: Llama 2 7B.
LARGE = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}
SMALL = LARGE | {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4}
SPEC = CodeSpec(CodeLayout("grid", (16, 16)), (Codebook("pixel", 16384),))


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train(["a red circle"])


def on_meta(sizes, vocabulary) -> SharedLM:
    with torch.device("meta"):
        return SharedLM.build(sizes, vocabulary, SPEC, "")


@pytest.fixture
def eight_processes():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield init_device_mesh("cpu", (8,))
    dist.destroy_process_group()


def test_the_parts_of_a_7b_are_those_that_are_cut(vocabulary, eight_processes):
    model = on_meta(LARGE, vocabulary)
    plan = memory_plan(model, 8, 1, 512)
    shard(model, eight_processes, [])
    parts = [local(parameter) for parameter in model.parameters()]
    assert len(blocks(model)) == 32
    assert 6.6e9 < sum(parameter.numel() for parameter in model.parameters()) < 6.8e9
    assert plan.weights == sum(4 * part.numel() for part in parts)
    assert plan.gradients == plan.weights
    assert plan.moments == 2 * plan.weights


def test_the_plan_of_a_small_model_by_hand(vocabulary):
    model = on_meta(SMALL, vocabulary)
    rows = vocabulary.size + 16384
    block = 4 * 64 * 64 + 3 * 64 * 160 + 2 * 64
    rest = 2 * rows * 64 + 64 + 256 * 64 + 64  # input and output rows, the last norm, places of codes
    plan = memory_plan(model, 1, 2, 100)
    assert plan.weights == plan.gradients == 4 * (3 * block + rest)
    assert plan.moments == 8 * (3 * block + rest)
    assert plan.gathered == 8 * rest + 10 * block
    assert plan.activations == 200 * (3 * 4 * 64 + 16 * 64 + 2 * (9 * 64 + 4 * 160))
    assert plan.logits == 200 * 16384 * 14
    assert plan.total == plan.weights * 2 + plan.moments + plan.gathered + plan.activations + plan.logits
    muon = memory_plan(model, 1, 2, 100, optimizer=OptimizerSettings(muon=1e-3))
    assert plan.moments - muon.moments == 4 * 3 * (block - 2 * 64)
    assert memory_plan(model, 1, 2, 100, None).gathered == 8 * rest + 16 * block
    assert whole_memory(model) == 4 * rest + 2 * 3 * block
    assert whole_memory(model, None) == 4 * (rest + 3 * block)


def test_a_block_keeps_what_the_plan_says(vocabulary):
    model = SharedLM.build(SMALL, vocabulary, SPEC, "").train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters()} | {
        tuple(p.T.shape) for p in model.parameters() if p.ndim == 2
    }
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tuple(tensor.shape) not in shapes:  # nor weights that were cast
            kept[storage.data_ptr()] = tensor
        return tensor

    states, places = torch.randn(2, 96, 64, requires_grad=True), torch.arange(96).expand(2, 96)
    with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        turned = model.backbone.model.rotary_emb(states, places)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.backbone.model.layers[0](states, position_embeddings=turned, position_ids=places)
    seen = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    plan = memory_plan(model, 1, 2, 96)
    assert seen == pytest.approx(plan.activations - 192 * 3 * 4 * 64, rel=0.05)
