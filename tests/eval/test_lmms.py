"""The plug-in of lmms-eval: what it makes of requests, and toy tasks through lmms-eval itself where it is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from smalti.data.transforms import Crop, to_tensor
from smalti.eval import lmms
from smalti.eval.lmms_models import ChatAnswers, Options, Pictures, SimpleAnswers
from smalti.generation.pipeline import TextToImagePipeline
from smalti.generation.text import TextSampling, write_text
from smalti.lm.model import SharedLM
from smalti.lm.sequences import Rows
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

TEXTS = ["is there a red circle", "is there a blue square", "how many rings yes no two three"]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
QUESTIONS = ["is there a red circle", "is there a blue square", "how many rings", "is there a blue circle"]
SHORT = {"max_new_tokens": 3, "until": ["\n\n"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of 16 codes per picture and a context of 64, with answers that depend on the picture."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(2)
        parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
        quantizer = VectorQuantizer(dim=4, codebook_size=16)
        tokenizer = VQTokenizer(ConvEncoder(**parts), quantizer, ConvDecoder(**parts), 8).eval()
        lm = SharedLM.build(LLAMA, Vocabulary.train(TEXTS), tokenizer.spec, tokenizer.fingerprint())
        for weight in lm.parameters():
            if weight.ndim == 2:  # large, so that what is written depends on all that is read
                torch.nn.init.normal_(weight)
    TextToImagePipeline(tokenizer, lm).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipe(folder):
    return TextToImagePipeline.from_pretrained(folder)


def picture(number):
    levels = torch.randint(0, 256, (12, 9, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
    return Image.fromarray(levels.numpy())


def pixels(*numbers):
    return torch.stack([to_tensor(Crop(8)(picture(number))) for number in numbers])


DOCS = [{"number": number, "question": question} for number, question in enumerate(QUESTIONS)]
TASKS = {"toy": {"test": DOCS}}


def visual(doc):
    return [picture(doc["number"])]


def request(*arguments):
    return SimpleNamespace(args=arguments)


def simple(folder, **options):
    model = SimpleAnswers(folder, **options)
    model.task_dict = TASKS
    return model


def chat(folder, **options):
    model = ChatAnswers(folder, **options)
    model.task_dict = TASKS
    return model


def asked(given=SHORT, doc_to_visual=visual):
    return [request(doc["question"], given, doc_to_visual, doc["number"], "toy", "test") for doc in DOCS]


def told(doc_to_messages, given=SHORT):
    return [request("unused", doc_to_messages, given, doc["number"], "toy", "test") for doc in DOCS]


def shown(number):
    return {"type": "image", "url": picture(number)}


def said(text):
    return {"type": "text", "text": text}


def messages(doc):
    return [{"role": "user", "content": [shown(doc["number"]), said(doc["question"])]}]


def expected(pipe, limit=3):
    return pipe.ask(pixels(0, 1, 2, 3), QUESTIONS, TextSampling(limit=limit))


def test_lmms_eval_is_not_imported_with_the_package():
    code = "import sys, smalti.eval.lmms; print('lmms_eval' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False"], done.stderr


@pytest.mark.parametrize("use", [lmms.manifest, lmms.picture_manifest, lambda: lmms.SmaltiSimple])
def test_without_lmms_eval_one_line_says_so(monkeypatch, use):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lmms_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    lmms._model.cache_clear()
    with pytest.raises(ImportError, match=r"needs lmms-eval 0.7 or later, of which \S+ is not installed; pip"):
        use()


def test_other_names_are_none_of_the_module():
    with pytest.raises(AttributeError, match=r"module 'smalti.eval.lmms' has no attribute 'SmaltiVideo'"):
        _ = lmms.SmaltiVideo


@pytest.mark.parametrize("batch_size", [1, "3", 8])
def test_simple_requests_are_questions_about_pictures(folder, pipe, batch_size):
    answers = expected(pipe)
    assert len(set(answers)) > 2  # so that a mixed up order would show
    assert simple(folder, batch_size=batch_size).generate_until(asked()) == answers


def test_requests_of_unlike_arguments_keep_their_order(folder, pipe):
    requests = [asked({"max_new_tokens": 1 + number % 2})[number] for number in range(4)]
    long, short = expected(pipe, 2), expected(pipe, 1)
    model = simple(folder, batch_size=4)
    assert model.generate_until(requests) == [short[0], long[1], short[2], long[3]]
    assert model.generate_until([]) == []


def test_chat_messages_are_questions_about_pictures(folder, pipe):
    assert chat(folder, batch_size=4).generate_until(told(messages)) == expected(pipe)

    def plain(doc):
        return [{"role": "user", "content": [shown(doc["number"])]}, {"role": "user", "content": doc["question"]}]

    assert chat(folder, batch_size=4).generate_until(told(plain)) == expected(pipe)


def test_earlier_turns_are_read_in_the_form_that_training_has(folder, pipe):
    def conversation(doc):
        return [
            {"role": "system", "content": [said("two")]},
            {"role": "user", "content": [shown(doc["number"]), said("is there a circle")]},
            {"role": "assistant", "content": [said("yes")]},
            {"role": "user", "content": [said(doc["question"])]},
        ]

    layout, ids = pipe.lm.layout, pipe.encode(pixels(0, 1, 2, 3)).ids
    rows = list[Rows]()
    for row, question in zip(ids, QUESTIONS, strict=True):
        example = layout.image_to_text(row, None, [("two is there a circle", "yes"), (question, "no")])
        whole = torch.cat([example.tokens, example.slots[:, None]], dim=1)
        rows.append(Rows(whole[:-2]))  # all but the answer and <eos>
    answers = write_text(pipe.lm, rows, TextSampling(limit=3))
    assert answers != expected(pipe)
    assert chat(folder, batch_size=4).generate_until(told(conversation)) == answers


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, Options(TextSampling(limit=8), ())),
        ({"max_new_tokens": 16, "until": ["\n\n", "."]}, Options(TextSampling(limit=16), ("\n\n", "."))),
        ({"until": "\n", "do_sample": False, "temperature": 0.7}, Options(TextSampling(limit=8), ("\n",))),
        ({"do_sample": True}, Options(TextSampling(limit=8, temperature=1.0), ())),
        (
            {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "num_beams": 2, "repetition_penalty": 1.1},
            Options(TextSampling(8, 2, 0.5, 5, 0.9, 1.1), ()),
        ),
        ({"temperature": 0, "top_p": None, "num_beams": None}, Options(TextSampling(limit=8), ())),
    ],
)
def test_generation_arguments(given, options):
    assert Options.of(given) == options


def test_arguments_of_other_models_are_named(folder, caplog):
    simple(folder, batch_size=4).generate_until(asked({**SHORT, "image_aspect_ratio": "pad", "use_cache": True}))
    assert "image_aspect_ratio, use_cache mean nothing to a smalti model" in caplog.text
    caplog.clear()
    simple(folder).generate_until(asked()[:1])
    assert not caplog.text


def test_text_ends_before_the_first_stop(folder, pipe):
    options = Options(TextSampling(), ("stop", "\n", ""))
    assert options.cut(" yes it is \n no stop") == "yes it is"
    assert options.cut("yes stop\nno") == "yes"
    assert options.cut(" yes ") == "yes"
    whole = expected(pipe, 6)
    word = whole[0].split()[-1]
    cut = simple(folder).generate_until(asked({"max_new_tokens": 6, "until": [word]})[:1])
    assert cut == [whole[0][: whole[0].index(word)].strip()]


def test_text_ends_with_the_context(folder, pipe):
    rows = len(pipe.lm.layout.image(pipe.encode(pixels(0)).ids[0])) + len(pipe.lm.layout.question(QUESTIONS[0]))
    room = expected(pipe, 64 - rows)[0]
    assert simple(folder).generate_until(asked({"max_new_tokens": 1024})[:1]) == [room]


def test_draws_differ_between_repeats(folder):
    drawn = simple(folder).generate_until([asked({"max_new_tokens": 6, "temperature": 3.0})[0]] * 3)
    assert len(set(drawn)) == 3
    assert drawn == simple(folder).generate_until([asked({"max_new_tokens": 6, "temperature": 3.0})[0]] * 3)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_likelihoods_are_those_of_the_pipeline(folder, pipe, batch_size):
    choices, requests = ["yes", "no", "two rings"], list[SimpleNamespace]()
    for doc in DOCS:
        for choice in choices:
            requests.append(request(doc["question"], f" {choice}", visual, doc["number"], "toy", "test"))
    found = simple(folder, batch_size=batch_size).loglikelihood(requests)
    layout, ids = pipe.lm.layout, pipe.encode(pixels(0, 1, 2, 3)).ids
    for number, question in enumerate(QUESTIONS):
        read = [layout.image_to_text(ids[number], None, [(question, choice)]) for choice in choices]
        losses = (-pipe.lm.text_likelihood(layout.collate(read))).tolist()
        assert [value for value, _ in found[3 * number : 3 * number + 3]] == pytest.approx(losses, rel=1e-4)
    chosen = pipe.choose(pixels(0, 1, 2, 3), QUESTIONS, [choices] * 4)
    best = [min(range(3), key=lambda choice: found[3 * number + choice][0]) for number in range(4)]
    assert [choices[index] for index in best] == chosen


def test_a_continuation_is_greedy_where_it_is_what_is_written(folder, pipe):
    written = zip(DOCS, expected(pipe, 8), strict=True)
    ended = [(doc, text) for doc, text in written if 1 < len(text.split()) < 8]  # by themselves
    assert len(ended) > 1
    requests = list[SimpleNamespace]()
    for doc, text in ended:
        for choice in (lambda _, text=text: text, f"{text} two", text.rpartition(" ")[0]):
            requests.append(request(doc["question"], choice, visual, doc["number"], "toy", "test"))
    found = simple(folder, batch_size=3).loglikelihood(requests)
    assert [greedy for _, greedy in found] == [True, False, False] * len(ended)


def rounds(doc, previous_output, round_idx, previous_round_info):
    """Two rounds about the first picture, for odd documents a third about another."""
    assert len(previous_output) == round_idx
    assert previous_round_info == (None if round_idx == 1 else round_idx - 1)
    if round_idx == 3 or (round_idx == 2 and doc["number"] % 2 == 0):
        return None, None, True, [*previous_output, "end"], None
    picked = [picture(9)] if round_idx == 2 else None
    return picked, "how many rings", False, previous_output, round_idx


def in_rounds(pipe):
    first, sampling = expected(pipe), TextSampling(limit=3)
    second = pipe.ask(pixels(0, 1, 2, 3), ["how many rings"] * 4, sampling)
    third = pipe.ask(pixels(9), ["how many rings"], sampling)[0]
    return [
        [one, two, *([third] if number % 2 else []), "end"]
        for number, (one, two) in enumerate(zip(first, second, strict=True))
    ]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_several_rounds_in_the_simple_form(folder, pipe, batch_size):
    requests = [request(doc["question"], SHORT, visual, rounds, doc["number"], "toy", "test") for doc in DOCS]
    assert simple(folder, batch_size=batch_size).generate_until_multi_round(requests) == in_rounds(pipe)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_several_rounds_in_the_chat_form(folder, pipe, batch_size):
    def turn(doc, round_idx=None, **rest):
        if round_idx is None:
            return messages(doc)
        pictures, text, ended, outputs, info = rounds(doc, round_idx=round_idx, **rest)
        if ended:
            return None, True, outputs, info
        content = [*({"type": "image", "url": one} for one in pictures or []), said(text)]
        return [{"role": "user", "content": content}], False, outputs, info

    assert chat(folder, batch_size=batch_size).generate_until_multi_round(told(turn)) == in_rounds(pipe)


@pytest.mark.parametrize(
    ("visuals", "kinds"),
    [(lambda doc: [], r"0 \(none\)"), (lambda doc: ["a.mp4"], r"1 \(str\)"), (lambda doc: None, r"0 \(none\)")],
)
def test_anything_but_one_picture_is_refused(folder, visuals, kinds):
    with pytest.raises(ValueError, match=f"asked about exactly one picture, got {kinds} for document 0 of task toy;"):
        simple(folder).generate_until(asked(doc_to_visual=visuals))


def test_several_pictures_in_a_chat_are_refused(folder):
    def two(doc):
        return [{"role": "user", "content": [shown(0), shown(1), said("how many rings")]}]

    with pytest.raises(ValueError, match=r"got 2 \(Image, Image\) for document 0 of task toy; choose tasks about"):
        chat(folder).generate_until(told(two))


@pytest.mark.parametrize("roles", [[], ["assistant"], ["user", "assistant"]])
def test_conversations_begin_and_end_with_a_question(folder, roles):
    def conversation(doc):
        return [{"role": role, "content": [shown(0), said("yes")]} for role in roles]

    with pytest.raises(ValueError, match=r"must begin and end with a question, got roles \[.*\] for document 0 of"):
        chat(folder).generate_until(told(conversation))


def test_unknown_words_are_named(folder):
    with pytest.raises(ValueError, match=r"got 'cirkle' \(near: circle\)"):
        simple(folder).generate_until([request("is there a cirkle", SHORT, visual, 0, "toy", "test")])


@pytest.mark.parametrize("wrong", ["auto", 0, "-1", 2.5])
def test_batch_sizes_are_whole_numbers(folder, wrong):
    with pytest.raises(ValueError, match=r"batch_size must be a whole number >= 1, got .*; pass --batch_size 16"):
        SimpleAnswers(folder, batch_size=wrong)


def test_several_processes_are_refused(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="is evaluated by one process, got WORLD_SIZE 2; start python -m lmms_eval"):
        SimpleAnswers(folder)


def test_no_model_in_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="should hold a text-to-image model but lacks"):
        SimpleAnswers(tmp_path / "nowhere")


def drawing():
    return [request(prompt, {}, visual, number, "draw/toy", "test") for number, prompt in enumerate(TEXTS[:2])]


def test_pictures_lie_where_tasks_look_for_them(folder, pipe, tmp_path):
    model = Pictures(folder, tmp_path / "out", num_images_per_prompt=2, seed=5, batch_size=3)
    assert model.generate_until(drawing()) == [str(tmp_path / "out" / "draw_toy")] * 2
    made = sorted(path.name for path in (tmp_path / "out" / "draw_toy").iterdir())
    assert made == ["0000_s0.png", "0000_s1.png", "0001_s0.png", "0001_s1.png"]
    for name in made:
        prompt, seed = TEXTS[int(name[:4])], 5 + int(name[6])
        found = torch.tensor(list(Image.open(tmp_path / "out" / "draw_toy" / name).tobytes()))
        single = torch.tensor(list(pipe(prompt, seed, progress=False)[0].tobytes()))
        assert bool(((found - single).abs() <= 1).all()), name  # batches round differently


def test_unknown_words_are_named_before_anything_is_drawn(folder, tmp_path):
    wrong = [*drawing(), request("a cirkle", {}, visual, 2, "draw/toy", "test")]
    with pytest.raises(ValueError, match=r"got 'cirkle' \(near: circle\)"):
        Pictures(folder, tmp_path).generate_until(wrong)
    assert not list(tmp_path.iterdir())


def test_a_model_that_draws_answers_nothing(folder, tmp_path):
    model = Pictures(folder, tmp_path)
    with pytest.raises(ValueError, match="draws pictures, got a task of likelihoods; use --model smalti"):
        model.loglikelihood([])
    with pytest.raises(ValueError, match="draws pictures, got a task of several rounds; use --model smalti"):
        model.generate_until_multi_round([])
    with pytest.raises(ValueError, match="num_images_per_prompt must be >= 1, got 0; 4 is usual"):
        Pictures(folder, tmp_path, num_images_per_prompt=0)


UTILS = """
from pathlib import Path
from PIL import Image

