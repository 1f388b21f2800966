"""Training by the clock: a budget in minutes, state saved as it goes, and the same command resumes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

SAVE_EVERY = 90.0  # seconds
REPORT_EVERY = 30.0


class Clock:
    """Iterates steps until the minutes are used up, over as many runs of the command as it takes."""

    def __init__(self, path: Path, minutes: float, state: Callable[[], dict[str, Any]]) -> None:
        self._path, self._budget, self._state = path, minutes * 60, state
        self.spent = 0.0
        self.step = 0

    def resume(self) -> dict[str, Any] | None:
        """The saved state, or None on a first start."""
        if not self._path.exists():
            return None
        saved: dict[str, Any] = torch.load(self._path, weights_only=True)
        self.spent, self.step = saved["spent"], saved["step"]
        return saved

    @property
    def fraction(self) -> float:
        return min(1.0, self.spent / self._budget)

    def rate(self, peak: float, warm_up: float = 0.03) -> float:
        """Cosine schedule over the budget with a linear warm-up."""
        if self.fraction < warm_up:
            return peak * (0.05 + 0.95 * self.fraction / warm_up)
        return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (self.fraction - warm_up) / (1 - warm_up))))

    def steps(self, report: Callable[[], str]) -> Iterator[int]:
        saved = reported = last = time.monotonic()
        while self.spent < self._budget:
            yield self.step
            now = time.monotonic()
            self.spent, last, self.step = self.spent + now - last, now, self.step + 1
            if now - reported > REPORT_EVERY:
                print(f"{self.spent / 60:6.1f} min  step {self.step:6d}  {report()}", flush=True)
                reported = now
            if now - saved > SAVE_EVERY:
                self.save()
                saved = last = time.monotonic()
        self.save()

    def save(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        torch.save({"spent": self.spent, "step": self.step, **self._state()}, temporary)
        temporary.replace(self._path)
