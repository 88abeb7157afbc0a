"""What tokenizing a large data set takes on many machines: measured rates, extrapolated, and shards dealt out in time.

    python benchmarks/scaling.py --rate 250 --row 208 --picture 2500 [--pictures 1300000] [--machines 1 4 16 64]

Processes take the next shard that nobody is making, as ``smalti tokenize`` does, and each picture costs ``1 / rate``
seconds of one of them. Simulated are the shards alone: how long the last one is waited for. Beside it stand what all
processes read together, and what they write: a disk or a network that gives less than this is what saturates first.
"""

from __future__ import annotations

import argparse
import heapq
import random


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
    parser.add_argument("--rate", type=float, required=True, help="pictures a second of one process, measured")
    parser.add_argument("--row", type=float, required=True, help="bytes of a row of the store, measured")
    parser.add_argument("--picture", type=float, required=True, help="bytes of an encoded picture")
    parser.add_argument("--pictures", type=int, nargs="+", default=[1_300_000, 100_000_000])
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--processes", type=int, default=8, help="of a machine")
    parser.add_argument("--shard", type=int, nargs="+", default=[50_000, 10_000])
    parser.add_argument("--spread", type=float, default=0.1)
    args = parser.parse_args()
    print("| pictures | machines | shard | shards | time | of ideal | read MB/s | store | written KB/s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for pictures in args.pictures:
        for machines in args.machines:
            for shard in args.shard:
                processes = machines * args.processes
                taken = makespan(pictures, shard, processes, args.rate, args.spread)
                share = pictures / (args.rate * processes) / taken
                read, size = pictures * args.picture / taken / 1e6, pictures * args.row / 1e9
                cells = [f"{pictures:,}", str(machines), f"{shard:,}", f"{-(-pictures // shard):,}", told(taken)]
                cells += [f"{share:.0%}", f"{read:.1f}", f"{size:.2f} GB", f"{size * 1e6 / taken:.1f}"]
                print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
