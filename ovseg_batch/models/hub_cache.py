"""Find files of the Hugging Face hub on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import constants


def repository_folder(repository: str) -> Path:
    """Return the folder of a repository in the hub's cache, which may not exist."""
    return Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")


def cached(repository: str, names: Iterable[str]) -> Path | None:
    """Return the first of the named files that is in the hub's cache, or None. Uses no network."""
    try:
        if not repository or not repository_folder(repository).is_dir():
            return None
    except OSError:  # the name is longer than a file name can be
        return None
    from huggingface_hub import try_to_load_from_cache  # imported here: it imports an HTTP library

    for name in names:
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None
