"""The entry point of `ovseg-batch` and `python -m ovseg_batch`."""

from __future__ import annotations

import atexit
import gc
import os
import sys

from ovseg_batch.engine.imports import without_collection
from ovseg_batch.engine.stopping import EXIT_INTERRUPTED, hold_signals


def main() -> None:
    """Run the command line. Signals are blocked until its modules are imported.

    If KeyboardInterrupt leaves an `exec`, such as an import, Python later ends with the signal, even if it was caught.
    Python also waits for threads. This function ends an interrupted command at once, with its exit code.
    """
    hold_signals()
    with without_collection():
        from ovseg_batch.cli import main as command

    gc.freeze()
    try:
        command(prog_name="ovseg-batch")
    except SystemExit as end:
        if end.code != EXIT_INTERRUPTED:
            raise
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
