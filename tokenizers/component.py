"""Parts of a tokenizer that remember how they were built, so that a saved tokenizer can rebuild itself."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from typing import Any

from diffusers.configuration_utils import ConfigMixin
from torch import nn

#: Where the parts that smalti ships are defined; parts of the user's own are found once their module is imported.
PART_MODULES = (
    *("averaged", "convolutional", "features", "ibq", "learned", "product", "qformer", "quantizers"),
    *("queries", "scales", "soft", "tokenflow", "unitok", "vision", "vitamin"),
)


class Component(nn.Module, ConfigMixin):
    """An encoder, decoder or quantizer whose ``__init__`` is decorated with diffusers' ``register_to_config``.

    Its arguments are JSON values or other components; ``to_spec`` writes them down, :func:`build` reads them back.
    """

    config_name = "config.json"

    def register_to_config(self, **kwargs: Any) -> None:
        """Record the arguments of the class that is built; those it hands to its bases are not its own."""
        if "_internal_dict" not in self.__dict__:
            super().register_to_config(**kwargs)

    def to_spec(self) -> dict[str, Any]:
        """``{"class": name, "args": arguments}`` in plain JSON types."""
        args = {name: value for name, value in self.config.items() if not name.startswith("_")}
        return {"class": type(self).__name__, "args": {name: freeze(value) for name, value in args.items()}}


def freeze(value: Any) -> Any:
    """Replace components by their specs, at any depth of lists and dicts."""
    if isinstance(value, Component):
        return value.to_spec()
    if isinstance(value, Mapping):
        return {key: freeze(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [freeze(item) for item in value]
    return value


def build(value: Any) -> Any:
    """Replace specs by the components they describe, at any depth; the inverse of :func:`freeze`.

    Raises:
        ValueError: a spec names a class that is not a known :class:`Component`.
    """
    if isinstance(value, Mapping) and set(value) == {"class", "args"}:
        return _find(value["class"])(**{name: build(item) for name, item in value["args"].items()})
    if isinstance(value, Mapping):
        return {key: build(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [build(item) for item in value]
    return value


def unusual(cls: type[Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """The frozen constructor arguments of ``cls`` that are not at their defaults, nor are those of parts among them.

    What a tokenizer is told apart by: an argument added later, at a default that changes nothing, leaves it the same.
    """
    defaults = {name: freeze(parameter.default) for name, parameter in signature(cls).parameters.items()}
    return {name: _unusual(value) for name, value in args.items() if name not in defaults or value != defaults[name]}


def _unusual(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == {"class", "args"}:
        return {"class": value["class"], "args": unusual(_find(value["class"]), value["args"])}
    if isinstance(value, Mapping):
        return {key: _unusual(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unusual(item) for item in value]
    return value


def _find(name: str) -> type[Component]:
    for module in PART_MODULES:
        import_module(f".{module}", __package__)
    known = {cls.__name__: cls for cls in _subclasses(Component)}
    if name not in known:
        raise ValueError(
            f"a saved tokenizer names the part {name!r}, known parts are {', '.join(sorted(known))}; "
            "import the module that defines it first"
        )
    return known[name]


def _subclasses(cls: type[Component]) -> list[type[Component]]:
    return [found for child in cls.__subclasses__() for found in (child, *_subclasses(child))]
