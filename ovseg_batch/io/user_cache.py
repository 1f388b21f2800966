"""The cache folder of a user, which all runs share, and the cached hashes of large files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from ovseg_batch.io.atomic import write_text

# the hash of a file that changed more recently is not cached: its timestamp may miss another change
SETTLED_SECONDS = 10.0


def cache_folder() -> Path:
    """Return `$OVSEG_CACHE`, or `ovseg_batch` in the user's cache folder."""
    home = os.environ.get("OVSEG_CACHE")
    return Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ovseg_batch"


class KnownHash:
    """The cached hash of one file. It is valid while the status of the file (size, times, inode) is unchanged.

    Args:
        file: an existing file.
    """

    def __init__(self, file: Path) -> None:
        status, name = file.stat(), os.fsencode(file.absolute())
        self._identity = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        self._settled = time.time() - status.st_ctime > SETTLED_SECONDS
        self._record = cache_folder() / "hashes" / f"{hashlib.blake2b(name, digest_size=16).hexdigest()}.json"

    def read(self) -> str | None:
        """Return the hash; None where it is not known, the file has changed, or the record is damaged."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            record = json.loads(self._record.read_text())
            if record["file"] == self._identity and isinstance(record["hash"], str):
                return str(record["hash"])
        return None

    def write(self, value: str) -> None:
        """Write the hash. If the folder cannot be written, the next run computes the hash again."""
        if self._settled:
            with contextlib.suppress(OSError):
                write_text(self._record, json.dumps({"file": self._identity, "hash": value}))
