"""What trains and what rests: frozen backbones, LoRA, merging, and files of adapted models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from smalti.lm.adapters import Lora, has_adapters, merge, merged_state, train_part
from smalti.lm.model import SharedLM
from smalti.lm.pretrained import from_backbone
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec
from smalti.training.optimizer import MuonAdamW, OptimizerSettings, Trained, parameter_groups

SPEC = CodeSpec(CodeLayout("grid", (2, 2)), (Codebook("semantic", 5), Codebook("pixel", 7)))
PIECES = ("[UNK]", "a", "red", "circle", "blue", "square")
WIDTHS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {"vocab_size": 10, "bos_token_id": 1, "eos_token_id": 2}
BACKBONES = {
    "llama": {"model_type": "llama", **WIDTHS, **SIZES},
    "qwen2": {"model_type": "qwen2", **WIDTHS, **SIZES, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, **SIZES},
}
TARGETS = {"llama": Lora().targets, "qwen2": Lora().targets, "gpt2": ("c_attn", "mlp.c_proj")}
PLAIN = {"head": {"kind": "flat"}, "embedding": {"places": False}}


def checkpoint(folder: Path, kind: str = "llama") -> Path:
    """A model and its tokenizer, as another project saved them."""
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**BACKBONES[kind])).save_pretrained(folder)
    model = Tokenizer(models.WordLevel({name: i for i, name in enumerate(PIECES)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]").save_pretrained(folder)
    return folder


def made(folder: Path, kind: str = "llama", **options) -> SharedLM:
    return from_backbone(checkpoint(folder, kind), None, SPEC, "f00d", **{**PLAIN, **options})


def batch(lm: SharedLM):
    ids = torch.tensor([[[0, 1], [4, 6], [2, 2], [3, 5]], [[1, 1], [0, 0], [4, 2], [2, 3]]])
    return lm.layout.collate([lm.layout.text_to_image("a red circle", ids[0]), lm.layout.image_to_text(ids[1], "a")])


def logits(lm: SharedLM) -> Tensor:
    with torch.no_grad():
        return lm.outputs.logits(lm.hidden(batch(lm)), range(lm.vocabulary.size))


def train(lm: SharedLM, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    lm.train()
    found = batch(lm)
    for _ in range(steps):
        optimizer.zero_grad()
        lm(found).loss.backward()
        optimizer.step()
    lm.eval()


def adamw(lm: SharedLM) -> torch.optim.Optimizer:
    return torch.optim.AdamW((p for p in lm.parameters() if p.requires_grad), lr=0.02, weight_decay=0.5)


def changed(before: dict[str, Tensor], lm: SharedLM) -> set[str]:
    return {name for name, value in lm.state_dict().items() if not torch.equal(before[name], value)}


def copied(lm: SharedLM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in lm.state_dict().items()}


@pytest.mark.parametrize("kind", list(BACKBONES))
def test_lora_changes_adapters_and_new_rows_alone(tmp_path, kind):
    lm = made(tmp_path / "plain", kind)
    train_part(lm, Lora(rank=2, targets=TARGETS[kind]))
    before = copied(lm)
    train(lm, adamw(lm))
    adapters = {name for name in before if ".lora_" in name}
    assert len(adapters) == 2 * 2 * len(TARGETS[kind])
    assert changed(before, lm) == adapters | {"new_inputs", "new_outputs"}

    unmerged = logits(lm)
    lm.save_pretrained(tmp_path / "unmerged")
    merge(lm)
    torch.testing.assert_close(logits(lm), unmerged)
    lm.save_pretrained(tmp_path / "merged")
    assert not (unmerged == logits(made(tmp_path / "again", kind))).all()
    for name in ("merged", "unmerged"):
        loaded = SharedLM.from_pretrained(tmp_path / name)
        assert torch.equal(logits(loaded), logits(lm))
        assert loaded.state_dict().keys() == lm.state_dict().keys()


@pytest.mark.parametrize("muon", [None, 0.02])
def test_the_optimizer_of_training_leaves_the_rest_alone_too(tmp_path, muon):
    lm = made(tmp_path)
    train_part(lm, Lora(rank=2))
    before = copied(lm)
    settings = OptimizerSettings(learning_rate=0.02, muon=muon, weight_decay=0.5)
    train(lm, MuonAdamW(parameter_groups("model", Trained(lm, 0.02), settings), settings.betas))
    assert changed(before, lm) == {n for n in before if ".lora_" in n} | {"new_inputs", "new_outputs"}


def test_new_adapters_change_nothing_and_keep_the_class(tmp_path):
    lm = made(tmp_path)
    before, family = logits(lm), type(lm.backbone)
    train_part(lm, Lora(rank=2))
    assert torch.equal(logits(lm), before)
    assert (type(lm.backbone), has_adapters(lm)) == (family, True)
    assert not hasattr(lm.backbone, "peft_config")


@pytest.mark.parametrize("kind", list(BACKBONES))
def test_merging_is_a_product_by_hand(tmp_path, kind):
    lm = made(tmp_path, kind)
    target = "c_attn" if kind == "gpt2" else "k_proj"
    train_part(lm, Lora(rank=2, alpha=6, targets=(target,)))
    name, layer = next((n, m) for n, m in lm.named_modules() if n.endswith(f".{target}"))
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        up.normal_()
    added = up @ down * 3
    expected = layer.base_layer.weight + (added.T if kind == "gpt2" else added)
    torch.testing.assert_close(merged_state(lm)[f"{name}.weight"], expected)
    merge(lm)
    torch.testing.assert_close(lm.get_submodule(name).weight, expected)
    assert not has_adapters(lm)


def test_saving_leaves_adapters_as_they_are(tmp_path):
    lm = made(tmp_path / "plain")
    train_part(lm, Lora(rank=2))
    train(lm, adamw(lm), steps=1)
    before, learning = copied(lm), {n for n, p in lm.named_parameters() if p.requires_grad}
    lm.save_pretrained(tmp_path / "lm")
    assert changed(before, lm) == set()
    assert {n for n, p in lm.named_parameters() if p.requires_grad} == learning
    assert not any("lora" in name for name in SharedLM.from_pretrained(tmp_path / "lm").state_dict())


def test_a_state_that_is_given_is_the_one_written(tmp_path):
    lm = made(tmp_path / "plain")
    other = copied(lm)
    other["new_inputs"] += 1
    lm.save_pretrained(tmp_path / "lm", state_dict=other)
    assert torch.equal(SharedLM.from_pretrained(tmp_path / "lm").new_inputs, lm.new_inputs + 1)


def test_merging_without_adapters_changes_nothing(tmp_path):
    lm = made(tmp_path)
    before = copied(lm)
    merge(lm)
    assert changed(before, lm) == set()


def test_a_frozen_backbone_rests_and_the_rest_trains():
    parts = {"head": {"kind": "depth", "heads": 2}, "vectors": {"dim": 3}, "new_rows": True}
    lm = SharedLM.build(BACKBONES["llama"], Vocabulary.train(["a red circle"]), SPEC, "f00d", **parts)
    train_part(lm, "frozen")
    before = copied(lm)
    beside = {name for name in before if not name.startswith("backbone.")}
    assert {name for name, p in lm.named_parameters() if p.requires_grad} == beside
    train(lm, adamw(lm))
    assert changed(before, lm) == {name for name in beside if not name.startswith("vectors.")}  # the batch has none


def test_full_trains_everything(tmp_path):
    lm = made(tmp_path)
    train_part(lm, "frozen")
    train_part(lm, "full")
    before = copied(lm)
    train(lm, adamw(lm))
    assert changed(before, lm) == set(before)


def test_adapters_of_a_checkpointed_backbone_get_the_same_gradients(tmp_path):
    lm = made(tmp_path)
    train_part(lm, Lora(rank=2))
    lm.train()
    found, gradients = batch(lm), []
    for enable in (lm.gradient_checkpointing_disable, lm.gradient_checkpointing_enable):
        enable()
        lm.zero_grad()
        lm(found).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in lm.named_parameters() if p.requires_grad})
    assert any(gradient.any() for name, gradient in gradients[0].items() if "lora_B" in name)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_adapters_of_a_bfloat16_model_are_merged_in_it(tmp_path):
    lm = made(tmp_path / "plain", dtype=torch.bfloat16)
    train_part(lm, Lora(rank=2))
    train(lm, adamw(lm), steps=2)
    lm.save_pretrained(tmp_path / "lm")
    merge(lm)
    assert {p.dtype for p in lm.parameters()} == {torch.bfloat16}
    loaded = SharedLM.from_pretrained(tmp_path / "lm", dtype=torch.bfloat16)
    assert torch.equal(logits(loaded), logits(lm))


def test_targets_may_be_ends_of_dotted_names(tmp_path):
    lm = made(tmp_path)
    train_part(lm, Lora(rank=2, targets=("layers.1.self_attn.q_proj",)))
    adapters = {name.partition(".lora_")[0] for name in lm.state_dict() if ".lora_" in name}
    assert adapters == {"backbone.model.layers.1.self_attn.q_proj"}


@pytest.mark.parametrize(
    ("target", "near"),
    [
        ("qproj", "q_proj"),
        ("proj", "v_proj, q_proj"),
        ("lm_head", "q_proj, k_proj, v_proj"),
        ("mlp", "q_proj"),
        ("xyz", "q_"),
    ],
)
def test_unknown_targets_name_near_ones(tmp_path, target, near):
    message = f"linear layers inside the llama backbone, got '{target}'; near are .*{near}"
    lm = made(tmp_path)
    with pytest.raises(ValueError, match=message):
        train_part(lm, Lora(targets=("q_proj", target)))
    assert not has_adapters(lm)
    assert all(p.requires_grad for p in lm.parameters())


def test_usual_targets_of_another_family_name_its_own(tmp_path):
    with pytest.raises(ValueError, match="gpt2 backbone, got 'q_proj'; near are c_proj"):
        train_part(made(tmp_path, "gpt2"), Lora())


@pytest.mark.parametrize("part", ["frozen", Lora(rank=2)])
def test_rows_that_would_rest_are_an_error(tmp_path, part):
    with pytest.raises(ValueError, match=r"apart from its own, got one matrix .*; make the model with rows apart"):
        train_part(made(tmp_path, rows="joined"), part)


@pytest.mark.parametrize("part", ["full", "frozen", Lora(rank=2)])
def test_adapters_are_chosen_once(tmp_path, part):
    lm = made(tmp_path)
    train_part(lm, Lora(rank=2))
    with pytest.raises(ValueError, match="must be without adapters, got some; merge them first"):
        train_part(lm, part)


def test_unknown_part_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="full, frozen or a Lora, got 'lora'; choose one"):
        train_part(made(tmp_path), "lora")


def test_missing_peft_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    lm = made(tmp_path)
    with pytest.raises(ImportError, match=r"LoRA needs peft, which is not installed; pip install 'smalti\[lora\]'"):
        train_part(lm, Lora())
    train_part(lm, "frozen")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"rank": 0}, "rank must be >= 1, got 0; 8 to 64"),
        ({"alpha": 0}, "alpha must be above 0, got 0; twice"),
        ({"dropout": 1}, r"dropout must lie in \[0, 1\), got 1; 0 to 0.1"),
        ({"targets": ()}, "targets must name layers of the backbone, got none; train frozen"),
    ],
)
def test_numbers_out_of_range_are_an_error(field, message):
    with pytest.raises(ValueError, match=message):
        Lora(**field)
