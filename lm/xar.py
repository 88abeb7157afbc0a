"""xAR: next-X prediction by flow matching over entities of a continuous latent (https://arxiv.org/abs/2502.20388).

The whole transformer is the velocity network. An entity is denoised beside those before it, which it attends to; in
training they are noisy too, each with a time of its own (noisy context learning). Knows nothing about pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, initialization

from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import CodeLayout
from .conditions import Wanted, condition_encoder
from .entities import entities
from .saved import SavedModel
from .vocabulary import Vocabulary
from .xar_layers import EPSILON, Memory, Pass, Silent, Stack, TimeEmbedding, angles_of


class XARConfig(PretrainedConfig):
    """What an :class:`XAR` is made of; by default the published B for classes needs only ``classes``.

    Args:
        width: W, channels between the layers.
        heads: of the attention; each has a multiple of 4 channels.
        encoder_layers: blocks of the first stack.
        decoder_layers: blocks of the second.
        channels: C of the latents.
        grid: (h, w) of the latents.
        entity: what is generated at once: ``kind`` and ``side`` of :func:`~smalti.lm.entities.entities`.
        classes: number of classes, for models of classes; 0 for models of sentences.
        vocabulary_size: V, ids of the vocabulary.
        tokenizer_fingerprint: of the latent space.
        dropout: of attention weights and of what attention and feed-forward layers give; 0.1 in the paper.
        sampling: how latents are drawn where nobody says otherwise: fields of
            :class:`~smalti.generation.xar.XARSampling`.
    """

    model_type = "smalti-xar"

    def __init__(
        self,
        width: int = 768,
        heads: int = 12,
        encoder_layers: int = 8,
        decoder_layers: int = 8,
        channels: int = 16,
        grid: Sequence[int] = (16, 16),
        entity: dict[str, Any] | None = None,
        classes: int = 0,
        vocabulary_size: int = 0,
        tokenizer_fingerprint: str = "",
        dropout: float = 0.0,
        sampling: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.width, self.heads = width, heads
        self.encoder_layers, self.decoder_layers = encoder_layers, decoder_layers
        self.channels, self.grid, self.entity, self.classes = channels, list(grid), entity or {}, classes
        self.vocabulary_size, self.tokenizer_fingerprint = vocabulary_size, tokenizer_fingerprint
        self.dropout, self.sampling = dropout, sampling or {}
        super().__init__(**kwargs)


@dataclass(frozen=True)
class Flow:
    """Result of a training pass."""

    loss: Tensor  #: scalar, mean squared error
    velocity: Tensor  #: [B, L, C], of all entities


class XAR(SavedModel):
    """The velocity of noisy entities, given those before them and a condition.

    Two stacks of blocks with a linear layer between them. ``save_pretrained`` and ``from_pretrained`` keep weights,
    vocabulary and the fingerprint of the latent space together in one folder.

    Args:
        config: see :class:`XARConfig`.
        vocabulary: of the words of a model of sentences; an empty one for a model of classes.

    Raises:
        ValueError: a vocabulary that does not fit the configuration, sizes that do not fit each other, or entities that
            the grid has not.
    """

    config_class = XARConfig
    base_model_prefix = "xar"
    main_input_name = "latents"

    def __init__(self, config: XARConfig, vocabulary: Vocabulary) -> None:
        super().__init__(config)
        _check(config, vocabulary)
        self.vocabulary = vocabulary
        self.entities = entities(CodeLayout("grid", tuple(config.grid)), **config.entity)
        tokens, width = self.entities.starts[-1], config.width
        self.condition = condition_encoder(vocabulary, config.classes, width)
        self.time = TimeEmbedding(width)
        self.enter = nn.Linear(config.channels, width)
        sizes = tokens, width, config.heads, config.dropout
        self.encoder = Stack(config.encoder_layers, *sizes, nn.RMSNorm(width, EPSILON))
        self.middle = nn.Linear(width, width)
        self.decoder = Stack(config.decoder_layers, *sizes, nn.Identity())
        self.leave = Silent(width, config.channels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Stack):
            initialization.normal_(module.positions, std=0.02)
        elif isinstance(module, Silent):
            initialization.zeros_(module.weight)
        elif isinstance(module, nn.Linear):
            initialization.xavier_uniform_(module.weight)

    @classmethod
    def build(cls, vocabulary: Vocabulary, fingerprint: str = "", **sizes: Any) -> Self:
        """A model from scratch.

        Args:
            vocabulary: of the words; empty for a model of classes.
            fingerprint: of the latent space.
            sizes: the other fields of :class:`XARConfig`.
        """
        config = XARConfig(vocabulary_size=vocabulary.size, tokenizer_fingerprint=fingerprint, **sizes)
        return cls(config, vocabulary)

    def get_output_embeddings(self) -> nn.Module:
        """The layer that gives velocities, which Muon is not for."""
        return self.leave

    def check_tokenizer(self, tokenizer: VisualTokenizer) -> None:
        """Not here: what this model was trained on is a latent space.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"a model of latents knows no codes, got a {type(tokenizer).__name__}; give check_latents the latent space"
        )

    def check_latents(self, fingerprint: str, channels: int, grid: tuple[int, int]) -> None:
        """Raise unless this model was trained on such latents.

        Args:
            fingerprint: of the latent space.
            channels: C.
            grid: (h, w).

        Raises:
            ValueError: other sizes or another fingerprint; the sentence names both.
        """
        own = (self.config.channels, *self.config.grid)
        if own != (channels, *grid):
            raise ValueError(
                f"this model draws latents of {_sized(own)}, got a latent space of {_sized((channels, *grid))}; "
                "take the one it was trained on"
            )
        expected = self.config.tokenizer_fingerprint
        if not expected:
            raise ValueError(
                f"this model does not say which latent space it was trained on, got {fingerprint}; if that is the one, "
                "set config.tokenizer_fingerprint to it and save the model"
            )
        if expected != fingerprint:
            raise ValueError(
                f"this model was trained on the latents of {expected}, got those of {fingerprint}; "
                "take the latent space it was trained on or train it again"
            )

    def forward(
        self, latents: Tensor, wanted: Sequence[Wanted], times: Tensor | None = None, noise: Tensor | None = None
    ) -> Flow:
        """Loss of noisy context learning: ``x_t = (1 - t) x + t noise`` for every entity, velocity ``noise - x``.

        Args:
            latents: ``[B, C, h, w]`` float.
            wanted: B conditions.
            times: ``[B, E]`` in [0, 1]; drawn as sigmoids of normal numbers by default, from torch's own CPU generator.
            noise: ``[B, L, C]``, drawn likewise.

        Raises:
            ValueError: latents of another grid, or conditions that this model has not.
        """
        clean = self.entities.cut(latents)
        times = torch.randn(len(clean), self.entities.count, device="cpu").sigmoid() if times is None else times
        noise = torch.randn(clean.shape, device="cpu") if noise is None else noise
        times, noise = times.to(clean.device, torch.float32), noise.to(clean)
        mixed = clean.lerp(noise, times[:, self.entities.owners().to(times.device)][..., None].to(clean))
        velocity = self.velocity(mixed, times, self.condition(wanted))
        return Flow(F.mse_loss(velocity.float(), (noise - clean).float()), velocity)

    def velocity(
        self, tokens: Tensor, times: Tensor, condition: Tensor, first: int = 0, memory: Memory | None = None
    ) -> Tensor:
        """Velocity of entities that follow each other; each sees itself and all that come before.

        Args:
            tokens: ``[B, T, C]`` of these entities.
            times: ``[B, E]`` of each, in [0, 1]; 0 for one that is clean.
            condition: ``[B, W]`` of ``self.condition``.
            first: the first of these entities; those before it must be in the memory.
            memory: receives keys and values of these tokens; its rows may be more than B.

        Returns:
            ``[B, T, C]``.
        """
        at = self._pass(times, condition, first, beside=memory is not None)
        states = self.encoder(self.enter(tokens), at, memory, 0)
        return self.leave(self.decoder(self.middle(states), at, memory, len(self.encoder.blocks)))

    def memory(self, rows: int) -> Memory:
        """An empty one for B rows, on this model's device and in its precision."""
        layers, heads = self.config.encoder_layers + self.config.decoder_layers, self.config.heads
        shape = (layers, rows, heads, self.entities.starts[-1], self.config.width // heads)
        empty = [torch.empty(shape, device=self.device, dtype=self.dtype) for _ in range(2)]
        return Memory(*empty)

    def _pass(self, times: Tensor, condition: Tensor, first: int, *, beside: bool) -> Pass:
        count, cut, device = times.shape[1], self.entities, condition.device
        tokens = slice(cut.starts[first], cut.starts[first + count])
        angles = angles_of(cut.places()[tokens].to(device), self.config.width // self.config.heads)
        owners, mask, repeats = cut.owners().to(device), None, None
        if count > 1:
            seen = owners[: tokens.stop] if beside else owners[tokens]
            mask = owners[tokens, None] >= seen
            repeats = torch.tensor(cut.sizes[first : first + count], device=device)
        conditions = condition[:, None] + self.time(times)
        return Pass(conditions, repeats, angles.cos(), angles.sin(), mask, tokens)


def _check(config: XARConfig, vocabulary: Vocabulary) -> None:
    if vocabulary.size != config.vocabulary_size:
        raise ValueError(
            f"the model was built for {config.vocabulary_size} ids, its vocabulary has {vocabulary.size}; "
            "load both from the same folder"
        )
    for name, usual in _B.items():
        size = getattr(config, name)
        if size < 1:
            raise ValueError(f"{name} of xAR must be >= 1, got {size}; the published B has {usual}")
    if config.width % (4 * config.heads):
        raise ValueError(
            f"every head of xAR needs a multiple of 4 channels, got width {config.width} for {config.heads} heads; "
            f"make the width a multiple of {4 * config.heads}"
        )
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {config.dropout}; 0.1 is usual")


_B: Mapping[str, int] = {"width": 768, "heads": 12, "encoder_layers": 8, "decoder_layers": 8, "channels": 16}


def _sized(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} channels and {'x'.join(map(str, shape[1:]))} tokens"
