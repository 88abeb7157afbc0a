"""Text after prompts: written through the ``generate`` of ``transformers``, or chosen from given answers by likelihood.

Knows nothing about pictures: a prompt is rows of a :class:`~smalti.lm.layout.SequenceLayout`, whatever they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation.logits_process import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..lm.model import SharedLM
from ..lm.sequences import TEXT, Rows
from .session import Prompts, left_padded, unlearned

#: What the log-likelihood of a choice is divided by before it is compared with others: its tokens, or nothing.
Normalize = Literal["tokens", "none"]


@dataclass(frozen=True)
class TextSampling:
    """How text is written.

    Args:
        limit: >= 1, most tokens written, ``<eos>`` among them.
        beams: >= 1, texts that are followed at a time; 1 follows the best token alone. Of the finished ones the one
            with the highest mean log-likelihood of a token is kept.
        temperature: >= 0; 0 takes the most likely tokens, else they are drawn.
        top_k: draw from the k most likely tokens; 0 for all.
        top_p: draw from the most likely tokens whose probabilities reach p; 1 for all.
        repetition_penalty: > 0, how much less likely tokens become that were written before
            (https://arxiv.org/abs/1909.05858); 1 is off.

    Raises:
        ValueError: a value outside its range.
    """

    limit: int = 32
    beams: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.limit < 1 or self.beams < 1:
            raise ValueError(
                f"text needs limit >= 1 and beams >= 1, got {self.limit} and {self.beams}; 32 and 1 are usual"
            )
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.repetition_penalty <= 0:
            raise ValueError(
                "text needs temperature >= 0, top_k >= 0, 0 < top_p <= 1 and repetition_penalty > 0, got "
                f"{self.temperature}, {self.top_k}, {self.top_p} and {self.repetition_penalty}; 0, 0, 1 and 1 take "
                "what is most likely"
            )


#: A sentence, of the most likely token each time.
GREEDY = TextSampling()
#: A short answer, likewise.
ANSWER = TextSampling(limit=8)


class TextView(PreTrainedModel, GenerationMixin):
    """A shared language model as ``generate`` wants one: a causal LM over text and special tokens alone.

    It is made for one call, has no weights of its own and keeps nothing. Steps enter by the model's ``embed``, stand
    where its ``places`` say, and codes have no logits.

    Args:
        model: what it shows.
    """

    main_input_name = "input_ids"

    def __init__(self, model: SharedLM) -> None:
        super().__init__(PretrainedConfig())
        self.shown = model

    def forward(
        self,
        *,
        slots: Tensor,
        past_key_values: Cache,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool = True,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token.

        Args:
            slots: ``[B, P]`` int64, of the whole prompt; all steps after it are text.
            past_key_values: of S earlier steps; extended in place.
            input_ids: ``[B, T]`` text that the cache has not seen, where ``inputs_embeds`` does not hold the steps.
            inputs_embeds: ``[B, T, C]`` steps of the prompt that the cache has not seen.
            attention_mask: ``[B, S + T]``, 0 where a step is padding; no step is by default.
            use_cache: always true, as ``generate`` wants it for prompts that are embedded.
            return_dict: likewise.

        Returns:
            ``logits`` ``[B, 1, text and special tokens]`` float32, and the cache.
        """
        model = self.shown
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = model.embed(unlearned(_text_rows(model, input_ids)))
        length = past_key_values.get_seq_length() + inputs_embeds.shape[1]
        history = F.pad(slots, (0, length - slots.shape[1]), value=TEXT)
        mask = torch.ones_like(history) if attention_mask is None else attention_mask
        state = model.states_after(inputs_embeds, past_key_values, history, mask)[:, -1]
        logits: Any = model.logits(state, history[:, :0], TEXT)[:, None]
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)


@torch.inference_mode()
def write_text(model: SharedLM, prompts: Sequence[Rows], sampling: TextSampling = GREEDY, seed: int = 0) -> list[str]:
    """Continue prompts with text until ``<eos>``.

    Args:
        model: the language model, in eval mode.
        prompts: rows of its layout.
        sampling: greedily by default.
        seed: of what is drawn, where anything is. The global generators, of the CPU and of CUDA, are afterwards as
            they were. A text that is drawn depends on the seed and on the other prompts of the call.

    Raises:
        ValueError: a vocabulary without text, or prompts that leave no room for as many tokens.
    """
    if not prompts:
        return []
    end, given = model.vocabulary.special("<eos>"), left_padded(model, prompts)
    _check_room(model, given, sampling.limit)
    view: Any = TextView(model)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        written = view.generate(
            **_inputs(model, given, sampling.beams),
            generation_config=_configuration(sampling, end),
            logits_processor=LogitsProcessorList(
                [RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))]
            ),
        )
    return [model.vocabulary.decode(row) for row in written.tolist()]


def choose(
    model: SharedLM, prompts: Sequence[Rows], choices: Sequence[Sequence[str]], normalize: Normalize = "none"
) -> list[int]:
    """Which of its choices is the likeliest after each prompt; the first of equals.

    Args:
        model: the language model, in eval mode.
        prompts: rows of its layout.
        choices: texts for every prompt, at least one.
        normalize: see :func:`choice_likelihoods`.

    Raises:
        ValueError: as :func:`choice_likelihoods`.
    """
    return choice_likelihoods(model, prompts, choices, normalize).argmax(1).tolist()


