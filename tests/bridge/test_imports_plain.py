import json

import pytest
import torch

from smalti.bridge import ait, enat, var
from smalti.bridge.formats import FORMATS, import_checkpoint
from smalti.cli.main import main
from smalti.generation.enat import MaskedSampling, model_sampling, write_masked
from smalti.generation.var import write_scales
from smalti.generation.xar import DrawnNoise, XARSampling, sample_latents
from smalti.lm.enat import ENAT
from smalti.lm.var import VAR
from smalti.lm.xar import XAR
from smalti.tokenizers.base import VisualTokenizer
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

IBQ = {"ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 8, "n_embed": 16, "embed_dim": 8}
IBQ |= {"resolution": 16}
AIT = {"image_size": 16, "num_tokens": 12, "codebook_dim": 6, "num_resnet_blocks": 1, "hidden_dim": 4}
AIT |= {"downsample_ratio": 4}


class Shapes(dict):
    """Names of a state dict with their shapes, written layer by layer."""

    def layer(self, name, *shape):
        self[f"{name}.weight"], self[f"{name}.bias"] = shape, shape[:1]

    def residual(self, name, before, after):
        self.layer(f"{name}.norm1", before)
        self.layer(f"{name}.conv1", after, before, 3, 3)
        self.layer(f"{name}.norm2", after)
        self.layer(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            self.layer(f"{name}.nin_shortcut", after, before, 1, 1)

    def attention(self, name, width):
        self.layer(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            self.layer(f"{name}.{part}", width, width, 1, 1)

    def drawn(self):
        return {name: 0.3 * torch.randn(shape) for name, shape in self.items()}


def ibq_weights():
    shapes = Shapes()
    for side in ("encoder", "decoder"):
        shapes.residual(f"{side}.mid.block_1", 16, 16)
        shapes.attention(f"{side}.mid.attn_1", 16)
        shapes.residual(f"{side}.mid.block_2", 16, 16)
    shapes.layer("encoder.conv_in", 8, 3, 3, 3)
    shapes.residual("encoder.down.0.block.0", 8, 8)
    shapes.layer("encoder.down.0.downsample.conv", 8, 8, 3, 3)
    shapes.residual("encoder.down.1.block.0", 8, 16)
    shapes.attention("encoder.down.1.attn.0", 16)
    shapes.layer("encoder.norm_out", 16)
    shapes.layer("encoder.conv_out", 8, 16, 3, 3)
    shapes.layer("decoder.conv_in", 16, 8, 3, 3)
    for block in range(2):
        shapes.residual(f"decoder.up.1.block.{block}", 16, 16)
        shapes.attention(f"decoder.up.1.attn.{block}", 16)
    shapes.layer("decoder.up.1.upsample.conv", 16, 16, 3, 3)
    shapes.residual("decoder.up.0.block.0", 16, 8)
    shapes.residual("decoder.up.0.block.1", 8, 8)
    shapes.layer("decoder.norm_out", 8)
    shapes.layer("decoder.conv_out", 3, 8, 3, 3)
    shapes.layer("quant_conv", 8, 8, 1, 1)
    shapes.layer("post_quant_conv", 8, 8, 1, 1)
    shapes["quantize.embedding.weight"] = (16, 8)
    model = dict(shapes)
    shapes.layer("loss.discriminator.main.0", 8, 3, 4, 4)
    averages = {f"model_ema.{name.replace('.', '')}": shape for name, shape in shapes.items()}
    shapes |= averages | {"model_ema.decay": (), "model_ema.num_updates": ()}
    return shapes.drawn(), model


def ait_weights():
    shapes = Shapes()
    shapes.layer("encoder.0", 4, 1, 4, 4)
    shapes.layer("encoder.2", 8, 4, 4, 4)
    shapes.layer("encoder.5", 6, 8, 1, 1)
    shapes.layer("decoder.0", 8, 6, 1, 1)
    shapes["decoder.3.weight"], shapes["decoder.3.bias"] = (8, 8, 4, 4), (8,)
    shapes["decoder.5.weight"], shapes["decoder.5.bias"] = (8, 4, 4, 4), (4,)
    shapes.layer("decoder.7", 1, 4, 1, 1)
    for stack in ("encoder.4.net", "decoder.2.net"):
        shapes.layer(f"{stack}.0", 8, 8, 3, 3)
        shapes.layer(f"{stack}.2", 8, 8, 3, 3)
        shapes.layer(f"{stack}.4", 8, 8, 1, 1)
    shapes |= {"_vq_vae._embedding": (12, 6), "_vq_vae._ema_cluster_size": (12,), "_vq_vae._ema_w": (12, 6)}
    return shapes.drawn(), dict(shapes)


def enat_weights():
    shapes = Shapes({"y_embedder.embedding_table.weight": (4, 8), "mlm_layer.bias": (1, 1, 13)})
    shapes |= {"x_embedder.word_embeddings.weight": (13, 8), "x_embedder.position_embeddings.weight": (4, 8)}
    shapes.layer("mlm_layer.fc", 8, 8)
    for part in ("prev_embedder", "prev_proj.mlp", *(f"blocks.{number}.mlp" for number in range(3))):
        shapes.layer(f"{part}.fc1", 32, 8)
        shapes.layer(f"{part}.fc2", 8, 32)
    for number in range(3):
        shapes.layer(f"blocks.{number}.adaLN_modulation.1", 64, 8)
        for part, rows in (("q", 8), ("proj", 8), ("kv.A", 16), ("kv.B", 16)):
            shapes.layer(f"blocks.{number}.attn.{part}", rows, 8)
    for part in ("x_embedder.LayerNorm", "prev_proj.norm", "norm", "mlm_layer.ln"):
        shapes.layer(part, 8)
    return shapes.drawn()


def xar_weights():
    shapes = Shapes({"class_emb.weight": (6, 16), "z_proj_ln.weight": (16,)})
    shapes.layer("z_proj", 16, 3)
    shapes.layer("time_embed.mlp.0", 16, 256)
    shapes.layer("time_embed.mlp.2", 16, 16)
    shapes.layer("decoder_embed", 16, 16)
    shapes.layer("pred", 3, 16)
    for stack, depth in (("encoder", 1), ("decoder", 2)):
        shapes |= {f"{stack}_pos_embed_learned": (1, 16, 16), f"{stack}_norm.weight": (16,)}
        for block in (f"{stack}_blocks.{number}" for number in range(depth)):
            shapes.layer(f"{block}.ada_lin.1", 96, 16)
            shapes.layer(f"{block}.attn.qkv", 48, 16)
            shapes.layer(f"{block}.attn.proj", 16, 16)
            shapes.layer(f"{block}.mlp.fc1_g", 42, 16)
            shapes.layer(f"{block}.mlp.fc1_x", 42, 16)
            shapes.layer(f"{block}.mlp.fc2", 16, 42)
    return shapes.drawn() | {"rope.freqs_cos": torch.ones(16, 4), "rope.freqs_sin": torch.ones(16, 4)}


def var_weights():
    """The transformer's file and the tokenizer's."""
    shapes = Shapes(
        {"class_emb.weight": (5, 8), "pos_start": (1, 1, 8), "pos_1LC": (1, 5, 8), "lvl_embed.weight": (2, 8)}
    )
    shapes.layer("word_embed", 8, 3)
    shapes.layer("head_nm.ada_lin.1", 16, 8)
    shapes.layer("head", 6, 8)
    shapes |= {"attn_bias_for_masking": (1, 1, 5, 5), "blocks.0.attn.scale_mul_1H11": (1, 2, 1, 1)}
    shapes |= {"blocks.0.attn.mat_qkv.weight": (24, 8), "blocks.0.attn.q_bias": (8,), "blocks.0.attn.v_bias": (8,)}
    shapes.layer("blocks.0.attn.proj", 8, 8)
    shapes.layer("blocks.0.ffn.fc1", 32, 8)
    shapes.layer("blocks.0.ffn.fc2", 8, 32)
    shapes.layer("blocks.0.ada_lin.1", 48, 8)
    buffers = {"blocks.0.attn.zero_k_bias": torch.zeros(8), "lvl_1L": torch.tensor([[0, 1, 1, 1, 1]])}
    tokenizer = Shapes({"quantize.embedding.weight": (6, 3), "quantize.ema_vocab_hit_SV": (2, 6)})
    for number in range(4):
        tokenizer.layer(f"quantize.quant_resi.qresi_ls.{number}", 3, 3, 3, 3)
    tokenizer.layer("encoder.conv_in", 4, 3, 3, 3)
    tokenizer.layer("decoder.conv_out", 3, 4, 3, 3)
    tokenizer.layer("quant_conv", 3, 3, 3, 3)
    tokenizer.layer("post_quant_conv", 3, 3, 3, 3)
    return shapes.drawn() | buffers, tokenizer.drawn()


#: What the weights do not show.
ENAT_OPTIONS = {"heads": 2, "encoder_blocks": 2, "decoder_blocks": 1}
XAR_OPTIONS = {"heads": 2, "latent_grid": 4}


MADE = {"ibq": (ibq_weights, IBQ, "state_dict"), "ait": (ait_weights, AIT, "weights")}


def imported(tmp_path, kind, weights):
    _, config, inside = MADE[kind]
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({inside: weights, "epoch": 3}, tmp_path / "released.pt")
    arguments = ["import", kind, str(tmp_path / "released.pt"), "--config", str(tmp_path / "config.json")]
    assert main([*arguments, "--out", str(tmp_path / "tokenizer")]) == 0
    return VisualTokenizer.from_pretrained(tmp_path / "tokenizer")


def test_ibq_is_read_with_its_averages(tmp_path, capsys):
    weights, model = ibq_weights()
    tokenizer = imported(tmp_path, "ibq", weights)
    assert "IBQ (https://arxiv.org/abs/2412.02692), licence: Apache-2.0" in capsys.readouterr().out
    assert torch.equal(tokenizer.quantizer.table, weights["model_ema.quantizeembeddingweight"])
    assert torch.equal(tokenizer.decoder.last.weight, weights["model_ema.decoderconv_outweight"])
    assert torch.equal(tokenizer.narrow.weight, weights["model_ema.quant_convweight"][..., 0, 0])
    assert sum(map(torch.numel, tokenizer.parameters())) == sum(torch.zeros(shape).numel() for shape in model.values())
    codes = tokenizer.encode(torch.rand(1, 3, 16, 16))
    assert codes.ids.shape == (1, 64, 1)
    assert tokenizer.decode(codes).shape == (1, 3, 16, 16)


def test_ibq_without_averages_is_read_as_it_is(tmp_path):
    weights, model = ibq_weights()
    tokenizer = imported(tmp_path, "ibq", {name: weights[name] for name in model})
    assert torch.equal(tokenizer.quantizer.table, weights["quantize.embedding.weight"])


def test_taming_names_lead_to_the_stages_they_name(tmp_path):
    """The decoder's stages are counted from the pixels: ``up.1`` is the coarse one, which has the attention."""
    weights, model = ibq_weights()
    tokenizer = imported(tmp_path, "ibq", {name: weights[name] for name in model})
    layers = tokenizer.decoder.layers
    assert torch.equal(layers[4].layers[2].weight, weights["decoder.up.1.block.0.conv1.weight"])
    assert torch.equal(layers[8].conv.weight, weights["decoder.up.1.upsample.conv.weight"])
    assert torch.equal(layers[9].skip.weight, weights["decoder.up.0.block.0.nin_shortcut.weight"])
    assert torch.equal(tokenizer.encoder.layers[3].layers[2].weight, weights["encoder.down.1.block.0.conv1.weight"])


def test_ait_reads_pictures_as_maps_in_metres(tmp_path, capsys):
    weights, _ = ait_weights()
    tokenizer = imported(tmp_path, "ait", weights)
    assert "licence: none stated" in capsys.readouterr().out
    assert torch.equal(tokenizer.quantizer.table, weights["_vq_vae._embedding"])
    picture = torch.rand(2, 1, 16, 16).expand(-1, 3, -1, -1)
    mapped = tokenizer.encoder.layers(5 * (picture[:, :1] + 1))
    torch.testing.assert_close(tokenizer.encoder(picture), mapped)
    assert tokenizer.decode(tokenizer.encode(picture)).shape == (2, 3, 16, 16)
    assert tokenizer.decode_soft(torch.randn(2, 16, 12)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("ibq", "encoder.down.0.block.0.conv2.weight", r"missing: encoder.layers.1.layers.5.weight"),
        ("ait", "_vq_vae._embedding", "missing: quantizer.table"),
    ],
)
def test_weights_that_do_not_match_are_named_and_nothing_is_written(tmp_path, kind, name, said):
    make, config, _ = MADE[kind]
    weights, model = make()
    whole = {key: weights[key] for key in model}
    renamed = {(f"{key}_old" if key == name else key): value for key, value in whole.items()}
    reshaped = whole | {name: torch.zeros(3, 3)}
    lacking = {key: value for key, value in whole.items() if key != name}
    for broken, wanted in (
        (renamed, f"not used: {name}_old; {said}"),
        (lacking, said),
        (reshaped, r"of another shape: .* \[3, 3\] for "),
    ):
        torch.save(broken, tmp_path / "released.pt")
        with pytest.raises(ValueError, match=wanted):
            import_checkpoint(kind, tmp_path / "released.pt", tmp_path / "tokenizer", config)
        assert not (tmp_path / "tokenizer").exists()


def test_ait_refuses_what_was_never_released(tmp_path):
    torch.save({"weights": ait_weights()[0]}, tmp_path / "released.pt")
    with pytest.raises(ValueError, match="residul_type must be 'v1' as released, got 'v2'; leave it out"):
        import_checkpoint("ait", tmp_path / "released.pt", tmp_path / "out", {**AIT, "residul_type": "v2"})


@pytest.mark.parametrize(
    ("kind", "part", "millions"), [("ibq", "encoder", 46.8), ("ibq", "decoder", 59.9), ("ait", "", 7.7)]
)
def test_published_numbers_of_parameters(kind, part, millions):
    with torch.device("meta"):
        tokenizer = FORMATS[kind].build(FORMATS[kind].default)
    weights = tokenizer.get_submodule(part).parameters()
    assert round(sum(weight.numel() for weight in weights) / 1e6, 1) == millions


@pytest.mark.parametrize(("config", "tokens", "span"), [(ait.DEPTH, 225, (0.0, 10.0)), (ait.MASKS, 16, (-1.0, 1.0))])
def test_published_numbers_of_tokens(config, tokens, span):
    with torch.device("meta"):
        tokenizer = ait.tokenizer(config)
    assert (tokenizer.spec.positions, tokenizer.encoder.span) == (tokens, span)


def test_enat_becomes_a_model_of_its_own(tmp_path, capsys):
    weights = enat_weights()
    torch.save(weights, tmp_path / "nnet_ema.pth")
    (tmp_path / "config.json").write_text(json.dumps(ENAT_OPTIONS))
    arguments = ["import", "enat", str(tmp_path / "nnet_ema.pth"), "--config", str(tmp_path / "config.json")]
    assert main([*arguments, "--out", str(tmp_path / "model")]) == 0
    said = capsys.readouterr().out
    assert "M weights, for codes of a tokenizer not named; see --tokenizer" in said
    assert "ENAT (https://arxiv.org/abs/2411.06959), licence: none stated" in said
    model = ENAT.from_pretrained(tmp_path / "model")
    assert torch.equal(model.decoder[0].own.weight, weights["blocks.2.attn.kv.B.weight"])
    codes = write_masked(model, [0, 2], [torch.Generator(), torch.Generator()], MaskedSampling(steps=2))
    assert codes.ids.shape == (2, 4, 1)
    parts = ConvEncoder(4, 4, (1, 1, 1), 1), VectorQuantizer(4, 12), ConvDecoder(4, 4, (1, 1, 1), 1)
    tokenizer = VQTokenizer(*parts, 8).eval()
    import_checkpoint("enat", tmp_path / "nnet_ema.pth", tmp_path / "model", ENAT_OPTIONS, tokenizer)
    ENAT.from_pretrained(tmp_path / "model").check_tokenizer(tokenizer)


def test_enat_shows_its_size():
    assert enat.shown(enat_weights()) == {"codebook_size": 12, "dim": 8, "grid": 2, "num_classes": 3}
    blocks = dict.fromkeys((f"blocks.{number}.attn.q.bias" for number in range(24)), torch.zeros(1))
    large = {"x_embedder.word_embeddings.weight": torch.zeros(1025, 1024)} | blocks
    released = {**enat.RELEASED, **enat.shown(large)}
    assert released == enat.L | {"heads": None}
    with torch.device("meta"):
        assert enat.build(released).config.heads == enat.L["heads"] == 16
        assert model_sampling(enat.build(enat.S)) == MaskedSampling()
        wide = enat.build({**enat.S, "grid": 32})
    assert model_sampling(wide) == MaskedSampling(guidance=3.5, sampling_temperature=4.0)
    with pytest.raises(ValueError, match=r"are 366, 768, 1024 channels wide, got 8, which does not tell .* give heads"):
        enat.build({**enat.RELEASED, "dim": 8})
    assert enat.shown({}) == {}


@pytest.mark.parametrize("form", ["model_ema", "model"])
def test_xar_becomes_a_model_of_latents(tmp_path, form):
    weights = xar_weights()
    others = {"model": {name: torch.zeros_like(value) for name, value in weights.items()}}
    torch.save({**others, form: weights, "epoch": 7}, tmp_path / "xar.pth")
    import_checkpoint("xar", tmp_path / "xar.pth", tmp_path / "model", XAR_OPTIONS)
    model = XAR.from_pretrained(tmp_path / "model")
    assert torch.equal(model.decoder.positions, weights["decoder_pos_embed_learned"][0])
    noise = DrawnNoise([torch.Generator()], model.entities.sizes, model.config.channels)
    assert sample_latents(model, [4], noise, XARSampling(2, 1.5)).shape == (1, 3, 4, 4)


def test_xar_goes_with_no_tokenizer(tmp_path):
    torch.save({"model": xar_weights()}, tmp_path / "xar.pth")
    parts = ConvEncoder(4, 4, (1, 1, 1), 1), VectorQuantizer(4, 12), ConvDecoder(4, 4, (1, 1, 1), 1)
    with pytest.raises(
        ValueError, match=r"a tokenizer goes with a model of codes, got one beside .* XAR; leave it out"
    ):
        import_checkpoint("xar", tmp_path / "xar.pth", tmp_path / "model", XAR_OPTIONS, VQTokenizer(*parts, 8))
    assert not (tmp_path / "model").exists()


def test_var_is_read_from_its_file_and_that_of_its_tokenizer(tmp_path, capsys):
    transformer, tokenizer = var_weights()
    for name, weights in (("var_d16", transformer), ("vae", tokenizer)):
        torch.save(weights, tmp_path / f"{name}.pth")
    files = [str(tmp_path / "var_d16.pth"), str(tmp_path / "vae.pth")]
    assert main(["import", "var", *files, "--out", str(tmp_path / "model")]) == 0
    assert "VAR (https://arxiv.org/abs/2404.02905), licence: MIT" in capsys.readouterr().out
    assert json.loads((tmp_path / "model" / "weights.json").read_text())["files"] == ["var_d16.pth", "vae.pth"]
    model = VAR.from_pretrained(tmp_path / "model")
    assert torch.equal(model.head.weight, transformer["head.weight"])
    assert torch.equal(model.quantizer.quantizer.table, tokenizer["quantize.embedding.weight"])
    assert write_scales(model, [0, 3], [torch.Generator(), torch.Generator()]).ids.shape == (2, 5, 1)


def test_var_needs_the_file_of_its_tokenizer(tmp_path):
    transformer, tokenizer = var_weights()
    torch.save(transformer, tmp_path / "var_d16.pth")
    torch.save(tokenizer, tmp_path / "vae.pth")
    said = r"got weights of the transformer alone; name the tokenizer's file, vae_ch160v4096z32.pth, beside it"
    with pytest.raises(ValueError, match=said):
        import_checkpoint("var", tmp_path / "var_d16.pth", tmp_path / "model")
    with pytest.raises(ValueError, match=r"got missing: start, places, .* and 14 more"):
        import_checkpoint("var", tmp_path / "vae.pth", tmp_path / "model", {"depth": 1, "dim": 64, "heads": 1})
    assert not (tmp_path / "model").exists()


def test_var_shows_its_size():
    transformer, tokenizer = var_weights()
    sizes = {"vocab_size": 6, "code_channels": 3, "dim": 8, "heads": 2, "num_classes": 4, "depth": 1}
    assert var.shown(transformer) == sizes | {"patch_nums": (1, 2)}
    assert var.shown(tokenizer) == {"phi_count": 4}
    levels = torch.tensor([scale for scale, side in enumerate(var.VAR_D16["patch_nums"]) for _ in range(side**2)])
    assert var.shown({"lvl_1L": levels[None]}) == {"patch_nums": var.VAR_D16["patch_nums"]}
    assert var.shown({"lvl_1L": torch.tensor([[0, 1, 1]])}) == {}  # 2 codes are no square


@pytest.mark.parametrize(
    ("kind", "name", "missing"),
    [
        ("enat", "blocks.1.attn.kv.A.bias", "encoder.1.context.bias"),
        ("xar", "z_proj.weight", "enter.weight"),
        ("var", "quantize.embedding.weight", "quantizer.quantizer.table"),
    ],
)
def test_weights_of_models_that_do_not_match_are_named_and_nothing_is_written(tmp_path, kind, name, missing):
    made = {"enat": enat_weights, "xar": xar_weights, "var": lambda: {**var_weights()[0], **var_weights()[1]}}
    options = {"enat": ENAT_OPTIONS, "xar": XAR_OPTIONS, "var": {}}[kind]
    whole = made[kind]()
    lacking = {key: value for key, value in whole.items() if key != name}
    for broken, wanted in (
        (lacking | {f"old.{name}": whole[name]}, f"not used: old.{name}; missing: {missing};"),
        (lacking, f"missing: {missing};"),
        (whole | {name: torch.zeros(5, 5)}, rf"of another shape: {missing} \[5, 5\] for "),
    ):
        torch.save(broken, tmp_path / "released.pt")
        with pytest.raises(ValueError, match=f"must match key by key, got {wanted}"):
            import_checkpoint(kind, tmp_path / "released.pt", tmp_path / "model", options)
        assert not (tmp_path / "model").exists()
