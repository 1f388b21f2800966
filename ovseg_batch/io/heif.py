"""HEIF images, which phones write. Pillow reads them through the optional package pillow-heif."""

from __future__ import annotations

import functools
import importlib

SUFFIXES = frozenset((".heic", ".heif"))
BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
ADVICE = "Run `pip install pillow-heif`, which the extra `heif` names."


@functools.cache
def register() -> bool:
    """Let Pillow read HEIF images. Return whether the package is installed."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def hint(content: bytes) -> str:
    """Return the advice to install pillow-heif for a HEIF file. Empty for other files, or if it is installed."""
    is_heif = content[4:8] == b"ftyp" and content[8:12] in BRANDS
    return f". It is a HEIF image. {ADVICE}" if is_heif and not register() else ""
