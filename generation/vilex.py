"""ViLex: pictures as words of a frozen text-to-image model, alone in a prompt or before other words.

Letters: B batch, n tokens at most, k tokens kept, W width of the text encoder's embeddings. There are no ids, so this
is no tokenizer in smalti's sense. Training is elsewhere.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..tokenizers.attention import Attention, feed_forward
from ..tokenizers.component import build, freeze
from ..tokenizers.towers import Tower
from .loading import LocalModel


class ViLex(LocalModel):
    """Pictures to tokens in a text encoder's embedding space (Visual Lexicon, https://arxiv.org/abs/2412.06774).

    Learned queries read the patches of a vision tower by one attention layer and a feed-forward layer. A query sees the
    patches and no other query: the first k tokens are the same whatever k is. Sizes other than the
    number of tokens are ours.

    Args:
        tower: vision transformer; the hidden states behind its last layer are read.
        dim: W.
        count: n; the paper goes up to 75, which is all that fits between the two ends of a CLIP prompt.
        heads: of the attention; one per 64 channels of the tower by default.
        scale: deviation of the tokens at the start of training, best that of the text encoder's own embeddings.
        freeze_tower: keep the tower as it is.

    Raises:
        ValueError: no tokens, or a scale that is not positive.
    """

    @register_to_config
    def __init__(
        self,
        tower: Tower,
        dim: int,
        count: int = 75,
        heads: int | None = None,
        scale: float = 0.02,
        freeze_tower: bool = False,
    ) -> None:
        super().__init__()
        if count < 1 or scale <= 0:
            raise ValueError(f"ViLex needs count >= 1 and scale > 0, got {count} and {scale}; 75 and 0.02 are usual")
        width = tower.width
        self.tower, self.dim, self.count = tower, dim, count
        tower.freeze_pooling()
        if freeze_tower:
            tower.requires_grad_(requires_grad=False)
        self.queries = nn.Parameter(torch.randn(1, count, width))
        self.norm_memory, self.norm_queries, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.attention, self.out = Attention(width, heads or max(1, width // 64)), nn.Linear(width, width)
        self.mlp, self.head, self.norm = feed_forward(width, 4 * width), nn.Linear(width, dim), nn.LayerNorm(dim)
        nn.init.constant_(self.norm.weight, scale)

    def tokens(self, images: Tensor, count: int | None = None) -> Tensor:
        """Tokens of pictures.

        Args:
            images: ``[B, 3, S, S]`` float in [-1, 1], S the tower's ``image_size``.
            count: k in [1, n]; all n by default.

        Returns:
            ``[B, k, W]``; :class:`ViLexPrompts` makes prompts of them.

        Raises:
            ValueError: pictures of another size, or a number of tokens out of range.
        """
        kept, side = self.count if count is None else count, self.tower.image_size
        if not 1 <= kept <= self.count:
            raise ValueError(f"count must lie in [1, {self.count}], the tokens that were learned, got {kept}")
        if tuple(images.shape[1:]) != (3, side, side):
            raise ValueError(
                f"images must be [B, 3, {side}, {side}] for this tower, got {list(images.shape)}; resize or crop them"
            )
        hidden = self.tower.run(self.tower.stem(images.to(self.dtype)), 0, self.tower.depth)
        memory = self.norm_memory(self.tower.on_grid(hidden))
        queries = self.queries[:, :kept].expand(len(images), -1, -1)
        queries = queries + self.out(self.attention(self.norm_queries(queries), memory))
        return self.norm(self.head(queries + self.mlp(self.norm_mlp(queries))))

    def forward(self, images: Tensor) -> Tensor:
        """All tokens, as :meth:`tokens`."""
        return self.tokens(images)

    def register_to_config(self, **kwargs: Any) -> None:
        """Record constructor arguments, the tower as its spec. Called by the decorator of ``__init__``."""
        super().register_to_config(**freeze(kwargs))

    @classmethod
    def extract_init_dict(
        cls, config_dict: dict[str, Any], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """diffusers' reader of a saved configuration, with the tower built from its spec."""
        init, unused, hidden = super().extract_init_dict(config_dict, **kwargs)
        return build(init), unused, hidden

    def __getattr__(self, name: str) -> Any:
        """Find modules, parameters and buffers only: diffusers would answer with the spec of the tower."""
        return nn.Module.__getattr__(self, name)


