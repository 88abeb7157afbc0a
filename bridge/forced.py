"""Language models of codes against files of what their references computed: forced passes, gradients, greedy runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..generation.orders import Order
from ..generation.sampler import Condition, model_order, sample_codes
from ..generation.sampling import Sampling
from ..lm.losses import Predictors, mean_logits, predictors_of
from ..lm.model import SharedLM
from ..lm.plans import Plan
from ..lm.sequences import TEXT, Batch, Label, Part, Picture, Vectors
from .golden import Golden
from .keymap import Rule, fill, translate

#: Guidance of a greedy run, and how many of its passes, from the first, have it.
Runs = Mapping[str, tuple[float, int]]


@dataclass(frozen=True)
class Forced:
    """A model with the weights of a file, and the order that it writes in."""

    golden: Golden
    model: SharedLM
    rules: Callable[[SharedLM], Sequence[Rule]]
    order: Order

    @classmethod
    def of(cls, golden: Golden, model: SharedLM, rules: Callable[[SharedLM], Sequence[Rule]]) -> Forced:
        """Fill a model.

        Raises:
            ValueError: weights that do not fit it.
        """
        model.eval()
        fill(model, golden.weights, rules(model), golden.system)
        return cls(golden, model, rules, model_order(model))

    @property
    def plan(self) -> Plan:
        """Of its images."""
        return self.order.plan(self.model.spec.layout)

    def batch(self, tokens: Tensor, conditions: Sequence[Condition | None], like: Sequence[Condition] = ()) -> Batch:
        """Tokens ``[B, N]`` behind conditions, all of them learned.

        Args:
            tokens: in raster order.
            conditions: None for nothing.
            like: what is left out where a condition is None; needed for captions alone, whose length stays.
        """
        examples = []
        for row, (ids, condition) in enumerate(zip(tokens, conditions, strict=True)):
            picture = Picture(ids[:, None], rows=self.plan.rows())
            given = self._nothing(like[row] if like else 0) if condition is None else _part(condition)
            examples.append(self.model.layout.build([given, picture]))
        return self.model.layout.collate(examples)

    @torch.no_grad()
    def logits(self, tokens: Tensor, conditions: Sequence[Condition | None], like: Sequence[Condition] = ()) -> Tensor:
        """``[B, N, K]`` in raster order, of one pass over tokens ``[B, N]``."""
        batch = self.batch(tokens, conditions, like)
        found = predictors_of(batch.learned, self.model.directed(batch), batch)
        return self._in_raster(self._classified(found), batch)

    @torch.no_grad()
    def heads(self, tokens: Tensor, conditions: Sequence[Condition]) -> list[Tensor]:
        """``[B, 1 + N, K]`` of every direction at the last condition and behind every position."""
        batch = self.batch(tokens, conditions)
        hidden = self.model.directed(batch)
        last = (batch.slots < TEXT).sum(1) - 1
        steps = torch.arange(batch.slots.shape[1]).expand_as(batch.slots)
        ranked = batch.slots.where(batch.slots >= 0, batch.slots.shape[1]).where(steps != last[:, None], -1)
        order = ranked.argsort(dim=1)[:, : 1 + tokens.shape[1], None].expand(-1, -1, hidden.shape[-1])
        found = list[Tensor]()
        for direction, (head, table) in enumerate(self.model.heads):
            states = hidden[:, :, direction].gather(1, order)
            found.append(head.column_logits(states, table, 0))
        return found

    def learned(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        """Logits and loss of the file's tokens, and the loss's gradients to the reference's weights: through the key
        map, so in their names and order."""
        golden, tokens = self.golden, self.golden.inputs["tokens"]
        weights = {name: weight.clone().requires_grad_() for name, weight in golden.weights.items()}
        state = translate(weights, self.rules(self.model), self.model, golden.system)
        loss = torch.func.functional_call(self.model, state, (self.batch(tokens, conditions),)).loss
        wanted = [name.removeprefix("grad.") for name in golden.outputs if name.startswith("grad.")]
        gradients = torch.autograd.grad(loss, [weights[name] for name in wanted]) if wanted else ()
        found = {f"grad.{name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}
        return {"logits": self.logits(tokens, conditions), "loss": loss, **found}

    def greedy(self, conditions: Sequence[Condition], runs: Runs) -> dict[str, Tensor]:
        """Tokens of the sampler with its cache, and the logits behind them of passes over what it wrote."""
        found, plan = dict[str, Tensor](), self.plan
        passes = torch.empty_like(plan.positions).index_copy(0, plan.positions, plan.passes)
        for name, (guidance, guided) in runs.items():
            sampling = Sampling(guidance=guidance, temperature=0.0, guided_steps=guided)
            tokens = sample_codes(self.model, conditions, [torch.Generator() for _ in conditions], sampling).ids[..., 0]
            logits = self.logits(tokens, conditions)
            if guided:
                free = self.logits(tokens, [None] * len(conditions), conditions)
                led = free + guidance * (logits - free)
                logits = torch.where((passes < guided)[:, None], led, logits)
            found |= {f"{name}.tokens": tokens, f"{name}.logits": logits}
        return found

    def _nothing(self, like: Condition) -> Part:
        if not isinstance(like, Tensor):
            return Label(self.model.layout.classes)
        vectors = self.model.unconditional(like).vectors
        assert vectors is not None
        return Vectors(vectors)

    def _classified(self, predictors: Predictors) -> Tensor:
        nothing = predictors.states.new_zeros(len(predictors.states), 0, predictors.states.shape[-1])
        states = [state[:, 0] for state in predictors.leaving(self.model.heads, nothing)]
        return mean_logits(self.model.heads, states, predictors.shares, 0)

    def _in_raster(self, logits: Tensor, batch: Batch) -> Tensor:
        """Logits ``[B * N, K]`` of what is learned in a batch, by position."""
        slots = batch.slots[batch.learned].view(len(batch.slots), -1)
        found = logits.view(*slots.shape, -1)
        return torch.empty_like(found).scatter(1, slots[..., None].expand_as(found), found)


def _part(condition: Condition) -> Part:
    if isinstance(condition, Tensor):
        return Vectors(condition)
    if isinstance(condition, int):
        return Label(condition)
    raise ValueError(f"models of codes alone take classes and vectors, got {condition!r}; pass one of those")
