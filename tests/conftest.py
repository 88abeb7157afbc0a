"""What every test gets: no network, one seed, one thread; and recipes small enough to be run by a test."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any Hugging Face library is imported

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from smalti.data.scenes import Scenes
from smalti.data.store import TokenRecord, write_store
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.encode import texts_of

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


#: The largest number that a shrunk recipe keeps under each of these names, wherever it stands.
CAPS = {
    "max_steps": 3,
    "val_check_interval": 2,
    "count": 24,
    "pictures": 8,
    "training_pictures": 8,
    "per_prompt": 1,
    "batch_size": 8,
    "candidates": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def capped(value: Any, caps: dict[str, int]) -> Any:
    """``value`` with every number under a name of ``caps`` at most that large."""
    if isinstance(value, list):
        return [capped(item, caps) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: min(item, caps[name]) if name in caps and isinstance(item, int) else capped(item, caps)
        for name, item in value.items()
    }


SOURCES = ("ImageFolder", "WebDataset", "CaptionTable", "HubDataset", "ArrowFiles")

#: Sizes in which configurations of published models are tried, laid over them.
TINY = {file.stem: yaml.safe_load(file.read_text()) for file in (Path(__file__).parent / "tiny").glob("*.yaml")}


def drawn(value: Any, size: int | None) -> Any:
    """``value`` with pictures of the embedded world in place of files, which tests do not have, and without helpers."""
    if isinstance(value, list):
        return [drawn(item, size) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_path") in SOURCES:
        return {"class_path": "Scenes", "init_args": {"count": 600, "size": size}}
    return {name: 0 if name == "workers" else drawn(item, size) for name, item in value.items()}


def laid_over(value: Any, other: Any) -> Any:
    """``value`` with what ``other`` says, mapping by mapping; a class that is named replaces the whole one."""
    if not isinstance(value, dict) or not isinstance(other, dict) or "class_path" in other:
        return other
    return value | {name: laid_over(value.get(name), item) for name, item in other.items()}


def checkpoint(folder: Path, texts: list[str]) -> None:
    """A small language model of 64 rows with a tokenizer of whole words, as another project saves them."""
    words = ["[UNK]", *sorted({word for text in texts for word in text.split()})]
    pieces = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=64, max_position_embeddings=2048, num_key_value_heads=1, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, dict[str, Any]], dict[str, Any]]:
    """A configuration on pictures of the embedded world; of a published model also in its tiny size, on one device."""
    folder = tmp_path_factory.mktemp("vocabulary")
    scenes = Scenes("full", "train", 600)
    Vocabulary.train([scenes.caption(index) for index in range(len(scenes))]).save_pretrained(folder)
    checkpoint(folder / "checkpoint", texts_of(scenes))
    tokenizer = VQTokenizer(ConvEncoder(8, 8, (1, 1), 1), VectorQuantizer(8, 32), ConvDecoder(8, 8, (1, 1), 1), 8)
    tokenizer.save_pretrained(folder / "tokenizer")
    about = (torch.randint(32, (8, tokenizer.spec.positions, 1)), tokenizer.spec.to_dict(), tokenizer.fingerprint())
    for name, texts in (("codes", map(str, range(8))), ("captioned", map(scenes.caption, range(8)))):
        records = [TokenRecord(text) for text in texts]
        write_store(folder / name, about[0], records, {"spec": about[1], "fingerprint": about[2]})

    def shrink(path: Path, config: dict[str, Any]) -> dict[str, Any]:
        if path.stem in TINY:
            over = yaml.safe_dump(TINY[path.stem]).replace("VOCABULARY", str(folder))
            for made in ("tokenizer", "codes", "captioned", "checkpoint"):
                over = over.replace(made.upper(), str(folder / made))
            config = laid_over(config, yaml.safe_load(over))
            for part in [stage["with"] for stage in config.get("stages", {}).values()] or [config]:
                part["trainer"] |= {"devices": 1, "num_nodes": 1, "max_steps": 2, "precision": "32-true"}
        for part in [stage["with"] for stage in config.get("stages", {}).values()] or [config]:
            if "data" in part:
                part["data"] = drawn(part["data"], part["data"]["init_args"].get("size"))
        return config

    return shrink


@pytest.fixture(scope="session")
def shrunk(tiny: Callable[[Path, dict[str, Any]], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    """Read a recipe, or a comparison, with all its stages in a size that runs in seconds."""

    def read(path: Path) -> dict[str, Any]:
        recipe = tiny(path, yaml.safe_load(path.read_text()))
        if "compare" in recipe:
            data = recipe.get("training", {}).get("data", {}).get("init_args", {})
            recipe = drawn(recipe, recipe["compare"].get("size", data.get("size")))
        words = CAPS | {"count": 600}  # few pictures do not show every word
        for stage in recipe.get("stages", recipe.get("before")).values():
            stage["with"] = capped(stage["with"], words if stage["run"] == "vocabulary" else CAPS)
        if "compare" not in recipe:
            return recipe
        shared = {name: capped(part, CAPS) for name, part in recipe.items() if name != "before"}
        shared |= {"seeds": recipe["seeds"][:1]} if "seeds" in recipe else {}
        return recipe | shared | {"compare": capped(recipe["compare"], CAPS | {"count": 60})}

    return read


def pipeline_parts() -> dict[str, Any]:
    """Parts that pipelines of Stable Diffusion share, tiny and untrained: pictures of 16x16, prompts of 77 places."""
    from diffusers import AutoencoderKL, DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>"]
    numbered = {piece: number for number, piece in enumerate(pieces)}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return {
        "tokenizer": CLIPTokenizer(vocab=numbered, merges=[("r", "e"), ("re", "d</w>")], model_max_length=77),
        "text_encoder": CLIPTextModel(CLIPTextConfig(vocab_size=len(pieces), **sizes, **ends)).eval(),
        "vae": AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, sample_size=16, **blocks).eval(),
        "scheduler": DDIMScheduler(prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False),
    }


def pipeline_unet(**options: Any) -> Any:
    """A tiny UNet that attends to 16 numbers in four places."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=(2, 4),
        norm_num_groups=4,
        use_linear_projection=True,
        **options,
    ).eval()


@pytest.fixture(scope="session")
def stable_diffusion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained ``StableDiffusionPipeline`` in the layout of the released ones."""
    from diffusers import StableDiffusionPipeline

    folder = tmp_path_factory.mktemp("stable-diffusion") / "saved"
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        StableDiffusionPipeline(**pipeline_parts(), unet=pipeline_unet(), **absent).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def unclip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained ``StableUnCLIPImg2ImgPipeline``, of image embeddings of width 5, as the released ones are."""
    from diffusers import DDPMScheduler, StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    folder, width = tmp_path_factory.mktemp("unclip") / "saved", 5
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vision = CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=width, **sizes)
        StableUnCLIPImg2ImgPipeline(
            **pipeline_parts(),
            unet=pipeline_unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * width),
            feature_extractor=CLIPImageProcessor(),
            image_encoder=CLIPVisionModelWithProjection(vision).eval(),
            image_normalizer=StableUnCLIPImageNormalizer(width),
            image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        ).save_pretrained(folder)
    return folder