def visual(doc):
    return [Image.open(doc["path"])]

def text(doc, lmms_eval_specific_kwargs=None, round_idx=None, previous_output=None, previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    return [Image.open(doc["path"])], "how many rings", round_idx == 2, previous_output, round_idx

def right(doc, results):
    return {"acc": float(results[0] == doc["answer"])}

def right_in_rounds(doc, results):
    return {"acc": float(results[0] == [doc["answer"], doc["second"]])}

def drawn(doc, results):
    return {"acc": float(sum(1 for _ in Path(results[0]).glob(f"{doc['number']:04d}_s*.png")))}
"""

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
  cache_dir: {cache}
test_split: test
output_type: {kind}
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: {target}
{rest}
metric_list:
- metric: acc
  aggregation: mean
  higher_is_better: true
"""

GENERATED = 'process_results: !function utils.{}\ngeneration_kwargs: {{max_new_tokens: 3, until: ["\\n\\n"]}}'


@pytest.fixture(scope="module")
def toy(pipe, tmp_path_factory):
    """A folder of four tasks on four pictures; the model's own answers are the truth for the first three pictures."""
    pytest.importorskip("lmms_eval")
    folder = tmp_path_factory.mktemp("tasks")
    answers, second = expected(pipe), pipe.ask(pixels(0, 1, 2, 3), ["how many rings"] * 4, TextSampling(limit=3))
    answers[3] = "none"
    chosen = pipe.choose(pixels(0, 1, 2, 3), QUESTIONS, [["yes", "no", "two"]] * 4)
    docs = list[dict[str, object]]()
    for doc, answer, follow, best in zip(DOCS, answers, second, chosen, strict=True):
        picture(doc["number"]).save(folder / f"{doc['number']}.png")
        likely = ["yes", "no", "two"].index(best)
        truth = {"answer": answer, "second": follow, "likely": (likely + (doc["number"] == 3)) % 3}
        docs.append({**doc, "path": str(folder / f"{doc['number']}.png"), **truth})
    (folder / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)))
    (folder / "utils.py").write_text(UTILS)
    tasks = {
        "toy_pope": ("generate_until", "answer", GENERATED.format("right")),
        "toy_rounds": ("generate_until_multi_round", "answer", GENERATED.format("right_in_rounds")),
        "toy_choice": ("multiple_choice", "likely", 'doc_to_choice: ["yes", "no", "two"]'),
        "toy_draw": ("generate_until", "answer", GENERATED.format("drawn")),
    }
    for name, (kind, target, rest) in tasks.items():
        text = TASK.format(
            name=name, data=folder / "docs.jsonl", cache=folder / "cache", kind=kind, target=target, rest=rest
        )
        (folder / f"{name}.yaml").write_text(text)
    return folder


