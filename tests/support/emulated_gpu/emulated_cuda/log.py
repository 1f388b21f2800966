"""Counts by line of the project, and a record of the devices that each process used."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from multiprocessing import util
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[4]
PARTS = ("ovseg_batch/", "scripts/", "tests/")
OWN = "tests/support/emulated_gpu/"

operations: Counter[str] = Counter()
synchronisations: Counter[str] = Counter()
to_device: Counter[str] = Counter()
from_device: Counter[str] = Counter()
_used: set[int] = set()


@functools.cache
def _relative(filename: str) -> str | None:
    """Return the path of a file of the project, relative to its root; None for other files."""
    if not filename.startswith(f"{ROOT}/"):
        return None
    path = filename.removeprefix(f"{ROOT}/")
    return path if path.startswith(PARTS) and not path.startswith(OWN) else None


def frames() -> Iterator[str]:
    """Yield the calling lines of the project as `ovseg_batch/models/sam.py:_decode:171`, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = _relative(frame.f_code.co_filename)
        if path is not None:
            yield f"{path}:{frame.f_code.co_name}:{frame.f_lineno}"
        frame = frame.f_back


def site() -> str:
    """Return the innermost calling line of the project, or `elsewhere`."""
    return next(frames(), "elsewhere")


def record_use(physical: int) -> None:
    """Create `<pid>-<physical>` in the log folder when this process first uses a device.

    A process that is killed cannot write at its end, so this file is written at once.
    """
    if physical in _used:
        return
    folder = os.environ.get("EMULATED_LOG")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{os.getpid()}-{physical}").touch()
        if not _used:
            # Worker processes end by os._exit, which runs multiprocessing's finalizers but not atexit's.
            util.Finalize(None, _write, args=(Path(folder, f"{os.getpid()}.json"),), exitpriority=0)
    _used.add(physical)


def _write(path: Path) -> None:
    counters = {
        "operations": operations,
        "synchronisations": synchronisations,
        "to_device": to_device,
        "from_device": from_device,
    }
    path.write_text(json.dumps({name: dict(counter.most_common()) for name, counter in counters.items()}, indent=1))
