"""Everything that can go wrong, typed.

Two families. A `UsageError` or `OvsegError` stops the command with a sentence for a person; a `RowError` is charged
to one image, written as its terminal row, and the run goes on. `FailureCode` is the closed list of the latter.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable
from enum import StrEnum


class FailureCode(StrEnum):
    """Why a row failed. Closed: a new code is a change of the on-disk format."""

    MISSING = "missing"  # the file is not there any more
    UNREADABLE = "unreadable"  # the operating system refuses to read it
    EMPTY = "empty"  # zero bytes
    NOT_AN_IMAGE = "not_an_image"  # no decoder knows it
    TRUNCATED = "truncated"  # an image, but not all of it
    TOO_LARGE = "too_large"  # more bytes or pixels than the limits allow
    BAD_IMAGE = "bad_image"  # the decoder gave up for another reason
    CHANGED = "changed"  # the file is not the one that an earlier stage read
    OUT_OF_MEMORY = "out_of_memory"  # one image alone did not fit on the device
    NO_EDIT = "no_edit"  # no mask to edit by, no prompt, or nothing left of the picture to go by
    BLOCKED = "blocked"  # a safety checker kept the picture back
    UNWRITABLE = "unwritable"  # its edited files cannot have their names, or their format cannot hold the picture
    CRASHED = "crashed"  # the worker process died at it, again and again
    UPSTREAM = "upstream"  # an earlier stage failed this row
    MODEL = "model"  # the model raised, or gave numbers that are not finite
    INTERNAL = "internal"  # a bug of ours; the message has the exception


#: What the message of `FailureCode.CHANGED` states after the path.
CHANGED = "has changed since an earlier stage read it; retry computes it again from the first stage"
#: Codes whose cause is the image file, or the way to it.
OF_THE_FILE = frozenset(
    {
        FailureCode.MISSING,
        FailureCode.UNREADABLE,
        FailureCode.EMPTY,
        FailureCode.NOT_AN_IMAGE,
        FailureCode.TRUNCATED,
        FailureCode.TOO_LARGE,
        FailureCode.BAD_IMAGE,
        FailureCode.CHANGED,
    }
)


#: Parts of the messages by which PyTorch and CUDA's libraries report that they could not allocate memory.
MEMORY_ERRORS = (
    "out of memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "unable to find an engine to execute",
    "unable to find a valid cudnn algorithm",
)


LONGEST_MESSAGE = 3900  # characters: a list may have names of any length, and the end of a message states what to do
#: Characters of names and settings that would control a terminal, reorder a line or have no UTF-8.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class OvsegError(Exception):
    """Stops the command (exit 1): says what was wrong, where, and what to do next. Any terminal can show its text."""

    exit_code = 1

    def __init__(self, message: object) -> None:
        super().__init__(_presentable(message) if isinstance(message, str) else message)


class NoDeviceLeft(OvsegError):
    """No device is left on which a worker starts and stays alive."""


class UsageError(OvsegError):
    """The command, config or input cannot mean anything (exit 2)."""

    exit_code = 2


class Interrupted(Exception):
    """Ctrl-C or SIGTERM stopped the run. Every shard that was begun is finished and committed."""


class RowError(Exception):
    """One image cannot be done; the shard goes on without it."""

    def __init__(self, code: FailureCode, message: str) -> None:
        self.code = code
        self.message = _presentable(message)
        super().__init__(self.message)


class DeviceLost(Exception):
    """The GPU does not work in this process any more. Another process can continue; no image is to blame."""


def _escaped(text: str) -> str:
    """Return a text with its unprintable characters as escapes. Newlines and tabs stay."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _presentable(text: str) -> str:
    """Return a message without unprintable characters; of a very long one the beginning and the end."""
    shown, half = _escaped(text), LONGEST_MESSAGE // 2
    return shown if len(shown) <= LONGEST_MESSAGE else f"{shown[:half]} … {shown[-half:]}"


def is_opencv_error(error: BaseException) -> bool:
    """Return whether OpenCV raised the error. Only a process that has imported OpenCV can have one."""
    cv2 = sys.modules.get("cv2")
    return cv2 is not None and isinstance(error, cv2.error)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error says that memory ran out, on a device or on the host."""
    if isinstance(error, MemoryError):
        return True
    if is_opencv_error(error):
        return bool(getattr(error, "code", None) == sys.modules["cv2"].Error.StsNoMem)
    if not isinstance(error, RuntimeError):  # PyTorch's own OutOfMemoryError is a RuntimeError
        return False
    torch = sys.modules.get("torch")
    raised = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return raised or any(text in str(error).lower() for text in MEMORY_ERRORS)


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest known name, or an empty string when nothing is near."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""
