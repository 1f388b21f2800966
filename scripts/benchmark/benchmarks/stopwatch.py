"""Where a stage's time goes: functions of the package are timed while it runs, each without those that it calls.

What runs in the calling thread adds up to the whole; what runs in other threads (decoding) is counted apart, for it
costs time only where a caller waits for it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ovseg_batch.io import images, logits, rle, tables
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.sam import Sam
from ovseg_batch.stages import answer, dense, shard
from ovseg_batch.stages.refine import methods as refine_methods
from ovseg_batch.stages.refine import stage as refine

#: what is timed: where it is looked up, its name there, and what its time is called
PARTS: list[tuple[Any, str, str]] = [
    (images, "decode", "decode"),
    (dense, "decode", "decode"),
    (DenseClip, "normalise", "transfer"),
    (DenseClip, "_run", "CLIP"),
    (Sam, "preprocess", "transfer"),
    (Sam, "forward_bare", "SAM2 encoder"),
    (Sam, "_decode", "SAM2 decoder"),
    (refine, "label_map", "label map"),
    (refine_methods, "component_points", "components"),
    (refine_methods, "low_resolution_coverage", "vote"),
    (refine_methods, "stability", "vote"),
    (answer, "assemble", "assembling"),
    (rle, "encode", "RLE"),
    (rle, "encode_regions", "RLE"),
    (logits.ArrayWriter, "write", "write"),
    (tables.ResultWriter, "write", "write"),
    (shard, "publish", "write"),
    (shard, "file_record", "write"),
]
MODELS = ("CLIP", "SAM2 encoder", "SAM2 decoder")


class Stopwatch:
    """Seconds by part: `spent` in the thread that made this, `beside` in others."""

    def __init__(self, device: torch.device) -> None:
        self.spent: Counter[str] = Counter()
        self.beside: Counter[str] = Counter()
        self._device = device
        self._main = threading.get_ident()
        self._inner = threading.local()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        originals = [(place, name, place.__dict__[name]) for place, name, _ in PARTS]
        for place, name, part in PARTS:
            plain = place.__dict__[name]
            timed = self._timed(plain.__func__ if isinstance(plain, staticmethod) else plain, part)
            setattr(place, name, staticmethod(timed) if isinstance(plain, staticmethod) else timed)
        try:
            yield
        finally:
            for place, name, plain in originals:
                setattr(place, name, plain)

    def _timed(self, work: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(work)
        def timed(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(self._inner, "seconds", 0.0)
            self._inner.seconds = 0.0
            started = self._now()
            try:
                return work(*args, **kwargs)
            finally:
                whole = self._now() - started
                counter = self.spent if threading.get_ident() == self._main else self.beside
                counter[part] += whole - self._inner.seconds
                self._inner.seconds = outer + whole

        return timed

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
