"""One tiny model with random weights for the everyday commands, saved once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel

from smalti.cli.main import main
from smalti.generation.diffusion import DecoderSampling, DiffusionDecoder
from smalti.generation.enat import ENATPipeline
from smalti.generation.latents import TokenizerLatents
from smalti.generation.orders import Masked, order_parts
from smalti.generation.pipeline import TextToImagePipeline
from smalti.generation.xar import XARPipeline
from smalti.lm.enat import ENAT
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.lm.xar import XAR
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

TEXTS = ("a red circle above a blue square", "is there a red circle", "how many squares", "yes no two")
BACKBONE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def tiny_tokenizer(seed: int) -> VQTokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"dim": 8, "width": 8, "multipliers": (1, 1, 2), "blocks": 1}
        quantizer = VectorQuantizer(dim=8, codebook_size=16)
        return VQTokenizer(ConvEncoder(**sizes), quantizer, ConvDecoder(**sizes), image_size=16).eval()


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A pipeline folder: 16 pixels, 4x4 codes of 16."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = tiny_tokenizer(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = SharedLM.build(BACKBONE, Vocabulary.train(TEXTS), tokenizer.spec, tokenizer.fingerprint())
        torch.nn.init.normal_(lm.outputs.pieces[0], std=0.3)  # sharp enough that prompts matter
    TextToImagePipeline(tokenizer, lm).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pipeline(model) -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained(model)


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory) -> Path:
    """A tokenizer of the same shape with other weights."""
    folder = tmp_path_factory.mktemp("models") / "other"
    tiny_tokenizer(1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def decoder(tmp_path_factory) -> Path:
    """A decoder that draws from the codes of the tiny tokenizer."""
    folder = tmp_path_factory.mktemp("decoders") / "tiny"
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "cross_attention_dim": 16}
    shape = {"in_channels": 3, "out_channels": 3, "sample_size": 16, "patch_size": 4, "norm_num_groups": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = PixArtTransformer2DModel(**sizes, **shape)
        sampling = DecoderSampling(2)
        made = DiffusionDecoder.build(tiny_tokenizer(0), denoiser, FlowMatchEulerDiscreteScheduler(), sampling=sampling)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def asking(tmp_path_factory):
    """A language model that can ask for positions, with sharp predictions."""
    folder, codes, order = tmp_path_factory.mktemp("asking") / "model", tiny_tokenizer(0), Masked(4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = order_parts(order, codes.spec)
        lm = SharedLM.build(BACKBONE, Vocabulary.train(TEXTS), codes.spec, codes.fingerprint(), **parts)
        torch.nn.init.normal_(lm.outputs.pieces[0], std=0.3)
    TextToImagePipeline(codes, lm).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    """Models of other kinds, by name."""
    root, codes = tmp_path_factory.mktemp("others"), tiny_tokenizer(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vocabulary, sizes = Vocabulary.train(TEXTS), {"width": 16, "encoder_blocks": 1, "decoder_blocks": 1, "heads": 2}
        network = ENAT.build(codes.spec, codes.fingerprint(), vocabulary, **sizes)
        ENATPipeline(codes, network).save_pretrained(root / "enat")
        latents = TokenizerLatents(codes, [0.0] * 8, [1.0] * 8)
        flow = {"width": 16, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "channels": 8}
        flow |= {"grid": (4, 4), "entity": {"kind": "cell", "side": 2}}
        XARPipeline(latents, XAR.build(vocabulary, latents.fingerprint(), **flow)).save_pretrained(root / "xar")
    return {name: root / name for name in ("enat", "xar")}


@pytest.fixture
def broken_model(model, tmp_path) -> Path:
    """A copy of the model that a test may damage."""
    return Path(shutil.copytree(model, tmp_path / "model"))


@pytest.fixture
def fails(capsys):
    """Run a command that must end in exit code 2 and exactly one line on standard error; returns the line."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert end.value.code == 2
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        return printed.err.strip()

    return run


@pytest.fixture
def answers(capsys):
    """Run a command that must succeed; returns the lines on standard output."""

    def run(*arguments: object) -> list[str]:
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def full_disk(monkeypatch):
    """Make every PNG end in a full disk."""
    from errno import ENOSPC

    from PIL import Image

    def save(self, path, **options):
        Path(path).write_bytes(b"half a pict")
        raise OSError(ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Image.Image, "save", save)
