"""The names that settings take where each has code or a file of its own."""

from __future__ import annotations

from typing import Literal, get_args

#: the variants of `methods.attention`, CorrCLIP's and Trident's
Attention = Literal[
    "vanilla",
    "maskclip",
    "maskclip-reduced",
    "v2",
    "csa",
    "csa-joint",
    "clearclip",
    "naclip",
    "itaclip",
    "corrclip",
    "corrclip-dino",
    "trident",
]
ATTENTIONS: tuple[str, ...] = get_args(Attention)
CORRCLIP = "corrclip"  # patches correlate by SAM2's features
SPLICED = "trident"  # patches attend to the whole image, as in SAM
WITH_DINO = ("corrclip-dino", SPLICED)  # patches correlate by DINO's features
REGION_LIMITED = (CORRCLIP, "corrclip-dino")  # patches attend only inside SAM2's regions

#: the names of `datasets.protocols`
Protocol = Literal[
    "sclip",
    "naclip",
    "naclip-no-pamr",
    "clearclip",
    "maskclip",
    "itaclip",
    "corrclip",
    "corrclip-masks",
    "trident",
]
