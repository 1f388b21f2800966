"""The stages `dense` and `refine` with a GPU that exists on paper: its calls take time, and return stored outputs.

Everything that the CPU computes beside a GPU runs as it is: reading and decoding images, cutting windows, points,
masks at full size, run lengths, tables, commits. Copies to and from the GPU are copies in memory. What the GPU computes
(CLIP, SAM2, the label map, the vote) is stored before the measurement.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.paper_scenes import Scene
from benchmarks.paper_times import POINTS, WINDOWS, Forward, Forwards
from ovseg_batch.methods.labelling import LabelMap
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.sam import Embedding
from ovseg_batch.stages.base import Stage, Upstream
from ovseg_batch.stages.dense import DenseStage
from ovseg_batch.stages.refine import methods as refine_methods
from ovseg_batch.stages.refine import stage as refine
from ovseg_batch.stages.refine.overlap import in_three_steps
from ovseg_batch.stages.refine.stage import RefineStage
from ovseg_batch.stages.resolved import Resolved
from ovseg_batch.types import ImageRow, RowResult
from ovseg_batch.types.arrays import Halves, Numbers, Pixels

CPU = torch.device("cpu")
BLOCK = bytes(4096)  # hashed without the GIL in a few microseconds, as long as an operator's kernel is launched
LAUNCHING = "launching operators"
RECORD = ".record"  # ending of the files that workers write


@dataclass(frozen=True, slots=True)
class Paper:
    """A GPU on paper. It can be pickled.

    Attributes:
        folder: stored outputs, the lock of the device, and what the workers record.
        scenes: number of stored outputs. Row k of the images has those of number k modulo this.
        forwards: times of the calls.
        launch: seconds of the CPU for each operator.
        slower: factor on the times of the device.
    """

    folder: Path
    scenes: int
    forwards: Forwards
    launch: float
    slower: float

    def device(self) -> PaperDevice:
        return PaperDevice(self)

    def scene(self, row: ImageRow) -> Scene:
        """Return the stored outputs of an image."""
        return _opened(self.folder, row.row % self.scenes)


@functools.lru_cache(maxsize=64)
def _opened(folder: Path, number: int) -> Scene:
    return Scene.open(folder / str(number))


class PaperDevice:
    """What a worker does with the device, and its CPU time. One call at a time has the device, of all processes."""

    def __init__(self, paper: Paper) -> None:
        self._paper = paper
        self._lock = threading.Lock()
        self._own = threading.local()
        self._busy = 0.0
        self._parts: defaultdict[str, float] = defaultdict(float)
        self._steps: defaultdict[str, float] = defaultdict(float)
        self._began: tuple[float, float] | None = None
        Finalize(None, self._write, exitpriority=1)

    def begin(self) -> None:
        """Start the clocks when the first shard starts: the models are loaded."""
        self._began = self._began or (time.monotonic(), time.process_time())

    def compute(self, call: Forward) -> None:
        """Launch a call and wait until the device has finished it.

        The device executes the first operators while the CPU launches the next ones. If launching takes longer than the
        call, the device is free for other processes during the difference.
        """
        seconds, launch = self._paper.slower * call.seconds, self._paper.launch * call.operators
        self._launch(launch - seconds)
        with (self._paper.folder / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = time.monotonic() + seconds
            self._launch(min(launch, seconds))
            time.sleep(max(0.0, end - time.monotonic()))
        with self._lock:
            self._busy += seconds
            self._steps[self._own.part] += max(call.seconds, launch)

    def _launch(self, seconds: float) -> None:
        """Use the CPU for so long, as launching operators does: the GIL is free for a part of the time."""
        started = time.thread_time()
        while time.thread_time() < started + seconds:
            hashlib.blake2b(BLOCK)
        spent = time.thread_time() - started
        self._own.launched = getattr(self._own, "launched", 0.0) + spent
        with self._lock:
            self._parts[LAUNCHING] += spent

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the CPU time of this thread to a part of the record, without the time of launching.

        The record also has the seconds that the step would take with a core and a device of its own: the CPU time, and
        the calls at the full speed of the device.
        """
        self._own.part = name
        before = time.thread_time(), getattr(self._own, "launched", 0.0)
        try:
            yield
        finally:
            spent = time.thread_time() - before[0] - (getattr(self._own, "launched", 0.0) - before[1])
            with self._lock:
                self._parts[name] += spent
                self._steps[name] += spent

    def _write(self) -> None:
        """Write the record of this process: seconds of the device and of the CPU, and when it began."""
        if self._began is None:
            return
        record = {
            "busy": self._busy,
            "cpu": time.process_time() - self._began[1],
            "parts": dict(self._parts),
            "steps": dict(self._steps),
            "began": self._began[0],
        }
        (self._paper.folder / f"{os.getpid()}{RECORD}").write_text(json.dumps(record))


