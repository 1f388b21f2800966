"""Shared parts of all commands: exit codes, logs and error messages."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ovseg_batch.engine.logs import send_logs_to
from ovseg_batch.engine.stopping import EXIT_INTERRUPTED, interruptible
from ovseg_batch.errors import Interrupted, OvsegError
from ovseg_batch.io.atomic import DISK_FULL

if TYPE_CHECKING:
    from tqdm import tqdm

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_FAILED_IMAGES = 0, 1, 2, 3
EXIT_PIPE = 141  # as a shell reports a process that died of SIGPIPE
LINKER_MEMORY_ERRORS = ("failed to map segment", "Cannot allocate memory", "cannot allocate memory")  # of dlopen
STOPPED = "stopped. Committed shards are kept; the same command resumes."

log = logging.getLogger("ovseg_batch")
ending = logging.getLogger(__name__)  # logs why a command has ended


class TextLines(logging.Formatter):
    """Formats records as plain messages. Messages of the end of a command start with the name of the program."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"ovseg-batch: {text}" if record.name == ending.name else text


class JsonLines(logging.Formatter):
    """Formats records as one JSON object per line: time, level, logger, message, and counts of a shard or a stage."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class Lines(logging.Handler):
    """Writes records to stderr, and redraws the progress bar below them."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            bars = sys.modules.get("tqdm")  # imported with the first bar
            write = print if bars is None else bars.tqdm.write
            write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


FORMATTERS: dict[str, Callable[[], logging.Formatter]] = {"text": TextLines, "json": JsonLines}


def set_up_logging(log_format: str, quiet: bool) -> None:
    handler = Lines()
    handler.setFormatter(FORMATTERS[log_format]())
    send_logs_to(handler, logging.WARNING if quiet else logging.INFO)
    shards = logging.NOTSET if log_format == "json" else logging.WARNING  # text output has a bar instead
    logging.getLogger("ovseg_batch.runs.meter").setLevel(shards)


class CommandLine(click.Group):
    """The group of all commands. Its options also apply to usage errors."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        set_up_logging("text", quiet=False)
        rest = super().parse_args(ctx, args)
        set_up_logging(ctx.params["log_format"], ctx.params["quiet"])
        return rest

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            sys.exit(super().main(*args, **{**kwargs, "standalone_mode": False}))
        except click.ClickException as error:
            if _is_json():
                ending.error(error.format_message())
            else:
                error.show()
            sys.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            ending.error(STOPPED)
            sys.exit(EXIT_INTERRUPTED)


def _is_json() -> bool:
    return any(isinstance(handler.formatter, JsonLines) for handler in log.handlers)


def bar_option() -> bool | None:
    """Return the value of `progress` in commands: None (a bar on terminals), or False with JSON lines or --quiet."""
    return False if _is_json() or not log.isEnabledFor(logging.INFO) else None


def bar(name: str) -> tqdm[NoReturn]:
    """Return a progress bar that counts images; see `bar_option`."""
    from tqdm import tqdm

    return tqdm(desc=name, unit=" images", disable=bar_option() is False or None)


def _output_closed() -> bool:
    """Return whether the reader of stdout has ended, as `head` does. If so, discard further output."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def guarded(command: Callable[..., int | None]) -> Callable[..., None]:
    """Convert exceptions of a command into a message on stderr and an exit code."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        with interruptible() as interruption:
            try:
                interruption.begin()
                code = command(*args, **kwargs) or EXIT_OK
            except BaseException as error:
                interruption.end()
                stopped = interruption.requested and not isinstance(error, SystemExit)
                code = _report(KeyboardInterrupt() if stopped else error)  # cleanup may have replaced the exception
        sys.exit(code)

    return run


def _is_lack_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out. The dynamic linker reports it as an ImportError."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in LINKER_MEMORY_ERRORS)


def _report(error: BaseException) -> int:
    """Log why a command has ended, and return its exit code."""
    match error:
        case OvsegError():
            ending.error("%s", error)
            return error.exit_code
        case KeyboardInterrupt() | Interrupted():
            ending.error(STOPPED)
            return EXIT_INTERRUPTED
        case BrokenPipeError() if _output_closed():
            return EXIT_PIPE
        case OSError():
            place = error.filename2 or error.filename
            ending.error(
                "%s%s. Committed shards are kept. %s and give the same command again.",
                error.strerror or error,
                f" ({place})" if place else "",
                "Free space on that disk" if error.errno in DISK_FULL else "Correct the cause",
            )
            return EXIT_ERROR
        case ImportError() | MemoryError() if _is_lack_of_memory(error):
            ending.error(
                "no memory was left (%s). Committed shards are kept. Close other programs, or raise the limit of this "
                "process, and give the same command again.",
                str(error) or type(error).__name__,
            )
            return EXIT_ERROR
        case Exception() if _is_json():
            ending.error("%s: %s", type(error).__name__, error, exc_info=error)
            return EXIT_ERROR
    raise error
