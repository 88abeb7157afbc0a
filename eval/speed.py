"""How fast a tokenizer encodes and decodes and what it takes: in a process of its own, so that nothing else counts.

``python -m smalti.eval.speed FOLDER`` prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from ..tokenizers.base import VisualTokenizer

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Speed:
    """Of one tokenizer on one machine."""

    encode: float  #: images per second
    decode: float  #: images per second
    memory: float  #: MiB that encoding and decoding a batch add to the peak of the process
    batch: int
    threads: int
    device: str


def measured(folder: str, batch: int = 32, repeats: int = 5, device: str = "cpu") -> Speed:
    """Measure a saved tokenizer in a new process; rates are medians.

    Args:
        folder: of the tokenizer.
        batch: images at once.
        repeats: batches timed, after one that is not.
        device: ``cpu`` or a CUDA device.

    Raises:
        RuntimeError: the process failed.
    """
    options = ["--batch", str(batch), "--repeats", str(repeats), "--device", device]
    command = [sys.executable, "-m", __spec__.name if __spec__ else "smalti.eval.speed", folder, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"measuring {folder} in a process of its own failed: {last}")
    return Speed(**json.loads(done.stdout.strip().splitlines()[-1]))


@torch.inference_mode()
def measure(folder: str, batch: int, repeats: int, device: str) -> Speed:
    """As :func:`measured`, in this process."""
    tokenizer = VisualTokenizer.from_pretrained(folder)
    torch.nn.Module.to(tokenizer, torch.device(device))  # diffusers leaves its own override untyped
    images = torch.rand(batch, 3, *tokenizer.image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = images.to(device, tokenizer.dtype)
    cuda = device.startswith("cuda")
    before = 0 if cuda else peak_memory()
    codes = tokenizer.encode(images)
    tokenizer.decode(codes)
    encode = _seconds(lambda: tokenizer.encode(images), repeats, cuda)
    decode = _seconds(lambda: tokenizer.decode(codes), repeats, cuda)
    used = torch.cuda.max_memory_allocated() if cuda else peak_memory() - before
    return Speed(batch / encode, batch / decode, used / 2**20, batch, torch.get_num_threads(), device)


def _seconds(work: Callable[[], object], repeats: int, cuda: bool) -> float:
    taken: list[float] = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return median(taken)


def peak_memory() -> int:
    """Largest resident memory of this program so far, bytes."""
    if _STATUS.is_file():  # Linux hands the peak that getrusage states on to the programs that a process starts
        peak = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    sys.stdout.write(json.dumps(asdict(measure(args.folder, args.batch, args.repeats, args.device))) + "\n")


if __name__ == "__main__":
    _main()
