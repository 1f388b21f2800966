"""The masks that went out, and how the ones that came back compare; runs in every consumer's own environment."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Masks = dict[str, list[tuple[str, Array]]]  # file name → (label, (H, W) bool)


def read_masks(root: Path) -> Masks:
    """What `round_trips.py` wrote of the run."""
    found: Masks = {}
    with np.load(root / "masks.npz") as arrays:
        for name, labels in json.loads((root / "masks.json").read_text()).items():
            found[name] = [(label, arrays[f"{name}/{k}"]) for k, label in enumerate(labels)]
    return found


def by_label(masks: Masks) -> Masks:
    """The same with one mask a label, as class maps hold them."""
    joined: Masks = {}
    for name, entries in masks.items():
        parts = defaultdict(list)
        for label, mask in entries:
            parts[label].append(mask)
        joined[name] = [(label, np.any(several, axis=0)) for label, several in parts.items()]
    return joined


def compare(expected: Masks, found: Masks) -> dict[str, float]:
    """Every mask that went out against the best that came back with its label; extra and missing ones are counted."""
    overlaps = []
    extra = sum(map(len, found.values())) - sum(map(len, expected.values()))
    for name, entries in expected.items():
        came = found.get(name, [])
        for label, mask in entries:
            overlaps.append(max((_iou(mask, other) for other_label, other in came if other_label == label), default=0))
    return {
        "masks": len(overlaps),
        "extra": extra,
        "exact": int(np.sum(np.array(overlaps) == 1)),
        "mean IoU": float(np.mean(overlaps)),
        "least IoU": float(np.min(overlaps)),
    }


def _iou(one: Array, other: Array) -> float:
    if one.shape != other.shape:
        return 0.0
    union = np.logical_or(one, other).sum()
    return float(np.logical_and(one, other).sum() / union) if union else 1.0


def report(version: str, results: dict[str, dict[str, float]]) -> None:
    print(json.dumps({"version": version, "results": results}))