def evaluated(toy, task, model, arguments, simple):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    for manifest in (lmms.manifest(), lmms.picture_manifest()):  # an older installation may lack the entry points
        MODEL_REGISTRY_V2.register_manifest(manifest, overwrite=True)
    lmms._model.cache_clear()
    found = simple_evaluate(
        model=model,
        model_args=",".join(f"{name}={value}" for name, value in arguments.items()),
        batch_size=2,
        device="cpu",
        tasks=[task],
        task_manager=TaskManager(include_path=str(toy), include_defaults=False),
        force_simple=simple,
        bootstrap_iters=0,
    )
    return found["results"][task]["acc,none"], found["config"]["model"]


@pytest.mark.parametrize("simple", [True, False], ids=["simple", "chat"])
@pytest.mark.parametrize("task", ["toy_pope", "toy_rounds"])
def test_lmms_eval_runs_a_local_task(toy, folder, task, simple):
    # Every answer but the last is the model's own.
    assert evaluated(toy, task, "smalti", {"pretrained": folder}, simple) == (0.75, "smalti")


def test_lmms_eval_runs_a_local_task_of_choices(toy, folder):
    assert evaluated(toy, "toy_choice", "smalti", {"pretrained": folder}, True) == (0.75, "smalti")


def test_lmms_eval_has_pictures_drawn(toy, folder, tmp_path):
    arguments = {"pretrained": folder, "output_dir": tmp_path, "num_images_per_prompt": 2}
    assert evaluated(toy, "toy_draw", "smalti_t2i", arguments, True) == (2.0, "smalti_t2i")
    assert len(list((tmp_path / "toy_draw").glob("*.png"))) == 8
