"""Seconds that images of codes take, order by order, beside the plain sampler of each order and beside raster.

    python benchmarks/generation.py [--shape b] [--grid 16] [--batch 1 4 16] [--runs 5] [--reference] [--memory] ...

The models are LlamaGen's for classes with random weights. What is compared runs in turn, after a warm-up of the fast
sampler; times are medians. ``--reference`` adds :func:`smalti.generation.reference.sample_plainly`, which attends to
buffers of full size under a mask and classifies both halves. ``--memory`` measures in processes of their own how far
the peak lies above the process before the model was there, beside what weights and caches are; ``--roofline`` divides
the bytes of weights and caches that passes read by the rate at which this machine copies, a floor that passes of few
rows come near.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from smalti.bridge.llamagen_lm import C2I, code_model
from smalti.eval.speed import peak_memory
from smalti.generation.orders import Grouped, Masked, Neighbouring, Order, Random, Raster, order_parts
from smalti.generation.reference import sample_plainly
from smalti.generation.sampler import sample_codes
from smalti.generation.sampling import Sampling
from smalti.lm.model import SharedLM
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

#: Configurations of LlamaGen's sizes, and one to try this file with.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {**C2I, "dim": 64, "n_head": 4, "n_layer": 2, "ffn_hidden": 128, "vocab_size": 512, "num_classes": 10},
    "b": C2I,
    "l": {**C2I, "dim": 1024, "n_layer": 24, "ffn_hidden": 2816},
    "xl": {**C2I, "dim": 1280, "n_layer": 36, "ffn_hidden": 3584},
}
ORDERS: Mapping[str, Order] = {
    "raster": Raster(),
    "neighbouring": Neighbouring(),
    "grouped": Grouped(),
    "random": Random(),
    "masked": Masked(),
}
SAMPLERS: Mapping[str, Callable[..., Any]] = {"fast": sample_codes, "plain": sample_plainly}
MIB = 2**20


@dataclass
class Times:
    """Seconds of one order at one batch."""

    fast: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)


def layout(args: argparse.Namespace) -> CodeLayout:
    """Of the codes."""
    return CodeLayout("grid", (args.grid, args.grid))


def built(name: str, args: argparse.Namespace) -> SharedLM:
    """The model of an order."""
    config = {**SHAPES[args.shape], "grid": args.grid}
    parts = order_parts(ORDERS[name], CodeSpec(layout(args), (Codebook("pixel", config["vocab_size"]),)))
    torch.manual_seed(0)
    model = code_model(config, 1, classes=config["num_classes"], **parts).eval()
    torch.nn.Module.to(model, args.device, getattr(torch, args.dtype))
    return model


def prepared(model: SharedLM, args: argparse.Namespace) -> SharedLM:
    """The model as the fast sampler gets it."""
    if args.pack:
        return model.pack()
    return model.compile_blocks() if args.compile else model


@dataclass(frozen=True)
class Subject:
    """What is measured of one order."""

    order: Order
    fast: SharedLM
    plain: SharedLM  #: the same weights, neither packed nor compiled
    weights: int  #: bytes
    read: int  #: bytes of them that every pass reads: all but input tables, of which it reads single rows

    @classmethod
    def of(cls, name: str, args: argparse.Namespace) -> Subject:
        """Of an order by name."""
        model = built(name, args)
        tables = [model.inputs.pieces[0], *(part.weight for part in (model.classes, model.queries) if part is not None)]
        weights, single = (sum(part.nbytes for part in parts) for parts in (model.parameters(), tables))
        plain = built(name, args) if args.reference and (args.pack or args.compile) else model
        return cls(ORDERS[name], prepared(model, args), plain, weights, weights - single)


def drawing(model: SharedLM, sampler: str, batch: int, args: argparse.Namespace) -> Callable[[], None]:
    """Draws a batch of images."""
    sampling = Sampling(guidance=args.guidance, top_k=args.top_k, top_p=args.top_p)

    def run() -> None:
        generators = [torch.Generator().manual_seed(index) for index in range(batch)]
        classes = [index % model.layout.classes for index in range(batch)]
        SAMPLERS[sampler](model, classes, generators, sampling)

    return run


def seconds(work: Callable[[], object], args: argparse.Namespace) -> float:
    """That one call takes."""
    start = time.perf_counter()
    work()
    if args.device != "cpu":
        torch.cuda.synchronize(args.device)
    return time.perf_counter() - start


def compared(subjects: Mapping[str, Subject], batch: int, args: argparse.Namespace) -> dict[str, Times]:
    """Times of all orders at one batch: order by order, the fast sampler and then the plain one, and again."""
    found = {name: Times() for name in subjects}
    for index in range(args.runs + 1):
        for name, subject in subjects.items():
            taken = seconds(drawing(subject.fast, "fast", batch, args), args)
            if index:
                found[name].fast.append(taken)
            if args.reference and 0 < index <= args.reference_runs:
                found[name].plain.append(seconds(drawing(subject.plain, "plain", batch, args), args))
    return found


def cache_row(model: SharedLM) -> int:
    """Bytes of the keys and values of one row of one sequence."""
    config = model.backbone.config
    layers = config.num_hidden_layers + model.config.directions - 1
    return 2 * layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize


def sequences(batch: int, args: argparse.Namespace) -> int:
    """Of a batch of images."""
    return batch * (1 + (args.guidance != 1))


def cache_bytes(subject: Subject, batch: int, args: argparse.Namespace) -> int:
    """Of keys and values in all."""
    plan = subject.order.plan(layout(args))
    return sequences(batch, args) * (1 + plan.count + plan.extras) * cache_row(subject.fast)


def read_bytes(subject: Subject, batch: int, args: argparse.Namespace) -> int:
    """Of weights and caches that all passes read."""
    plan, total = subject.order.plan(layout(args)), 0
    for step, start in enumerate(plan.starts[:-1]):
        asked = {"nothing": 0, "step": plan.sizes[step], "rest": plan.count - start}[plan.asks]
        extras = plan.extras if step >= plan.extras_pass else 0
        total += subject.read + sequences(batch, args) * (1 + start + extras + asked) * cache_row(subject.fast)
    return total


def copy_rate(args: argparse.Namespace) -> float:
    """Bytes a second that are read and written while a large tensor is copied."""
    source = torch.ones(64 * MIB, device=args.device)
    target = torch.empty_like(source)
    taken = [seconds(lambda: target.copy_(source), args) for _ in range(6)]
    return 2 * source.nbytes / median(taken[1:])


def resident() -> int:
    """Bytes of this process, from which its peak counts on where the system allows that."""
    reset = Path("/proc/self/clear_refs")
    if reset.is_file():
        reset.write_text("5")
    return peak_memory()


def measure_memory(args: argparse.Namespace) -> None:
    """One order, one batch, one sampler: print MiB of the peak above the process without a model."""
    (name,), (batch,), cuda = args.orders, args.batch, args.device != "cpu"
    before = 0 if cuda else resident()
    model = built(name, args)
    work = drawing(prepared(model, args) if args.sampler == "fast" else model, args.sampler, batch, args)
    if cuda:
        torch.cuda.reset_peak_memory_stats(args.device)
    else:
        resident()  # what it took to make the model does not count
    work()
    peak = torch.cuda.max_memory_allocated(args.device) if cuda else peak_memory()
    print(f"{(peak - before) / MIB:.1f}")


def memory(name: str, batch: int, sampler: str, args: argparse.Namespace) -> float:
    """As :func:`measure_memory`, in a process of its own."""
    shared = ("shape", "grid", "guidance", "top_k", "top_p", "dtype", "threads", "device")
    flags = [f"--{flag}" for flag in ("pack", "compile") if getattr(args, flag)]
    options = [f"--{option.replace('_', '-')}={getattr(args, option)}" for option in shared]
    command = [
        sys.executable,
        __file__,
        *options,
        *flags,
        "--orders",
        name,
        "--batch",
        str(batch),
        "--sampler",
        sampler,
    ]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def row(
    name: str, batch: int, times: Mapping[str, Times], subject: Subject, rate: float | None, args: argparse.Namespace
) -> list[str]:
    """The cells of one order at one batch."""
    own, passes = times[name], len(subject.order.plan(layout(args)).sizes)
    latency = median(own.fast)
    cells = [name, str(batch), str(passes), f"{latency:.3f}", f"{batch / latency:.3f}"]
    if args.reference:
        plain = median(own.plain)
        cells += [f"{plain:.3f}", f"{plain / latency:.2f}"]
    cells.append(f"{median(times['raster'].fast) / latency:.2f}" if "raster" in times else "-")
    if rate is not None:
        floor = read_bytes(subject, batch, args) / rate
        cells += [f"{floor:.3f}", f"{floor / latency:.2f}"]
    if args.memory:
        kept = (subject.weights + cache_bytes(subject, batch, args)) / MIB
        peaks = [memory(name, batch, sampler, args) for sampler in (SAMPLERS if args.reference else ["fast"])]
        cells += [f"{kept:.0f}", *(f"{peak:.0f}" for peak in peaks), f"{peaks[0] / kept:.2f}"]
    return cells


def titles(args: argparse.Namespace) -> list[str]:
    """Of the columns."""
    found = ["order", "batch", "forwards", "latency s", "images/s"]
    found += ["plain s", "plain/this"] if args.reference else []
    found.append("raster/this")
    found += ["floor s", "floor/this"] if args.roofline else []
    if args.memory:
        found += ["kept MiB", "peak MiB", *(["plain MiB"] if args.reference else []), "peak/kept"]
    return found


def processor() -> str:
    """Name of the CPU."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.is_file() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def settings(args: argparse.Namespace, rate: float | None) -> str:
    """What the table was measured with, in one line."""
    device = processor() if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    parts = [device, f"{args.threads} threads", f"torch {torch.__version__}", args.dtype]
    parts += [f"shape {args.shape}", f"grid {args.grid}", f"guidance {args.guidance:g}"]
    parts += [f"top_k {args.top_k}", f"top_p {args.top_p:g}", f"median of {args.runs}"]
    parts += [f"plain of {args.reference_runs}"] if args.reference else []
    parts += [name for name, done in (("packed", args.pack), ("compiled", args.compile)) if done]
    parts += [f"copies {rate / 1e9:.1f} GB/s"] if rate is not None else []
    return ", ".join(parts)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="b")
    parser.add_argument("--grid", type=int, default=16, help="positions to a side")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--orders", choices=ORDERS, nargs="+", default=list(ORDERS))
    parser.add_argument("--guidance", type=float, default=4.0, help="1 for none")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    faster = parser.add_mutually_exclusive_group()
    faster.add_argument("--compile", action="store_true", help="compile blocks of the fast sampler's model")
    faster.add_argument("--pack", action="store_true", help="pack weights of the fast sampler's model")
    parser.add_argument("--reference", action="store_true", help="run the plain sampler of each order too")
    parser.add_argument(
        "--reference-runs", type=int, help="of the plain sampler, where it is slow; as --runs by default"
    )
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--roofline", action="store_true")
    parser.add_argument("--sampler", choices=SAMPLERS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.reference_runs = min(args.reference_runs or args.runs, args.runs)
    return args


def main() -> None:
    """Measure and print."""
    args = parsed()
    torch.set_num_threads(args.threads)
    if args.sampler:
        measure_memory(args)
        return
    rate = copy_rate(args) if args.roofline else None
    subjects = {name: Subject.of(name, args) for name in args.orders}
    print(settings(args, rate))
    header = titles(args)
    widths = [max(12, len(header[0])), *(len(title) for title in header[1:])]
    print("  ".join(title.rjust(width) for title, width in zip(header, widths, strict=True)))
    for batch in args.batch:
        times = compared(subjects, batch, args)
        for name, subject in subjects.items():
            cells = row(name, batch, times, subject, rate, args)
            print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)), flush=True)


if __name__ == "__main__":
    main()