@torch.inference_mode()
def choice_likelihoods(
    model: SharedLM, prompts: Sequence[Rows], choices: Sequence[Sequence[str]], normalize: Normalize = "none"
) -> Tensor:
    """Log-likelihood of each choice after its prompt, ``<eos>`` included.

    Every prompt is read once. Its choices then follow one by one, so that memory does not grow with their number.

    Args:
        model: the language model, in eval mode.
        prompts: B rows of its layout.
        choices: texts for every prompt, J at most, not necessarily equally many.
        normalize: ``none`` gives the log-likelihood of the whole answer, which a model that was trained to give such
            answers is compared by; ``tokens`` divides it by their number, for choices of very unequal length.

    Returns:
        ``[B, J]`` float32 nats, ``-inf`` where a prompt has fewer choices.

    Raises:
        ValueError: another number of lists than prompts, a prompt without choices, a choice without words or with one
            that the vocabulary lacks, or prompts that leave no room for their choices.
    """
    _check_choices(len(prompts), choices)
    end = model.vocabulary.special("<eos>")
    said = [[[*model.vocabulary.encode(text), end] for text in texts] for texts in choices]
    given, cache = left_padded(model, prompts), DynamicCache()
    _check_room(model, given, max(len(tokens) for texts in said for tokens in texts))
    prompt = model.embed(unlearned(given.rows, given.vectors))
    first = model.states_after(prompt, cache, given.rows[..., -1], given.mask)[:, -1:]
    found = list[Tensor]()
    for number in range(max(map(len, said))):
        tokens = [texts[number] if number < len(texts) else [] for texts in said]
        found.append(_likelihood(model, given, cache, first, tokens, normalize))
    return torch.stack(found, dim=1)


def _likelihood(
    model: SharedLM, given: Prompts, cache: Cache, first: Tensor, said: Sequence[Sequence[int]], normalize: Normalize
) -> Tensor:
    """``[B]``, of one text after each prompt in the cache, which is then as before; ``-inf`` of no tokens at all."""
    lengths = torch.tensor([len(tokens) for tokens in said], device=first.device)
    longest = int(lengths.max())
    padded = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in said], device=first.device)
    present = torch.arange(longest, device=first.device) < lengths[:, None]
    rows, mask = _text_rows(model, padded[:, :-1]), torch.cat([given.mask, present[:, 1:].to(given.mask)], dim=1)
    slots = torch.cat([given.rows[..., -1], rows[..., -1]], dim=1)
    states = torch.cat([first, model.states_after(model.embed(unlearned(rows)), cache, slots, mask)], dim=1)
    cache.crop(1 - longest)
    logits = model.logits(states[present], padded[:0], TEXT)
    nats = F.cross_entropy(logits, padded[present], reduction="none")
    total = torch.zeros(present.shape, device=nats.device).masked_scatter(present, -nats).sum(1)
    each = total / lengths.clamp_min(1) if normalize == "tokens" else total
    return each.masked_fill(lengths == 0, -torch.inf)


def _inputs(model: SharedLM, given: Prompts, beams: int) -> dict[str, Any]:
    """What ``generate`` continues: embedded prompts, and a cache which for beams has seen all but their last step.

    ``generate`` would read a prompt anew for each of its beams.
    """
    embedded, slots, cache = model.embed(unlearned(given.rows, given.vectors)), given.rows[..., -1], DynamicCache()
    if beams > 1 and slots.shape[1] > 1:
        model.states_after(embedded[:, :-1], cache, slots[:, :-1], given.mask[:, :-1])
        cache.batch_repeat_interleave(beams)
    return {"inputs_embeds": embedded, "attention_mask": given.mask, "slots": slots, "past_key_values": cache}


def _configuration(sampling: TextSampling, end: int) -> GenerationConfig:
    drawn = {"temperature": float(sampling.temperature), "top_k": sampling.top_k, "top_p": sampling.top_p}
    return GenerationConfig(
        max_new_tokens=sampling.limit,
        num_beams=sampling.beams,
        do_sample=sampling.temperature > 0,
        eos_token_id=end,
        pad_token_id=end,
        **(drawn if sampling.temperature else {}),
    )


def _text_rows(model: SharedLM, tokens: Tensor) -> Tensor:
    """``[B, T, W + 1]`` of text ``[B, T]``."""
    return model.layout.rows(tokens.reshape(-1, 1), TEXT).view(*tokens.shape, -1)


def _check_room(model: SharedLM, given: Prompts, limit: int) -> None:
    prompt = given.rows.shape[1]
    if prompt + limit > model.context:
        raise ValueError(
            f"a prompt and what follows must have at most {model.context} tokens in this model, got {prompt} and "
            f"{limit}; shorten the question, lower the limit or raise max_position_embeddings of the backbone"
        )


def _check_choices(prompts: int, choices: Sequence[Sequence[str]]) -> None:
    if not prompts or len(choices) != prompts:
        raise ValueError(
            f"one list of choices for each of at least one prompt is needed, got {len(choices)} for {prompts}; repeat "
            "the list where prompts share it"
        )
    for texts in choices:
        if isinstance(texts, str) or not texts or not all(text.strip() for text in texts):
            raise ValueError(
                f"choices of a prompt must be a list of texts with words, got {texts!r}; write at least one"
            )
