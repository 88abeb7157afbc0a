"""Slot-MLLM's adapters: they leave the UNet alone, start from nothing, learn, and come back from their folder."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch.nn import functional as F

from smalti.generation.slot_adapters import SlotAdapters


@pytest.fixture
def unet(unclip_folder):
    found = UNet2DConditionModel.from_pretrained(unclip_folder / "unet", local_files_only=True, low_cpu_mem_usage=False)
    return found.eval().requires_grad_(False)


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    return {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 700]), "class_labels": torch.randn(2, 10)}


def stirred(adapters):
    """The same adapters, no longer ending in zeros."""
    for name, weight in adapters.named_parameters():
        if "proj_out" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return adapters.eval()


def run(unet, inputs, states):
    return unet(**inputs, encoder_hidden_states=states, return_dict=False)[0]


def test_there_is_one_of_the_same_shape_behind_each_cross_attention(unet):
    adapters = SlotAdapters.for_unet(unet)
    places = ["down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0"]
    places.append("up_blocks.1.attentions.1")
    assert sorted(adapters.blocks) == [place.replace(".", "-") for place in places]
    for place in places:
        own, adapter = unet.get_submodule(place), adapters.blocks[place.replace(".", "-")]
        assert [*own.state_dict()] == [*adapter.state_dict()]
        assert [each.shape for each in own.parameters()] == [each.shape for each in adapter.parameters()]


def test_new_ones_leave_the_unet_as_it_is(unet, inputs):
    slots, before = torch.randn(2, 3, 16), {name: weight.clone() for name, weight in unet.state_dict().items()}
    plain = run(unet, inputs, slots.mean(1, keepdim=True))
    adapters = SlotAdapters.for_unet(unet).eval()
    with adapters.attached(unet):
        assert torch.equal(run(unet, inputs, adapters.condition(slots)), plain)
    assert unet.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())
    with stirred(adapters).attached(unet):
        assert not torch.allclose(run(unet, inputs, adapters.condition(slots)), plain, atol=1e-2)
    assert torch.equal(run(unet, inputs, slots.mean(1, keepdim=True)), plain)


def test_the_condition_is_the_mean_and_the_slots():
    slots = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    assert SlotAdapters.condition(slots).tolist() == [[[2.0, 4.0], [1.0, 2.0], [3.0, 6.0]]]


def test_the_unet_reads_the_mean_and_the_adapters_read_the_slots(unet, inputs):
    """Against a UNet whose transformers are wrapped by hand."""
    adapters, slots = stirred(SlotAdapters.for_unet(unet)), torch.randn(2, 3, 16)
    with adapters.attached(unet):
        found = run(unet, inputs, adapters.condition(slots))

    class Both(torch.nn.Module):
        def __init__(self, own, adapter):
            super().__init__()
            self.own, self.adapter = own, adapter

        def forward(self, hidden, encoder_hidden_states, **_):
            read = self.own(hidden, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0]
            return self.adapter(read, encoder_hidden_states=slots, return_dict=False)

    for name in ("down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0"):
        wrap(unet, name, adapters, Both)
    wrap(unet, "up_blocks.1.attentions.1", adapters, Both)
    assert torch.allclose(found, run(unet, inputs, slots.mean(1, keepdim=True)), atol=1e-6)


def wrap(unet, name, adapters, kind):
    parent, _, index = name.rpartition(".")
    own = unet.get_submodule(name)
    unet.get_submodule(parent)[int(index)] = kind(own, adapters.blocks[name.replace(".", "-")])


def test_slots_have_no_order(unet, inputs):
    adapters, slots = stirred(SlotAdapters.for_unet(unet)), torch.randn(2, 3, 16)
    with adapters.attached(unet):
        found, turned = (run(unet, inputs, adapters.condition(each)) for each in (slots, slots[:, [2, 0, 1]]))
        other = run(unet, inputs, adapters.condition(torch.cat([slots[:, :2], slots[:, :1]], 1)))
    assert torch.allclose(found, turned, atol=1e-5)
    assert not torch.allclose(found, other, atol=1e-3)


def test_adapters_learn_while_the_unet_rests(unet, inputs):
    adapters, slots, target = SlotAdapters.for_unet(unet), torch.randn(2, 3, 16), torch.randn(2, 4, 8, 8)
    optimizer = torch.optim.SGD(adapters.parameters(), 0.05)

    def loss():
        with adapters.attached(unet):
            return F.mse_loss(run(unet, inputs, adapters.condition(slots)), target)

    before = loss()
    before.backward()
    assert all(weight.grad is None for weight in unet.parameters())
    moved = {name for name, weight in adapters.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert all(f"blocks.{key}.proj_out.weight" in moved for key in adapters.blocks)
    optimizer.step()
    after = loss()
    assert after < before
    after.backward()  # behind proj_out nothing but zeros let gradients through; now all of it learns
    assert all(weight.grad.any() for name, weight in adapters.named_parameters() if "attn2.to_v" in name)


def test_hooks_go_when_the_block_ends_badly(unet, inputs):
    adapters, slots = stirred(SlotAdapters.for_unet(unet)), torch.randn(2, 3, 16)
    plain = run(unet, inputs, slots)
    with pytest.raises(RuntimeError, match="by hand"), adapters.attached(unet):
        raise RuntimeError("by hand")
    assert torch.equal(run(unet, inputs, slots), plain)


def test_folder(unet, inputs, tmp_path):
    adapters, slots = stirred(SlotAdapters.for_unet(unet)), torch.randn(2, 3, 16)
    adapters.save_pretrained(tmp_path / "adapters")
    assert {file.name for file in (tmp_path / "adapters").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    loaded = SlotAdapters.from_pretrained(tmp_path / "adapters")
    with adapters.attached(unet):
        expected = run(unet, inputs, adapters.condition(slots))
    with loaded.attached(unet):
        assert torch.equal(run(unet, inputs, loaded.condition(slots)), expected)


def released(adapters):
    """The weights by the names of the released training module, among others."""
    named = {f"unet.{key.replace('-', '.')}".replace("attentions", "adapter"): each for key, each in adapters.items()}
    found = {f"{name}.{inside}": weight for name, each in named.items() for inside, weight in each.state_dict().items()}
    return {**found, "unet.conv_in.weight": torch.zeros(1), "vae.adapter.0.weight": torch.zeros(1)}


def test_released_weights(unet, inputs):
    learned, slots = stirred(SlotAdapters.for_unet(unet)), torch.randn(2, 3, 16)
    weights = released(learned.blocks)
    assert "unet.down_blocks.0.adapter.0.transformer_blocks.0.attn2.to_q.weight" in weights
    assert "unet.mid_block.adapter.0.proj_out.bias" in weights
    adapters = SlotAdapters.for_unet(unet).eval()
    adapters.load_released(weights)
    with learned.attached(unet):
        expected = run(unet, inputs, learned.condition(slots))
    with adapters.attached(unet):
        assert torch.equal(run(unet, inputs, adapters.condition(slots)), expected)
    weights["unet.mid_block.adapter.0.proj_out.bias"] = torch.zeros(3)
    said = r"weight by weight, got (\d+) for \1, of which blocks.mid_block-attentions-0.proj_out.bias is the first"
    with pytest.raises(ValueError, match=said):
        adapters.load_released(weights)
    del weights["unet.mid_block.adapter.0.proj_out.bias"]
    with pytest.raises(
        ValueError, match=r"of which blocks.mid_block-attentions-0.proj_out.bias is the first to differ"
    ):
        adapters.load_released(weights)
    with pytest.raises(ValueError, match=r"weight by weight, got 0 for \d+, of which"):
        adapters.load_released({})


def test_what_does_not_fit(unet, inputs):
    adapters = SlotAdapters.for_unet(unet)
    other = UNet2DConditionModel(**{**unet.config, "cross_attention_dim": 12})
    said = r"made for a UNet with cross-attention in 4 places, got one with 4, of which down_blocks.0.attentions.0 is "
    with pytest.raises(ValueError, match=said), adapters.attached(other):
        pass
    with (
        adapters.attached(unet),
        pytest.raises(ValueError, match=r"reads a mean and the slots behind it, got \[2, 1, 16\]"),
    ):
        run(unet, inputs, torch.randn(2, 1, 16))
    plain = UNet2DModel(sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, **ONE_BLOCK)
    with pytest.raises(ValueError, match="adapters need a UNet with cross-attention, got no place for any; take anot"):
        SlotAdapters.for_unet(plain)


ONE_BLOCK = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
