"""Resumable downloads from the Hugging Face hub, with verified hashes.

A download is written as `HASH.incomplete` beside the blobs of the hub's cache. It is renamed to a blob once its hash
matches the published one. huggingface_hub then links it, so every library that uses the hub finds it, also offline. The
download function of huggingface_hub is not used, because it deletes interrupted downloads and compares no hashes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, file_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from ovseg_batch.errors import OvsegError
from ovseg_batch.io.hashing import GIT_SHA1, SHA256, file_digest
from ovseg_batch.models.hub_cache import cached, repository_folder
from ovseg_batch.units import size

LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}  # errors of this machine's disk
#: Messages for errors of the hub. The first matching class is used.
EXPLANATIONS: tuple[tuple[type[Exception], str], ...] = (
    (
        GatedRepoError,
        "{repository} is gated. Accept its licence at {endpoint}/{repository}, create a token at "
        "{endpoint}/settings/tokens, store it with `hf auth login` or in HF_TOKEN, and run this command again.",
    ),
    (
        RepositoryNotFoundError,
        "{endpoint} has no repository {repository}, or it is private. Check the name. For a private repository, "
        "store a token with `hf auth login` or in HF_TOKEN.",
    ),
    (
        OfflineModeIsEnabled,
        "{repository} cannot be fetched because HF_HUB_OFFLINE is set. Unset it, or copy {cache} from a machine that "
        "has fetched it.",
    ),
    (HfHubHTTPError, "{endpoint} refused to send {repository}: {reason}. Run this command again later."),
    (
        Exception,
        "{endpoint} cannot be reached to fetch {repository}: {reason}. Check the network and its proxy (HTTPS_PROXY). "
        "HF_ENDPOINT names a mirror. Without a network, copy {cache} from a machine that has fetched it.",
    ),
)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository: its path, and its size in bytes if the hub states it."""

    name: str
    size: int | None


def listing(repository: str) -> list[HubFile]:
    """Return the files of a repository. Raises OvsegError where the hub cannot be reached or refuses."""
    with _explained(repository):
        info = huggingface_hub.HfApi().model_info(repository, files_metadata=True)
        return [HubFile(one.rfilename, one.size) for one in info.siblings or []]


def require_space(repository: str, files: Iterable[HubFile]) -> None:
    """Raise OvsegError if the disk of the hub's cache has no space for the missing files."""
    cache = Path(constants.HF_HUB_CACHE).absolute()
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    begun = sum(file.stat().st_size for file in _blobs(repository).glob("*.incomplete"))
    needed = sum(file.size or 0 for file in files if cached(repository, [file.name]) is None) - begun
    if needed > free:
        raise OvsegError(
            f"{repository} takes {size(needed)}, and the disk of {cache} has {size(free)} free. "
            "Free some space, or set HF_HOME to a folder on another disk."
        )


def download(repository: str, name: str) -> Path:
    """Download a file into the hub's cache, unless the cache has it with the published hash.

    An interrupted download continues where it stopped. The hash is the hub's ETag: SHA-256 for large files, Git's
    SHA-1 for small ones. Mirrors may send another ETag; then only the size is compared.

    Raises:
        OvsegError: the hub cannot be reached or refuses, or the content does not have the published hash.
    """
    with _explained(repository):
        metadata = file_download.get_hf_file_metadata(file_download.hf_hub_url(repository, name))
        blob = _blobs(repository) / (metadata.etag or "")
        if blob.is_file() and not _has_hash(blob, blob.name):
            blob.unlink()
        if metadata.etag and not blob.is_file():
            url = file_download.hf_hub_url(repository, name, revision=metadata.commit_hash)
            _receive(url, name, blob, metadata.size)
        return Path(huggingface_hub.hf_hub_download(repository, name))


def _blobs(repository: str) -> Path:
    """Return the folder of the hub's cache that holds the contents of a repository."""
    return repository_folder(repository) / "blobs"


def _receive(url: str, name: str, blob: Path, expected_size: int | None) -> None:
    """Download a URL to a blob that is named by its hash. An interrupted download continues."""
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(f"{blob.name}.incomplete")
    with partial.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # only one process downloads a file
        if blob.is_file():
            partial.unlink(missing_ok=True)
            return
        if expected_size is not None and file.tell() > expected_size:
            file.truncate(0)
        file_download.http_get(
            url,
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(),
            expected_size=expected_size,
            displayed_filename=name,
        )
        file.flush()
        if not _has_hash(partial, blob.name):
            partial.unlink()
            raise OvsegError(
                f"The download of {url} does not have the published hash {blob.name[:16]}…. It was deleted. Run this "
                "command again; if that does not help, a proxy or mirror on the way changes the content."
            )
        partial.rename(blob)


def _has_hash(file: Path, published: str) -> bool:
    """Return whether the file has the published hash. True where the blob's name is not a hash."""
    if not re.fullmatch(rf"[0-9a-f]{{{SHA256}}}|[0-9a-f]{{{GIT_SHA1}}}", published):
        return True
    return file_digest(file, "sha1" if len(published) == GIT_SHA1 else "sha256") == published


@contextlib.contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Replace the errors of the hub and of its HTTP library, whose classes differ by version."""
    try:
        yield
    except OvsegError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in LOCAL:
            raise
        text = next(text for kind, text in EXPLANATIONS if isinstance(error, kind))
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        endpoint, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
        message = text.format(repository=repository, endpoint=endpoint, cache=cache, reason=reason.rstrip("."))
        raise OvsegError(message) from None
