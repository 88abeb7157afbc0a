"""CIDEr-D by hand and against a slow path of dense vectors; COCO's file."""

import json
import math
import random
from itertools import chain

import numpy as np
import pytest

from smalti.eval.understanding.captions import read_captions, score_captions
from smalti.eval.understanding.cider import cider_d, plain_words

REFERENCES = [[["a", "b"]], [["a", "c"]]]


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        ("a b", 5.0),  # one- and two-grams alike, three- and four-grams absent; "a" weighs nothing
        ("b", 2.5 * math.exp(-1 / 72)),  # no pair of words where there is one
        ("b b", 1.25),  # twice the word counts once
        ("a", 0.0),
        ("", 0.0),
        ("x y", 0.0),
    ],
)
def test_by_hand(candidate, expected):
    assert cider_d([candidate.split(), ["a", "c"]], REFERENCES) == pytest.approx([expected, 5.0])


def slow(candidates, references):
    """Dense vectors over every n-gram that occurs."""

    def grams(words, order):
        return [tuple(words[at : at + order]) for at in range(len(words) - order + 1)]

    total = [0.0] * len(candidates)
    for order in (1, 2, 3, 4):
        every = sorted({g for words in [*candidates, *chain(*references)] for g in grams(words, order)})
        df = np.array([max(1, sum(any(g in grams(r, order) for r in group) for group in references)) for g in every])
        idf = np.log(len(references)) - np.log(df)
        for at, (words, group) in enumerate(zip(candidates, references, strict=True)):
            mine = np.array([grams(words, order).count(g) for g in every]) * idf
            for reference in group:
                theirs = np.array([grams(reference, order).count(g) for g in every]) * idf
                norms = np.linalg.norm(mine) * np.linalg.norm(theirs)
                gap = max(len(words) - 1, 0) - max(len(reference) - 1, 0)
                if norms:
                    cosine = np.minimum(mine, theirs) @ theirs / norms
                    total[at] += 10 / 4 / len(group) * cosine * math.exp(-(gap**2) / 72)
    return total


def test_against_dense_vectors():
    draw = random.Random(0)

    def sentence():
        return [draw.choice("abcdefg") for _ in range(draw.randint(0, 9))]

    candidates = [sentence() for _ in range(12)]
    references = [[sentence() for _ in range(draw.randint(1, 4))] for _ in range(12)]
    assert cider_d(candidates, references) == pytest.approx(slow(candidates, references), abs=1e-12)


def test_every_caption_needs_references():
    for references in ([[], [["a"]]], []):
        with pytest.raises(
            ValueError, match=r"at least one reference for each of at least one picture, got . of . pict"
        ):
            cider_d([["a"]] * len(references), references)
    with pytest.raises(ValueError, match="one caption for each picture, got 1 captions for 2 pictures; caption every"):
        cider_d([["a"]], REFERENCES)


def test_plain_words():
    said = "a dog 's bowl is n't it 2 big".split()  # noqa: SIM905
    assert (
        plain_words("A dog's bowl -- isn't it 2_big?")
        == plain_words("A dog\u2019s bowl isn\u2019t it, 2 'big'")
        == said
    )
    assert plain_words("A well-worn o'clock, 'sitting'.") == ["a", "well-worn", "o'clock", "sitting"]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "captions_val2014.json"
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}]
    said = [(7, "A red ring."), (9, "Two stars."), (7, "a ring")]
    annotations = [{"image_id": name, "id": at, "caption": text} for at, (name, text) in enumerate(said)]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def test_reading_and_scoring(path):
    items = read_captions([path])
    assert [(item.id, item.image, item.answers) for item in items] == [
        ("7", "a.jpg", ("A red ring.", "a ring")),
        ("9", "b.jpg", ("Two stars.",)),
    ]
    for normalisation in ("official", "always"):  # COCO's script tokenises both always
        assert score_captions(items, ["", "two stars"], normalisation)["cider_d"] == pytest.approx(2.5)
    assert score_captions(items, ["", "two stars"], "tokenised")["cider_d"] == 0
    assert score_captions(items, ["", "Two stars."], "tokenised")["cider_d"] == pytest.approx(2.5)


def test_wrong_files(path):
    content = json.loads(path.read_text())
    with pytest.raises(ValueError, match="captions are read from one file, got 2"):
        read_captions([path, path])
    path.write_text(json.dumps(content | {"images": content["images"][:1]}))
    with pytest.raises(
        ValueError, match=r"a picture for every caption .*got a caption of picture 9, which is not listed"
    ):
        read_captions([path])
    path.write_text(json.dumps(content | {"annotations": content["annotations"][::2]}))
    with pytest.raises(ValueError, match=r"captions of every picture .*got none of picture 9"):
        read_captions([path])
