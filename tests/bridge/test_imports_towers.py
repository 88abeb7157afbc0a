"""Imports of tokenizers around a released image tower, from checkpoints with the projects' own names and shapes."""

import json
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from smalti.bridge.formats import FORMATS, import_checkpoint
from smalti.bridge.names import FORMAT_NAMES
from smalti.bridge.vision import resize_positions
from smalti.cli.main import main
from smalti.tokenizers.base import VisualTokenizer

TINY_EVA = {"img_size": 8, "patch_size": 4, "encoder_width": 8, "encoder_depth": 2, "encoder_heads": 2}
TINY_QFORMER = {"num_query_token": 3, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_QFORMER |= {"intermediate_size": 20}
CODES = {"codebook_embed_dim": 4, "n_embed": 16}
CONFIGS = {
    "seed": {**TINY_EVA, "encoder_mlp": 12, **TINY_QFORMER, **CODES}
    | {"decode_depth": 1, "block_heads": 2, "image_features_dim": 10},
    "lavit": {"img_size": 8, "patch_size": 4, "width": 8, "encoder_layers": 2, "encoder_heads": 2}
    | {"layers": 1, "decoder_layers": 2, "heads": 2, "mlp_ratio": 1.5, "n_code": 16, "code_dim": 4},
    "slot-mllm": {"image_size": 8, "patch_size": 4, "backbone_width": 8, "backbone_depth": 2, "backbone_heads": 2}
    | {"encoder_width": 6, **TINY_QFORMER, **CODES, "num_quantizers": 2}
    | {"blocks_layers": 1, "block_heads": 2, "image_features_dim": 10},
    "dualtoken": {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 4}
    | {"num_attention_heads": 2, "intermediate_size": 24, "layer_sem": 3, "layer_recon": 2, "layer_shortcut": 1}
    | {"n_embed": 16, "embed_dim": 8, "depth": 2, "decoder_in_channels": 12, "ch": 8, "ch_mult": [1, 1, 2]}
    | {"num_res_blocks": 1},
}


class Names(dict):
    """Names and shapes of a checkpoint, written down part by part."""

    def add(self, name, *shape, bias=True):
        self[f"{name}.weight"] = shape
        if bias:
            self[f"{name}.bias"] = shape[:1]

    def under(self, prefix, other):
        self.update({prefix + name: shape for name, shape in other.items()})


def block(width, mlp, *, attention="attn", eva=False, scaled=False):
    """timm's names of a transformer block."""
    names = Names()
    for norm in ("norm1", "norm2"):
        names.add(norm, width)
    names.add(f"{attention}.qkv", 3 * width, width, bias=not eva)
    if eva:
        names |= {f"{attention}.{part}_bias": (width,) for part in "qv"}
    names.add(f"{attention}.proj", width, width)
    names.add("mlp.fc1", mlp, width)
    names.add("mlp.fc2", width, mlp)
    return names | ({"ls1.gamma": (width,), "ls2.gamma": (width,)} if scaled else {})


def vit(width, mlp, depth, cells, **options):
    names = Names({"cls_token": (1, 1, width), "pos_embed": (1, 1 + cells, width)})
    names.add("patch_embed.proj", width, 3, 4, 4)
    for layer in range(depth):
        names.under(f"blocks.{layer}.", block(width, mlp, **options))
    return names


def qformer(width, memory, mlp, extra=()):
    """BERT's names with queries, as LAVIS has them, text side included; the second of two layers reads nothing."""
    names = Names({"embeddings.position_ids": (1, 5)})
    names.add("embeddings.word_embeddings", 9, width, bias=False)
    names.add("embeddings.position_embeddings", 5, width, bias=False)
    names.add("embeddings.LayerNorm", width)
    for layer in range(2):
        here = f"encoder.layer.{layer}."
        for kind, inputs in (("attention", width), *((("crossattention", memory),) if layer == 0 else ())):
            names.add(f"{here}{kind}.self.query", width, width)
            names.add(f"{here}{kind}.self.key", width, inputs)
            names.add(f"{here}{kind}.self.value", width, inputs)
            names.add(f"{here}{kind}.output.dense", width, width)
            names.add(f"{here}{kind}.output.LayerNorm", width)
            for part, shape in extra:
                names[f"{here}{kind}.self.{part}"] = shape
            if extra and kind == "crossattention":
                for part in ("key_proj", "value_proj"):
                    names.add(f"{here}{kind}.self.{part}", memory, width)
        for side in ("", "_query"):
            names.add(f"{here}intermediate{side}.dense", mlp, width)
            names.add(f"{here}output{side}.dense", width, mlp)
            names.add(f"{here}output{side}.LayerNorm", width)
    return names


def described(names, queries, width, out, bias):
    """Restoring blocks and image embedding under SEED's names."""
    names |= {"pos_embed": (1, queries, width), "pos_embed_image": (1, queries, width)}
    names.under("blocks.0.", block(width, 4 * width))
    names.under("blocks_image.0.", block(width, 4 * width))
    for place, shape in ((0, (256, width)), (2, (128, 256)), (4, (32, 128))):
        names.add(f"image_down.{place}", *shape, bias=False)
    names.add("distill_image_proj", out, queries * 32, bias=bias)


def seed():
    names = Names({"query_tokens": (1, 3, 12), "temp": ()})
    names.add("ln_vision", 8)
    names.under("Qformer.bert.", qformer(12, 8, 20))
    names.add("Qformer.cls.predictions.decoder", 9, 12)
    for name, shape in (("encode_task_layer.0", (12, 12)), ("encode_task_layer.2", (4, 12))):
        names.add(name, *shape)
    for name, shape in (("decode_task_layer.0", (4, 4)), ("decode_task_layer.2", (12, 4))):
        names.add(name, *shape)
    names.add("quantize.embedding", 16, 4, bias=False)
    names.add("vision_proj", 5, 12)
    described(names, 3, 12, 10, bias=True)
    return names, vit(8, 12, 3, 4, eva=True)


def lavit():
    names = Names()
    names.add("token_predictor.in_conv.0", 8)
    for name, shape in (("in_conv.1", (8, 8)), ("out_conv.0", (4, 8)), ("out_conv.2", (2, 4)), ("out_conv.4", (2, 2))):
        names.add(f"token_predictor.{name}", *shape)
    for norm in ("causal_encoder.ln_vision", "causal_encoder.norm", "causal_encoder.blocks.0.norm0"):
        names.add(norm, 8)
    names.under("causal_encoder.blocks.0.", block(8, 12, attention="token_causal_attn"))
    for part in ("query", "key", "value", "proj"):
        names.add(f"causal_encoder.blocks.0.token_cross_attn.{part}", 8, 8)
    names.add("encode_task_layer.0", 8, 8)
    names.add("encode_task_layer.2", 4, 8)
    names.add("quantize.embedding", 16, 4, bias=False)
    names.add("vit_proj", 7, 8)
    tower = vit(8, 12, 2, 4, eva=True)
    tower.add("norm", 8)
    tower.add("head", 5, 8)
    decoder = Names({"pos_embed": (1, 4, 8), "query_embed": (1, 4, 8), "unet_attnpool.positional_embedding": (5, 8)})
    decoder.add("in_proj", 8, 4)
    for layer in range(2):
        here = f"blocks.{layer}."
        decoder.under(here, block(8, 12, attention="self_attn"))
        decoder.add(f"{here}norm0", 8)
        for part in ("query", "key", "value", "proj"):
            decoder.add(f"{here}cross_attn.{part}", 8, 8)
    for name in ("norm", "unet_attnpool.k_proj"):
        decoder.add(name, 8)
    for name in ("decode_task_layer.0", "decode_task_layer.2", "unet_proj_1", "unet_proj_2"):
        decoder.add(name, 8, 8)
    return names, tower, decoder


def slot_mllm():
    tower = vit(8, 32, 2, 9, scaled=True)  # positions of a larger image, as DINOv2 stores them
    tower |= {"mask_token": (1, 8)}
    tower.add("norm", 8)
    names = Names({"temp": (), "image_tokenizer.model.temp": (), "image_tokenizer.model.query_tokens": (1, 3, 12)})
    names.under("backbone.dinov2.", tower)
    names.add("visual_embedding_layernorm", 8)
    names.add("visual_embedding_encoder.0", 8, 8)
    names.add("visual_embedding_encoder.2", 6, 8)
    recurrent = [(f"gru.{kind}_{way}", (36, 12) if kind == "weight" else (36,)) for kind in ("weight", "bias")
                 for way in ("ih", "hh")]  # fmt: skip
    recurrent += [(f"{name}.{kind}", (12,)) for name in ("norm_slots", "norm_mlp") for kind in ("weight", "bias")]
    recurrent += [(f"mlp.{place}.weight", (12, 12)) for place in (0, 2)] + [(f"mlp.{at}.bias", (12,)) for at in (0, 2)]
    names.under("image_tokenizer.model.Qformer.bert.", qformer(12, 6, 20, recurrent))
    names.add("quantize.project_in", 4, 12)
    names.add("quantize.project_out", 12, 4)
    for depth in range(2):
        book = f"quantize.layers.{depth}._codebook."
        names |= {f"{book}initted": (1,), f"{book}cluster_size": (1, 16)}
        names |= {f"{book}embed_avg": (1, 16, 4), f"{book}embed": (1, 16, 4)}
    described(names, 3, 12, 10, bias=False)
    names.add("out_layer_norm", 12)
    names.add("out_linear_1024", 10, 12)
    names.add("unet.conv_in", 2, 2)
    names.add("image_tokenizer.model.ln_vision", 8)
    return (names,)


def projection(before, after):
    names, inner = Names(), max(before, after)
    names |= {"attn.q_bias": (inner,), "attn.v_bias": (inner,), "attn.zero_k_bias": (inner,)}
    names.add("attn.qkv", 3 * inner, before, bias=False)
    names.add("attn.proj", after, after)
    names.add("proj", after, before)
    for norm, width in (("norm1", before), ("norm3", before), ("norm2", after), ("mlp.norm", after)):
        names.add(norm, width)
    for part, shape in (("w0", (2 * after, after)), ("w1", (2 * after, after)), ("w2", (after, 2 * after))):
        names.add(f"mlp.{part}", *shape)
    return names


def residual(before, after, first=3):
    names = Names()
    names.add("norm1", before)
    names.add("conv1", after, before, first, first)
    names.add("norm2", after)
    names.add("conv2", after, after, 3, 3)
    if before != after:
        names.add("nin_shortcut", after, before, 1, 1)
    return names


def dualtoken():
    names = Names({"siglip_model.logit_scale": (1,), "siglip_model.logit_bias": (1,)})
    here = "siglip_model.vision_model."
    names.add(f"{here}embeddings.patch_embedding", 16, 3, 4, 4)
    names.add(f"{here}embeddings.position_embedding", 16, 16, bias=False)
    names.add("siglip_model.text_model.final_layer_norm", 6)
    for layer in range(4):
        inner = f"{here}encoder.layers.{layer}."
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            names.add(f"{inner}self_attn.{part}", 16, 16)
        for norm in ("layer_norm1", "layer_norm2"):
            names.add(inner + norm, 16)
        names.add(f"{inner}mlp.fc1", 24, 16)
        names.add(f"{inner}mlp.fc2", 16, 24)
    for norm in ("post_layernorm", "head.layernorm"):
        names.add(here + norm, 16)
    names |= {f"{here}head.probe": (1, 1, 16), f"{here}head.attention.in_proj_weight": (48, 16)}
    names |= {f"{here}head.attention.in_proj_bias": (48,)}
    names.add(f"{here}head.attention.out_proj", 16, 16)
    names.add(f"{here}head.mlp.fc1", 24, 16)
    names.add(f"{here}head.mlp.fc2", 16, 24)
    for kind in ("sem", "pix"):
        names.under(f"prequant_{kind}.", projection(16, 8))
        names.under(f"postquant_{kind}.", projection(8, 16))
        for depth in range(2):
            book = f"quantizer_{kind}.codebooks.{depth}."
            names |= {f"{book}weight": (17, 8), f"{book}cluster_size_ema": (16,), f"{book}embed_ema": (16, 8)}
    names.under("prequant_shortcut.", projection(16, 8))
    names.under("post_quant_conv.", residual(16, 12, 1))
    names.add("decoder.conv_in", 16, 12, 3, 3)
    names.under("decoder.mid.block_1.", residual(16, 16))
    names.under("decoder.mid.block_2.", residual(16, 16))
    for attention in ("mid.attn_1", "up.2.attn.0", "up.2.attn.1"):
        names.add(f"decoder.{attention}.norm", 16)
        for part in ("q", "k", "v", "proj_out"):
            names.add(f"decoder.{attention}.{part}", 16, 16, 1, 1)
    for stage, (before, after) in {2: (16, 16), 1: (16, 8), 0: (8, 8)}.items():
        names.under(f"decoder.up.{stage}.block.0.", residual(before, after))
        names.under(f"decoder.up.{stage}.block.1.", residual(after, after))
        if stage:
            names.add(f"decoder.up.{stage}.upsample.conv", after, after, 3, 3)
    names.add("decoder.norm_out", 8)
    names.add("decoder.conv_out", 3, 8, 3, 3)
    return (names,)


RELEASES = {"seed": seed, "lavit": lavit, "slot-mllm": slot_mllm, "dualtoken": dualtoken}
#: One copied weight of each: its name there, its name here, and a shape it cannot have.
LANDMARKS = {
    "seed": ("encode_task_layer.2.weight", "down.2.weight"),
    "lavit": ("causal_encoder.norm.weight", "merger.norm_out.weight"),
    "slot-mllm": ("out_linear_1024.weight", "image.each.1.weight"),
    "dualtoken": ("decoder.conv_out.weight", "decoder.last.weight"),
}


def drawn(kind):
    """The files of a release with random weights, but for what their own code ties together or keeps at zero."""
    torch.manual_seed(0)
    files = [{name: 0.3 * torch.randn(shape) for name, shape in names.items()} for names in RELEASES[kind]()]
    for weights in files:
        for name in weights:
            if name.endswith("zero_k_bias"):
                weights[name].zero_()
            if ".layers.1._codebook" in name or ".codebooks.1." in name:
                weights[name] = weights[name.replace(".1.", ".0.", 1)]
    return files


def write(files, folder, kind):
    paths = []
    for number, weights in enumerate(files):
        inside = FORMATS[kind].inside
        torch.save({inside[-1]: weights} if inside and number == 0 else weights, folder / f"{number}.pt")
        paths.append(str(folder / f"{number}.pt"))
    return paths


def imported(kind, files, folder, out="tokenizer"):
    (folder / "config.json").write_text(json.dumps(CONFIGS[kind]))
    paths = write(files, folder, kind)
    return main(["import", kind, *paths, "--config", str(folder / "config.json"), "--out", str(folder / out)])


@pytest.mark.parametrize("kind", RELEASES)
def test_a_release_becomes_a_tokenizer(tmp_path, capsys, kind):
    files = drawn(kind)
    assert imported(kind, files, tmp_path) == 0
    about = json.loads((tmp_path / "tokenizer" / "weights.json").read_text())
    assert about["files"] == [f"{number}.pt" for number in range(len(files))]
    assert FORMATS[kind].licence in capsys.readouterr().out
    tokenizer = VisualTokenizer.from_pretrained(tmp_path / "tokenizer")
    theirs, ours = LANDMARKS[kind]
    assert torch.equal(tokenizer.state_dict()[ours], files[0][theirs])
    images = torch.rand(2, 3, *tokenizer.image_size) * 2 - 1
    codes = tokenizer.encode(images)
    assert codes.spec == tokenizer.spec
    if kind == "dualtoken":
        assert tokenizer.decode(codes).shape == images.shape
    else:
        with pytest.raises(ValueError, match="has no pixel decoder; train one or draw with a diffusion decoder"):
            tokenizer.decode(codes)


@pytest.mark.parametrize("kind", RELEASES)
@pytest.mark.parametrize("change", ["renamed", "missing", "another shape"])
def test_every_weight_must_match(tmp_path, capsys, kind, change):
    files, (theirs, ours) = drawn(kind), LANDMARKS[kind]
    weight = files[0].pop(theirs)
    if change == "renamed":
        files[0]["unheard.of"] = weight
    elif change == "another shape":
        files[0][theirs] = torch.cat([weight, weight])
    with pytest.raises(SystemExit, match="2"):
        imported(kind, files, tmp_path)
    said = capsys.readouterr().err.replace("\n", " ")
    assert "must match key by key" in said
    assert (ours if change != "renamed" else "unheard.of") in said
    assert not (tmp_path / "tokenizer").exists()


def test_a_name_is_in_one_file(tmp_path):
    files = drawn("lavit")
    files[0]["encoder.cls_token"] = files[1]["cls_token"]
    with pytest.raises(
        ValueError, match=r"every name must be in one file, got encoder.cls_token in .*0\.pt and .*1\.pt"
    ):
        import_checkpoint("lavit", write(files, tmp_path, "lavit"), tmp_path / "out", CONFIGS["lavit"])
    twice = write(drawn("dualtoken"), tmp_path, "dualtoken") * 2
    with pytest.raises(
        ValueError, match=r"every name must be in one file, got .* name the files of one release, each once"
    ):
        import_checkpoint("dualtoken", twice, tmp_path / "out", CONFIGS["dualtoken"])


def test_a_whole_release_in_one_file_is_the_same(tmp_path):
    names, tower = drawn("seed")
    whole = names | {f"visual_encoder.{name}": weight for name, weight in tower.items()}
    config = CONFIGS["seed"]
    (tmp_path / "one").mkdir()
    one = import_checkpoint("seed", write([whole], tmp_path / "one", "seed")[0], tmp_path / "a", config)
    two = import_checkpoint("seed", write([names, tower], tmp_path, "seed"), tmp_path / "b", config)
    assert one.fingerprint() == two.fingerprint()


def reference_vit(weights, images, depth, heads, positions):
    """A vision transformer with timm's names, biases of EVA or scales of DINOv2 where there are some."""

    def norm(name, tokens):
        return F.layer_norm(tokens, tokens.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def linear(name, tokens):
        return F.linear(tokens, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    patches = F.conv2d(images, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=4)
    patches = patches.flatten(2).transpose(1, 2)
    hidden = torch.cat([weights["cls_token"].expand(len(images), -1, -1), patches], dim=1) + positions
    for layer in range(depth):
        here = f"blocks.{layer}."
        qkv = linear(f"{here}attn.qkv", norm(f"{here}norm1", hidden))
        if f"{here}attn.q_bias" in weights:
            query, value = weights[f"{here}attn.q_bias"], weights[f"{here}attn.v_bias"]
            qkv = qkv + torch.cat([query, torch.zeros_like(query), value])
        query, key, value = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        mixed = linear(f"{here}attn.proj", (scores @ value).transpose(1, 2).flatten(2))
        hidden = hidden + mixed * weights.get(f"{here}ls1.gamma", torch.ones(()))
        mlp = linear(f"{here}mlp.fc2", F.gelu(linear(f"{here}mlp.fc1", norm(f"{here}norm2", hidden))))
        hidden = hidden + mlp * weights.get(f"{here}ls2.gamma", torch.ones(()))
    return hidden


STATISTICS = {
    "eva": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dino": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def normalized(images, name):
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS[name])
    return ((images + 1) / 2 - mean) / std


@pytest.mark.parametrize("kind", ["seed", "lavit"])
def test_eva_towers_compute_what_their_names_mean(tmp_path, kind):
    files = drawn(kind)
    tower = import_checkpoint(kind, write(files, tmp_path, kind), tmp_path / "out", CONFIGS[kind]).encoder
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    expected = reference_vit(files[1], normalized(images, "eva"), 2, 2, files[1]["pos_embed"])
    torch.testing.assert_close(tower.run(tower.stem(images), 0, 2), expected, rtol=1e-5, atol=1e-5)


def test_dino_towers_compute_what_their_names_mean(tmp_path):
    files = drawn("slot-mllm")
    tokenizer = import_checkpoint(
        "slot-mllm", write(files, tmp_path, "slot-mllm"), tmp_path / "out", CONFIGS["slot-mllm"]
    )
    tower, prefix = tokenizer.encoder, "backbone.dinov2."
    weights = {name.removeprefix(prefix): value for name, value in files[0].items() if name.startswith(prefix)}
    cells = weights["pos_embed"][:, 1:].transpose(1, 2).unflatten(2, (3, 3))
    cells = F.interpolate(cells, scale_factor=(2.1 / 3, 2.1 / 3), mode="bicubic").flatten(2).transpose(1, 2)
    positions = torch.cat([weights["pos_embed"][:, :1], cells], dim=1)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    expected = reference_vit(weights, normalized(images, "dino"), 2, 2, positions)
    torch.testing.assert_close(tower.run(tower.stem(images), 0, 2), expected, rtol=1e-5, atol=1e-5)
    # the Q-Former reads normed patches alone, normed again and widened
    seen = []
    tokenizer.qformer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    tokenizer.encode(images)
    normed = F.layer_norm(expected, (8,), weights["norm.weight"], weights["norm.bias"], 1e-6)[:, 1:]
    after = [files[0][f"visual_embedding_layernorm.{kind}"] for kind in ("weight", "bias")]
    first, second = (
        [files[0][f"visual_embedding_encoder.{at}.{kind}"] for kind in ("weight", "bias")] for at in (0, 2)
    )
    memory = F.linear(F.linear(F.layer_norm(normed, (8,), *after), *first).relu(), *second)
    torch.testing.assert_close(seen[0], memory, rtol=1e-5, atol=1e-5)


def test_slots_are_described_after_they_are_restored(tmp_path):
    files = drawn("slot-mllm")
    tokenizer = import_checkpoint(
        "slot-mllm", write(files, tmp_path, "slot-mllm"), tmp_path / "out", CONFIGS["slot-mllm"]
    )
    codes = tokenizer.encode(torch.rand(2, 3, 8, 8) * 2 - 1)
    weights, table = files[0], files[0]["quantize.layers.0._codebook.embed"][0]
    vectors = F.linear(
        table[codes.ids].sum(2), *(weights[f"quantize.project_out.{kind}"] for kind in ("weight", "bias"))
    )
    torch.testing.assert_close(tokenizer.embed(codes), vectors, rtol=1e-5, atol=1e-5)
    assert torch.equal(tokenizer.image.out.bias, torch.zeros(10))
    assert tokenizer.image_embedding(codes).shape == (2, 10)
    assert tokenizer.token_embeddings(codes).shape == (2, 3, 10)
    described = tokenizer.image(tokenizer.restore(vectors))
    torch.testing.assert_close(tokenizer.image_embedding(codes), described, rtol=1e-5, atol=1e-5)


def test_lavits_decoder_computes_what_its_names_mean(tmp_path):
    files = drawn("lavit")
    tokenizer = import_checkpoint("lavit", write(files, tmp_path, "lavit"), tmp_path / "out", CONFIGS["lavit"])
    weights = files[2]

    def norm(name, tokens):
        return F.layer_norm(tokens, (8,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(name, tokens):
        return F.linear(tokens, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def attend(query, key, value, hidden=None):
        query, key, value = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (query, key, value))
        scores = query @ key.transpose(-1, -2) / 2
        scores = scores if hidden is None else scores + hidden[:, None, None] * -10000.0
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)

    vectors, mask = torch.randn(2, 3, 4), torch.tensor([[True, True, True], [True, False, False]])
    codes = linear("in_proj", vectors) + weights["pos_embed"][:, :3]
    cells = weights["query_embed"].expand(2, -1, -1)
    for layer in range(2):
        here = f"blocks.{layer}."
        mixed = attend(*linear(f"{here}self_attn.qkv", norm(f"{here}norm0", cells)).chunk(3, dim=-1))
        cells = cells + linear(f"{here}self_attn.proj", mixed)
        asked = linear(f"{here}cross_attn.query", norm(f"{here}norm1", cells))
        keys, values = (linear(f"{here}cross_attn.{part}", codes) for part in ("key", "value"))
        cells = cells + linear(f"{here}cross_attn.proj", attend(asked, keys, values, ~mask))
        cells = cells + linear(f"{here}mlp.fc2", F.gelu(linear(f"{here}mlp.fc1", norm(f"{here}norm2", cells))))
    expected = linear("decode_task_layer.2", linear("decode_task_layer.0", norm("norm", cells)).tanh())
    found = tokenizer.features(vectors, mask).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_lavit_without_its_decoder(tmp_path):
    config = {**CONFIGS["lavit"], "decoder_layers": 0}
    paths = write(drawn("lavit")[:2], tmp_path, "lavit")
    tokenizer = import_checkpoint("lavit", paths, tmp_path / "out", config)
    with pytest.raises(ValueError, match="features of LavitTokenizer need a reader, got none; build it with one"):
        tokenizer.features(torch.randn(1, 2, 4), torch.ones(1, 2, dtype=torch.bool))


def test_positions_of_the_same_grid_stay():
    positions = torch.randn(1, 10, 4)
    assert torch.equal(resize_positions(positions, 3), positions)
    constant = torch.cat([positions[:, :1], torch.ones(1, 9, 4)], dim=1)
    torch.testing.assert_close(resize_positions(constant, 2), constant[:, :5])


def test_dualtokens_padding_is_no_code(tmp_path):
    files = drawn("dualtoken")
    tokenizer = import_checkpoint(
        "dualtoken", write(files, tmp_path, "dualtoken"), tmp_path / "out", CONFIGS["dualtoken"]
    )
    assert torch.equal(tokenizer.semantic.table, files[0]["quantizer_sem.codebooks.0.weight"][:-1])
    assert torch.equal(tokenizer.pixel.counts, files[0]["quantizer_pix.codebooks.1.cluster_size_ema"])
    older = {name.replace("_sem.", "_semantic.").replace("_pix.", "_pixel."): value for name, value in files[0].items()}
    again = import_checkpoint(
        "dualtoken", write([older], tmp_path, "dualtoken"), tmp_path / "out", CONFIGS["dualtoken"]
    )
    assert again.fingerprint() == tokenizer.fingerprint()
    files[0]["quantizer_sem.codebooks.1.weight"] = files[0]["quantizer_sem.codebooks.1.weight"] + 1
    with pytest.raises(ValueError, match=r"not used: quantizer_sem.codebooks.1.weight"):
        import_checkpoint("dualtoken", write(files, tmp_path, "dualtoken"), tmp_path / "out", CONFIGS["dualtoken"])


def millions(module):
    return sum(weight.numel() for weight in module.parameters()) / 1e6


def test_published_sizes():
    with torch.device("meta"):
        built = {kind: FORMATS[kind].build(FORMATS[kind].default) for kind in RELEASES}
    slots, dual = built["slot-mllm"], built["dualtoken"]
    assert slots.encoder.grid**2 == 1024
    assert millions(slots.encoder) == pytest.approx(304.37 - (37**2 - 32**2) * 1024 / 1e6, abs=0.01)  # DINOv2-L
    assert [round(millions(part), 2) for part in (dual.to_semantic, dual.from_semantic)] == [4.03, 9.45]
    assert round(millions(dual.decoder.first), 1) == 11.8
    assert millions(dual.decoder) - millions(dual.decoder.first) == pytest.approx(168.4, abs=0.06)
    positions = {kind: (tokenizer.spec.positions, tokenizer.spec.depth) for kind, tokenizer in built.items()}
    assert positions == {"seed": (32, 1), "lavit": (256, 1), "slot-mllm": (32, 4), "dualtoken": (729, 16)}
    assert (built["seed"].encoder.prefix, built["seed"].encoder.depth, built["lavit"].encoder.depth) == (1, 39, 40)


def test_help_lists_every_format_and_loads_none(capsys):
    assert tuple(FORMATS) == FORMAT_NAMES
    with pytest.raises(SystemExit, match="0"):
        main(["import", "--help"])
    said = "".join(capsys.readouterr().out.split())
    assert all(name in said for name in FORMATS)
    loads = "import sys\nfrom smalti.cli import weights\nassert 'torch' not in sys.modules, 'torch was loaded'"
    assert subprocess.run([sys.executable, "-c", loads], check=False).returncode == 0
