"""Names of the formats that ``smalti import`` reads; here so that its help need not load them."""

from __future__ import annotations

FORMAT_NAMES = (
    "llamagen-vq",
    "ibq",
    "ait",
    "tokenflow",
    "unitok",
    "seed",
    "lavit",
    "slot-mllm",
    "dualtoken",
    "llamagen-c2i",
    "llamagen-t2i",
)
