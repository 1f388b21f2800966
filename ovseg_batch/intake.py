"""Which manifest a run works through: the one its workdir has, one that was made before, or one made of its inputs."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.io.atomic import atomic_path
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.io.remote import Remote, check_installed, is_remote
from ovseg_batch.io.updating import update_manifest
from ovseg_batch.store import Workdir

log = logging.getLogger(__name__)


def absolute(inputs: Sequence[str]) -> list[str]:
    return [item if is_remote(item) else str(Path(item).absolute()) for item in inputs]


def check_remote(manifest: Manifest, allowed: bool) -> None:
    """See that images behind URLs are meant to be fetched, and can be.

    Raises:
        UsageError: they are not, or a package is not installed.
    """
    if manifest.remote and not allowed:
        kinds = ", ".join(f"{scheme}://" for scheme in manifest.remote)
        count = sum(manifest.remote.values())
        raise UsageError(
            f"{count} of {manifest.rows} images are behind URLs ({kinds}). Give --allow-remote to fetch them."
        )
    for scheme in manifest.remote:
        check_installed(scheme)


def existing_manifest(workdir: Workdir, inputs: Sequence[str]) -> Path | None:
    """The workdir's manifest when it was made of these inputs."""
    if not (workdir.manifest.exists() and workdir.plan.exists()):
        return None
    with contextlib.suppress(OvsegError):  # a plan that cannot be read is written anew
        if workdir.read_plan().get("inputs") == absolute(inputs):
            return workdir.manifest
    return None


def ready_made_manifest(inputs: Sequence[str]) -> Path | None:
    """The input itself, when it is one manifest that `ovseg-batch manifest` wrote."""
    if len(inputs) == 1 and inputs[0].endswith(".parquet") and Manifest.recognises(Path(inputs[0])):
        return Path(inputs[0])
    return None


def update(inputs: Sequence[str], workdir: Workdir, shard_rows: int, remote: Remote | None) -> None:
    """List the inputs again and bring the workdir's manifest up to what they hold now."""
    with tempfile.TemporaryDirectory(prefix="ovseg-manifest-") as folder:
        fresh = ready_made_manifest(inputs)
        if fresh is None:
            fresh = Path(folder) / "manifest.parquet"
            for note in build_manifest(inputs, fresh, shard_rows, remote).notes():
                log.warning(note)
        found = update_manifest(workdir.manifest, fresh)
    if found:
        log.info("since the last run: %d images new, %d changed, %d gone", found.added, found.changed, found.removed)
    else:
        log.info("nothing has changed in the inputs since the last run")


def prepare_manifest(inputs: Sequence[str], workdir: Workdir, shard_rows: int, remote: Remote | None) -> None:
    """See that the workdir has the manifest of these inputs, and of no others."""
    if existing_manifest(workdir, inputs) is not None:
        log.info("resuming with the manifest in %s; the input folder is not listed again", workdir.manifest)
        log.info("(--update lists it, and takes up what is new, changed or gone)")
        return
    ready_made = ready_made_manifest(inputs)
    if not workdir.manifest.exists():
        if ready_made is None:
            for note in build_manifest(inputs, workdir.manifest, shard_rows, remote).notes():
                log.warning(note)
        else:
            with atomic_path(workdir.manifest) as temporary:
                shutil.copyfile(ready_made, temporary)
        return
    with tempfile.TemporaryDirectory(prefix="ovseg-manifest-") as folder:
        if ready_made is None:
            ready_made = Path(folder) / "manifest.parquet"
            build_manifest(inputs, ready_made, shard_rows, remote)
        given, ours = Manifest.open(ready_made), Manifest.open(workdir.manifest)
    if given.fingerprint != ours.fingerprint:
        raise UsageError(
            f"The workdir {workdir.root} belongs to another manifest ({ours.rows} images in {ours.shards} shards; "
            f"this input has {given.rows} in {given.shards}). Choose another workdir with -o; "
            "or, if it is the same collection and has changed, say --update."
        )
