"""What a weights file is, by the names in it. Needs no torch, runs no pickle and reads no tensor."""

from __future__ import annotations

import zipfile
from pathlib import Path

from safetensors import safe_open

OPENAI_ENTRY = "input_resolution"  # only OpenAI's own state dicts have it
LEGACY_HEAD = 1 << 20  # bytes at the start of a file of torch before 1.6; they hold all names


def is_torchscript(file: Path) -> bool:
    """Return whether the file is a TorchScript archive, as OpenAI's originals are; tensors taken out of one are not."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def is_openai_layout(file: Path) -> bool:
    """Return whether the file has the three extra entries of OpenAI's state dicts.

    A TorchScript archive or a damaged file gives False: loading it reports what is wrong.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "np") as opened:
                return OPENAI_ENTRY in opened.keys()  # noqa: SIM118 - not a dict
        return not is_torchscript(file) and OPENAI_ENTRY.encode() in _pickle(file)
    except Exception:  # a damaged file raises whatever its parser raises
        return False


def _pickle(file: Path) -> bytes:
    """Return the bytes of the pickle that holds the names of a file of torch.save."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    with file.open("rb") as opened:
        return opened.read(LEGACY_HEAD)
