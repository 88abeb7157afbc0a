"""What a training step of the shared LM takes, beside the same ``transformers`` model trained plainly: memory and time.

    python benchmarks/lm_memory.py [--runs 5] [--tokens 1024] [--codes 16384] [--text 16000] [--layers 8]

Both train one sequence of text and codes: the plain model by ``labels``, so that every position has logits of the whole
vocabulary; the shared LM by blocks. Each step runs in a process of its own; memory is what its peak lies above that of
the process with the model, its optimizer and its gradients in place. ``flat`` has as many codes as the plain model;
``depth`` has four at each of as many positions.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from smalti.eval.speed import peak_memory
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

KINDS = ("plain", "flat", "depth")
CAPTION_WORDS = 60


def vocabulary(words: int) -> Vocabulary:
    """One with so many words."""
    return Vocabulary.train((f"w{index}" for index in range(words)), size=words + 1)


def backbone(args: argparse.Namespace) -> dict[str, int]:
    """Fields of the model that all kinds have."""
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": args.layers}
    return {**sizes, "num_attention_heads": 8, "max_position_embeddings": args.tokens + 8}


def plain_step(args: argparse.Namespace) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    """A causal LM with one matrix for text and codes."""
    size = vocabulary(args.text).size + args.codes
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=size, **backbone(args)))
    ids = torch.randint(0, size, (1, args.tokens))
    labels = ids.clone()
    labels[:, : CAPTION_WORDS + 2] = -100
    return model, lambda: model(input_ids=ids, labels=labels, use_cache=False).loss


def shared_step(args: argparse.Namespace, depth: int) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    """The shared LM, of as many steps."""
    side = args.tokens - CAPTION_WORDS - 3  # <bos>, <image> and </image>
    spec = CodeSpec(CodeLayout("grid", (1, side)), (Codebook("pixel", args.codes, depth),))
    fields = {"model_type": "llama", **backbone(args)}
    head = {"kind": "flat"} if depth == 1 else {"kind": "depth", "heads": 8}
    model = SharedLM.build(fields, vocabulary(args.text), spec, "benchmark", head)
    caption = " ".join(f"w{index}" for index in range(CAPTION_WORDS))
    batch = model.layout.collate([model.layout.text_to_image(caption, torch.randint(0, args.codes, (side, depth)))])
    assert batch.slots.shape[1] == args.tokens
    return model, lambda: model(batch).loss


def measure(kind: str, args: argparse.Namespace) -> None:
    """One kind: print MiB above the model in place, and median seconds of a step."""
    torch.manual_seed(0)
    model, loss = plain_step(args) if kind == "plain" else shared_step(args, 4 if kind == "depth" else 1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # its moments are there from now on
    before, seconds = peak_memory(), list[float]()
    for index in range(args.runs + 1):
        start = time.perf_counter()
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        if index:
            seconds.append(time.perf_counter() - start)
    print(f"{(peak_memory() - before) / 2**20:.1f} {median(seconds):.4f}")


def main() -> None:
    """Measure every kind in a process of its own and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"runs": 5, "tokens": 1024, "codes": 16384, "text": 16000, "layers": 8}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kind:
        measure(args.kind, args)
        return
    found = dict[str, tuple[float, float]]()
    for kind in KINDS:
        options = [f"--{name}={getattr(args, name)}" for name in sizes]
        command = [sys.executable, __file__, *options, "--kind", kind]
        memory, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
        found[kind] = (float(memory), float(seconds))
        ratios = [mine / base for mine, base in zip(found[kind], found["plain"], strict=True)]
        print(
            f"{kind:6} {found[kind][0]:8.0f} MiB a step ({ratios[0]:.2f} of plain)  {found[kind][1]:.3f} s "
            f"({ratios[1]:.2f} of plain)"
        )


if __name__ == "__main__":
    main()
