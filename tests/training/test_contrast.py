"""Pictures beside captions: the loss by hand, on two processes, and text towers from checkpoints."""

from __future__ import annotations

import math

import pytest
import torch
from torch import multiprocessing
from torch.nn import functional as F
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel, ViTConfig, ViTModel

from smalti.lm.vocabulary import Vocabulary
from smalti.training.contrast import Contrast, TextTower

WORDS = ["a red circle", "a blue square", "two green stars", "a red square"]


def vocabulary() -> Vocabulary:
    return Vocabulary.train(WORDS)


def contrast(**options) -> Contrast:
    torch.manual_seed(3)
    return Contrast(6, TextTower(vocabulary(), width=8, layers=1, heads=2, length=4), dim=5, **options)


def test_the_loss_is_a_cross_entropy_over_cosines_both_ways():
    module, summary = contrast(smoothing=0.1), torch.randn(3, 6)
    pictures = F.normalize(module.from_image(summary), dim=-1)
    texts = F.normalize(module.from_text(module.text(module.text.ids(WORDS[:3]))), dim=-1)
    by_hand = 0.0
    for logits in (pictures @ texts.T / 0.07, texts @ pictures.T / 0.07):
        for row in range(3):
            logs = logits[row] - logits[row].exp().sum().log()
            by_hand -= float(sum(logs[column] * (0.1 / 3 + 0.9 * (row == column)) for column in range(3))) / 6
    assert float(module(summary, WORDS[:3])) == pytest.approx(by_hand, rel=1e-5)


def test_equal_captions_belong_to_all_their_pictures():
    module = contrast(smoothing=0.0)
    same = module(torch.randn(1, 6).expand(4, -1), [WORDS[0]] * 4)
    assert float(same) == pytest.approx(math.log(4), rel=1e-5)  # nothing to tell apart: every pair is right


def test_it_learns_which_belongs_to_which():
    module, summary = contrast(smoothing=0.0), torch.randn(4, 6)
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    before = float(module(summary, WORDS))
    for _ in range(60):
        optimizer.zero_grad()
        module(summary, WORDS).backward()
        optimizer.step()
    assert float(module(summary, WORDS)) < 0.2 * before
    assert float(module.temperature) != pytest.approx(0.07, abs=1e-4)


def _half(rank: int, file: str, summary: torch.Tensor, found: dict[int, list[torch.Tensor]]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    module, mine = contrast(), slice(2 * rank, 2 * rank + 2)
    loss = module(summary[mine], WORDS[mine])
    loss.backward()
    found[rank] = [
        loss.detach(),
        module.from_image.weight.grad,
        module.text.model.embeddings.token_embedding.weight.grad,
    ]
    torch.distributed.destroy_process_group()


def test_two_processes_compare_with_all_captions(tmp_path):
    summary, module = torch.randn(4, 6), contrast()
    module(summary, WORDS).backward()
    with multiprocessing.get_context("spawn").Manager() as manager:
        found = manager.dict()
        arguments = (str(tmp_path / "store"), summary, found)
        multiprocessing.spawn(_half, arguments, nprocs=2)
        halves = [found[0], found[1]]
    loss, to_image, to_text = (torch.stack(pair).mean(0) for pair in zip(*halves, strict=True))
    torch.testing.assert_close(loss, module(summary, WORDS))
    torch.testing.assert_close(to_image, module.from_image.weight.grad)
    torch.testing.assert_close(to_text, module.text.model.embeddings.token_embedding.weight.grad)


def sizes(**more):
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return small | {"vocab_size": 40, "max_position_embeddings": 6, **more}


@pytest.mark.parametrize("kind", ["siglip", "clip", "bert"])
def test_towers_from_checkpoints(tmp_path, kind):
    pixels = {"image_size": 8, "patch_size": 4}
    if kind == "bert":
        whole = BertModel(BertConfig(**sizes()))
    elif kind == "clip":
        text = sizes(eos_token_id=39, bos_token_id=38, pad_token_id=0)
        whole = CLIPModel(CLIPConfig(text_config=text, vision_config=sizes(**pixels)))
    else:
        whole = SiglipModel(SiglipConfig(text_config=sizes(projection_size=8), vision_config=sizes(**pixels)))
    whole.save_pretrained(tmp_path)
    tower = TextTower.from_checkpoint(str(tmp_path), vocabulary(), freeze=True)
    ids = tower.ids(WORDS)
    assert ids.shape == (4, 6)
    inner = whole if kind == "bert" else whole.text_model
    found = inner.eval()(input_ids=ids)
    expected = found.last_hidden_state[:, 0] if kind == "bert" else found.pooler_output
    torch.testing.assert_close(tower.eval()(ids), expected)
    assert not any(weight.requires_grad for weight in tower.parameters())


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="a contrastive loss needs a caption for every picture, got one without"):
        contrast()(torch.randn(2, 6), ["a red circle", " "])
    ViTModel(ViTConfig(**{**sizes(), "image_size": 8, "patch_size": 4})).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"a text tower starts from a checkpoint of siglip, .*, got 'vit'"):
        TextTower.from_checkpoint(str(tmp_path))
