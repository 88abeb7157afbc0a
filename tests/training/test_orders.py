"""Language models that learn to write in other orders than raster: by heart, and back through the sampler."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer

from smalti.data.store import TokenRecord, write_store
from smalti.generation.orders import Grouped, Masked, Neighbouring, Random
from smalti.generation.pipeline import TextToImagePipeline
from smalti.generation.sampler import model_order, sample_codes
from smalti.generation.sampling import Sampling
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.lm import LanguageModelTraining, TokenData
from smalti.training.optimizer import OptimizerSettings

RECORDS = [TokenRecord("a red circle", (("what color ?", "red"),)), TokenRecord("a blue square", ())]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
ORDERS = [Neighbouring(), Grouped(2), Random(5), Masked(5, noise=0.0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer with two codes a position, and two pictures coded with it."""
    root = tmp_path_factory.mktemp("codes")
    torch.manual_seed(0)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    quantizer = VectorQuantizer(dim=4, codebook_size=16, depth=2)
    tokenizer = VQTokenizer(ConvEncoder(**parts), quantizer, ConvDecoder(**parts), 8)
    tokenizer.save_pretrained(root / "tokenizer")
    ids = torch.randint(0, 16, (2, 16, 2))
    write_store(root / "two", ids, RECORDS, {"spec": tokenizer.spec.to_dict(), "fingerprint": tokenizer.fingerprint()})
    return root


def module(folder, order, **options) -> LanguageModelTraining:
    vocabulary = Vocabulary.train(["a red circle", "a blue square", "what color ?"])
    options = {"optimizer": OptimizerSettings(learning_rate=1e-2, warmup_steps=5), "head": {"kind": "depth"}} | options
    return LanguageModelTraining(str(folder / "tokenizer"), vocabulary, dict(LLAMA), order=order, **options)


@pytest.mark.parametrize("rotary", ["sequence", "axial"])
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.fields()["kind"])
def test_two_pictures_are_learned_by_heart_and_written_in_the_order(folder, tmp_path, order, rotary):
    steps = 120
    found = module(folder, order, reading=0.2, rotary=rotary, save_to=str(tmp_path / "model"))
    data = TokenData(str(folder / "two"), str(folder / "two"), batch_size=2)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    options |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "check_val_every_n_epoch": steps}
    run = Trainer(**options, max_steps=steps, default_root_dir=tmp_path)
    run.fit(found, data)
    assert run.callback_metrics[f"val/{found.model.spec.codebooks[0].name}"].item() < 0.4
    lm = TextToImagePipeline.from_pretrained(tmp_path / "model").lm
    assert model_order(lm).fields() == order.fields()
    captions = [record.caption for record in RECORDS]
    generators = [torch.Generator().manual_seed(0) for _ in captions]
    written = sample_codes(lm, captions, generators, Sampling(guidance=1.0, temperature=0.0))
    assert torch.equal(written.ids, data.train.ids())