class PaperDense(DenseStage):
    """The stage `dense` with CLIP on the paper GPU."""

    paper: Paper

    def setup(self, device: str) -> None:
        self._device, self._batch = CPU, BatchSize(self._run.batch_size, "windows")
        self._dino = self._trident = None
        self._gpu = self.paper.device()

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        self._gpu.begin()
        yield from super().process(rows, upstream)

    def _seen(self, jobs: Sequence[tuple[Any, int]]) -> list[Halves]:
        with self._gpu.part("windows"):
            torch.from_numpy(np.stack([pending.windows[index] for pending, index in jobs])).clone()
            self._gpu.compute(self.paper.forwards.windows.part(len(jobs) / WINDOWS))
            return [np.array(self.paper.scene(pending.row).windows[index]) for pending, index in jobs]


class PaperRefine(RefineStage):
    """The stage `refine` with SAM2, the label map and the vote on the paper GPU."""

    paper: Paper

    def setup(self, device: str) -> None:
        self._device, self._relabeller = CPU, None
        self._gpu = self.paper.device()
        self._sam = cast(Any, PaperSam(self._gpu, self.paper.forwards))

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        """Process rows in three overlapping steps, as on a GPU."""
        self._gpu.begin()
        replaced: dict[str, Any] = {"label_map": self._label_map, "in_three_steps": _overlapped}
        votes: dict[str, Any] = {
            "foreground": lambda logits: logits,
            "low_resolution_coverage": lambda drawn, labels, given: self._at_vote.coverage,
            "count_pixels": lambda drawn: self._at_vote.areas,
            "stability": lambda logits: self._at_vote.stability,
        }
        with mock.patch.multiple(refine, **replaced), mock.patch.multiple(refine_methods, **votes):
            yield from super().process(rows, upstream)

    def _read_dense(self, one: Any) -> None:
        self._at_map = self.paper.scene(one.row)
        with self._gpu.part("map and points"):
            super()._read_dense(one)

    def _find_masks(self, one: Any) -> None:
        self._at_vote = self.paper.scene(one.row)
        self._sam = cast(Any, PaperSam(self._gpu, self.paper.forwards, self._at_vote))
        with self._gpu.part("prompts and vote"):
            super()._find_masks(one)

    def _annotate(self, one: Any) -> None:
        with self._gpu.part("annotations"):
            super()._annotate(one)

    def _label_map(self, *arguments: Any) -> LabelMap:
        """Take the time of the label map, and copy the stored one as from a GPU."""
        scene = self._at_map
        self._gpu.compute(scene.label_map)
        return LabelMap(np.array(scene.labels), np.array(scene.confidence), np.array(scene.lead), None)


def _overlapped(*arguments: Any) -> Iterator[Any]:
    """Process in three threads, which a stage does on a GPU alone."""
    items, before, during, after, pixels, _ = arguments
    return in_three_steps(items, before, during, after, pixels, overlapping=True)


class PaperSam:
    """A SAM2 on the paper GPU.

    Args:
        gpu: the device.
        forwards: times of its calls.
        scene: the masks of an image.
    """

    def __init__(self, gpu: PaperDevice, forwards: Forwards, scene: Scene | None = None) -> None:
        self._gpu, self._forwards, self._scene = gpu, forwards, scene

    def embed(self, images: Sequence[Pixels]) -> list[Embedding]:
        """Copy the images, and take the time of the encoder."""
        for image in images:
            torch.from_numpy(image).clone()
            self._gpu.compute(self._forwards.encoder)
        return [Embedding(torch.empty(0), (), (image.shape[0], image.shape[1])) for image in images]

    def predict(self, embedding: Embedding, points: Numbers) -> tuple[Tensor, Tensor]:
        """Take the time of the decoder and of the vote, and return the stored masks, three equal ones per point."""
        scene = self._scene
        assert scene is not None and len(points) == len(scene.masks)
        for first in range(0, len(points), POINTS):
            self._gpu.compute(self._forwards.decoder.part(len(points[first : first + POINTS]) / POINTS))
        self._gpu.compute(scene.vote)
        masks = torch.from_numpy(scene.masks)[:, None].expand(-1, 3, -1, -1)
        return masks, torch.tensor([[0.9, 0.8, 0.7]]).expand(len(points), 3)


def paper_stage(run: Resolved, name: str, paper: Paper) -> Stage:
    """Return a stage that runs on the paper GPU."""
    stage = PaperDense(run) if name == "dense" else PaperRefine(run)
    stage.paper = paper
    return stage
