"""What tokenizing a large data set takes on many machines: measured rates, extrapolated, and shards dealt out in time.

    python benchmarks/scaling.py PICTURES --tokenizer DIR [--count 200] [--machines 1 4 16 64] [--processes 8]

Measured in one thread of one process: pictures read, cropped and resized a second, and pictures encoded a second; a
process of the extrapolation does both in turn on one core. Processes take the next shard that nobody is making, as
``smalti tokenize`` does. Simulated are the shards alone: how long the last one is waited for. Beside it stand what all
processes read together, and what they write: a disk or a network that gives less than this is what saturates first.
"""

from __future__ import annotations

import argparse
import heapq
import random
import time
from dataclasses import dataclass
from io import BytesIO

import torch

from smalti.cli.tokenize import caption_source
from smalti.data.base import ImageSource
from smalti.data.pictures import Pictures, collate
from smalti.data.transforms import Crop
from smalti.tokenizers.base import VisualTokenizer
from smalti.training.encode import saved_tokenizer


@dataclass(frozen=True)
class Rates:
    """Of one core."""

    read: float  #: pictures a second, decoded and cropped
    encode: float  #: pictures a second
    picture: float  #: bytes of one, as a JPEG of quality 90 of its own size

    @property
    def both(self) -> float:
        """Pictures a second of a process that does one after the other."""
        return 1 / (1 / self.read + 1 / self.encode)


def measured(tokenizer: VisualTokenizer, source: ImageSource, count: int, batch: int) -> Rates:
    """Rates over the first pictures of a source, in one thread."""
    torch.set_num_threads(1)
    pictures, count = Pictures(source, Crop(tokenizer.image_size)), min(count, len(source))
    size = 0
    for index in range(min(16, count)):
        file = BytesIO()
        source.picture(index).save(file, "JPEG", quality=90)
        size += file.tell()
    begun = time.perf_counter()
    items = [pictures[index] for index in range(count)]
    read, begun = count / (time.perf_counter() - begun), time.perf_counter()
    with torch.inference_mode():
        for start in range(0, count, batch):
            tokenizer.encode(collate(items[start : start + batch])["images"])
    return Rates(read, count / (time.perf_counter() - begun), size / min(16, count))


def makespan(pictures: int, shard: int, processes: int, rate: float, spread: float, seed: int = 0) -> float:
    """Seconds until the last shard is written.

    Args:
        pictures: in all.
        shard: pictures of a shard.
        processes: that take shards.
        rate: pictures a second of one process.
        spread: relative standard deviation of the rate between shards.
        seed: of that.
    """
    draw = random.Random(seed)
    free = [0.0] * processes
    heapq.heapify(free)
    for start in range(0, pictures, shard):
        taken = min(shard, pictures - start) / (rate * max(0.2, draw.gauss(1, spread)))
        heapq.heappush(free, heapq.heappop(free) + taken)
    return max(free)


def told(seconds: float) -> str:
    """A duration in its own unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="+")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--overhead", type=float, default=1.01, help="bytes of a row over codes x bits, measured")
    parser.add_argument("--pictures", type=int, nargs="+", default=[1_300_000, 100_000_000])
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--processes", type=int, default=8, help="of a machine")
    parser.add_argument("--shard", type=int, nargs="+", default=[50_000, 10_000])
    parser.add_argument("--spread", type=float, default=0.1)
    args = parser.parse_args()
    tokenizer = saved_tokenizer(args.tokenizer)
    rates = measured(tokenizer, caption_source(args.source, None, None), args.count, args.batch)
    row = tokenizer.spec.bits / 8 * args.overhead
    print(f"read {rates.read:.1f}/s, encode {rates.encode:.2f}/s, both {rates.both:.2f}/s on one core")
    print(f"{rates.picture / 1e3:.1f} KB a picture, {row:.0f} bytes a row\n")
    print("| pictures | machines | shard | shards | time | of ideal | read MB/s | store | written KB/s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for pictures in args.pictures:
        for machines in args.machines:
            for shard in args.shard:
                processes = machines * args.processes
                taken = makespan(pictures, shard, processes, rates.both, args.spread)
                share = pictures / (rates.both * processes) / taken
                read, size = pictures * rates.picture / taken / 1e6, pictures * row / 1e9
                cells = [f"{pictures:,}", str(machines), f"{shard:,}", f"{-(-pictures // shard):,}", told(taken)]
                cells += [f"{share:.0%}", f"{read:.1f}", f"{size:.2f} GB", f"{size * 1e6 / taken:.1f}"]
                print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
