import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from smalti.bridge import llamagen
from smalti.bridge.formats import FORMATS, import_checkpoint, read_weights
from smalti.cli.main import main
from smalti.tokenizers.base import VisualTokenizer

TINY = {"ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 8, "codebook_size": 16, "codebook_embed_dim": 4}
TINY |= {"resolution": 16}


def reference_weights():
    """A state dict with LlamaGen's names and the tiny shapes, written out from its module structure."""
    shapes = {}

    def add(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def residual(name, before, after):
        add(f"{name}.norm1", before)
        add(f"{name}.conv1", after, before, 3, 3)
        add(f"{name}.norm2", after)
        add(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            add(f"{name}.nin_shortcut", after, before, 1, 1)

    def attention(name, width):
        add(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            add(f"{name}.{part}", width, width, 1, 1)

    for side in ("encoder", "decoder"):
        residual(f"{side}.mid.0", 16, 16)
        attention(f"{side}.mid.1", 16)
        residual(f"{side}.mid.2", 16, 16)
    add("encoder.conv_in", 8, 3, 3, 3)
    residual("encoder.conv_blocks.0.res.0", 8, 8)
    add("encoder.conv_blocks.0.downsample.conv", 8, 8, 3, 3)
    residual("encoder.conv_blocks.1.res.0", 8, 16)
    attention("encoder.conv_blocks.1.attn.0", 16)
    add("encoder.norm_out", 16)
    add("encoder.conv_out", 8, 16, 3, 3)
    add("decoder.conv_in", 16, 8, 3, 3)
    for block in range(2):
        residual(f"decoder.conv_blocks.0.res.{block}", 16, 16)
        attention(f"decoder.conv_blocks.0.attn.{block}", 16)
    add("decoder.conv_blocks.0.upsample.conv", 16, 16, 3, 3)
    residual("decoder.conv_blocks.1.res.0", 16, 8)
    residual("decoder.conv_blocks.1.res.1", 8, 8)
    add("decoder.norm_out", 8)
    add("decoder.conv_out", 3, 8, 3, 3)
    add("quant_conv", 4, 8, 1, 1)
    add("post_quant_conv", 8, 4, 1, 1)
    shapes["quantize.embedding.weight"], shapes["quantize.codebook_used"] = (16, 4), (64,)
    return {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.mark.parametrize("form", ["safetensors", "model", "ema", "bare"])
def test_a_checkpoint_becomes_a_tokenizer(tmp_path, config, capsys, form):
    weights = reference_weights()
    path = tmp_path / ("vq.safetensors" if form == "safetensors" else "vq.pt")
    if form == "safetensors":
        save_file(weights, path)
    else:
        others = {"model": {name: torch.zeros_like(value) for name, value in weights.items()}} if form == "ema" else {}
        torch.save(weights if form == "bare" else {**others, form: weights, "steps": 7}, path)
    out = tmp_path / "tokenizer"
    assert main(["import", "llamagen-vq", str(path), "--config", str(config), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    count = sum(value.numel() for name, value in weights.items() if name != "quantize.codebook_used")
    assert f"VQTokenizer of {count / 1e6:.2f} M weights" in said
    assert "LlamaGen (https://arxiv.org/abs/2406.06525), licence: MIT" in said
    assert json.loads((out / "weights.json").read_text())["licence"] == "MIT"
    tokenizer = VisualTokenizer.from_pretrained(out)
    assert torch.equal(tokenizer.decoder.last.weight, weights["decoder.conv_out.weight"])
    assert tokenizer.encode(torch.rand(1, 3, 16, 16)).ids.shape == (1, 64, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("decoder.conv_out.bias", "decoder.conv_end.bias"),
            "not used: decoder.conv_end.bias; missing: decoder.last.bias",
        ),
        (("encoder.mid.1.k.weight", None), r"missing: k of encoder.layers.\d+.qkv.weight"),
        (("quant_conv.weight", torch.ones(4, 9, 1, 1)), r"of another shape: narrow.weight \[4, 9\] for \[4, 8\]"),
    ],
)
def test_weights_that_do_not_match_are_named_and_nothing_is_written(tmp_path, config, capsys, change, said):
    weights, (name, new) = reference_weights(), change
    old = weights.pop(name)
    weights |= {} if new is None else {name: new} if isinstance(new, torch.Tensor) else {new: old}
    save_file(weights, tmp_path / "vq.safetensors")
    arguments = ["import", "llamagen-vq", str(tmp_path / "vq.safetensors"), "--config", str(config)]
    with pytest.raises(SystemExit, match="2") as end:
        main([*arguments, "--out", str(tmp_path / "tokenizer")])
    assert end.value.code == 2
    assert not (tmp_path / "tokenizer").exists()
    assert "must match key by key" in capsys.readouterr().err
    with pytest.raises(ValueError, match=said):
        import_checkpoint("llamagen-vq", tmp_path / "vq.safetensors", tmp_path / "tokenizer", TINY)


class Evil:
    def __reduce__(self):
        return print, ("this ran",)


def test_checkpoints_never_run_code(tmp_path, capsys):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"model": Evil()}, tmp_path / "zip.pt")
    for name in ("evil.pt", "zip.pt"):
        with pytest.raises(
            ValueError, match=r"got a pickle that asks for (builtins\.|__builtin__\.)?print, which can run"
        ):
            read_weights(tmp_path / name)
    assert "this ran" not in capsys.readouterr().out


def test_other_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a checkpoint was expected at .*absent.pt, which does not exist"):
        read_weights(tmp_path / "absent.pt")
    torch.save({"steps": 3}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="must hold tensors by name, got dict; name the right file"):
        read_weights(tmp_path / "empty.pt")
    (tmp_path / "damaged.safetensors").write_text("nothing")
    with pytest.raises(ValueError, match=r"damaged\.safetensors cannot be read as weights"):
        read_weights(tmp_path / "damaged.safetensors")
    with pytest.raises(ValueError, match=r"the format must be one of llamagen-vq.*, got 'vqgan'"):
        import_checkpoint("vqgan", tmp_path / "empty.pt", tmp_path / "out")
    with pytest.raises(ValueError, match=r"llamagen-vq has the fields ch, .*, got 'channels'; correct the name"):
        import_checkpoint("llamagen-vq", tmp_path / "empty.pt", tmp_path / "out", {"channels": 3})


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_configuration_is_a_json_object(tmp_path, capsys, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SystemExit, match="2"):
        main(
            ["import", "llamagen-vq", "x.pt", "--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "out")]
        )
    assert "--config must be a JSON object" in capsys.readouterr().err


@pytest.mark.parametrize(("config", "millions"), [(llamagen.VQ_16, 71.88), (llamagen.VQ_8, 70.11)])
def test_published_numbers_of_parameters(config, millions):
    with torch.device("meta"):
        tokenizer = FORMATS["llamagen-vq"].build(config)
    assert round(sum(weight.numel() for weight in tokenizer.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_says_whose_it_is_and_what_its_licence_is(kind):
    assert "https://arxiv.org/abs/" in FORMATS[kind].project
    assert FORMATS[kind].licence
