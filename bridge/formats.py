"""Checkpoints of other projects to tokenizers and models of ours: opened safely, mapped key by key, saved with their
licence."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.files import atomic_file
from ..data.weight_files import read_weight_file
from ..lm.saved import SavedModel
from ..lm.xar import XAR
from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import CodeSpec
from . import ait, dualtoken, enat, ibq, lavit, llamagen, llamagen_lm, nar, par, seed, slot, tokenflow, unitok, var, xar
from .keymap import Rule, fill

#: What a checkpoint becomes.
Imported = VisualTokenizer | SavedModel


def _nothing(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Format:
    """One kind of checkpoint."""

    project: str  #: who released it, and the paper
    licence: str  #: of the code and the weights, as far as stated
    default: Mapping[str, Any]  #: configuration of the released checkpoint
    build: Callable[[Mapping[str, Any]], Imported]  #: an untrained tokenizer or model of a configuration
    rules: Callable[[Any], Sequence[Rule]]  #: the key map into it
    inside: tuple[str, ...] = ()  #: keys of the checkpoint's dictionary that may hold the weights
    prepare: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict  #: which of the stored weights are meant
    apart: Mapping[str, str] = field(default_factory=dict)  #: a name that only a part's own file has -> their prefix
    shown: Callable[[Mapping[str, Tensor]], Mapping[str, Any]] = _nothing  #: fields that the weights tell


FORMATS: Mapping[str, Format] = {
    "llamagen-vq": Format(
        "FoundationVision/LlamaGen (https://arxiv.org/abs/2406.06525)",
        "MIT",
        llamagen.VQ_16,
        llamagen.vq_tokenizer,
        llamagen.vq_rules,
        ("ema", "model", "state_dict"),
    ),
    "ibq": Format(
        "TencentARC/SEED-Voken, IBQ (https://arxiv.org/abs/2412.02692)",
        "Apache-2.0",
        ibq.IBQ_16384,
        ibq.tokenizer,
        ibq.rules,
        ("state_dict",),
        ibq.averaged,
    ),
    "ait": Format(
        "SwinTransformer/AiT (https://arxiv.org/abs/2301.02229)",
        "none stated",
        ait.DEPTH,
        ait.tokenizer,
        ait.rules,
        ("weights",),
    ),
    "tokenflow": Format(
        "ByteVisionLab/TokenFlow (https://arxiv.org/abs/2412.03069)",
        "Apache-2.0; the weights' card says MIT",
        tokenflow.TOKENFLOW,
        tokenflow.tokenizer,
        tokenflow.rules,
        ("ema", "model", "state_dict"),
    ),
    "unitok": Format(
        "FoundationVision/UniTok (https://arxiv.org/abs/2502.20321)",
        "MIT",
        unitok.UNITOK,
        unitok.tokenizer,
        unitok.rules,
        ("trainer.unitok",),
    ),
    "seed": Format(
        "AILab-CVC/SEED (https://arxiv.org/abs/2310.01218)",
        "Apache-2.0 with notices of Tencent; BSD-3 parts from LAVIS",
        seed.SEED_2,
        seed.tokenizer,
        seed.rules,
        ("model", "state_dict"),
        apart={"patch_embed.proj.weight": "visual_encoder."},
    ),
    "lavit": Format(
        "jy0205/LaVIT (https://arxiv.org/abs/2309.04669)",
        "LaVIT Community License: conditions on use, and none beyond 700 million users a month",
        lavit.LAVIT,
        lavit.tokenizer,
        lavit.rules,
        apart={"patch_embed.proj.weight": "encoder.", "query_embed": "decoder."},
    ),
    "slot-mllm": Format(
        "KU-AGI/Slot-MLLM (https://arxiv.org/abs/2505.17726)",
        "none stated; BSD-3 headers from LAVIS",
        slot.SLOT_MLLM,
        slot.tokenizer,
        slot.rules,
        ("state_dict",),
        apart={"patch_embed.proj.weight": "backbone.dinov2."},
    ),
    "dualtoken": Format(
        "songweii/DualToken (https://arxiv.org/abs/2503.14324)",
        "none stated; its README says MIT and links a file that is missing",
        dualtoken.DUALTOKEN_384,
        dualtoken.tokenizer,
        dualtoken.rules,
        ("state_dict",),
    ),
    "llamagen-c2i": Format(
        "FoundationVision/LlamaGen (https://arxiv.org/abs/2406.06525)",
        "MIT",
        llamagen_lm.C2I,
        llamagen_lm.class_model,
        llamagen_lm.rules,
        ("model", "module", "state_dict"),
        shown=llamagen_lm.shown,
    ),
    "llamagen-t2i": Format(
        "FoundationVision/LlamaGen (https://arxiv.org/abs/2406.06525)",
        "MIT",
        llamagen_lm.T2I,
        llamagen_lm.caption_model,
        llamagen_lm.rules,
        ("model", "module", "state_dict"),
        shown=llamagen_lm.shown,
    ),
    "nar-c2i": Format(
        "ThisisBillhe/NAR (https://arxiv.org/abs/2503.10696)",
        "none stated; made from LlamaGen, MIT",
        nar.C2I,
        nar.class_model,
        nar.rules,
        ("model", "module", "state_dict"),
        shown=nar.shown,
    ),
    "nar-t2i": Format(
        "ThisisBillhe/NAR (https://arxiv.org/abs/2503.10696)",
        "none stated; made from LlamaGen, MIT",
        nar.T2I,
        nar.caption_model,
        nar.rules,
        ("model", "module", "state_dict"),
        shown=nar.shown,
    ),
    "nar-video": Format(
        "ThisisBillhe/NAR (https://arxiv.org/abs/2503.10696)",
        "none stated; made from LARP",
        nar.VIDEO,
        nar.video_model,
        nar.video_rules,
        ("model.sd", "model", "state_dict"),
        nar.on_places,
        shown=nar.video_shown,
    ),
    "par-c2i": Format(
        "Epiphqny/PAR (https://arxiv.org/abs/2412.15119)",
        "none stated; made from LlamaGen, MIT",
        par.C2I,
        par.class_model,
        par.rules,
        ("model", "module", "state_dict"),
        shown=par.shown,
    ),
    "var": Format(
        "FoundationVision/VAR (https://arxiv.org/abs/2404.02905)",
        "MIT",
        var.VAR_D16,
        var.model,
        var.rules,
        ("trainer.var_wo_ddp",),
        var.with_quantizer,
        shown=var.shown,
    ),
    "enat": Format(
        "LeapLabTHU/ENAT (https://arxiv.org/abs/2411.06959)",
        "none stated",
        enat.RELEASED,
        enat.build,
        enat.rules,
        shown=enat.shown,
    ),
    "xar": Format(
        "OliverRensu/xAR (https://arxiv.org/abs/2502.20388)",
        "none stated",
        xar.C2I,
        xar.class_model,
        xar.rules,
        ("model_ema", "model"),
        shown=xar.shown,
    ),
}


def import_checkpoint(
    kind: str,
    checkpoint: str | Path | Sequence[str | Path],
    out: str | Path,
    config: Mapping[str, Any] | None = None,
    tokenizer: VisualTokenizer | None = None,
) -> Imported:
    """Save a checkpoint of another project as a folder of ours, with ``weights.json`` that says where it is from.

    Args:
        kind: a key of :data:`FORMATS`.
        checkpoint: ``.safetensors``, or a file of ``torch.save``, opened without running code in it; several where the
            release keeps a part, such as an image tower, in a file of its own.
        out: folder to write.
        config: fields that differ from the released configuration, and from what the weights show.
        tokenizer: whose codes a model was trained on; without it the model knows of none.

    Returns:
        The tokenizer or model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown format or field, a file that cannot be opened safely, a name that two files have,
            weights that do not match key by key, or a tokenizer of other codes than the model's. Nothing is written
            then.
    """
    if kind not in FORMATS:
        raise ValueError(f"the format must be one of {', '.join(FORMATS)}, got {kind!r}; use one of those names")
    chosen = FORMATS[kind]
    unknown = sorted(set(config or {}) - set(chosen.default))
    if unknown:
        raise ValueError(f"{kind} has the fields {', '.join(chosen.default)}, got {unknown[0]!r}; correct the name")
    files = [Path(file) for file in ([checkpoint] if isinstance(checkpoint, str | Path) else checkpoint)]
    weights = _together([(file, read_weights(file, chosen.inside)) for file in files], chosen.apart)
    prepared = chosen.prepare(weights)
    made = chosen.build({**chosen.default, **chosen.shown(weights), **(config or {})})
    if tokenizer is not None:
        _pair(made, tokenizer)
    fill(made, prepared, chosen.rules(made), ", ".join(map(str, files)))
    made.eval().save_pretrained(out)
    about = {"format": kind, "project": chosen.project, "licence": chosen.licence}
    about |= {"files": [file.name for file in files]}
    with atomic_file(Path(out) / "weights.json") as file:
        file.write_text(json.dumps(about, indent=2) + "\n")
    return made


def read_weights(checkpoint: str | Path, inside: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, in float32.

    Args:
        checkpoint: ``.safetensors``, or a file of ``torch.save``.
        inside: where they lie if the file holds more, the first that is there; a dot leads further in.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, one that holds more than tensors and plain values, or no tensors.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"a checkpoint was expected at {path}, which does not exist; check the path")
    stored = read_weight_file(path)
    for path_inside in inside:
        if isinstance(found := _within(stored, path_inside), Mapping):
            stored = found
            break
    if not isinstance(stored, Mapping) or not any(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError(f"{path} must hold tensors by name, got {type(stored).__name__}; name the right file")
    tensors = {str(name): value for name, value in stored.items() if isinstance(value, Tensor)}
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _pair(made: Imported, tokenizer: VisualTokenizer) -> None:
    """Have a model remember the tokenizer of its codes."""
    if isinstance(made, VisualTokenizer | XAR):
        raise ValueError(
            f"a tokenizer goes with a model of codes, got one beside a checkpoint of a {type(made).__name__}; leave it "
            "out"
        )
    if made.spec != tokenizer.spec:
        raise ValueError(
            f"the tokenizer must make the codes that the model writes, {_described(made.spec)}, got "
            f"{_described(tokenizer.spec)}; import both for the same size of images"
        )
    made.config.tokenizer_fingerprint = tokenizer.fingerprint()


def _described(spec: CodeSpec) -> str:
    books = " and ".join(f"{book.depth} of {book.size} {book.name} codes" for book in spec.codebooks)
    return f"a {spec.layout.kind} of {'x'.join(map(str, spec.layout.shape))} with {books}"


def _within(stored: Any, path: str) -> Any:
    for name in path.split("."):
        stored = stored.get(name) if isinstance(stored, Mapping) else None
    return stored


def _together(files: Sequence[tuple[Path, Mapping[str, Tensor]]], apart: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights of all files; those of a part that is released apart get the prefix they have in the whole."""
    found, origin = dict[str, Tensor](), dict[str, Path]()
    for file, weights in files:
        prefix = next((prefix for name, prefix in apart.items() if name in weights), "")
        for name, tensor in weights.items():
            if prefix + name in found:
                raise ValueError(
                    f"every name must be in one file, got {prefix + name} in {origin[prefix + name]} and {file}; "
                    "name the files of one release, each once"
                )
            found[prefix + name], origin[prefix + name] = tensor, file
    return found
