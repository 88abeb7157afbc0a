"""Training of ViLex: through frozen parts of a real pipeline folder, which neither move nor are saved."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from smalti.cli.fit import check_configuration
from smalti.data.scenes import Scenes
from smalti.generation.vilex import ViLex, ViLexPrompts
from smalti.tokenizers.vision import VisionTower
from smalti.training.data import ImageData
from smalti.training.optimizer import OptimizerSettings
from smalti.training.vilex import ViLexTraining

SCENES = Scenes("small", "train", 10)


def module(folder, count=4, side=16, **options) -> ViLexTraining:
    torch.manual_seed(0)
    options = {"optimizer": OptimizerSettings(learning_rate=3e-3)} | options
    return ViLexTraining(str(folder), VisionTower(side, 4, 16, 2, 2, 32), count, 2, **options)


def trainer(root, **options) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    options = quiet | {"enable_model_summary": False, "num_sanity_val_steps": 0} | options
    return Trainer(**options, default_root_dir=root)


def data(**options) -> ImageData:
    return ImageData(SCENES, 16, **{"batch_size": 4, "validation": SCENES} | options)


def frozen(found):
    """All weights of the text-to-image model, by part and name."""
    parts = {"unet": found.unet, "text_encoder": found.text_encoder, "space": found.space}
    return {f"{part}.{name}": w for part, held in parts.items() for name, w in held.network.state_dict().items()}


class Losses(Callback):
    def __init__(self):
        self.seen, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(float(trainer.callback_metrics["train/loss"]))

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(float(trainer.callback_metrics["val/loss"]))


def test_two_steps_move_vilex_and_nothing_else(stable_diffusion_folder, tmp_path):
    found = module(stable_diffusion_folder, save_to=str(tmp_path / "vilex"))
    resting, before = copy.deepcopy(frozen(found)), copy.deepcopy(found.vilex.state_dict())
    (start,) = trainer(tmp_path).validate(found, data(), verbose=False)
    losses = Losses()
    trainer(tmp_path, max_steps=2, callbacks=[losses], val_check_interval=1).fit(found, data())
    assert len(losses.seen) == 2
    assert all(0 < loss < 10 for loss in losses.seen + losses.validated)
    assert losses.validated[-1] < start["val/loss"]
    assert all(torch.equal(weight, resting[name]) for name, weight in frozen(found).items())
    assert all(weight.grad is None for held in (found.unet, found.text_encoder) for weight in held.network.parameters())
    moved = [name for name, weight in found.vilex.state_dict().items() if not torch.equal(weight, before[name])]
    assert {"queries", "head.weight", "norm.weight"} <= set(moved)
    saved = ViLex.from_pretrained(tmp_path / "vilex")
    images = data().first()["images"][None]
    assert torch.equal(saved.tokens(images), found.vilex.eval().tokens(images))


def test_what_was_trained_makes_prompts_for_the_pipeline(stable_diffusion_folder, tmp_path):
    found = module(stable_diffusion_folder, save_to=str(tmp_path / "vilex"), save_dtype="bfloat16")
    trainer(tmp_path, max_steps=1).fit(found, data(validation=None))
    pipeline = StableDiffusionPipeline.from_pretrained(stable_diffusion_folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    prompts = ViLexPrompts(ViLex.from_pretrained(tmp_path / "vilex"), pipeline.tokenizer, pipeline.text_encoder)
    with torch.no_grad():
        states = prompts.prompt(data().first()["images"][None], ["red"])
    drawn = pipeline(prompt_embeds=states, negative_prompt=[""], num_inference_steps=2, output_type="pt").images
    assert drawn.shape == (1, 3, 16, 16)


def test_checkpoints_hold_vilex_alone(stable_diffusion_folder):
    names = module(stable_diffusion_folder).state_dict()
    assert names
    assert all(name.startswith("vilex.") for name in names)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_what_the_frozen_model_says(stable_diffusion_folder, tmp_path, prediction):
    """Against the formulas written out, with the first beta of the schedule and its last."""
    shutil.copytree(stable_diffusion_folder, tmp_path / "model")
    scheduler = DDIMScheduler(prediction_type=prediction)
    scheduler.save_pretrained(tmp_path / "model" / "scheduler")
    found, images = module(tmp_path / "model").eval(), torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        clean, tokens = found.space.network.encode(images), found.vilex.tokens(images)
        noise, times = torch.randn_like(clean), torch.tensor([0.0, 0.9999])
        loss = found._loss(clean, list(tokens), times, noise)
        kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[[0, 999]].view(2, 1, 1, 1)
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        states = ViLexPrompts(found.vilex, found.tokenizer, found.text_encoder.network).write(list(tokens))
        said = found.unet.network(noisy, torch.tensor([0, 999]), states, return_dict=False)[0]
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * clean
        target = {"epsilon": noise, "v_prediction": velocity, "sample": clean}[prediction]
    assert loss.item() == pytest.approx((said - target).square().mean().item(), rel=1e-4)


def test_latents_are_scaled_as_the_pipeline_scales_them(stable_diffusion_folder):
    found, images = module(stable_diffusion_folder), torch.rand(1, 3, 16, 16) * 2 - 1
    pipeline = StableDiffusionPipeline.from_pretrained(stable_diffusion_folder, local_files_only=True)
    with torch.no_grad():
        expected = pipeline.vae.encode(images).latent_dist.mode() * pipeline.vae.config.scaling_factor
    assert torch.allclose(found.space.network.encode(images), expected, atol=1e-6)


def test_all_tokens_are_learned_through_dropped_tails(stable_diffusion_folder):
    found, images = module(stable_diffusion_folder), torch.stack([data().first()["images"]] * 16)
    found.training_loss({"images": images}).backward()
    reach = found.vilex.queries.grad.abs().sum(-1)[0]
    assert reach.gt(0).all()
    assert all(weight.grad is None for weight in found.unet.network.parameters())


def test_the_tower_sees_pictures_of_its_own_size(stable_diffusion_folder, tmp_path):
    found = module(stable_diffusion_folder, side=8, freeze_tower=True)
    before = copy.deepcopy(found.vilex.tower.state_dict())
    trainer(tmp_path, max_steps=1).fit(found, data(validation=None))
    assert all(torch.equal(weight, before[name]) for name, weight in found.vilex.tower.state_dict().items())


def test_tokens_start_as_wide_as_words(stable_diffusion_folder):
    found = module(stable_diffusion_folder)
    words = found.text_encoder.network.get_input_embeddings().weight
    images = data().first()["images"][None]
    assert found.vilex.tokens(images).std().item() == pytest.approx(words.std().item(), rel=0.1)


def test_a_configuration_names_it():
    tower = {"image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "heads": 2}
    options = {"model": "somewhere", "tower": {"class_path": "VisionTower", "init_args": tower}, "count": 4}
    source = {"class_path": "Scenes", "init_args": {"count": 8}}
    pictures = {"class_path": "ImageData", "init_args": {"train": source, "size": 16}}
    model = {"class_path": "ViLexTraining", "init_args": options}
    check_configuration("fit", {"model": model, "data": pictures, "trainer": {"max_steps": 1}})


def test_what_does_not_fit(stable_diffusion_folder, unclip_folder, tmp_path):
    with pytest.raises(ValueError, match="a prompt has room for 75 tokens, got a count of 76; set it to 75 or less"):
        module(stable_diffusion_folder, 76)
    with pytest.raises(ValueError, match="a UNet that reads prompts alone, got one with class_embed_type; take that "):
        module(unclip_folder)
    with pytest.raises(FileNotFoundError, match=r"a CLIPTokenizer was expected in .*tokenizer, which is no folder"):
        module(tmp_path)
    said = r"images must be 16x16 \(height x width\) for this text-to-image model, got 24x24; set the data's size to 1"
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, max_steps=1).fit(module(stable_diffusion_folder), ImageData(SCENES, 24, batch_size=2))
    shutil.copytree(stable_diffusion_folder, tmp_path / "mixed")
    shutil.copyfile(unclip_folder / "vae" / "config.json", tmp_path / "mixed" / "vae" / "config.json")
    (tmp_path / "mixed" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="unet does not hold a readable UNet2DConditionModel"):
        module(tmp_path / "mixed")
