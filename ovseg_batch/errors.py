"""The errors of the package.

There are two kinds. A `UsageError` or `OvsegError` stops the command with a message. A `RowError` fails one image, is
written as the result of its row, and the run continues. `FailureCode` lists all reasons of a `RowError`.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable
from enum import StrEnum


class FailureCode(StrEnum):
    """The reason why a row failed. A new code changes the on-disk format."""

    MISSING = "missing"  # the file does not exist any more
    UNREADABLE = "unreadable"  # the operating system cannot read it
    EMPTY = "empty"  # zero bytes
    NOT_AN_IMAGE = "not_an_image"  # no decoder supports it
    TRUNCATED = "truncated"  # the image file is incomplete
    TOO_LARGE = "too_large"  # it has more bytes or pixels than the limits allow
    BAD_IMAGE = "bad_image"  # the decoder failed for another reason
    CHANGED = "changed"  # the file has changed since an earlier stage read it
    OUT_OF_MEMORY = "out_of_memory"  # a single image does not fit into the device's memory
    NO_EDIT = "no_edit"  # there is no mask for the edit, no prompt, or no pixel outside of the masks
    BLOCKED = "blocked"  # a safety checker withheld the edited image
    UNWRITABLE = "unwritable"  # an edited file cannot have its name, or its format cannot hold the image
    CRASHED = "crashed"  # the worker process crashed repeatedly at it
    UPSTREAM = "upstream"  # an earlier stage failed this row
    MODEL = "model"  # the model raised an error, or returned values that are not finite
    INTERNAL = "internal"  # a bug; the message contains the exception


#: The text after the path in the message of `FailureCode.CHANGED`.
CHANGED = "has changed since an earlier stage read it; retry computes it again from the first stage"
#: Codes whose cause is the image file or its storage.
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


#: Parts of messages of PyTorch and CUDA's libraries about failed allocations.
MEMORY_ERRORS = (
    "out of memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "unable to find an engine to execute",
    "unable to find a valid cudnn algorithm",
)


LONGEST_MESSAGE = 3900  # characters; names may have any length, and the end of a message states what to do
#: Characters of names and settings that would control a terminal, reorder a line or have no UTF-8.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class OvsegError(Exception):
    """Stops the command (exit 1). The message states what was wrong, where, and what to do next."""

    exit_code = 1

    def __init__(self, message: object) -> None:
        super().__init__(_presentable(message) if isinstance(message, str) else message)


class NoDeviceLeft(OvsegError):
    """No device is left on which a worker starts and stays alive."""


class UsageError(OvsegError):
    """The command, the config or the input is invalid (exit 2)."""

    exit_code = 2


class Interrupted(Exception):
    """Ctrl-C or SIGTERM stopped the run. Shards in flight have been finished and committed."""


class RowError(Exception):
    """One image fails. The shard continues without it."""

    def __init__(self, code: FailureCode, message: str) -> None:
        self.code = code
        self.message = _presentable(message)
        super().__init__(self.message)


class DeviceLost(Exception):
    """The GPU has become unusable in this process. Another process can continue. No image is the cause."""


def escaped(text: str) -> str:
    """Escape the unprintable characters of a text, except newlines and tabs."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _presentable(text: str) -> str:
    """Escape the unprintable characters of a message. Very long messages are shortened in the middle."""
    shown, half = escaped(text), LONGEST_MESSAGE // 2
    return shown if len(shown) <= LONGEST_MESSAGE else f"{shown[:half]} … {shown[-half:]}"


def is_opencv_error(error: BaseException) -> bool:
    """Return whether OpenCV raised the error. OpenCV is not imported for this."""
    cv2 = sys.modules.get("cv2")
    return cv2 is not None and isinstance(error, cv2.error)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error means that memory ran out, on a device or on the host."""
    if isinstance(error, MemoryError):
        return True
    if is_opencv_error(error):
        return bool(getattr(error, "code", None) == sys.modules["cv2"].Error.StsNoMem)
    if not isinstance(error, RuntimeError):  # PyTorch's OutOfMemoryError is a RuntimeError
        return False
    torch = sys.modules.get("torch")
    raised = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return raised or any(text in str(error).lower() for text in MEMORY_ERRORS)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` with the closest known name, or an empty string if none is similar."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""
