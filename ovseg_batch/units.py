"""Format quantities as text."""

from __future__ import annotations


def size(count: float) -> str:
    """Return a number of bytes as text: `512 B`, `12.3 kB`, `6.5 MB`, `78.2 GB`."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: `1 image`, `6 images`. The default plural is the noun with an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def extent(images: int, shards: int) -> str:
    """Return the size of a list of images: `6 images in 1 shard`."""
    return f"{counted(images, 'image')} in {counted(shards, 'shard')}"
