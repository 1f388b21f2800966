"""What an image file may be, stated without a library that reads images."""

from __future__ import annotations

from dataclasses import dataclass

from ovseg_batch.io.remote import Remote


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be read: pixels, bytes of a file, and how URLs are fetched, None where they are not."""

    max_pixels: int
    max_file_bytes: int
    remote: Remote | None = None
