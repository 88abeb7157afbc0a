"""The plug-in of lmms-eval: which models it offers. lmms-eval is no dependency and is imported when it asks.

Installed beside smalti it finds the entry points ``smalti`` and ``smalti_t2i`` (0.7.3 needs ``filelock<4``)::

    python -m lmms_eval --model smalti --model_args pretrained=DIR --tasks pope --batch_size 16
    python -m lmms_eval --model smalti_t2i --model_args pretrained=DIR,output_dir=OUT --tasks TASK

What the models do is in :mod:`smalti.eval.lmms_models`; here they become subclasses of its ``lmms`` on first use, so
that lmms-eval lists its models without importing torch for ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import new_class
from typing import Any

#: What lmms-eval imports by name from here, and what of ``lmms_models`` each is.
_MODELS = {"SmaltiSimple": "SimpleAnswers", "SmaltiChat": "ChatAnswers", "SmaltiPictures": "Pictures"}


def manifest() -> Any:
    """The ``ModelManifest`` of ``smalti``: text for pictures, asked in the simple and in the chat form.

    Raises:
        ImportError: lmms-eval is not installed.
    """
    return _registry().ModelManifest(
        model_id="smalti", simple_class_path=f"{__name__}.SmaltiSimple", chat_class_path=f"{__name__}.SmaltiChat"
    )


def picture_manifest() -> Any:
    """The ``ModelManifest`` of ``smalti_t2i``: pictures for prompts.

    Raises:
        ImportError: as for :func:`manifest`.
    """
    return _registry().ModelManifest(model_id="smalti_t2i", simple_class_path=f"{__name__}.SmaltiPictures")


def __getattr__(name: str) -> Any:
    if name not in _MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _model(name)


@cache
def _model(name: str) -> type[Any]:
    """A model as a subclass of lmms-eval's, one and the same at every look."""
    base, packed = _imported("lmms_eval.api.model").lmms, _imported("lmms_eval.api.instance").GenerationResult

    from . import lmms_models

    kind = getattr(lmms_models, _MODELS[name])

    def loglikelihood(self: Any, requests: Sequence[Any]) -> list[Any]:
        return [packed(pair) for pair in kind.loglikelihood(self, requests)]  # 0.7.3 turns bare pairs into text

    names = {"__module__": __name__, "__doc__": kind.__doc__, "loglikelihood": loglikelihood}
    return new_class(name, (kind, base), exec_body=lambda body: body.update(names))


def _registry() -> Any:
    return _imported("lmms_eval.models.registry_v2")


def _imported(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the plug-in needs lmms-eval 0.7 or later, of which {error.name} is not installed; pip install lmms-eval"
        ) from error
