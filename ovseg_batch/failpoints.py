"""Places where a test can make the process die, so that "anywhere" is a list and not a hope.

`OVSEG_FAILPOINTS="dense.commit:3"` kills the process with SIGKILL the third time it comes to `dense.commit`; several
are separated by commas. Unset, a point costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "OVSEG_FAILPOINTS"

_seen: Counter[str] = Counter()


def reach(name: str) -> None:
    """Die here if the environment says so."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    _seen[name] += 1
    for entry in wanted.split(","):
        point, _, count = entry.strip().partition(":")
        if point == name and _seen[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)
