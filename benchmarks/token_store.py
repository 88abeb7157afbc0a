"""A token store beside the pictures it was made from: size, rate of reading, and steps of a language model.

    python benchmarks/token_store.py train.tar --captions json.caption --tokenizer DIR [--steps 30] [--runs 3] [--check]

Tokenizes the pictures into a store of a temporary folder (or ``--store``, which is kept and gone on with), then reads
it back row by row in a random order, and trains the same small language model in turn from the store and from the
pictures, which are tokenized in its steps. Ratios are of medians. ``--check`` also decodes every row and its picture's
fresh codes and compares all pixels.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from smalti.cli.tokenize import caption_source
from smalti.data.base import ImageSource
from smalti.data.pictures import Pictures, collate
from smalti.data.store import TokenStore
from smalti.data.transforms import Crop
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.base import VisualTokenizer
from smalti.tokenizers.codes import Codes, CodeSpec
from smalti.training.encode import saved_tokenizer, texts_of
from smalti.training.lm import LanguageModelTraining, TokenData
from smalti.training.pictures import PictureTextData
from smalti.training.resume import ResumableData
from smalti.training.tokenize import TokenizeSettings, tokenize_source

BACKBONE = {
    "model_type": "llama", "hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 4,
    "num_attention_heads": 6, "max_position_embeddings": 1024,
}  # fmt: skip


def read_rate(store: TokenStore, count: int = 20_000) -> float:
    """Rows a second, one by one in a random order, from a store that was just opened."""
    order = np.random.default_rng(0).integers(len(store), size=count).tolist()
    begun = time.perf_counter()
    for index in order:
        store[index]
    return count / (time.perf_counter() - begun)


def encode_rate(tokenizer: VisualTokenizer, source: ImageSource, batch: int, count: int = 512) -> float:
    """Pictures a second from their file to their codes."""
    pictures = Pictures(source, Crop(tokenizer.image_size))
    begun = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, count, batch):
            tokenizer.encode(collate([pictures[index] for index in range(start, start + batch)])["images"])
    return count / (time.perf_counter() - begun)


class Steps(Callback):
    """Times of the ends of steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def step_seconds(make: Callable[[], LanguageModelTraining], data: ResumableData, steps: int) -> tuple[float, float]:
    """Median seconds from step to step, reading included, and the share of them that was waited for data."""
    clock = Steps()
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", precision="bf16-mixed", callbacks=[clock], limit_val_batches=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    begun = time.perf_counter()
    trainer.fit(make(), data)
    gaps = [after - before for before, after in zip(clock.ends[2:], clock.ends[3:], strict=False)]
    return statistics.median(gaps), data.waited / (time.perf_counter() - begun)


def same_pixels(tokenizer: VisualTokenizer, source: ImageSource, store: TokenStore, batch: int) -> int:
    """How many rows decode to other pixels than the fresh codes of their pictures."""
    pictures, spec = Pictures(source, Crop(tokenizer.image_size)), CodeSpec.from_dict(store.spec)
    other = 0
    with torch.inference_mode():
        for start in range(0, len(store), batch):
            rows = range(start, min(start + batch, len(store)))
            images = collate([pictures[int(store[row]["image"])] for row in rows])["images"]
            stored = tokenizer.decode(Codes.full(store.ids(rows.start, rows.stop), spec))
            fresh = tokenizer.decode(tokenizer.encode(images))
            other += int((stored != fresh).flatten(1).any(1).sum())
    return other


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--captions", default=None)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--store")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    source, tokenizer = caption_source(args.pictures, None, args.captions), saved_tokenizer(args.tokenizer)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.store or Path(temporary) / "store")
        settings = TokenizeSettings(Crop(tokenizer.image_size), batch_size=args.batch, workers=args.workers)
        done = tokenize_source(tokenizer, source, folder, "pictures", settings)
        if done.pictures:
            print(f"tokenize   {done.pictures / done.seconds:8.1f}/s, {done.waited / done.seconds:.1%} waiting")
        store = TokenStore(folder)
        size, bits = sum(shard["bytes"] for shard in store.index["shards"]), CodeSpec.from_dict(store.spec).bits
        share = size / len(store) / (bits / 8)
        print(f"bytes      {size / len(store):8.1f} a row, {bits / 8:.1f} of codes x bits: {share:.3f}")
        read, encode = [], []
        for _ in range(args.runs):
            read.append(read_rate(TokenStore(folder)))
            encode.append(encode_rate(tokenizer, source, args.batch))
        ratio = statistics.median(read) / statistics.median(encode)
        print(
            f"read       {statistics.median(read):8.0f} rows/s, encode {statistics.median(encode):.1f}/s: {ratio:.0f}x"
        )
        vocabulary = Vocabulary.train(list({*texts_of(source)}))

        def make() -> LanguageModelTraining:
            return LanguageModelTraining(args.tokenizer, vocabulary, dict(BACKBONE))

        found: dict[str, list[tuple[float, float]]] = {"store": [], "pictures": []}
        for _ in range(args.runs):
            found["store"].append(step_seconds(make, TokenData(str(folder)), args.steps))
            data = PictureTextData(source, tokenizer.image_size[0])
            found["pictures"].append(step_seconds(make, data, args.steps))
        taken = {name: statistics.median(seconds for seconds, _ in runs) for name, runs in found.items()}
        for name, runs in found.items():
            waited = statistics.median(share for _, share in runs)
            print(f"train from {name:<9}{1 / taken[name]:6.2f} steps/s, {waited:.2%} of the run waiting for data")
        print(f"           {taken['pictures'] / taken['store']:.2f} x the steps of training on pictures")
        if args.check:
            print(f"decoded    {same_pixels(tokenizer, source, store, args.batch)} of {len(store)} rows differ")


if __name__ == "__main__":
    main()
