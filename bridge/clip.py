"""OpenAI's names of CLIP's image encoder (https://arxiv.org/abs/2103.00020; openai/CLIP, MIT)."""

from __future__ import annotations

from .keymap import Copy, Drop, Rule, Split, Under

#: Into the model of ``transformers``.
OPENAI_CLIP: tuple[Rule, ...] = (
    Copy("class_embedding", "embeddings.class_embedding"),
    Copy("positional_embedding", "embeddings.position_embedding.weight"),
    Copy(r"conv1\.weight", "embeddings.patch_embedding.weight"),
    Copy(r"ln_pre\.(weight|bias)", r"pre_layrnorm.\1"),
    Copy(r"ln_post\.(weight|bias)", r"post_layernorm.\1"),
    Under(
        r"transformer\.resblocks\.(\d+)\.",
        r"encoder.layers.\1.",
        (
            Split(r"attn\.in_proj_(weight|bias)", r"self_attn.{part}_proj.\1", ("q", "k", "v")),
            Copy(r"attn\.out_proj\.(weight|bias)", r"self_attn.out_proj.\1"),
            Copy(r"ln_(\d)\.(weight|bias)", r"layer_norm\1.\2"),
            Copy(r"mlp\.c_fc\.(weight|bias)", r"mlp.fc1.\1"),
            Copy(r"mlp\.c_proj\.(weight|bias)", r"mlp.fc2.\1"),
        ),
    ),
    Drop("proj", "the features before it are read"),
)
