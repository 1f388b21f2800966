"""Route the log records of a process: those of this package, of other libraries, and Python's warnings."""

from __future__ import annotations

import logging
import warnings
from typing import TextIO

OWN = "ovseg_batch"
SILENT = "PIL"  # Pillow's records name no file; an image that it cannot read raises an exception too


def send_logs_to(handler: logging.Handler, level: int) -> None:
    """Send a handler the records of this package from `level` on, and all warnings and errors of other libraries."""
    handler.addFilter(_is_useful)
    own, root = logging.getLogger(OWN), logging.getLogger()
    own.handlers, own.propagate = [handler], False
    own.setLevel(level)
    root.handlers = [one for one in root.handlers if not isinstance(one, type(handler))] + [handler]
    root.setLevel(logging.WARNING)
    warnings.showwarning = _log_warning


def _is_useful(record: logging.LogRecord) -> bool:
    library = record.name.partition(".")[0]
    if library in (OWN, SILENT):
        return library == OWN
    return record.levelno >= logging.WARNING


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    logging.getLogger("py.warnings").warning("%s: %s", category.__name__, message)
