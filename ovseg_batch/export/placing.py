"""Image files in exports that want them beside the labels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.io.atomic import temporary_path
from ovseg_batch.io.remote import is_remote, shown
from ovseg_batch.types import ImageRow
from ovseg_batch.wording import spelled


def place_image(row: ImageRow, target: Path, how: Literal["link", "copy", "none"]) -> None:
    """A symbolic link to, or a copy of, an image's file; whatever was called so is replaced.

    Raises:
        UsageError: the image is behind a URL.
        OvsegError: it is not there any more.
    """
    if how == "none":
        return
    source = local_path(row)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(target)
    try:
        if how == "link":
            temporary.symlink_to(source)
        else:
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def local_path(row: ImageRow) -> Path:
    """Where an image's file is.

    Raises:
        UsageError: behind a URL.
        OvsegError: nowhere any more.
    """
    if is_remote(row.path):
        raise UsageError(f"{shown(row.path)} is not on this machine; {_without_images()}.")
    path = Path(row.path).absolute()
    if not path.is_file():
        raise OvsegError(f"{path} is not there any more; {_without_images()}.")
    return path


def _without_images() -> str:
    option = spelled("--images none", 'Options(images="none")')
    return f"with {option} the export holds no images"
