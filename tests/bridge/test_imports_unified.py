"""UniTok and TokenFlow: checkpoints with the names and tiny shapes of the releases, imported by the command."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from smalti.bridge import tokenflow
from smalti.bridge.formats import FORMATS, import_checkpoint
from smalti.cli.main import main
from smalti.tokenizers.base import VisualTokenizer

VITAMIN = {"dim": 16, "channels": [4, 8], "blocks": [2, 2], "layers": 1, "heads": 2}
UNITOK = {"img_size": 32, "vocab_size": 32, "vocab_width": 4, "num_codebooks": 2, "embed_dim": 6}
UNITOK |= {"encoder": VITAMIN, "decoder": VITAMIN}
TOKENFLOW = {"codebook_size": 16, "codebook_embed_dim": 2, "semantic_code_dim": 4, "ch": 8, "z_channels": 8}
TOKENFLOW |= {"encoder_ch_mult": [1, 2], "decoder_ch_mult": [1, 2], "depth": 1, "num_heads": 2}
TOWER = {"width": 16, "layers": 2, "heads": 2}
VARIANTS = {
    "clipb_224": {"encoder_vqkd": {"image_size": 8, "patch_size": 2, **TOWER}, "decoder_out_dim": 6},
    "vitamin_xlarge_256": {
        "encoder_vqkd": {"image_size": 64, "channels": [4, 8], "blocks": [1, 1], **TOWER},
        "encoder_ch_mult": [1, 1, 1, 1, 2],
        "decoder_ch_mult": [1, 1, 1, 1, 2],
        "decoder_out_dim": 16,
    },
    "siglip_384": {
        "encoder_vqkd": {"image_size": 12, "patch_size": 3, "mlp_width": 20, **TOWER},
        "decoder_out_dim": 16,
    },
}
TEACHER = {name: {**TOKENFLOW, "teacher": name, "scale_rq_layers": [1, 2, 4], **VARIANTS[name]} for name in VARIANTS}


class Shapes(dict):
    """Names to shapes, as a module's layers add them."""

    def layer(self, name, *shape):
        """Weight and bias."""
        self[f"{name}.weight"], self[f"{name}.bias"] = shape, shape[:1]

    def norms(self, width, *names):
        for name in names:
            self.layer(name, width)

    def random(self):
        return {name: 0.3 * torch.randn(shape) for name, shape in self.items()}


def gated(shapes, name, width):
    shapes.norms(width, f"{name}.mlp.norm", f"{name}.norm1", f"{name}.norm2")
    shapes.layer(f"{name}.mlp.w0", 2 * width, width)
    shapes.layer(f"{name}.mlp.w1", 2 * width, width)
    shapes.layer(f"{name}.mlp.w2", width, 2 * width)


def vitamin_block(shapes, name, width):
    gated(shapes, name, width)
    shapes.layer(f"{name}.attn.qkv", 3 * width, width)
    shapes.layer(f"{name}.attn.proj", width, width)


def inverted(shapes, name, before, after):
    shapes.layer(f"{name}.pre_norm", before)
    shapes.layer(f"{name}.conv1_1x1", 4 * after, before, 1, 1)
    shapes.layer(f"{name}.conv2_kxk", 4 * after, 1, 3, 3)
    shapes.layer(f"{name}.conv3_1x1", after, 4 * after, 1, 1)


def vitamin(shapes, name, layers, deeper):
    """ViTamin of width 16 and channels 4 and 8; ``deeper`` has a second block in each stage."""
    stem, stages = f"{name}patch_embed.backbone.stem", f"{name}patch_embed.backbone.stages"
    shapes.layer(f"{stem}.conv1", 4, 3, 3, 3)
    shapes.layer(f"{stem}.norm1", 4)
    shapes.layer(f"{stem}.conv2", 4, 4, 3, 3)
    inverted(shapes, f"{stages}.0.0", 4, 4)
    inverted(shapes, f"{stages}.1.0", 4, 8)
    shapes.layer(f"{stages}.1.0.shortcut.expand", 8, 4, 1, 1)
    if deeper:
        inverted(shapes, f"{stages}.0.1", 4, 4)
        inverted(shapes, f"{stages}.1.1", 8, 8)
    shapes.layer(f"{name}patch_embed.backbone.pool.norm", 8)
    shapes.layer(f"{name}patch_embed.backbone.pool.proj", 16, 8, 3, 3)
    for layer in range(layers):
        vitamin_block(shapes, f"{name}blocks.{layer}", 16)