def tail_drop(tokens: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
    """Drop a random tail of every picture's tokens, so that the first tokens learn what matters most.

    Args:
        tokens: ``[B, n, W]``.
        generator: draws how many stay; torch's own by default.

    Returns:
        B times ``[k, W]``, each k drawn evenly from 1 to n.
    """
    kept = torch.randint(1, tokens.shape[1] + 1, (len(tokens),), generator=generator)
    return [row[:count] for row, count in zip(tokens, kept.tolist(), strict=True)]


class ViLexPrompts:
    """Prompts of pictures and words, as ``StableDiffusionPipeline`` takes them by the name ``prompt_embeds``.

    The paper's tokens live in the space of vocabulary tokens. This is read as the text encoder's *input*: a prompt is
    the start token, the picture's tokens, the words' embeddings, the end token and padding, and the text encoder reads
    them all. Gradients flow through the text encoder to the tokens. ::

        prompts = ViLexPrompts(vilex, pipeline.tokenizer, pipeline.text_encoder)
        pipeline(prompt_embeds=prompts.prompt(images, ["in the snow"]), negative_prompt=[""])

    Args:
        vilex: pictures to tokens.
        tokenizer: of the text-to-image model that ``vilex`` was trained for.
        text_encoder: likewise.

    Raises:
        ValueError: a text encoder of another width.
    """

    def __init__(self, vilex: ViLex, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        width = int(text_encoder.config.hidden_size)
        if width != vilex.dim:
            raise ValueError(
                f"these tokens have the width {vilex.dim}, got a text encoder of width {width}; take the text-to-image "
                "model that they were trained for"
            )
        self.vilex, self.tokenizer, self.text_encoder = vilex, tokenizer, text_encoder

    @property
    def room(self) -> int:
        """Tokens that fit between the two ends of a prompt: 75 for CLIP."""
        return int(self.tokenizer.model_max_length) - 2

    def prompt(self, images: Tensor, words: Sequence[str] | None = None, count: int | None = None) -> Tensor:
        """Prompts of pictures.

        Args:
            images: see :meth:`ViLex.tokens`.
            words: B texts that follow the pictures' tokens; none by default.
            count: tokens of each picture; all by default.

        Returns:
            ``[B, L, W]`` hidden states of the text encoder, L 77 for CLIP.

        Raises:
            ValueError: a prompt that is too long, another number of texts than pictures, or see :meth:`ViLex.tokens`.
        """
        return self.write(list(self.vilex.tokens(images, count)), words)

    def write(self, tokens: Sequence[Tensor], words: Sequence[str] | None = None) -> Tensor:
        """Prompts of tokens.

        Args:
            tokens: B times ``[k, W]``; k may differ and be 0.
            words: see :meth:`prompt`.

        Returns:
            See :meth:`prompt`.

        Raises:
            ValueError: a prompt that is too long, or another number of texts than pictures.
        """
        encoder: Any = self.text_encoder
        rows = [self._row(*pair) for pair in zip(map(len, tokens), self._words(words, len(tokens)), strict=True)]
        ids = torch.tensor([row for row, _ in rows], device=encoder.device)
        places = torch.arange(ids.shape[1])[None] - 1  # the start token stands before the picture's
        taken = (places >= 0) & (places < torch.tensor([[len(each)] for each in tokens]))
        masked = bool(getattr(encoder.config, "use_attention_mask", False))  # as the pipeline decides it
        mask = torch.tensor([[int(at < end) for at in range(len(row))] for row, end in rows]).to(ids)
        with _replacing(encoder, taken.to(ids.device), torch.cat(list(tokens))):
            return encoder(ids, attention_mask=mask if masked else None)[0]

    def _words(self, words: Sequence[str] | None, count: int) -> list[list[int]]:
        if words is None:
            return [[] for _ in range(count)]
        if len(words) != count:
            raise ValueError(f"one text per picture is needed, got {len(words)} for {count} pictures; pass one each")
        tokenizer: Any = self.tokenizer
        return [tokenizer(text, add_special_tokens=False).input_ids for text in words]

    def _row(self, count: int, words: list[int]) -> tuple[list[int], int]:
        """Ids of one prompt, the start token in the places of the picture's tokens; and where padding begins."""
        if count + len(words) > self.room:
            raise ValueError(
                f"a prompt has room for {self.room} tokens, got {count} of a picture and {len(words)} of words; ask "
                "for fewer with count or shorten the words"
            )
        tokenizer: Any = self.tokenizer
        row = [*[tokenizer.bos_token_id] * (1 + count), *words, tokenizer.eos_token_id]
        return row + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(row)), len(row)


@contextmanager
def _replacing(encoder: Any, taken: Tensor, tokens: Tensor) -> Generator[None]:
    """Let a text encoder read tokens ``[M, W]`` in the M places that ``taken`` ``[B, L]`` marks."""

    def replace(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.masked_scatter(taken[..., None], tokens.to(output))

    hook = encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()
