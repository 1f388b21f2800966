"""The cache folder of a user, which all runs share, and the hashes of large files that it keeps."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from ovseg_batch.io.atomic import write_text

SETTLED_SECONDS = 10.0  # a file that changed later may change again within one tick of its file system's clock


def cache_folder() -> Path:
    """Return `$OVSEG_CACHE`, or `ovseg_batch` in the user's cache folder."""
    home = os.environ.get("OVSEG_CACHE")
    return Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ovseg_batch"


class KnownHash:
    """The hash of one file as the cache folder keeps it. It holds until the file changes, by what its status says.

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
        """Keep the hash. A folder that cannot be written costs the next run the time to compute it again."""
        if self._settled:
            with contextlib.suppress(OSError):
                write_text(self._record, json.dumps({"file": self._identity, "hash": value}))
