"""COCO captions (arXiv 1504.00325): several reference sentences per picture. Scored by :mod:`.cider`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .cider import cider_d, plain_words
from .items import Item, Normalisation, Scores, damaged, read_json, section, text_of


def read_captions(files: Sequence[Path]) -> list[Item]:
    """Pictures with their reference captions; the id is the picture's.

    Args:
        files: one file of ``{images: [{id, file_name}], annotations: [{image_id, caption}]}``.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: more files, a damaged one, or a picture without captions.
    """
    if len(files) != 1:
        raise ValueError(f"captions are read from one file, got {len(files)}; give that of one split")
    (path,) = files
    content = read_json(path)
    images, annotations = section(content, "images", path), section(content, "annotations", path)
    said: dict[str, list[str]] = {text_of(entry, "id", path, number): [] for number, entry in enumerate(images, 1)}
    for number, entry in enumerate(annotations, 1):
        name = text_of(entry, "image_id", path, number)
        if name not in said:
            raise damaged(path, "a picture for every caption", f"a caption of picture {name}, which is not listed")
        said[name].append(text_of(entry, "caption", path, number))
    bare = next((name for name, captions in said.items() if not captions), None)
    if bare is not None:
        raise damaged(path, "captions of every picture", f"none of picture {bare}")
    names = [text_of(entry, "file_name", path, number) for number, entry in enumerate(images, 1)]
    return [
        Item(name, image, "", tuple(captions), "all", "all")
        for image, (name, captions) in zip(names, said.items(), strict=True)
    ]


def score_captions(items: Sequence[Item], answers: Sequence[str], normalisation: Normalisation) -> Scores:
    """CIDEr-D in [0, 10].

    ``official`` and ``always`` put captions and references in lower case and drop every mark, as the official script
    always does with a Java tokenizer; `plain_words` says where it may split words otherwise. ``tokenised`` takes both
    as they are, words with spaces between them, for texts that went through that tokenizer.
    """
    prepare = str.split if normalisation == "tokenised" else plain_words
    references = [[prepare(text) for text in item.answers] for item in items]
    each = cider_d([prepare(answer) for answer in answers], references)
    return {"cider_d": sum(each) / len(each)}
