"""The variants of CLIP's last attention that settings can name, without PyTorch."""

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
