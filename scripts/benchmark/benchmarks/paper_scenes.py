"""Outputs of the models for the paper GPU: random smooth maps, and a mask for each of their largest components.

The pixels of the photographs do not matter for them. The maps, masks and votes are computed once by the code of the
stages, and stored. Their operators are counted, for the time that a GPU would take.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.around import DrawnSam, smooth_similarities
from benchmarks.paper_times import H100, Counting, Forward, Work, counted, work_of
from ovseg_batch.methods.labelling import LabelMap, label_map
from ovseg_batch.methods.tiles import Box
from ovseg_batch.methods.windows import window_boxes
from ovseg_batch.models.sam import foreground
from ovseg_batch.stages.answer import DenseMap
from ovseg_batch.stages.dense import DenseStage
from ovseg_batch.stages.refine import methods as refine_methods
from ovseg_batch.stages.refine.methods import points_of, prompted
from ovseg_batch.stages.refine.stage import RefineStage

ARRAYS = ("windows", "labels", "confidence", "lead", "masks", "coverage", "areas", "stability")


@dataclass(frozen=True, slots=True)
class Scene:
    """The stored outputs for an image.

    Attributes:
        windows: (N, Q, gh, gw) float16, CLIP's similarities.
        labels, confidence, lead: (H, W) label map, as `LabelMap`.
        masks: (P, s, s) float32, mask logits of the points.
        coverage: (P, 3) of the vote.
        areas, stability: of the masks that the vote keeps.
        label_map, vote: what both take on the device.
    """

    windows: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    confidence: np.ndarray[Any, Any]
    lead: np.ndarray[Any, Any]
    masks: np.ndarray[Any, Any]
    coverage: Tensor
    areas: Tensor
    stability: Tensor
    label_map: Forward
    vote: Forward

    @classmethod
    def open(cls, folder: Path) -> Scene:
        """Open stored outputs. The large arrays are mapped, not read."""
        arrays: dict[str, Any] = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in ARRAYS}
        tensors = {name: torch.from_numpy(np.array(arrays[name])) for name in ("coverage", "areas", "stability")}
        calls: dict[str, Any] = {
            name: Forward(*call) for name, call in json.loads((folder / "calls.json").read_text()).items()
        }
        return cls(**{**arrays, **tensors}, **calls)


def store_scene(
    folder: Path, dense: DenseStage, stage: RefineStage, size: tuple[int, int], seed: int, slower: float
) -> int:
    """Compute and store the outputs for an image of (H, W) pixels. Return the number of its points.

    Args:
        dense, stage: the stages of the run, whose settings decide the windows, the label map and the points.
        seed: of the random map.
        slower: factor on the least times of the label map and the vote.
    """
    vocabulary, settings, least = stage._vocabulary, stage._settings, stage._min_area(cast(Any, _Sized(size)))
    resized = dense._resized(*size)
    boxes = window_boxes(*resized, dense._window, dense._stride)
    windows = smooth_similarities(resized, boxes, dense._patch, vocabulary.channels, seed)
    of_map, found = _counted(
        lambda: label_map(windows, size, vocabulary, stage._dense.logit_scale, stage._dense.prob_threshold, 0.0)
    )
    mapped = DenseMap(found.labels, found.confidence, found.lead, _no_probabilities, (), None)
    points = points_of(mapped, settings, least)
    if not points:
        raise ValueError(f"the random map of {size[1]} × {size[0]} pixels has no component of {least} pixels")
    sam = cast(Any, DrawnSam(mapped, points))
    kept: dict[str, Tensor] = {}
    with Votes(kept) as votes:
        prompted(sam, cast(Any, lambda box: None), mapped, points, settings)
    _write(folder, windows.logits.numpy(), found, sam.predict(None, np.zeros((len(points), 2)))[0][:, 0], kept)
    calls = {"label_map": of_map, "vote": votes.forward()}
    stored = {name: dataclasses.astuple(call.times(slower)) for name, call in calls.items()}
    (folder / "calls.json").write_text(json.dumps(stored))
    return len(points)


@dataclass(frozen=True, slots=True)
class _Sized:
    size: tuple[int, int]


def _no_probabilities(box: Box, at: tuple[int, int]) -> Tensor:
    raise NotImplementedError("a vote by mean probability needs the similarities; set refine.vote to a share")


def _counted(compute: Callable[[], LabelMap]) -> tuple[Forward, LabelMap]:
    found: list[LabelMap] = []
    work = counted(lambda: found.append(compute()))
    return Forward(work.least_seconds(H100), len(work.operators)), found[0]


class Votes:
    """Keeps and counts what the vote computes on the device, while `prompted` runs on this machine."""

    def __init__(self, kept: dict[str, Tensor]) -> None:
        self._kept: dict[str, Tensor] = kept
        self._works: list[Work] = []
        names = {"low_resolution_coverage": "coverage", "count_pixels": "areas", "stability": "stability"}
        recorded: dict[str, Any] = {
            name: self._recorded(getattr(refine_methods, name), key) for name, key in names.items()
        }
        recorded["foreground"] = self._recorded(foreground, None)
        self._patch = mock.patch.multiple(refine_methods, **recorded)

    def __enter__(self) -> Votes:
        self._patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.stop()

    def _recorded(self, compute: Callable[..., Tensor], key: str | None) -> Callable[..., Tensor]:
        def run(*arguments: Any) -> Tensor:
            with torch.inference_mode(), Counting() as counting:
                result = compute(*arguments)
            self._works.append(counting.work())
            if key is not None:
                self._kept[key] = result.clone()
            return result

        return run

    def forward(self) -> Forward:
        """Return what the vote takes on the device."""
        work = work_of(self._works)
        return Forward(work.least_seconds(H100), len(work.operators))


def _write(
    folder: Path, windows: np.ndarray[Any, Any], found: LabelMap, masks: Tensor, kept: dict[str, Tensor]
) -> None:
    folder.mkdir(parents=True)
    arrays = {"windows": windows, "labels": found.labels, "confidence": found.confidence, "lead": found.lead}
    arrays |= {"masks": masks.contiguous().numpy(), **{name: part.numpy() for name, part in kept.items()}}
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", arrays[name])