def projection(shapes, name, before, after):
    shapes[f"{name}.attn.qkv.weight"] = (48, before)
    shapes |= {f"{name}.attn.{bias}": (16,) for bias in ("q_bias", "v_bias")}
    shapes.layer(f"{name}.attn.proj", after, after)
    shapes.layer(f"{name}.proj", after, before)
    shapes.norms(before, f"{name}.norm1", f"{name}.norm3")
    gated_names = Shapes()
    gated(gated_names, name, after)
    del gated_names[f"{name}.norm1.weight"], gated_names[f"{name}.norm1.bias"]
    shapes |= gated_names


def unitok_weights():
    shapes = Shapes()
    vitamin(shapes, "encoder.", 1, deeper=True)
    shapes.layer("encoder.norm", 16)
    projection(shapes, "quant_proj", 16, 4)
    projection(shapes, "post_quant_proj", 4, 16)
    shapes |= {f"quantizer.codebooks.{chunk}.codebook.weight": (16, 2) for chunk in range(2)}
    shapes |= {f"quantizer.codebooks.{chunk}.vocab_usage": (16,) for chunk in range(2)}
    vitamin_block(shapes, "decoder.blocks.0", 16)
    shapes.layer("decoder.norm", 16)
    shapes.layer("decoder.up_conv1.conv", 8, 16, 3, 3)
    for stage, (before, after) in ((2, (8, 8)), (3, (8, 4))):
        inverted(shapes, f"decoder.up_conv{stage}.0", before, after)
        shapes.layer(f"decoder.up_conv{stage}.0.shortcut.conv", after, before, 3, 3)
        shapes.layer(f"decoder.up_conv{stage}.0.up.conv", 4 * after, 4 * after, 3, 3)
        inverted(shapes, f"decoder.up_conv{stage}.1", after, after)
    shapes.layer("decoder.up_conv4.conv1.conv", 4, 4, 3, 3)
    shapes.layer("decoder.up_conv4.norm1", 4)
    shapes.layer("decoder.up_conv4.conv2", 3, 4, 3, 3)
    shapes.layer("fc_norm", 16)
    shapes.layer("projection", 6, 16)
    shapes |= {"logit_scale": (), "text_encoder.token_embedding.weight": (9, 8)}
    zero = {f"{name}.attn.zero_k_bias": torch.zeros(16) for name in ("quant_proj", "post_quant_proj")}
    return shapes.random() | zero | {"encoder.pos_embed": torch.zeros(1, 1, 16)}


