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
    "nar-c2i",
    "nar-t2i",
    "nar-video",
    "par-c2i",
    "var",
    "enat",
    "xar",
)
