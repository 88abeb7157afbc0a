"""Names of another project's weights to ours: explicit, and complete in both directions.

A map is a list of rules; the first whose pattern matches a whole name decides. A weight without a rule, a parameter
that no rule fills and a shape that differs are errors; nothing is loaded by half.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

_SHOWN = 12  #: names of a kind in an error at most

Target = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class Copy:
    """One weight under another name."""

    pattern: str  #: regular expression of their whole name
    target: Target  #: our name, as a replacement template or a function of the match
    squeeze: bool = False  #: a 1x1 convolution there, a linear layer here
    change: Callable[[Tensor], Tensor] | None = None  #: what else becomes of it


@dataclass(frozen=True)
class Join:
    """Several weights side by side in one; the pattern's group ``part`` tells them apart."""

    pattern: str  #: regular expression of their whole name, with the named group ``part``
    target: Target  #: our name
    parts: tuple[str, ...]  #: values of ``part``, in order
    dim: int = 0  #: dimension along which they are joined
    zeros: tuple[str, ...] = ()  #: parts that are never stored, and zero


@dataclass(frozen=True)
class Split:
    """One weight cut into parts along its first dimension."""

    pattern: str  #: regular expression of their whole name
    target: str  #: our name, as a replacement template with ``{part}``
    parts: tuple[str, ...]  #: what ``{part}`` stands for, in order
    sizes: tuple[int, ...] = ()  #: rows of each part; equal shares by default
    changes: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)  #: what else becomes of a part


@dataclass(frozen=True)
class Drop:
    """A weight that this part does not need."""

    pattern: str  #: regular expression of their whole name
    why: str  #: what makes it unnecessary
    zero: bool = False  #: only if it is zero throughout
    same_as: str | None = None  #: only if it equals this other weight, a replacement template


@dataclass(frozen=True)
class Constant:
    """A parameter or buffer of ours that no weight fills; named from the top, not inside :class:`Under`."""

    pattern: str  #: regular expression of our whole name
    value: float  #: throughout
    why: str  #: what makes that value neutral


@dataclass(frozen=True)
class Under:
    """The same rules for every name with a prefix, into a part of the module."""

    pattern: str  #: regular expression of their prefix
    target: Target  #: our prefix, as a replacement template or a function of the match
    rules: Sequence[Rule]  #: for what follows the prefix


Rule = Copy | Join | Split | Drop | Constant | Under


@dataclass(frozen=True)
class _Resolved:
    rule: Copy | Join | Split | Drop
    match: re.Match[str]
    theirs: str = ""  # prefixes passed on the way
    ours: str = ""

    def target(self, target: Target) -> str:
        return self.ours + _expanded(target, self.match)


