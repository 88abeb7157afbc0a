"""How the vision models of ``transformers`` are built: where each keeps what a tower reads, runs and replaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import (
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

Kind = Literal["siglip", "clip", "dinov2", "dinov2_with_registers", "blip2", "vit"]

_HALF = (tuple(IMAGENET_STANDARD_MEAN), tuple(IMAGENET_STANDARD_STD))
_CLIP = (tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD))
_IMAGENET = (tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD))


@dataclass(frozen=True)
class Anatomy:
    """One kind of vision model. Parts are named by their path inside the model."""

    config: type[Any]  #: class of its configuration
    model: type[Any]  #: class of the model
    checkpoints: tuple[str, ...]  #: ``model_type`` of the checkpoints that hold one
    statistics: tuple[Sequence[float], Sequence[float]]  #: published mean and standard deviation, of pixels in [0, 1]
    options: tuple[str, ...]  #: fields of the configuration, besides sizes, that a checkpoint decides
    patch: str = "embeddings.patch_embedding"  #: the convolution that makes patches
    first: str | None = None  #: the norm before the first layer
    layers: str = "encoder.layers"  #: the list of layers
    norm: str = "post_layernorm"  #: the norm after the last layer
    head: str | None = None  #: what pools the normed states; the class token where None
    idle: tuple[str, ...] = ()  #: parameters that no pass over an image reads
    call: Mapping[str, Any] = field(default_factory=dict)  #: arguments of a layer besides the hidden states
    ratio: bool = False  #: the feed-forward width is stated as a multiple of the width
    arguments: Mapping[str, Any] = field(default_factory=dict)  #: of the model's class, besides the configuration

    @property
    def prefixed(self) -> bool:
        """Whether a class token comes before the patches."""
        return self.head is None

    def sizes(self, width: int, mlp_width: int) -> dict[str, int]:
        """The configuration's own field for the width of the feed-forward layers.

        Raises:
            ValueError: a width that is not a multiple where only multiples can be stated.
        """
        if not self.ratio:
            return {"intermediate_size": mlp_width}
        if mlp_width % width:
            raise ValueError(
                f"{self.model.__name__} has feed-forward layers of a multiple of its width {width}, got {mlp_width}; "
                "choose a multiple"
            )
        return {"mlp_ratio": mlp_width // width}


_CALL = {"attention_mask": None}
_COMMON = ("hidden_act", "layer_norm_eps", "attention_dropout")
_DINO = ("hidden_act", "layer_norm_eps", "qkv_bias", "use_swiglu_ffn")

#: Every kind that a tower can be.
ANATOMIES: Mapping[Kind, Anatomy] = {
    "siglip": Anatomy(
        SiglipVisionConfig,
        SiglipVisionModel,
        ("siglip", "siglip_vision_model"),
        _HALF,
        _COMMON,
        head="head",
        call=_CALL,
    ),
    "clip": Anatomy(
        CLIPVisionConfig,
        CLIPVisionModel,
        ("clip", "clip_vision_model"),
        _CLIP,
        _COMMON,
        first="pre_layrnorm",
        call=_CALL,
    ),
    "dinov2": Anatomy(
        Dinov2Config,
        Dinov2Model,
        ("dinov2",),
        _IMAGENET,
        (*_DINO, "use_mask_token"),
        patch="embeddings.patch_embeddings.projection",
        layers="encoder.layer",
        norm="layernorm",
        idle=("embeddings.mask_token",),
        ratio=True,
    ),
    "dinov2_with_registers": Anatomy(
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        ("dinov2_with_registers",),
        _IMAGENET,
        (*_DINO, "num_register_tokens"),
        patch="embeddings.patch_embeddings.projection",
        layers="encoder.layer",
        norm="layernorm",
        idle=("embeddings.mask_token",),
        ratio=True,
    ),
    "blip2": Anatomy(
        Blip2VisionConfig,
        Blip2VisionModel,
        ("blip-2", "blip_2_vision_model"),
        _CLIP,
        (*_COMMON, "qkv_bias"),
    ),
    "vit": Anatomy(
        ViTConfig,
        ViTModel,
        ("vit",),
        _HALF,
        ("hidden_act", "layer_norm_eps", "qkv_bias"),
        patch="embeddings.patch_embeddings.projection",
        layers="layers",
        norm="layernorm",
        arguments={"add_pooling_layer": False},
    ),
}


def kind_of(model_type: str, checkpoint: str) -> Kind:
    """The kind of tower that a checkpoint of a ``model_type`` holds.

    Raises:
        ValueError: none of them.
    """
    for kind, anatomy in ANATOMIES.items():
        if model_type in anatomy.checkpoints:
            return kind
    known = ", ".join(name for anatomy in ANATOMIES.values() for name in anatomy.checkpoints)
    raise ValueError(
        f"a vision tower starts from a checkpoint of type {known}, got {model_type!r} in {checkpoint}; choose another"
    )


def load(kind: Kind, checkpoint: str) -> Any:
    """The vision model of a checkpoint, every weight read from it; those of a text side are left.

    Raises:
        ValueError: weights that are missing or of another shape.
    """
    anatomy = ANATOMIES[kind]
    model, report = anatomy.model.from_pretrained(
        checkpoint, key_mapping={r"^vision_model\.": ""}, output_loading_info=True, **anatomy.arguments
    )
    lacking = sorted(report["missing_keys"]) + sorted(str(entry) for entry in report["mismatched_keys"])
    if lacking:
        raise ValueError(
            f"{checkpoint} must hold every weight of its vision model, missing or of another shape are "
            f"{', '.join(lacking)}; save or download it again"
        )
    return model


def load_projection(kind: Kind, checkpoint: str) -> Tensor:
    """``[D, C]``, what brings a CLIP's pooled features to the space it shares with texts.

    Raises:
        ValueError: a checkpoint of another kind, or one without it.
    """
    if kind != "clip":
        raise ValueError(f"only a CLIP projects its pooled features, got {kind} in {checkpoint}; leave projected out")
    loaded: Any = CLIPVisionModelWithProjection.from_pretrained(checkpoint, output_loading_info=True)
    model, report = loaded
    if "visual_projection.weight" in report["missing_keys"]:
        raise ValueError(f"{checkpoint} holds a CLIP without visual_projection.weight; leave projected out")
    return model.visual_projection.weight.detach()


def statistics(checkpoint: str) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation that a checkpoint's ``preprocessor_config.json`` states; None where it does not.

    Raises:
        ValueError: a damaged file.
    """
    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(checkpoint)
    except OSError as error:
        file = Path(checkpoint) / "preprocessor_config.json"
        if file.is_file():
            raise ValueError(f"{file} must be a JSON object, got something else; copy it again") from error
        return None
    if values.get("do_normalize") is False:
        return [0.0] * 3, [1.0] * 3
    if "image_mean" not in values or "image_std" not in values:
        return None
    return list(values["image_mean"]), list(values["image_std"])
