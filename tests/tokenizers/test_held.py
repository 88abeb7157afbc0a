import torch
from torch import nn

from smalti.tokenizers.held import Held


def test_a_network_is_held_outside_the_tree():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).half()
    holder = nn.ModuleDict({"own": nn.Linear(2, 1), "held": Held(network)}).train()
    assert set(holder.state_dict()) == {"own.weight", "own.bias"}
    assert len(list(holder.parameters())) == 2
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())
    held = holder["held"].network
    assert held is network
    holder.half()
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert holder["own"].weight.dtype == torch.float16
    holder.to("meta", torch.float64)  # a move and a cast at once
    assert {(weight.device.type, weight.dtype) for weight in network.parameters()} == {("meta", torch.float32)}


def test_gradients_flow_through():
    given = torch.ones(1, 2, requires_grad=True)
    held = Held(nn.Linear(2, 1, bias=False))
    held.network(given).backward()
    assert torch.equal(given.grad, held.network.weight)
