"""Limits on image files, in a module that imports no image library."""

from __future__ import annotations

from dataclasses import dataclass

from ovseg_batch.io.remote import Remote


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the images that are read.

    Attributes:
        max_pixels: most pixels of an image.
        max_file_bytes: most bytes of a file.
        remote: how URLs are fetched. None: they are not read.
    """

    max_pixels: int
    max_file_bytes: int
    remote: Remote | None = None
