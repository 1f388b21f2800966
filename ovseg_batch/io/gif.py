"""Read the size of a GIF before Pillow opens it, because opening allocates the first frame, whatever its size."""

from __future__ import annotations

import struct

SIGNATURES = (b"GIF87a", b"GIF89a")
FRAME, EXTENSION, END = 0x2C, 0x21, 0x3B  # first bytes of blocks


def canvas_size(content: bytes) -> tuple[int, int] | None:
    """Return (width, height) in pixels of a GIF as Pillow opens it, or None for other files."""
    if not content.startswith(SIGNATURES) or len(content) < 13:
        return None
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    place = 13 + _table_bytes(flags)
    while place < len(content) and content[place] != END:
        if content[place] == FRAME and place + 9 <= len(content):
            left, top, wide, high = struct.unpack_from("<HHHH", content, place + 1)
            return max(width, left + wide), max(height, top + high)
        place += 1
        if content[place - 1] == EXTENSION:
            place += 1  # the kind of the extension
            while place < len(content) and content[place]:
                place += 1 + content[place]
            place += 1
    return width, height


def _table_bytes(flags: int) -> int:
    """Return the size of a colour table in bytes."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
