"""Detect the layout of a weights file from its entry names, without torch, unpickling or reading tensors."""

from __future__ import annotations

import zipfile
from pathlib import Path

HUB_CONFIG = "open_clip_config.json"  # the architecture of a CLIP of open_clip on the hub
OPENAI_ENTRY = "input_resolution"  # an entry that only OpenAI's state dicts have
LEGACY_HEAD = 1 << 20  # bytes at the start of a file of torch before 1.6, which contain all names


def is_torchscript(file: Path) -> bool:
    """Return whether the file is a TorchScript archive, as OpenAI's original files are."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def is_openai_layout(file: Path) -> bool:
    """Return whether the file has the three extra entries of OpenAI's state dicts.

    Returns False for a TorchScript archive or a damaged file. Loading reports the error.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, "np") as opened:
                return OPENAI_ENTRY in opened.keys()  # noqa: SIM118 - not a dict
        return not is_torchscript(file) and OPENAI_ENTRY.encode() in _pickle(file)
    except Exception:  # parsers raise many classes for damaged files
        return False


def _pickle(file: Path) -> bytes:
    """Return the bytes of the pickle that holds the names of a file of torch.save."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    with file.open("rb") as opened:
        return opened.read(LEGACY_HEAD)