@dataclass
class _State:
    """Ours as far as it is made."""

    found: dict[str, Tensor] = field(default_factory=dict)
    joined: dict[str, tuple[Join, dict[str, Tensor]]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    uncut: dict[str, str] = field(default_factory=dict)  # ours -> why its weight cannot be cut


def translate(
    weights: Mapping[str, Tensor], rules: Sequence[Rule], module: nn.Module, source: str
) -> dict[str, Tensor]:
    """The state of ``module`` made from another project's weights.

    Args:
        weights: by their names.
        rules: the map.
        module: has the names and shapes to fill.
        source: what the weights are, for messages.

    Raises:
        ValueError: names that no rule knows, parameters left empty, or other shapes; the sentence lists them.
    """
    state = _State()
    for name, tensor in weights.items():
        resolved = _resolve(name, rules)
        if resolved is None:
            state.unused.append(name)
        else:
            _place(name, tensor, resolved, state, weights)
    for target, (rule, tensors) in state.joined.items():
        tensors |= {part: torch.zeros_like(next(iter(tensors.values()))) for part in rule.zeros}
        absent = [part for part in rule.parts if part not in tensors]
        state.missing += [f"{part} of {target}" for part in absent]
        if not absent:
            state.found[target] = torch.cat([tensors[part] for part in rule.parts], dim=rule.dim)
    wanted = module.state_dict()
    state.found = _constants(rules, wanted) | state.found
    _check(state, wanted, source)
    return state.found


def fill(module: nn.Module, weights: Mapping[str, Tensor], rules: Sequence[Rule], source: str) -> None:
    """Load :func:`translate`'s result into ``module``, strictly."""
    module.load_state_dict(translate(weights, rules, module, source))


def _resolve(name: str, rules: Sequence[Rule]) -> _Resolved | None:
    for rule in rules:
        if isinstance(rule, Constant):
            continue
        if not isinstance(rule, Under):
            if match := re.fullmatch(rule.pattern, name):
                return _Resolved(rule, match)
        elif match := re.match(rule.pattern, name):
            inner = _resolve(name[match.end() :], rule.rules)
            if inner is not None:
                return replace(inner, theirs=match[0] + inner.theirs, ours=_expanded(rule.target, match) + inner.ours)
    return None


def _expanded(target: Target, match: re.Match[str]) -> str:
    return match.expand(target) if isinstance(target, str) else target(match)


def _place(name: str, tensor: Tensor, resolved: _Resolved, state: _State, weights: Mapping[str, Tensor]) -> None:
    rule, match = resolved.rule, resolved.match
    if isinstance(rule, Copy):
        tensor = tensor[..., 0, 0] if rule.squeeze else tensor
        state.found[resolved.target(rule.target)] = tensor if rule.change is None else rule.change(tensor)
    elif isinstance(rule, Split):
        _cut(name, tensor, rule, resolved.target(rule.target), state)
    elif isinstance(rule, Join):
        state.joined.setdefault(resolved.target(rule.target), (rule, {}))[1][match["part"]] = tensor
    elif not _may_drop(rule, resolved, tensor, weights):
        state.unused.append(name)


def _cut(name: str, tensor: Tensor, rule: Split, target: str, state: _State) -> None:
    targets = [target.format(part=part) for part in rule.parts]
    rows = tensor.shape[0] if tensor.ndim else 0
    sizes = rule.sizes or (rows // len(targets),) * len(targets)
    if sum(sizes) != rows or not rows:
        told = f"{name} {list(tensor.shape)} for {' and '.join(rule.parts)}"
        told += f" of {', '.join(map(str, rule.sizes))} rows" if rule.sizes else " in equal shares"
        state.uncut |= dict.fromkeys(targets, told)
        return
    for part, ours, piece in zip(rule.parts, targets, tensor.split(sizes), strict=True):
        state.found[ours] = rule.changes[part](piece) if part in rule.changes else piece


def _may_drop(rule: Drop, resolved: _Resolved, tensor: Tensor, weights: Mapping[str, Tensor]) -> bool:
    if rule.zero and bool(tensor.any()):
        return False
    if rule.same_as is None:
        return True
    other = weights.get(resolved.theirs + resolved.match.expand(rule.same_as))
    return other is not None and torch.equal(tensor, other)


def _constants(rules: Sequence[Rule], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    constants = [rule for rule in rules if isinstance(rule, Constant)]
    named = {name: rule for name in wanted for rule in constants if re.fullmatch(rule.pattern, name)}
    return {name: torch.full_like(wanted[name], rule.value) for name, rule in named.items()}


def _check(state: _State, wanted: Mapping[str, Tensor], source: str) -> None:
    found = state.found
    half = [*(entry.rpartition(" of ")[2] for entry in state.missing), *state.uncut]
    missing = [*state.missing, *(name for name in wanted if name not in found and name not in half)]
    unused = [*state.unused, *(f"{name} (nothing of that name here)" for name in found if name not in wanted)]
    shapes = list(dict.fromkeys(state.uncut.values()))
    shapes += [
        f"{name} {list(found[name].shape)} for {list(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    problems = [("not used", unused), ("missing", missing), ("of another shape", shapes)]
    told = "; ".join(f"{kind}: {_some(names)}" for kind, names in problems if names)
    if told:
        raise ValueError(f"weights of {source} must match key by key, got {told}; use the configuration they belong to")


def _some(names: Sequence[str]) -> str:
    """The first of many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
