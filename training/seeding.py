"""Randomness without state: what a training batch draws depends on its place in the run and on nothing before it."""

from __future__ import annotations

from hashlib import blake2b

import torch


def seed_batch(seed: int, rank: int, batch: int) -> int:
    """Seed torch on all devices for one batch, so that a resumed run draws what an uninterrupted one would.

    Args:
        seed: of the run.
        rank: of this process; ranks draw differently.
        batch: number of batches trained on before this one, since the start of the run.

    Returns:
        The seed that was set, in ``[0, 2**63)``.
    """
    digest = blake2b(f"{seed}/{rank}/{batch}".encode(), digest_size=8).digest()
    mixed = int.from_bytes(digest, "big") >> 1
    torch.manual_seed(mixed)
    return mixed
