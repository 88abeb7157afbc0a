"""What the file of a comparison stands for: the stages that train and score what is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..eval.decoder_report import REFERENCES
from ..training.recipe import Stage
from .errors import UsageError


def family_stages(
    path: str, data: Mapping[str, Any], after: Callable[[str, Mapping[str, Any]], list[Stage]]
) -> list[Stage]:
    """The stages of every family: its tokenizer, and what comes after it."""
    families, stages = data["families"], list[Stage]()
    if not isinstance(families, dict) or len(families) < 2:
        raise UsageError(f"{path} must name at least two families to compare, got {families}; add some")
    for name, own in families.items():
        if not isinstance(own, dict) or "tokenizer" not in own:
            raise UsageError(f"family {name!r} in {path} must have a tokenizer, got {own}; add it")
        stages += [_tokenizer(name, own, data["training"]), *after(name, data)]
    return stages


def variant_stages(path: str, data: Mapping[str, Any]) -> list[Stage]:
    """A language model and its scores for every variant and seed."""
    variants, seeds, shared, stages = data["variants"], data["seeds"], _run("lm", data["lm"]), list[Stage]()
    if not isinstance(variants, dict) or len(variants) < 2:
        raise UsageError(f"{path} must name at least two variants to compare, got {variants}; add some")
    if not isinstance(seeds, list) or not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(f"seeds in {path} must be a list of different numbers, got {seeds}; name one at least")
    for name, own in variants.items():
        for seed in seeds:
            model = f"{name}-{seed}"
            fixed = {"seed": seed, "save_to": f"${{{model}}}/model"}
            given = dict(own or {})
            stored, other = dict(shared["data"]), given.pop("data", {})
            if other:
                stored["init_args"] = {**stored.get("init_args", {}), **other}
            arguments = _joined(f"variants.{name}", {**shared["model"], **given}, fixed)
            fit = {**shared, "model": {"class_path": "LanguageModelTraining", "init_args": arguments}, "data": stored}
            stages.append(Stage(model, "fit", fit))
            scored = {"model": f"${{{model}}}/model", "settings": data["score"]}
            stages.append(Stage(f"{model}-scores", "score", scored))
    return stages


def run_names(data: Mapping[str, Any], of: str) -> dict[str, list[str]]:
    """``of`` with the name of every run in the place of ``{}``, by variant."""
    return {name: [of.format(f"{name}-{seed}") for seed in data["seeds"]] for name in data["variants"]}


def language_model_stages(name: str, data: Mapping[str, Any]) -> list[Stage]:
    """From the tokenizer of a family to the scores of a language model on its codes."""
    codes, model, shared = f"{name}-codes", f"{name}-lm", _run("lm", data["lm"])
    tokenizer = {"tokenizer": f"${{{name}}}/model"}
    encode = _joined("codes", data["codes"], tokenizer)
    own = {**tokenizer, "save_to": f"${{{model}}}/model"}
    stored = {split: f"${{{codes}}}/{split}" for split in ("train", "validation") if split in data["codes"]}
    fit = {
        "model": {"class_path": "LanguageModelTraining", "init_args": _joined("lm.model", shared["model"], own)},
        "data": {"class_path": "TokenData", "init_args": _joined("lm.data", shared["data"], stored)},
        "trainer": shared["trainer"],
    }
    return [
        Stage(codes, "encode", encode),
        Stage(model, "fit", fit),
        Stage(f"{name}-scores", "score", {"model": f"${{{model}}}/model", "settings": data["score"]}),
    ]


def decoder_stages(path: str, data: Mapping[str, Any]) -> list[Stage]:
    """The training of a decoder beside the tokenizer of every family."""
    families, shared, stages = data["families"], _run("training", data["training"]), list[Stage]()
    if not isinstance(families, dict) or not families or REFERENCES in families:
        raise UsageError(
            f"{path} must name at least one family whose codes are decoded, none of them {REFERENCES!r}, got "
            f"{families}; correct it"
        )
    for name, own in families.items():
        if not isinstance(own, dict) or not isinstance(own.get("tokenizer"), str):
            raise UsageError(f"family {name!r} in {path} must have the folder of its tokenizer, got {own}; add it")
        model = f"{name}-decoder"
        fixed = {"tokenizer": own["tokenizer"], "save_to": f"${{{model}}}/decoder"}
        given = {key: value for key, value in own.items() if key != "tokenizer"}
        arguments = _joined("training.model", {**shared["model"], **given}, fixed)
        stages.append(
            Stage(model, "fit", {**shared, "model": {"class_path": "DecoderTraining", "init_args": arguments}})
        )
    return stages


def _tokenizer(name: str, own: dict[str, Any], shared: Any) -> Stage:
    shared = _run("training", shared)
    arguments = {**shared["model"], **own, "save_to": f"${{{name}}}/model"}
    return Stage(name, "fit", {**shared, "model": {"class_path": "TokenizerTraining", "init_args": arguments}})


def _run(place: str, shared: Any) -> dict[str, Any]:
    if not isinstance(shared, dict) or set(shared) != {"model", "data", "trainer"}:
        raise UsageError(f"{place} must have model, data and trainer, got {shared}; correct it")
    return shared


def _joined(place: str, shared: Any, own: dict[str, str]) -> dict[str, Any]:
    """What all families share, and what each has of its own."""
    given = sorted(set(shared) & set(own)) if isinstance(shared, dict) else [type(shared).__name__]
    if given:
        raise UsageError(
            f"{place} must be a mapping without {', '.join(own)}, which every family has of its own, got "
            f"{', '.join(given)}; correct it"
        )
    return {**shared, **own}
