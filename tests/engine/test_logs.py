"""The lines that other libraries log."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from ovseg_batch.engine.logs import OWN, send_logs_to


class Kept(logging.Handler):
    """Keeps the messages of its records."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def kept() -> Iterator[Kept]:
    """A handler that receives the records of this process, as a command installs it."""
    own, root = logging.getLogger(OWN), logging.getLogger()
    before = own.handlers, own.propagate, own.level, root.handlers, root.level
    handler = Kept()
    send_logs_to(handler, logging.INFO)
    yield handler
    own.handlers, own.propagate, own.level, root.handlers, root.level = before


def test_pillow_is_silent_and_other_libraries_are_not(kept: Kept) -> None:
    logging.getLogger("PIL.TiffImagePlugin").error("More samples per pixel than can be decoded: 65535")
    logging.getLogger("botocore.credentials").info("Found credentials")
    logging.getLogger("botocore.credentials").warning("No credentials")
    logging.getLogger(OWN).info("dense: 2 of 2 images")
    assert kept.messages == ["No credentials", "dense: 2 of 2 images"]
