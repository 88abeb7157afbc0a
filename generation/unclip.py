"""Pictures from image embeddings: the Stable unCLIP pipeline of diffusers behind SEED's and Slot-MLLM's codes.

Knows no family beyond what query tokenizers share: ``image_embedding(codes)`` and ``token_embeddings(codes)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from math import inf
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img import StableUnCLIPImg2ImgPipeline
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from torch import Tensor
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import Codes
from ..tokenizers.embeddings import ImageEmbedding
from ..tokenizers.queries import QueryTokenizer
from .detokenizers import Detokenizer, Generators, each
from .loading import load_model, load_pipeline
from .objectives import Scheduler, check_scheduler, prediction_of
from .slot_adapters import SlotAdapters

#: The parts of the pipeline that have weights, but for the normalizer.
_MODELS: Mapping[str, type[Any]] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "image_encoder": CLIPVisionModelWithProjection,
}


@dataclass(frozen=True)
class UnCLIPSampling:
    """How pictures are drawn from image embeddings; the defaults are those of SEED's release.

    Args:
        guidance: >= 1, classifier-free guidance scale (https://arxiv.org/abs/2207.12598); 1 is off and costs half.
        steps: >= 1, evaluations of the UNet.
        noise_level: >= 0, step of the noising schedule at which noise is added to the embedding; even step 0 adds a
            little, from the picture's generator.

    Raises:
        ValueError: a value outside its range.
    """

    guidance: float = 10.0
    steps: int = 20
    noise_level: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.guidance < inf:
            raise ValueError(f"guidance must be finite and >= 1, got {self.guidance}; 1 is off, 10 is SEED's")
        if self.steps < 1:
            raise ValueError(f"pictures are drawn in steps >= 1, got {self.steps}; 20 is SEED's")
        if self.noise_level < 0:
            raise ValueError(f"noise_level must be >= 0, got {self.noise_level}; 0 is SEED's")


SAMPLING = UnCLIPSampling()  #: the defaults


class UnCLIPDecoder(Detokenizer):
    """Draws codes of SEED or Slot-MLLM with Stable unCLIP (unCLIP, https://arxiv.org/abs/2204.06125).

    SEED (https://arxiv.org/abs/2310.01218): the codes' image embedding takes the place of CLIP's, beside an empty
    prompt. Slot-MLLM (https://arxiv.org/abs/2505.17726): ``adapters`` attend to the codes' token embeddings, the UNet's
    own cross-attention to their mean, and the image embedding stays where it is. What its guidance compares with is not
    documented: here the empty prompt's embeddings stand in place of the slots, its first one in place of their mean.

    ``sampling`` and ``scheduler`` are attributes and may be replaced, the scheduler by one of the same prediction type.

    Args:
        tokenizer: with an image embedding; frozen, and not part of this.
        pipeline: of ``diffusers``; its progress bar is turned off.
        adapters: Slot-MLLM's; none for SEED.
        sampling: guidance, steps and noise of the embedding.
        image_size: side of the pictures in pixels; that of the UNet by default.
        prediction: what the UNet was trained to predict; that of the pipeline's scheduler by default.
        expected: see :class:`~smalti.generation.detokenizers.Detokenizer`.

    Raises:
        ValueError: parts that do not fit each other; the sentence names both.
    """

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        pipeline: StableUnCLIPImg2ImgPipeline,
        adapters: SlotAdapters | None = None,
        sampling: UnCLIPSampling = SAMPLING,
        image_size: int | None = None,
        prediction: str | None = None,
        expected: str | None = None,
    ) -> None:
        super().__init__(tokenizer, expected)
        parts: Any = pipeline
        self.unet, self.vae = parts.unet, parts.vae
        self.text_encoder, self.image_encoder = parts.text_encoder, parts.image_encoder
        self.image_normalizer, self.adapters = parts.image_normalizer, adapters
        self.pipeline, self._embedding = parts, [_embedding_of(tokenizer)]
        self.prediction = prediction or prediction_of(parts.scheduler)
        side = image_size or self.unet.config.sample_size * parts.vae_scale_factor
        self.image_size, self.sampling = (side, side), sampling
        self._check(self._embedding[0])
        parts.set_progress_bar_config(disable=True)

    @property
    def scheduler(self) -> Scheduler:
        """How noise is removed; a scheduler of the trained prediction type may take its place."""
        return self.pipeline.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Scheduler) -> None:
        check_scheduler(scheduler, self.prediction)
        self.pipeline.scheduler = scheduler

    @torch.no_grad()
    def decode(self, codes: Codes, generator: Generators = None) -> Tensor:
        """See :meth:`~smalti.generation.detokenizers.Detokenizer.decode`."""
        tokenizer: Any = self.tokenizer
        embeddings: Tensor = tokenizer.image_embedding(codes)
        prompt, negative = self._prompts(codes)
        with self._adapted():
            found: Any = self.pipeline(
                image_embeds=embeddings.to(self.device, self.dtype),
                prompt_embeds=prompt,
                negative_prompt_embeds=negative,
                generator=each(generator, len(codes)),
                guidance_scale=self.sampling.guidance,
                num_inference_steps=self.sampling.steps,
                noise_level=self.sampling.noise_level,
                height=self.image_size[0],
                width=self.image_size[1],
                output_type="pt",
                return_dict=False,
            )
        return found[0].float() * 2 - 1  # from [0, 1], where the pipeline clamped them

    def parts(self) -> Mapping[str, Any]:
        """See :meth:`~smalti.generation.detokenizers.Detokenizer.parts`."""
        found = {"pipeline": self.pipeline}
        return found if self.adapters is None else {**found, "adapters": self.adapters}

    def numbers(self) -> dict[str, Any]:
        """See :meth:`~smalti.generation.detokenizers.Detokenizer.numbers`."""
        return {
            "prediction": self.prediction,
            "sampling": asdict(self.sampling),
            "image_size": self.image_size[0],
            "adapters": self.adapters is not None,
        }

    def schedulers(self) -> list[Any]:
        """See :meth:`~smalti.generation.detokenizers.Detokenizer.schedulers`."""
        return [self.scheduler, self.pipeline.image_noising_scheduler]

    @classmethod
    def read(cls, folder: Path, numbers: dict[str, Any], tokenizer: VisualTokenizer, expected: str) -> Self:
        """See :meth:`~smalti.generation.detokenizers.Detokenizer.read`."""

        def build(prediction: str, sampling: dict[str, Any], image_size: int, adapters: bool) -> Self:
            attached = SlotAdapters.from_pretrained(folder / "adapters") if adapters else None
            pipeline = _pipeline(folder / "pipeline")
            return cls(tokenizer, pipeline, attached, UnCLIPSampling(**sampling), image_size, prediction, expected)

        return build(**numbers)

    def _prompts(self, codes: Codes) -> tuple[Tensor, Tensor]:
        """What the UNet attends to, and what it attends to without a condition: both ``[B, L, W]``."""
        empty: Tensor = self.pipeline.encode_prompt("", self.device, 1, False)[0]  # [1, 77, W]
        if self.adapters is None:
            both = empty.expand(len(codes), -1, -1)
            return both, both
        tokenizer: Any = self.tokenizer
        slots: Tensor = tokenizer.token_embeddings(codes).to(empty)
        free = torch.cat([empty[:, :1], empty[:, : slots.shape[1]]], dim=1)
        return self.adapters.condition(slots), free.expand(len(slots), -1, -1)

    def _adapted(self) -> AbstractContextManager[None]:
        return nullcontext() if self.adapters is None else self.adapters.attached(self.unet)

    def _check(self, embedding: ImageEmbedding) -> None:
        check_scheduler(self.scheduler, self.prediction)
        name, config = type(self.tokenizer).__name__, self.unet.config
        width = embedding.out.out_features
        for part, wanted in {
            "image_normalizer": self.image_normalizer.config.embedding_dim,
            "unet": (config.projection_class_embeddings_input_dim or 0) // 2,  # half of it tells the noise level
        }.items():
            if wanted != width:
                raise ValueError(
                    f"image embeddings must have the width {wanted} that the pipeline's {part} takes, got {width} from "
                    f"{name}; take the pipeline that this tokenizer was trained for"
                )
        levels, factor = self.pipeline.image_noising_scheduler.config.num_train_timesteps, self._stride
        if self.sampling.noise_level >= levels:
            raise ValueError(f"noise_level must be below {levels} here, got {self.sampling.noise_level}; 0 is usual")
        if self.image_size[0] % factor:
            raise ValueError(f"image_size must be a multiple of {factor} here, got {self.image_size[0]}; change it")
        if self.adapters is not None:
            self._check_slots(self.adapters, embedding, config.cross_attention_dim)

    def _check_slots(self, adapters: SlotAdapters, embedding: ImageEmbedding, wanted: int) -> None:
        adapters.check_unet(self.unet)
        width = 0 if embedding.each is None else embedding.each[-1].out_features
        if width != wanted:
            raise ValueError(
                f"adapters need token embeddings of the width {wanted} that the UNet attends to, got {width} from "
                f"{type(self.tokenizer).__name__}; build that with token_dim {wanted} or leave the adapters out"
            )
        slots, room = self.tokenizer.spec.positions, self.pipeline.tokenizer.model_max_length
        if slots > room:
            raise ValueError(f"an empty prompt has room for {room} slots, got {slots}; leave the adapters out")

    @property
    def _stride(self) -> int:
        """What sides of pictures must be multiples of."""
        return max(8, self.pipeline.vae_scale_factor)  # the pipeline asks for 8 itself


def unclip_decoder(
    folder: str | PathLike[str],
    tokenizer: VisualTokenizer,
    adapters: str | PathLike[str] | None = None,
    sampling: UnCLIPSampling = SAMPLING,
    image_size: int | None = None,
) -> UnCLIPDecoder:
    """A decoder from a plain folder of ``StableUnCLIPImg2ImgPipeline``, such as a released one.

    Args:
        folder: of the pipeline, with its ``model_index.json``.
        tokenizer: whose codes are decoded.
        adapters: folder of :class:`~smalti.generation.slot_adapters.SlotAdapters`; None for none.
        sampling: see :class:`UnCLIPDecoder`.
        image_size: see :class:`UnCLIPDecoder`.

    Raises:
        FileNotFoundError: no such folder, or a part is missing.
        ValueError: damaged files, or parts that do not fit the tokenizer.
    """
    attached = None if adapters is None else SlotAdapters.from_pretrained(adapters)
    return UnCLIPDecoder(tokenizer, _pipeline(Path(folder)), attached, sampling, image_size).eval()


def _pipeline(folder: Path) -> StableUnCLIPImg2ImgPipeline:
    found = load_pipeline(StableUnCLIPImg2ImgPipeline, folder, _MODELS)
    # By itself: diffusers warns of one that is handed over, since it is no class of its public face.
    found.image_normalizer = load_model(StableUnCLIPImageNormalizer, folder / "image_normalizer")
    return found


def _embedding_of(tokenizer: VisualTokenizer) -> ImageEmbedding:
    found = tokenizer.image if isinstance(tokenizer, QueryTokenizer) else None
    if found is None:
        raise ValueError(
            f"Stable unCLIP draws from image embeddings, got a {type(tokenizer).__name__} without; take a "
            "SeedTokenizer or SlotTokenizer that was built with image_dim"
        )
    return found
