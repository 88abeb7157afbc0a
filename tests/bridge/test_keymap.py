import pytest
import torch
from torch import nn

from smalti.bridge.keymap import Constant, Copy, Drop, Join, Split, Under, fill, translate


class Ours(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(2, 6), nn.Linear(3, 1)
        self.one, self.two = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)


RULES = [
    Join(r"attn\.(?P<part>q|k|v)\.(?P<kind>weight|bias)", r"qkv.\g<kind>", ("q", "k", "v")),
    Copy(r"out\.weight", "head.weight", squeeze=True),
    Copy(r"out\.(bias)", lambda match: f"head.{match[1]}"),
    Split(r"pair", "{part}.weight", ("one", "two")),
    Drop(r"attn\.key_bias", "keys have no bias", zero=True),
    Drop(r"copies\.(\d)", "stored twice", same_as="pair"),
]


@pytest.fixture
def theirs():
    weights = {f"attn.{part}.weight": torch.randn(2, 2) for part in "kvq"}
    weights |= {f"attn.{part}.bias": torch.randn(2) for part in "kvq"}
    pair = torch.randn(4, 2)
    return weights | {
        "out.weight": torch.randn(1, 3, 1, 1),
        "out.bias": torch.randn(1),
        "pair": pair,
        "attn.key_bias": torch.zeros(6),
        "copies.1": pair.clone(),
    }


def test_every_kind_of_rule(theirs):
    module = Ours()
    fill(module, theirs, RULES, "theirs")
    assert torch.equal(module.qkv.weight, torch.cat([theirs[f"attn.{part}.weight"] for part in "qkv"]))
    assert torch.equal(module.qkv.bias, torch.cat([theirs[f"attn.{part}.bias"] for part in "qkv"]))
    assert torch.equal(module.head.weight, theirs["out.weight"][..., 0, 0])
    assert torch.equal(module.one.weight, theirs["pair"][:2])
    assert torch.equal(module.two.weight, theirs["pair"][2:])


def test_rules_under_a_prefix(theirs):
    module = nn.ModuleDict({"parts": nn.ModuleList([Ours(), Ours()])})
    weights = {f"blocks.{place}.inner.{name}": weight for place in range(2) for name, weight in theirs.items()}
    fill(module, weights, [Under(r"blocks\.(\d)\.", r"parts.\1.", [Under(r"inner\.", "", RULES)])], "theirs")
    assert torch.equal(module["parts"][1].one.weight, theirs["pair"][:2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attn.extra": torch.ones(1)}, "not used: attn.extra; use the configuration"),
        ({"attn.key_bias": torch.ones(6)}, "not used: attn.key_bias;"),
        ({"copies.1": torch.ones(4, 2)}, "not used: copies.1;"),
        ({"out.bias": None}, "missing: head.bias;"),
        ({"attn.k.weight": None}, "missing: k of qkv.weight;"),
        ({"out.weight": torch.ones(1, 4, 1, 1)}, r"of another shape: head.weight \[1, 4\] for \[1, 3\];"),
        ({"out.bias": None, "bias": torch.ones(1)}, "not used: bias; missing: head.bias;"),
    ],
)
def test_nothing_is_loaded_by_half(theirs, change, said):
    module = Ours()
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    weights = {name: weight for name, weight in (theirs | change).items() if weight is not None}
    with pytest.raises(ValueError, match=f"weights of theirs must match key by key, got {said}"):
        fill(module, weights, RULES, "theirs")
    assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())


def test_a_rule_to_nowhere(theirs):
    rules = [Copy("out.bias", "tail.bias"), *RULES]
    with pytest.raises(ValueError, match=r"not used: tail.bias \(nothing of that name here\); missing: head.bias"):
        translate(theirs, rules, Ours(), "theirs")


def test_weights_that_are_changed_or_not_stored():
    module = nn.ModuleDict({"layer_2": nn.Linear(2, 6), "scale": nn.LayerNorm(3)})
    parts = Join(r"(?P<part>q|v)_bias", "bias", ("q", "k", "v"), zeros=("k",))
    rules = [
        Under(r"blocks\.(\d)\.", lambda match: f"layer_{int(match[1]) + 1}.", [parts, Copy("weight", "weight")]),
        Constant(r"scale\.(?:weight|bias)", 1.0, "nothing passes it"),
        Copy("shift", "scale.bias", change=lambda rows: rows[:-1]),
    ]
    stored = {"q_bias": torch.randn(2), "v_bias": torch.randn(2), "weight": torch.randn(6, 2)}
    weights = {f"blocks.1.{name}": weight for name, weight in stored.items()} | {"shift": torch.arange(4.0)}
    fill(module, weights, rules, "theirs")
    expected = torch.cat([stored["q_bias"], torch.zeros(2), stored["v_bias"]])
    assert torch.equal(module["layer_2"].bias, expected)
    assert torch.equal(module["scale"].weight, torch.ones(3))
    assert torch.equal(module["scale"].bias, torch.arange(3.0))  # what is stored counts
    del weights["blocks.1.q_bias"]
    with pytest.raises(ValueError, match=r"missing: q of layer_2\.bias;"):
        fill(module, weights, rules, "theirs")


def test_parts_of_other_sizes_that_are_changed():
    module = nn.ModuleDict({"q": nn.Linear(2, 4, bias=False), "k": nn.Linear(2, 1, bias=False)})
    rules = [Split("qk", "{part}.weight", ("q", "k"), (4, 1), {"q": lambda rows: rows.flip(0)})]
    rows = torch.arange(10.0).view(5, 2)
    fill(module, {"qk": rows}, rules, "theirs")
    assert torch.equal(module["q"].weight, rows[[3, 2, 1, 0]])
    assert torch.equal(module["k"].weight, rows[4:])


@pytest.mark.parametrize(
    ("sizes", "rows", "said"),
    [
        ((4, 1), torch.ones(6, 2), r"qk \[6, 2\] for q and k of 4, 1 rows"),
        ((), torch.ones(5, 2), r"qk \[5, 2\] for q and k in equal shares"),
        ((), torch.ones(()), r"qk \[\] for q and k in equal shares"),
    ],
)
def test_rows_that_cannot_be_cut_are_told_once(sizes, rows, said):
    module = nn.ModuleDict({"q": nn.Linear(2, 4, bias=False), "k": nn.Linear(2, 1, bias=False)})
    with pytest.raises(ValueError, match=f"got of another shape: {said}; use the configuration"):
        translate({"qk": rows}, [Split("qk", "{part}.weight", ("q", "k"), sizes)], module, "theirs")
