"""Text through ``generate`` against a plain loop of passes over whole sequences, and choices against sums by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from smalti.generation.text import TextSampling, choice_likelihoods, choose, write_text
from smalti.lm.model import SharedLM
from smalti.lm.ordering import causal
from smalti.lm.sequences import TEXT, Batch, Rows
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

SPEC = CodeSpec(CodeLayout("grid", (2, 3)), (Codebook("semantic", 5), Codebook("pixel", 7, 2)))
WIDTHS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 64}
LLAMA = {"model_type": "llama", **WIDTHS, "num_attention_heads": 2, "num_key_value_heads": 1}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
QWEN = {
    "model_type": "qwen3_5_text",
    **WIDTHS,
    "head_dim": 32,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "layer_types": ["full_attention"] * 2,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 100.0,
        "mrope_section": [6, 5, 5],
        "partial_rotary_factor": 1.0,
    },
}
DEPTH = {"kind": "depth", "heads": 2}
KINDS = {
    "sequence": (LLAMA, {}),
    "learned positions": (GPT2, {"head": DEPTH}),
    "no places of codes": (LLAMA, {"embedding": {"places": False}, "head": {"kind": "flat"}}),
    "concat": (LLAMA, {"embedding": {"kind": "concat"}, "head": DEPTH}),
    "axial": (LLAMA, {"rotary": "axial", "head": DEPTH}),
    "multimodal": (QWEN, {"rotary": "multimodal"}),
    "new rows": (LLAMA, {"new_rows": True}),
    "new rows, axial": (LLAMA, {"new_rows": True, "rotary": "axial", "embedding": {"places": False}}),
    "vectors": (LLAMA, {"vectors": {"dim": 3}}),
}


def model(kind="sequence", words=("a red circle", "a blue square", "how many ? two"), sharpness=1.0) -> SharedLM:
    """Sharp predictions that depend on what came before."""
    torch.manual_seed(1)
    backbone, parts = KINDS[kind]
    lm = SharedLM.build(backbone, Vocabulary.train(words), SPEC, "f00d", **parts).eval()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if parameter.ndim == 2:
                rows = any(part in name for part in ("embed", "wte", "lm_head", "new_"))
                parameter.normal_(std=0.6 if rows else 0.3)
        for piece in lm.outputs.pieces:
            piece.mul_(sharpness)
        lm.outputs.parts(range(end(lm), end(lm) + 1))[0].mul_(2)  # texts end now and then
    return lm


def end(lm: SharedLM) -> int:
    return lm.vocabulary.special("<eos>")


def width(lm: SharedLM) -> int:
    return lm.layout.per_step


def prompts(lm: SharedLM) -> list[Rows]:
    """Of several lengths, with and without a picture, one of them with vectors where the model reads any."""
    codes = [torch.randint(0, 5, (6, 3), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    read = [lm.layout.image(ids) for ids in codes]
    found = [
        lm.layout.prompt("a red"),
        Rows(torch.cat([read[0], lm.layout.question("a")])),
        Rows(torch.cat([read[1], lm.layout.question("a red red a")])),
        Rows(torch.cat([read[1], read[2], lm.layout.caption_opener()])),
        Rows(torch.cat([lm.layout.prompt(None).rows, lm.layout.codes(codes[2])])),
    ]
    given = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    return found if lm.vectors is None else [*found, lm.layout.prompt(given[:3]), lm.layout.prompt(given[3:])]


@torch.no_grad()
def nats(lm: SharedLM, prompt: Rows, said: list[list[int]]) -> torch.Tensor:
    """Log-probabilities of what follows a prompt and texts of one length: a pass without cache or padding."""
    written = lm.layout.rows(torch.tensor(said, dtype=torch.int64).view(-1, 1), TEXT).view(len(said), -1, 1 + width(lm))
    rows = torch.cat([prompt.rows.expand(len(said), -1, -1), written], dim=1)
    present = torch.ones(rows.shape[:2], dtype=torch.int64)
    vectors = None if prompt.vectors is None else prompt.vectors.repeat(len(said), 1)
    batch = Batch(rows[..., :-1], rows[..., -1], present == 0, vectors=vectors)
    places = lm.places(batch.slots, present.bool())
    state = lm.through(lm.embed(batch), places, causal(present.bool(), present.shape[1]))[:, -1, 0]
    return lm.outputs.logits(state, range(end(lm) + 6)).log_softmax(-1)


def plain(lm: SharedLM, prompt: Rows, limit: int) -> str:
    """The most likely token, again and again."""
    said: list[int] = []
    while len(said) < limit and end(lm) not in said:
        said.append(int(nats(lm, prompt, [said]).argmax()))
    return lm.vocabulary.decode(said)


def longer(lm: SharedLM, prompt: Rows, texts: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    """Texts of one length and their log-likelihoods, each continued by every token."""
    more = nats(lm, prompt, [list(said) for said in texts]).tolist()
    return {
        (*said, token): score + added
        for (said, score), row in zip(texts.items(), more, strict=True)
        for token, added in enumerate(row)
    }


def of_all(lm: SharedLM, prompt: Rows, limit: int) -> str:
    """The text with the highest mean log-likelihood of a token, of every text there is."""
    going, every = {(): 0.0}, dict[tuple[int, ...], float]()
    for _ in range(limit):
        going = longer(lm, prompt, going)
        every |= {said: score for said, score in going.items() if said[-1] == end(lm) or len(said) == limit}
        going = {said: score for said, score in going.items() if said[-1] != end(lm)}
    return lm.vocabulary.decode(max(every, key=lambda said: every[said] / len(said)))


@pytest.mark.parametrize("kind", list(KINDS))
def test_greedy_text_is_that_of_the_plain_loop(kind):
    lm = model(kind)
    given = prompts(lm)
    written = write_text(lm, given, TextSampling(limit=7))
    assert written == [plain(lm, prompt, 7) for prompt in given]
    assert len(set(written)) > 2


def test_text_is_the_same_alone_and_in_a_batch():
    lm = model()
    given = prompts(lm)
    assert write_text(lm, given) == [write_text(lm, [prompt])[0] for prompt in given]
    assert write_text(lm, []) == []


@pytest.mark.parametrize("kind", ["sequence", "axial", "multimodal", "new rows", "vectors"])
def test_as_many_beams_as_there_are_texts_find_the_best_of_all(kind):
    lm = model(kind, sharpness=0.3)
    given = prompts(lm)
    found = write_text(lm, given, TextSampling(limit=2, beams=end(lm) + 6))
    assert found == [of_all(lm, prompt, 2) for prompt in given]
    assert found != write_text(lm, given, TextSampling(limit=2))


def test_beams_over_three_steps():
    lm = model("axial", ("a red",), sharpness=0.3)
    given, size = prompts(lm)[:3], end(lm) + 6
    found = write_text(lm, given, TextSampling(limit=3, beams=size**2))
    assert found == [of_all(lm, prompt, 3) for prompt in given]
    assert found != write_text(lm, given, TextSampling(limit=3))


def test_few_beams_are_those_of_a_search_by_hand():
    lm = model(sharpness=0.3)
    expected, given = [], prompts(lm)
    for prompt in given:
        beams, ended = {(): 0.0}, dict[tuple[int, ...], float]()
        for _ in range(5):
            ranked = sorted(longer(lm, prompt, beams).items(), key=lambda pair: -pair[1])
            ended |= {said: score / len(said) for said, score in ranked[:2] if said[-1] == end(lm) or len(said) == 5}
            beams = dict([(said, score) for said, score in ranked if said[-1] != end(lm)][:2])
        expected.append(lm.vocabulary.decode(max(ended, key=lambda said: ended[said])))
    assert write_text(lm, given, TextSampling(limit=5, beams=2)) == expected
    assert len({len(text.split()) for text in expected}) > 1


def script(monkeypatch, lm: SharedLM, *steps: list[list[float]]) -> list[int]:
    """Logits of every row at every step, of the words red and circle and of the end; returns the slots asked for."""
    asked, ids = [], [*lm.vocabulary.encode("red circle"), end(lm)]

    def scripted(state, written, slot):
        asked.append(slot)
        logits = torch.full((len(state), end(lm) + 6), -100.0)
        logits[:, ids] = torch.tensor(steps[len(asked) - 1])
        return logits

    monkeypatch.setattr(lm, "logits", scripted)
    return asked


RED, CIRCLE, END = [2.0, 1.5, 0.0], [0.0, 3.0, 2.0], [0.0, 0.0, 1.0]


def test_text_stops_at_the_end(monkeypatch):
    lm = model()
    given = [lm.layout.prompt("a")] * 2
    asked = script(monkeypatch, lm, [RED, END], [CIRCLE, CIRCLE], [END, RED], [RED, RED])
    assert write_text(lm, given) == ["red circle", ""]
    assert asked == [TEXT] * 3  # both have ended
    asked.clear()
    assert write_text(lm, given, TextSampling(limit=2)) == ["red circle", ""]
    assert asked == [TEXT] * 2


def test_tokens_that_were_written_become_less_likely(monkeypatch):
    lm = model()
    asked = script(monkeypatch, lm, *[[RED]] * 3)
    assert write_text(lm, [lm.layout.prompt("a")], TextSampling(limit=3)) == ["red red red"]
    asked.clear()
    sampling = TextSampling(limit=3, repetition_penalty=2)  # 2 or half of it, against 1.5 or half of it
    assert write_text(lm, [lm.layout.prompt("a")], sampling) == ["red circle red"]


def test_codes_are_never_written():
    lm = model()
    given, before = prompts(lm), write_text(lm, prompts(lm))
    with torch.no_grad():
        for book in SPEC.codebooks:
            lm.outputs.parts(lm.vocabulary.block(book.name))[0].mul_(1000)
    assert write_text(lm, given) == before


def test_drawn_text_follows_softmax():
    lm, count = model(), 4000
    prompt = lm.layout.prompt("a")
    found = Counter(write_text(lm, [prompt] * count, TextSampling(limit=1, temperature=2.0)))
    logits = nats(lm, prompt, [[]])[0]
    for word in ("red", "circle", "two"):
        (token,) = lm.vocabulary.encode(word)
        share = float((logits / 2).softmax(-1)[token])
        assert abs(found[word] / count - share) < 4 * (share * (1 - share) / count) ** 0.5


def test_a_seed_decides_what_is_drawn_and_nothing_else_is_disturbed():
    lm, sampling = model(), TextSampling(limit=6, temperature=3.0)
    before = torch.get_rng_state()
    one, same, other = (write_text(lm, prompts(lm), sampling, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert one == same
    assert one != other
    assert one != write_text(lm, prompts(lm), TextSampling(limit=6))


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-9}])
def test_the_narrowest_drawing_is_greedy(narrow):
    lm = model()
    assert write_text(lm, prompts(lm), TextSampling(temperature=5, **narrow)) == write_text(lm, prompts(lm))


def test_more_is_drawn_from_than_the_fifty_tokens_that_generate_keeps_by_itself():
    words = [f"w{number}" for number in range(200)]
    lm = model(words=words, sharpness=0.0)
    assert len(set(write_text(lm, [lm.layout.prompt("w1")] * 500, TextSampling(limit=1, temperature=1.0)))) > 100


def test_nothing_is_stored_on_the_model():
    lm = model()
    weights = {name: value.clone() for name, value in lm.state_dict().items()}
    before = [(name, set(vars(module))) for name, module in lm.named_modules()]
    configurations = lm.config.to_dict(), lm.backbone.config.to_dict(), lm.backbone.generation_config.to_dict()
    first = write_text(lm, prompts(lm), TextSampling(beams=3, temperature=1.0))
    choose(lm, prompts(lm)[:1], [["red", "circle"]])
    assert [(name, set(vars(module))) for name, module in lm.named_modules()] == before
    assert all(torch.equal(weights[name], value) for name, value in lm.state_dict().items())
    after = lm.config.to_dict(), lm.backbone.config.to_dict(), lm.backbone.generation_config.to_dict()
    assert after == configurations
    assert write_text(lm, prompts(lm), TextSampling(beams=3, temperature=1.0)) == first


def test_text_must_have_room():
    lm = model()
    prompt = Rows(lm.layout.prompt("a").rows[:1].expand(60, -1))
    assert len(write_text(lm, [lm.layout.prompt("a"), prompt], TextSampling(limit=4))) == 2
    message = "must have at most 64 tokens in this model, got 60 and 5; shorten the question, lower the limit or raise"
    with pytest.raises(ValueError, match=message):
        write_text(lm, [lm.layout.prompt("a"), prompt], TextSampling(limit=5))
    with pytest.raises(ValueError, match=message):
        choose(lm, [prompt], [["a red", "a red circle a"]])
    assert choose(lm, [prompt], [["a red circle"]]) == [0]


def test_codes_alone_write_no_text():
    lm = SharedLM.build(LLAMA, Vocabulary(None), SPEC, "f00d", classes=3).eval()
    with pytest.raises(ValueError, match="codes alone has no text and no special tokens, so it writes none; make"):
        write_text(lm, [lm.layout.prompt(0)])
    with pytest.raises(ValueError, match="codes alone has no text"):
        choose(lm, [lm.layout.prompt(0)], [["red"]])


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"beams": 0}])
def test_counts_out_of_range(wrong):
    with pytest.raises(
        ValueError, match=r"needs limit >= 1 and beams >= 1, got (0 and 1|32 and 0); 32 and 1 are usual"
    ):
        TextSampling(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"repetition_penalty": 0.0}]
)
def test_sampling_out_of_range(wrong):
    (value,) = wrong.values()
    with pytest.raises(ValueError, match=rf"0 < top_p <= 1 and repetition_penalty > 0, got .*{value}.*; 0, 0, 1 and 1"):
        TextSampling(**wrong)


CHOICES = (["red", "a red circle", "two"], ["how many"], ["two", "a"], ["a", "a a a a", "?"], ["blue square", "red"])


@pytest.mark.parametrize("kind", list(KINDS))
def test_likelihoods_are_sums_over_the_tokens_and_the_end(kind):
    lm = model(kind)
    given = prompts(lm)[: len(CHOICES)]
    found = choice_likelihoods(lm, given, CHOICES)
    each = choice_likelihoods(lm, given, CHOICES, "tokens")
    assert (found.shape, found.dtype) == ((5, 3), torch.float32)
    for row, (prompt, texts) in enumerate(zip(given, CHOICES, strict=True)):
        assert bool(found[row, len(texts) :].eq(-torch.inf).all())
        assert bool(each[row, len(texts) :].eq(-torch.inf).all())
        for number, text in enumerate(texts):
            said = [*lm.vocabulary.encode(text), end(lm)]
            total = sum(float(nats(lm, prompt, [said[:at]])[0, token]) for at, token in enumerate(said))
            assert float(found[row, number]) == pytest.approx(total, abs=1e-4)
            assert float(each[row, number]) == pytest.approx(total / len(said), abs=1e-4)


def test_the_likeliest_choice_is_chosen():
    lm = model()
    given = prompts(lm)
    best = choice_likelihoods(lm, given, CHOICES).max(1).values
    chosen = choose(lm, given, CHOICES)
    for prompt, texts, index, value in zip(given, CHOICES, chosen, best, strict=True):
        assert choice_likelihoods(lm, [prompt], [texts])[0, index] == pytest.approx(float(value), abs=1e-4)
    assert len(set(chosen)) > 1
    assert choose(lm, given[:1], [["red", "red"]]) == [0]


def test_length_counts_for_nothing_per_token():
    lm = model(sharpness=0.0)  # every token is as likely as every other
    given = prompts(lm)[:2]
    assert choose(lm, given, [["a red circle", "red"]] * 2) == [1, 1]
    assert choose(lm, given, [["a red circle", "red"]] * 2, "tokens") == [0, 0]


@pytest.mark.parametrize(
    ("count", "choices", "message"),
    [
        (2, [["red"]], "one list of choices for each of at least one prompt is needed, got 1 for 2; repeat the list"),
        (0, [], "one list of choices for each of at least one prompt is needed, got 0 for 0"),
        (1, [[]], r"choices of a prompt must be a list of texts with words, got \[\]; write at least one"),
        (1, ["red"], "choices of a prompt must be a list of texts with words, got 'red'; write at least one"),
        (1, [["red", " "]], r"must be a list of texts with words, got \['red', ' '\]; write at least one"),
        (1, [["purple"]], "every word must be in the vocabulary of .* got 'purple'"),
    ],
)
def test_choices_that_cannot_be_compared(count, choices, message):
    lm = model()
    with pytest.raises(ValueError, match=message):
        choose(lm, prompts(lm)[:count], choices)