def vqgan(shapes, name, widths, blocks, quarter):
    """LlamaGen's encoder or decoder of these widths, finest first; ``quarter`` is what its latents have."""
    decoding, top = name == "decoder", widths[-1]
    before, inner = (top, list(reversed(widths))) if decoding else (widths[0], widths)

    def residual(name, before, after):
        shapes.norms(before, f"{name}.norm1")
        shapes.norms(after, f"{name}.norm2")
        shapes.layer(f"{name}.conv1", after, before, 3, 3)
        shapes.layer(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            shapes.layer(f"{name}.nin_shortcut", after, before, 1, 1)

    def attention(name, width):
        shapes.norms(width, f"{name}.norm")
        for part in ("q", "k", "v", "proj_out"):
            shapes.layer(f"{name}.{part}", width, width, 1, 1)

    shapes.layer(f"{name}.conv_in", before, quarter if decoding else 3, 3, 3)
    for stage, width in enumerate(inner):
        for block in range(blocks):
            residual(f"{name}.conv_blocks.{stage}.res.{block}", before, width)
            before = width
            if stage == (0 if decoding else len(widths) - 1):
                attention(f"{name}.conv_blocks.{stage}.attn.{block}", width)
        if stage < len(widths) - 1:
            shapes.layer(f"{name}.conv_blocks.{stage}.{'up' if decoding else 'down'}sample.conv", width, width, 3, 3)
    residual(f"{name}.mid.0", top, top)
    attention(f"{name}.mid.1", top)
    residual(f"{name}.mid.2", top, top)
    shapes.norms(before, f"{name}.norm_out")
    shapes.layer(f"{name}.conv_out", 3 if decoding else quarter, before, 3, 3)


def clip(shapes, name):
    shapes |= {f"{name}class_embedding": (16,), f"{name}positional_embedding": (17, 16), f"{name}proj": (16, 6)}
    shapes[f"{name}conv1.weight"] = (16, 3, 2, 2)
    shapes.norms(16, f"{name}ln_pre", f"{name}ln_post")
    for layer in range(2):
        block = f"{name}transformer.resblocks.{layer}"
        shapes |= {f"{block}.attn.in_proj_weight": (48, 16), f"{block}.attn.in_proj_bias": (48,)}
        shapes.layer(f"{block}.attn.out_proj", 16, 16)
        shapes.norms(16, f"{block}.ln_1", f"{block}.ln_2")
        shapes.layer(f"{block}.mlp.c_fc", 64, 16)
        shapes.layer(f"{block}.mlp.c_proj", 16, 64)


def siglip(shapes, name):
    model = f"{name}vision_model"
    shapes.layer(f"{model}.embeddings.patch_embedding", 16, 3, 3, 3)
    shapes[f"{model}.embeddings.position_embedding.weight"] = (16, 16)

    def feed_forward(name):
        shapes.layer(f"{name}.mlp.fc1", 20, 16)
        shapes.layer(f"{name}.mlp.fc2", 16, 20)

    for layer in range(2):
        block = f"{model}.encoder.layers.{layer}"
        for part in ("q", "k", "v", "out"):
            shapes.layer(f"{block}.self_attn.{part}_proj", 16, 16)
        shapes.norms(16, f"{block}.layer_norm1", f"{block}.layer_norm2")
        feed_forward(block)
    head = f"{model}.head"
    shapes |= {f"{head}.probe": (1, 1, 16), f"{head}.attention.in_proj_weight": (48, 16)}
    shapes[f"{head}.attention.in_proj_bias"] = (48,)
    shapes.layer(f"{head}.attention.out_proj", 16, 16)
    shapes.norms(16, f"{model}.post_layernorm", f"{head}.layernorm")
    feed_forward(head)


TOWERS = {"clipb_224": clip, "vitamin_xlarge_256": partial(vitamin, layers=2, deeper=False), "siglip_384": siglip}


def tokenflow_weights(teacher, enhanced=False):
    shapes, config = Shapes(), TEACHER[teacher]
    widths, out = [8 * multiplier for multiplier in config["encoder_ch_mult"]], config["decoder_out_dim"]
    vqgan(shapes, "encoder", widths, 2, 8)
    vqgan(shapes, "decoder", [width * (1 + enhanced) for width in widths], 5 if enhanced else 3, 8)
    TOWERS[teacher](shapes, "encoder_vqkd.")
    shapes.layer("quant_conv", 2, 8, 1, 1)
    shapes.layer("post_quant_conv", 8, 2, 1, 1)
    for task, last in (("encode", 4), ("decode", out)):
        shapes.layer(f"{task}_task_layer.0", 16, 16)
        shapes.layer(f"{task}_task_layer.2", last, 16)
    shapes |= {"decoder_vqkd.cls_token": (1, 1, 16), "decoder_vqkd.pos_embed": (1, 17, 16)}
    shapes.layer("decoder_vqkd.patch_embed.proj", 16, 4, 1, 1)
    block = "decoder_vqkd.blocks.0"
    shapes |= {f"{block}.attn.qkv.weight": (48, 16), f"{block}.attn.q_bias": (16,), f"{block}.attn.v_bias": (16,)}
    shapes.layer(f"{block}.attn.proj", 16, 16)
    shapes.layer(f"{block}.mlp.fc1", 64, 16)
    shapes.layer(f"{block}.mlp.fc2", 16, 64)
    shapes.norms(16, f"{block}.norm1", f"{block}.norm2", "decoder_vqkd.fc_norm")
    shapes |= {"quantize.embedding_vqkd.weight": (16, 4), "quantize.embedding_vqgan.weight": (16, 2)}
    shapes["quantize.codebook_used"] = (64,)
    if teacher != "clipb_224":
        shapes |= {f"scaling_layer.{name}": (1, 3, 1, 1) for name in ("shift", "scale")}
    return shapes.random()


CASES = {
    "unitok": ("unitok", UNITOK, unitok_weights),
    **{name: ("tokenflow", TEACHER[name], partial(tokenflow_weights, name)) for name in TEACHER},
}


def imported(folder, kind, config, weights, *inside):
    """The tokenizer that the command makes of a checkpoint."""
    (folder / "config.json").write_text(json.dumps(config))
    for name in reversed(inside):
        weights = {name: weights, "steps": 7}
    torch.save(weights, folder / "released.pt")
    arguments = ["import", kind, str(folder / "released.pt"), "--config", str(folder / "config.json")]
    assert main([*arguments, "--out", str(folder / "tokenizer")]) == 0
    return VisualTokenizer.from_pretrained(folder / "tokenizer")


def layer(weights, name, tokens):
    return F.linear(tokens, weights[f"{name}.weight"].flatten(1), weights[f"{name}.bias"])


def norm(weights, name, tokens, eps=1e-6):
    return F.layer_norm(tokens, tokens.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def attended(qkv, heads):
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


class Vitamin:
    """ViTamin's parts written out over the released names."""

    def __init__(self, weights, exact):
        self.weights, self.approximate = weights, "none" if exact else "tanh"

    def block(self, name, tokens, heads=2):
        weights = self.weights
        qkv = layer(weights, f"{name}.attn.qkv", norm(weights, f"{name}.norm1", tokens))
        tokens = tokens + layer(weights, f"{name}.attn.proj", attended(qkv, heads))
        normed = norm(weights, f"{name}.mlp.norm", norm(weights, f"{name}.norm2", tokens))
        gate = F.gelu(layer(weights, f"{name}.mlp.w0", normed), approximate=self.approximate)
        return tokens + layer(weights, f"{name}.mlp.w2", gate * layer(weights, f"{name}.mlp.w1", normed))

    def conv(self, name, features, stride=1, groups=1):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.conv2d(features, weight, bias, stride, weight.shape[-1] // 2, groups=groups)

    def norm(self, name, features):
        return norm(self.weights, name, features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def inverted(self, name, features, stride=1):
        hidden = F.gelu(self.conv(f"{name}.conv1_1x1", self.norm(f"{name}.pre_norm", features)))
        if f"{name}.up.conv.weight" in self.weights:
            hidden = self.doubled(f"{name}.up", hidden)
        hidden = F.gelu(self.conv(f"{name}.conv2_kxk", hidden, stride, hidden.shape[1]))
        return self.conv(f"{name}.conv3_1x1", hidden) + self.shortcut(f"{name}.shortcut", features, stride)

    def shortcut(self, name, features, stride):
        if stride == 2:
            features = F.avg_pool2d(features, 3, 2, 1, count_include_pad=False)
        if f"{name}.expand.weight" in self.weights:
            features = self.conv(f"{name}.expand", features)
        return self.doubled(name, features) if f"{name}.conv.weight" in self.weights else features

    def doubled(self, name, features):
        return self.conv(f"{name}.conv", features.repeat_interleave(2, 2).repeat_interleave(2, 3))

    def trunk(self, prefix, images, layers):
        backbone = f"{prefix}patch_embed.backbone."
        hidden = F.gelu(self.norm(f"{backbone}stem.norm1", self.conv(f"{backbone}stem.conv1", images, 2)))
        hidden = self.conv(f"{backbone}stem.conv2", hidden)
        for stage in range(2):
            hidden = self.inverted(f"{backbone}stages.{stage}.0", hidden, 2)
            if f"{backbone}stages.{stage}.1.conv1_1x1.weight" in self.weights:
                hidden = self.inverted(f"{backbone}stages.{stage}.1", hidden)
        hidden = self.conv(f"{backbone}pool.proj", self.norm(f"{backbone}pool.norm", hidden), 2)
        tokens = hidden.flatten(2).transpose(1, 2)
        for index in range(layers):
            tokens = self.block(f"{prefix}blocks.{index}", tokens)
        return tokens

    def decoder(self, tokens):
        hidden = norm(self.weights, "decoder.norm", self.block("decoder.blocks.0", tokens))
        side = round(tokens.shape[1] ** 0.5)
        hidden = self.doubled("decoder.up_conv1", hidden.transpose(1, 2).unflatten(2, (side, side)))
        for name in ("up_conv2.0", "up_conv2.1", "up_conv3.0", "up_conv3.1"):
            hidden = self.inverted(f"decoder.{name}", hidden)
        hidden = F.gelu(self.norm("decoder.up_conv4.norm1", self.doubled("decoder.up_conv4.conv1", hidden)))
        return self.conv("decoder.up_conv4.conv2", hidden)


def pictures(side):
    return torch.rand(2, 3, side, side) * 2 - 1


def test_unitok(tmp_path, capsys):
    weights = unitok_weights()
    tokenizer = imported(tmp_path, "unitok", UNITOK, weights, "trainer", "unitok")
    assert "UniTok (https://arxiv.org/abs/2502.20321), licence: MIT" in capsys.readouterr().out
    images, vitamin = pictures(32), Vitamin(weights, exact=False)
    with torch.no_grad():
        expected = norm(weights, "encoder.norm", vitamin.trunk("encoder.", images, 1))
        torch.testing.assert_close(tokenizer.encoder(images).flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-4)
        codes = tokenizer.encode(images)
        assert codes.ids.shape == (2, 4, 2)
        rows = [F.normalize(weights[f"quantizer.codebooks.{at}.codebook.weight"], dim=-1) for at in range(2)]
        looked_up = torch.cat([rows[at][codes.ids[..., at]] for at in range(2)], dim=-1)
        torch.testing.assert_close(tokenizer.embed(codes), looked_up)
        widened = tokenizer.widen(looked_up)
        torch.testing.assert_close(tokenizer.decode(codes), vitamin.decoder(widened).clamp(-1, 1), atol=1e-5, rtol=1e-4)
        pooled = layer(weights, "projection", norm(weights, "fc_norm", widened.mean(1)))
        torch.testing.assert_close(tokenizer.pooled(codes), pooled)
    assert tokenizer.pooled(codes).shape == (2, 6)
    assert torch.equal(tokenizer.narrow.qkv.weight, weights["quant_proj.attn.qkv.weight"])
    assert tokenizer.narrow.heads == tokenizer.widen.heads == 4


def clip_features(weights, images):
    """All of CLIP's layers over images as they come, and the last norm of the patches."""
    name = "encoder_vqkd."
    patches = F.conv2d(images, weights[f"{name}conv1.weight"], stride=2).flatten(2).transpose(1, 2)
    first = weights[f"{name}class_embedding"].expand(len(images), 1, -1)
    tokens = torch.cat([first, patches], 1) + weights[f"{name}positional_embedding"]
    tokens = norm(weights, f"{name}ln_pre", tokens, 1e-5)
    for at in range(2):
        block = f"{name}transformer.resblocks.{at}"
        normed = norm(weights, f"{block}.ln_1", tokens, 1e-5)
        qkv = F.linear(normed, weights[f"{block}.attn.in_proj_weight"], weights[f"{block}.attn.in_proj_bias"])
        tokens = tokens + layer(weights, f"{block}.attn.out_proj", attended(qkv, 2))
        hidden = layer(weights, f"{block}.mlp.c_fc", norm(weights, f"{block}.ln_2", tokens, 1e-5))
        tokens = tokens + layer(weights, f"{block}.mlp.c_proj", hidden * torch.sigmoid(1.702 * hidden))
    return norm(weights, f"{name}ln_post", tokens[:, 1:], 1e-5)


def vitamin_features(weights, images):
    """All of ViTamin's layers over images with CLIP's statistics, without a norm."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    return Vitamin(weights, exact=True).trunk("encoder_vqkd.", ((images + 1) / 2 - mean) / std, 2)


def siglip_features(weights, images):
    """SigLIP's layers but the last."""
    model = "encoder_vqkd.vision_model"
    weight, bias = (weights[f"{model}.embeddings.patch_embedding.{kind}"] for kind in ("weight", "bias"))
    tokens = F.conv2d(images, weight, bias, stride=3).flatten(2).transpose(1, 2)
    tokens = tokens + weights[f"{model}.embeddings.position_embedding.weight"]
    block = f"{model}.encoder.layers.0"
    normed = norm(weights, f"{block}.layer_norm1", tokens)
    qkv = torch.cat([layer(weights, f"{block}.self_attn.{part}_proj", normed) for part in "qkv"], -1)
    tokens = tokens + layer(weights, f"{block}.self_attn.out_proj", attended(qkv, 2))
    hidden = layer(weights, f"{block}.mlp.fc1", norm(weights, f"{block}.layer_norm2", tokens))
    return tokens + layer(weights, f"{block}.mlp.fc2", F.gelu(hidden, approximate="tanh"))


FEATURES = {"clipb_224": clip_features, "vitamin_xlarge_256": vitamin_features, "siglip_384": siglip_features}


def semantic_decoder(weights, latents):
    """Linear map, class token, positions, a transformer layer whose keys have no bias, norm, two layers."""
    name, block = "decoder_vqkd.", "decoder_vqkd.blocks.0"
    cells = layer(weights, f"{name}patch_embed.proj", latents)
    tokens = torch.cat([weights[f"{name}cls_token"].expand(len(cells), -1, -1), cells], 1) + weights[f"{name}pos_embed"]
    query, value = weights[f"{block}.attn.q_bias"], weights[f"{block}.attn.v_bias"]
    bias = torch.cat([query, torch.zeros(16), value])
    qkv = F.linear(norm(weights, f"{block}.norm1", tokens), weights[f"{block}.attn.qkv.weight"], bias)
    tokens = tokens + layer(weights, f"{block}.attn.proj", attended(qkv, 2))
    hidden = F.gelu(layer(weights, f"{block}.mlp.fc1", norm(weights, f"{block}.norm2", tokens)))
    tokens = tokens + layer(weights, f"{block}.mlp.fc2", hidden)
    normed = norm(weights, f"{name}fc_norm", tokens[:, 1:], 1e-5)
    return layer(weights, "decode_task_layer.2", layer(weights, "decode_task_layer.0", normed).tanh())


@pytest.mark.parametrize("teacher", TEACHER)
def test_tokenflow(tmp_path, capsys, teacher):
    weights = tokenflow_weights(teacher)
    tokenizer = imported(tmp_path, "tokenflow", TEACHER[teacher], weights, "model")
    assert "TokenFlow (https://arxiv.org/abs/2412.03069), licence: Apache-2.0; the weights' card" in (
        capsys.readouterr().out
    )
    images = pictures(TEACHER[teacher]["encoder_vqkd"]["image_size"])
    with torch.no_grad():
        found = FEATURES[teacher](weights, images)
        found = layer(weights, "encode_task_layer.2", layer(weights, "encode_task_layer.0", found).tanh())
        features = tokenizer._features(images)
        torch.testing.assert_close(features[..., :4], found, atol=1e-5, rtol=1e-4)
        side = 4 * tokenizer.encoder.stride
        resized = F.interpolate(images, (side, side), mode="bicubic") if teacher == "siglip_384" else images
        pixel = layer(weights, "quant_conv", tokenizer.encoder(resized).flatten(2).transpose(1, 2))
        torch.testing.assert_close(features[..., 4:], pixel, atol=1e-5, rtol=1e-4)
        codes = tokenizer.encode(images)
        assert codes.ids.shape == (2, 1 + 4 + 16, 1)
        latents = tokenizer.finest(codes)
        expected = semantic_decoder(weights, latents[..., :4])
        torch.testing.assert_close(tokenizer._restored(latents), expected, atol=1e-5, rtol=1e-4)
        assert tokenizer.decode(codes).shape == images.shape
    table = torch.cat([weights[f"quantize.embedding_{part}.weight"] for part in ("vqkd", "vqgan")], dim=1)
    assert torch.equal(tokenizer.quantizer.quantizer.table, table)
    assert torch.equal(tokenizer.decoder.last.weight, weights["decoder.conv_out.weight"])


def test_the_enhanced_decoder_is_wider_and_deeper(tmp_path):
    weights = tokenflow_weights("siglip_384", enhanced=True)
    config = {**TEACHER["siglip_384"], "enhanced_decoder": True}
    tokenizer = imported(tmp_path, "tokenflow", config, weights)
    assert tokenizer.decoder.last.weight.shape == (3, 16, 3, 3)
    assert torch.equal(tokenizer.decoder.last.weight, weights["decoder.conv_out.weight"])
    assert tokenizer.decode(tokenizer.encode(pictures(12))).shape == (2, 3, 12, 12)


FAULTS = [
    ("unitok", "renamed", "decoder.norm.bias", r"not used: decoder.norm.other; missing: decoder.norm.bias"),
    ("unitok", "missing", "projection.weight", "missing: projection.weight"),
    ("unitok", "reshaped", "quant_proj.proj.weight", r"another shape: narrow.skip.weight \[5, 5\] for \[4, 16\]"),
    ("clipb_224", "renamed", "encoder_vqkd.ln_pre.bias", "ln_pre.other; missing: .*model.pre_layrnorm.bias"),
    ("clipb_224", "missing", "decoder_vqkd.cls_token", "missing: semantic_class"),
    ("clipb_224", "reshaped", "encoder_vqkd.positional_embedding", r"position_embedding.weight \[5, 5\] for \[17, 16"),
    ("vitamin_xlarge_256", "renamed", "encoder_vqkd.blocks.1.norm1.bias", "norm1.other; missing: .*attention.bias"),
    ("vitamin_xlarge_256", "missing", "decoder_vqkd.blocks.0.attn.q_bias", "missing: .*decoder.0.attention.query.bias"),
    ("vitamin_xlarge_256", "reshaped", "encoder_vqkd.blocks.0.attn.proj.weight", r"layers.0.out.weight \[5, 5\] for"),
    ("siglip_384", "renamed", "encode_task_layer.2.bias", "encode_task_layer.2.other; missing: to_semantic.2.bias"),
    ("siglip_384", "missing", "quantize.embedding_vqgan.weight", "missing: vqgan of quantizer.quantizer.table"),
    ("siglip_384", "reshaped", "encoder_vqkd.vision_model.head.mlp.fc1.weight", r"fc1.weight \[5, 5\] for \[20, 16\]"),
]


@pytest.mark.parametrize(("case", "change", "name", "said"), FAULTS)
def test_weights_that_do_not_match_are_named_and_nothing_is_written(tmp_path, case, change, name, said):
    kind, config, made = CASES[case]
    weights = made()
    old = weights.pop(name)
    if change != "missing":
        stem = name.rpartition(".")[0]
        weights |= {f"{stem}.other": old} if change == "renamed" else {name: torch.ones(5, 5)}
    save_file(weights, tmp_path / "released.safetensors")
    with pytest.raises(ValueError, match=rf"must match key by key, got .*{said}"):
        import_checkpoint(kind, tmp_path / "released.safetensors", tmp_path / "tokenizer", config)
    assert not (tmp_path / "tokenizer").exists()


def test_positions_that_are_not_zero_are_not_dropped(tmp_path):
    weights = {**unitok_weights(), "encoder.pos_embed": torch.ones(1, 1, 16)}
    save_file(weights, tmp_path / "released.safetensors")
    with pytest.raises(ValueError, match=r"not used: encoder.pos_embed; use the configuration they belong to"):
        import_checkpoint("unitok", tmp_path / "released.safetensors", tmp_path / "tokenizer", UNITOK)


def test_an_unknown_teacher():
    with pytest.raises(ValueError, match=r"the teacher must be one of clipb_224, .*, got 'dinov2'; use one of those"):
        tokenflow.tokenizer({**tokenflow.TOKENFLOW, "teacher": "dinov2"})


@pytest.mark.parametrize(
    ("teacher", "positions", "side", "decoded"),
    [("clipb_224", 561, 224, 224), ("vitamin_xlarge_256", 817, 256, 256), ("siglip_384", 2227, 384, 27 * 16)],
)
def test_published_sizes(teacher, positions, side, decoded):
    with torch.device("meta"):
        tokenizer = FORMATS["tokenflow"].build({**tokenflow.TOKENFLOW, "teacher": teacher})
    assert tokenizer.image_size == (side, side)
    assert tokenizer.spec.positions == positions
    assert tokenizer.decoder.stride * tokenizer.spec.layout.shape[-1] == decoded
