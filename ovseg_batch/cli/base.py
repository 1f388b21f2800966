"""What every command shares: exit codes, logs, and sentences for what went wrong."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import Any

import click

from ovseg_batch.errors import Interrupted, OvsegError

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_FAILED_IMAGES, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
EXIT_PIPE = 141  # as a shell says of what died of SIGPIPE


class JsonLines(logging.Formatter):
    """One JSON object a line: when, how grave, who, what, and the numbers of a shard where it is about one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(log_format: str, quiet: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else logging.Formatter("%(message)s"))
    logger = logging.getLogger("ovseg_batch")
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False
    shards = logging.NOTSET if log_format == "json" else logging.WARNING  # people have a bar
    logging.getLogger("ovseg_batch.meter").setLevel(shards)


def _nobody_reads() -> bool:
    """Whether stdout's reader has gone, as `head` does; what is left to say is then thrown away."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def guarded(command: Callable[..., int | None]) -> Callable[..., None]:
    """Turn what went wrong into a sentence on stderr and an exit code."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            code = command(*args, **kwargs)
        except OvsegError as error:
            click.echo(f"ovseg-batch: {error}", err=True)
            code = error.exit_code
        except (KeyboardInterrupt, Interrupted):
            click.echo("ovseg-batch: stopped. What is committed stays; the same command resumes.", err=True)
            code = EXIT_INTERRUPTED
        except OSError as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                sys.exit(EXIT_PIPE)
            where = f" ({error.filename})" if error.filename else ""
            click.echo(
                f"ovseg-batch: {error.strerror or error}{where}. What is committed stays; "
                "mend the cause and give the same command again.",
                err=True,
            )
            code = EXIT_ERROR
        sys.exit(code or EXIT_OK)

    return run
