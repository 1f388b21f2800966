"""Images per second of whole runs, with the share of the time in which the GPU has work, and its peak memory.

Random weights make noisy maps, which would prompt SAM2 far more often than trained ones. `refine.max_points` bounds the
prompts of an image.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from gpu_checks.configurations import full_size_config
from gpu_checks.pictures import write_pictures
from gpu_checks.records import Options, Report
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.sam import Sam
from ovseg_batch.runs import pipeline
from ovseg_batch.stages.refine import stage as refine
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir

MOST_POINTS = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """A folder of pictures of one size, in pixels."""

    name: str
    images: int
    width: int
    height: int


FULL = (Batch("0.2 MP", 200, 512, 384), Batch("12 MP", 24, 4000, 3000))
QUICK = (Batch("0.01 MP", 2, 128, 96),)


def timing_event() -> Any:
    """Return a CUDA event that measures time."""
    return torch.cuda.Event(enable_timing=True)


@dataclass(slots=True)
class Busy:
    """The time spans in which a timed call was on the GPU.

    A span lasts from an event before the call to an event behind it. Gaps between the kernels of one call count as
    busy; calls of different threads may overlap, and count once.
    """

    start: Any = field(default_factory=timing_event)
    spans: list[tuple[Any, Any]] = field(default_factory=list)

    def timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return `work` with an event before and behind it."""

        @functools.wraps(work)
        def run(*args: Any, **kwargs: Any) -> Any:
            before, behind = timing_event(), timing_event()
            before.record()
            try:
                return work(*args, **kwargs)
            finally:
                behind.record()
                self.spans.append((before, behind))

        return run

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Time the calls of the models and of the label map."""
        places = ((DenseClip, "patch_features"), (Sam, "embed"), (Sam, "predict"), (refine, "label_map"))
        originals = [(place, name, getattr(place, name)) for place, name in places]
        self.start.record()
        try:
            for place, name, work in originals:
                setattr(place, name, self.timed(work))
            yield
        finally:
            for place, name, work in originals:
                setattr(place, name, work)

    def seconds(self) -> float:
        """Return the length of the union of all spans. Waits for the GPU."""
        torch.cuda.synchronize()
        moments = [(self.start.elapsed_time(before), self.start.elapsed_time(end)) for before, end in self.spans]
        return union_length(moments) / 1000


def union_length(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def end_to_end(report: Report, options: Options) -> None:
    """Run the pipeline on small and on large pictures."""
    for batch in QUICK if options.quick else FULL:
        name = f"end to end, {batch.images} images of {batch.name}"
        with report.guarded(name):
            _measure(report, options, batch, name)


def _measure(report: Report, options: Options, batch: Batch, name: str) -> None:
    folder = options.folder / batch.name.replace(" ", "-")
    write_pictures(folder / "images", batch.images, batch.width, batch.height)
    more: dict[str, Any] = {"refine.max_points": MOST_POINTS, "dense.templates": "simple4", "manifest.shard_rows": 64}
    if options.quick:
        more["run.precision"] = "fp32"
    config = full_size_config(options.device, more, embedded=options.quick)
    workdir, busy = Workdir(folder / "run"), Busy()
    torch.cuda.reset_peak_memory_stats()
    with busy.recording():
        outcome = pipeline.run([str(folder / "images")], workdir, config, progress=False)
    report.check(f"{name}: failed images", str(outcome.failures), "0", outcome.failures == 0)
    stores = Results.open(workdir).stores
    by_stage = {store.stage: sum(commit.seconds for commit in store.commits()) for store in stores}
    seconds = sum(by_stage.values())
    stages = ", ".join(f"{stage} {1000 * spent / batch.images:.0f}" for stage, spent in by_stage.items())
    report.measured(name, f"{batch.images / seconds:.2f} images/s, models loaded (ms per image: {stages})")
    report.measured(f"{name}: busy share", f"{busy.seconds() / seconds:.0%} of the time within model calls")
    report.measured(f"{name}: peak memory", f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
