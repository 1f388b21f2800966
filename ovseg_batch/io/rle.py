"""COCO run-length encoding of masks through pycocotools: column-major, compressed counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from ovseg_batch.methods.column_runs import ColumnRuns
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.runs import placed_counts
from ovseg_batch.types.arrays import Doubles, Indices, Integers, Mask, Pixels

BITS = 5  # of a number in a character of compressed counts
OUTSIDE = 4  # times the longer side: polygons with coordinates farther outside are refused, because they need memory


def encode(mask: Mask | Pixels) -> bytes:
    """Return the compressed counts of a mask (H, W) bool or uint8. A Fortran-contiguous mask is not copied."""
    counts: bytes = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts


def encode_regions(regions: Integers) -> dict[int, bytes]:
    """Return number → compressed counts for a map (H, W) of non-negative integers. 0 is background."""
    import cv2  # imported here: it needs 40 MB, and many commands only read masks

    height, width = regions.shape
    flat = cv2.transpose(regions).ravel()  # many times faster than NumPy's
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [flat.size]])
    owners = flat[starts]
    order = np.argsort(owners, kind="stable")
    numbers, firsts = np.unique(owners[order], return_index=True)
    found = {}
    for number, runs in zip(numbers.tolist(), np.split(order, firsts[1:]), strict=True):
        if number:
            lengths = np.diff(np.stack([starts[runs], ends[runs]], axis=1).ravel(), prepend=0, append=flat.size)
            found[number] = from_counts(lengths, height, width)
    return found


def from_counts(counts: Indices, height: int, width: int) -> bytes:
    """Return the compressed counts of the lengths of runs outside and inside of a mask, in turn, down its columns."""
    used = counts[:-1] if len(counts) > 1 and not counts[-1] else counts  # pycocotools writes no empty last run
    plain = {"size": [height, width], "counts": used.tolist()}
    return bytes(coco.frPyObjects(plain, height, width)["counts"])


def decode(counts: bytes | str, height: int, width: int) -> Mask:
    """Decode counts to a mask (height, width) bool."""
    mask: Pixels = coco.decode({"size": [height, width], "counts": counts})
    return mask.view(bool)  # its values are 0 and 1


def run_lengths(counts: bytes | str) -> Indices:
    """Return the lengths of runs outside and inside of a mask, in turn, down its columns: (R,) int64.

    A number is five bits per character, lowest first, and from the fourth on the difference to the second before it.
    Source of the format: pycocotools, `rleToString` in maskApi.c.

    Raises:
        ValueError: the counts have other characters, end within a number, or have a number of more than 60 bits.
    """
    letters = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64)
    letters -= ord("0")
    if letters.size and not 0 <= letters.min() <= letters.max() < 2 ** (BITS + 1):
        raise ValueError("the run lengths have characters that are not between 0 and o")
    ends = np.flatnonzero(letters & 0x20 == 0)  # the last character of each number
    if not len(ends) or ends[-1] != len(letters) - 1:
        raise ValueError("the run lengths end within a number")
    if np.diff(ends, prepend=-1).max() > 60 // BITS:
        raise ValueError("the run lengths have a number of more than 60 bits")
    first = np.concatenate([[0], ends[:-1] + 1])
    place = BITS * (np.arange(len(letters)) - np.repeat(first, np.diff(ends, prepend=-1)))
    lengths = np.add.reduceat((letters & 0x1F) << place, first)
    lengths -= (letters[ends] >> 4 & 1) << (place[ends] + BITS)  # the sign
    lengths[1::2], lengths[2::2] = lengths[1::2].cumsum(), lengths[2::2].cumsum()
    return lengths


def column_runs(counts: bytes | str, height: int, width: int) -> ColumnRuns:
    """Return the runs of a mask. Raises ValueError if the counts do not describe a mask of this size."""
    return ColumnRuns.from_lengths(run_lengths(counts), (height, width))


def decode_placed(counts: bytes | str, height: int, width: int) -> PlacedMask:
    """Decode counts to the part of a mask in its bounding box. Raises ValueError as `column_runs`."""
    return column_runs(counts, height, width).placed()


def encode_placed(placed: PlacedMask, height: int, width: int) -> bytes:
    """Return the compressed counts of a mask in its box, as `encode` does for the whole image."""
    return from_counts(placed_counts(placed.pixels.T, placed.top, placed.left, (width, height)), height, width)


def merged(counts: Sequence[bytes], height: int, width: int) -> bytes:
    """Return the compressed counts of the pixels that any of the masks has; of none where there is no mask."""
    if not counts:  # pycocotools returns undefined pixels then
        return encode(np.zeros((height, width), bool))
    return bytes(coco.merge([{"size": [height, width], "counts": one} for one in counts])["counts"])


def union(counts: Sequence[bytes], height: int, width: int) -> Mask:
    """Return the union (height, width) bool of masks. It is empty if there are no masks."""
    return decode(merged(counts, height, width), height, width)


def area_of_union(counts: Sequence[bytes], height: int, width: int) -> int:
    """Return the number of pixels in the union of masks."""
    return area(merged(counts, height, width), height, width)


def bounding_box(counts: bytes | str, height: int, width: int) -> list[float]:
    """Return the bounding box of a mask: x, y, width, height in pixels."""
    box: list[float] = coco.toBbox({"size": [height, width], "counts": counts}).tolist()
    return box


def area(counts: bytes | str, height: int, width: int) -> int:
    """Return the area of a mask in pixels."""
    return int(coco.area({"size": [height, width], "counts": counts}))


def overlaps(counts: Sequence[bytes], height: int, width: int) -> tuple[Doubles, Doubles]:
    """Return the pairwise IoU, and the share of mask i that lies in mask j: (M, M) float64 each, in [0, 1]."""
    return overlaps_with(counts, counts, height, width)


def overlaps_with(counts: Sequence[bytes], others: Sequence[bytes], height: int, width: int) -> tuple[Doubles, Doubles]:
    """Return the IoU of mask i with the other mask j, and the share of it that lies in j: (M, N) float64 each."""
    if not counts or not others:
        return np.zeros((len(counts), len(others))), np.zeros((len(counts), len(others)))
    first, second = ([{"size": [height, width], "counts": one} for one in masks] for masks in (counts, others))
    return coco.iou(first, second, [0] * len(second)), coco.iou(first, second, [1] * len(second))


def distinct(ordered: Sequence[bytes], height: int, width: int, limit: float) -> list[int]:
    """Return the indices of masks after non-maximum suppression: no IoU with an earlier kept one exceeds `limit`.

    Few masks are kept, so this compares far fewer pairs than `overlaps`.

    Args:
        ordered: counts of the masks, best first.
    """
    kept: list[int] = []
    masks = [{"size": [height, width], "counts": one} for one in ordered]
    for index, mask in enumerate(masks):
        if not kept or coco.iou([mask], [masks[k] for k in kept], [0] * len(kept)).max() <= limit:
            kept.append(index)
    return kept


def from_coco(segmentation: Any, height: int, width: int) -> bytes:
    """Return the compressed counts of a COCO segmentation: a list of polygons, or run lengths, compressed or not.

    Raises:
        ValueError: the segmentation is invalid or does not fit the image. pycocotools would crash or fill the memory.
    """
    if isinstance(segmentation, list):
        _check_polygons(segmentation, OUTSIDE * max(height, width))
        return bytes(coco.merge(coco.frPyObjects(segmentation, height, width))["counts"])
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("is no list of polygons, and no run lengths with `size` and `counts`")
    if segmentation["size"] != [height, width]:
        raise ValueError(f"has run lengths of the size {segmentation['size']!r}, but the image has {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        try:
            counts = run_lengths(counts).tolist()  # pycocotools reads on behind counts that end within a number
        except ValueError as error:
            raise ValueError(f"has run lengths that cannot be decoded ({error})") from None
    if not isinstance(counts, list) or not all(type(one) is int and one >= 0 for one in counts):
        raise ValueError("has run lengths that cannot be decoded (no text, and no list of whole numbers from 0 on)")
    if sum(counts) != height * width:  # pycocotools returns undefined pixels where they add up to less
        raise ValueError(f"has run lengths that do not add up to the {height * width} pixels of the image")
    return bytes(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"])


def _check_polygons(polygons: Sequence[Any], limit: float) -> None:
    """Raise ValueError unless every polygon is a list of three points or more that lie in or near the image."""
    for polygon in polygons:
        if not isinstance(polygon, list):
            raise ValueError("is a flat list; write [[x, y, x, y, …]], one list for each polygon")
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"has a polygon of {len(polygon)} numbers; it needs x and y of three points or more")
        if not all(type(one) in (int, float) and abs(one) <= limit for one in polygon):  # False for NaN
            raise ValueError("has a coordinate that is no number or far outside of the image")
