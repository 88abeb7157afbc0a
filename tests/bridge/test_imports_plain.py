import json

import pytest
import torch

from smalti.bridge import ait
from smalti.bridge.formats import FORMATS, import_checkpoint
from smalti.cli.main import main
from smalti.tokenizers.base import VisualTokenizer

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
