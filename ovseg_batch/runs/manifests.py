"""The inputs of a run: INPUT, manifest, and the labels of the previous run in the workdir.

The manifest is the one that the workdir has, one that was made before, or one made of the inputs.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ovseg_batch import datasets
from ovseg_batch.config import load_config
from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.io.atomic import atomic_path
from ovseg_batch.io.entries import Entry, Source
from ovseg_batch.io.manifest import Manifest, Summary, build_manifest
from ovseg_batch.io.manifest_check import check_rows
from ovseg_batch.io.remote import Remote, check_installed, is_remote, scheme_of, shown
from ovseg_batch.io.sources import check_source, fixed_part, open_source
from ovseg_batch.io.updating import update_manifest
from ovseg_batch.settings import Config, Label
from ovseg_batch.settings.labels import format_labels
from ovseg_batch.settings.running import ManifestConfig
from ovseg_batch.units import counted, extent
from ovseg_batch.wording import setting, spelled
from ovseg_batch.workdir.findings import LISTED, printable
from ovseg_batch.workdir.results import changed_keys
from ovseg_batch.workdir.store import Workdir

log = logging.getLogger(__name__)

OWN = "belongs to the workdir {}, which the run writes. Choose another workdir."


def absolute(inputs: Sequence[str]) -> list[str]:
    return [item if is_remote(item) else str(Path(item).absolute()) for item in inputs]


def check_inputs(inputs: Sequence[str], workdir: Workdir, allow_remote: bool) -> None:
    """Check that the inputs exist and are not what the run writes. Lists nothing, so that it costs no time.

    Raises:
        UsageError: an input does not exist, is the workdir itself, or is in one of the workdir's own folders; or it is
            a URL and URLs are not allowed, or the library that reads them is not installed.
    """
    for text in inputs:
        check_source(text)
        if is_remote(text):
            if not allow_remote:
                raise UsageError(f"{shown(text)} is on a network. {_allowing()} to fetch its images.")
            check_installed(scheme_of(text))
            continue
        place = fixed_part(text).resolve()
        if place == workdir.root.resolve():
            raise UsageError(
                f"{text} is INPUT and workdir at once, so the run would list the images that it writes itself. "
                f"Choose another workdir, such as {workdir.root / 'out'}; the run does not list that folder."
            )
        if workdir.owns(place):
            raise UsageError(f"{text} {OWN.format(workdir.root)}")


def list_images(
    inputs: Sequence[str], workdir: Workdir, out: Path, listing: ManifestConfig, remote: Remote | None
) -> Summary:
    """Write the manifest of the inputs into `out`, as `build_manifest` does.

    Raises:
        UsageError: as `build_manifest`; or an image lies in one of the workdir's own folders.
    """

    @functools.lru_cache(maxsize=1024)
    def owned(folder: str) -> bool:
        return workdir.owns(Path(os.path.realpath(folder)))  # `resolve` raises at a link to itself

    def checked(entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            if not is_remote(entry.path) and owned(entry.path.rpartition("/")[0]):
                raise UsageError(f"{entry.where}: {entry.path} {OWN.format(workdir.root)}")
            yield entry

    sources = [_source(text, remote, listing) for text in inputs]
    for source in sources:
        source.entries = checked(source.entries)
    return build_manifest(sources, out, listing.shard_rows)


def _source(text: str, remote: Remote | None, listing: ManifestConfig) -> Source:
    """Open an input. The folder of the data set that `manifest.dataset` names gives the images of its split."""
    if listing.dataset is not None and Path(text).is_dir():
        from ovseg_batch.evaluate.truth.datasets import TruthReader

        dataset = datasets.load(listing.dataset)
        if dataset.is_at(Path(text)):
            log.info("%s is the folder of %s. The images of its split are listed.", text, dataset.title)
            return TruthReader(dataset, Path(text)).source(oracle=False)
    return open_source(text, remote, listing.exclude)


def check_remote(manifest: Manifest, allowed: bool) -> None:
    """Require that images behind URLs may be fetched and can be read.

    Raises:
        UsageError: they are not, or a package is not installed.
    """
    if manifest.remote and not allowed:
        kinds = ", ".join(f"{scheme}://" for scheme in manifest.remote)
        count = sum(manifest.remote.values())
        raise UsageError(f"{count} of {manifest.rows} images are behind URLs ({kinds}). {_allowing()} to fetch them.")
    for scheme in manifest.remote:
        check_installed(scheme)


def _allowing() -> str:
    return f"Give {spelled('--allow-remote', setting('run.allow_remote', True))}"


def existing_manifest(workdir: Workdir, inputs: Sequence[str], listing: ManifestConfig) -> Path | None:
    """The workdir's manifest when it was made of these inputs, without the same files."""
    if not (workdir.manifest.exists() and workdir.plan.exists()):
        return None
    with contextlib.suppress(OvsegError):  # a plan that cannot be read is written again
        plan = workdir.read_plan()
        listed = (plan.get("inputs"), plan.get("exclude", []), plan.get("dataset"))
        if listed == (absolute(inputs), list(listing.exclude), listing.dataset):
            return workdir.manifest
    return None


def ready_made_manifest(inputs: Sequence[str]) -> Path | None:
    """Return the input itself if it is one manifest that `ovseg-batch manifest` wrote.

    Raises:
        UsageError: it has the mark of a manifest, and its rows are not those of one.
    """
    if len(inputs) == 1 and inputs[0].endswith(".parquet") and Manifest.recognises(Path(inputs[0])):
        check_rows(Path(inputs[0]))
        return Path(inputs[0])
    return None


def update(inputs: Sequence[str], workdir: Workdir, listing: ManifestConfig, remote: Remote | None) -> None:
    """List the inputs again, and update the manifest of the workdir."""
    with tempfile.TemporaryDirectory(prefix="ovseg-manifest-") as folder:
        fresh = ready_made_manifest(inputs)
        if fresh is None:
            fresh = Path(folder) / "manifest.parquet"
            for note in list_images(inputs, workdir, fresh, listing, remote).notes():
                log.warning(note)
        found = update_manifest(workdir.manifest, fresh, before_change=workdir.unseal_outputs)
    if found:
        new = counted(found.added, "image")
        log.info("since the last run: %s new, %d changed, %d gone", new, found.changed, found.removed)
    else:
        log.info("nothing has changed in the inputs since the last run")


def renew_changed(workdir: Workdir) -> None:
    """Mark images whose files have changed between two stages, so that every stage computes them again."""
    if changed := changed_keys(workdir):
        update_manifest(workdir.manifest, workdir.manifest, changed, workdir.unseal_outputs)


def prepare_manifest(inputs: Sequence[str], workdir: Workdir, listing: ManifestConfig, remote: Remote | None) -> None:
    """Require that the workdir has the manifest of these inputs. Write it if there is none."""
    if existing_manifest(workdir, inputs, listing) is not None:
        if workdir.trial.exists():
            return
        log.info("resuming with the manifest in %s; the input folder is not listed again", workdir.manifest)
        log.info("(%s lists it, and takes up what is new, changed or gone)", spelled("--update", "update=True"))
        return
    ready_made = ready_made_manifest(inputs)
    if not workdir.manifest.exists():
        if ready_made is None:
            for note in list_images(inputs, workdir, workdir.manifest, listing, remote).notes():
                log.warning(note)
        else:
            with atomic_path(workdir.manifest) as temporary:
                shutil.copyfile(ready_made, temporary)
        return
    with tempfile.TemporaryDirectory(prefix="ovseg-manifest-") as folder:
        if ready_made is None:
            ready_made = Path(folder) / "manifest.parquet"
            list_images(inputs, workdir, ready_made, listing, remote)
        given, ours = Manifest.open(ready_made), Manifest.open(workdir.manifest)
    if given.fingerprint != ours.fingerprint:
        raise UsageError(
            f"The workdir {workdir.root} belongs to another manifest ({extent(ours.rows, ours.shards)}; "
            f"this input has {given.rows} in {given.shards}). Choose another workdir with {spelled('-o', 'workdir=')}; "
            f"or, if it is the same collection and has changed, give {spelled('--update', 'update=True')}."
        )


def replaced_labels(workdir: Workdir, config: Config) -> str | None:
    """Return a warning if the new run drops labels or synonyms of the run before it in this workdir; else None."""
    if workdir.trial.exists() or not workdir.config.exists():  # other labels are what a trial is for
        return None
    try:
        before = load_config(workdir.config, environment={}).labels
    except OvsegError:  # written by another version, or by hand
        return None
    if {(label.name, label.words) for label in before} <= {(label.name, label.words) for label in config.labels}:
        return None
    names = {label.name for label in before}
    added = [label for label in config.labels if label.name not in names]
    old, both = (_quoted(labels) for labels in (before, (*before, *added)))
    return (
        f"these labels replace those of {workdir.root}, which were {old}. To have both in one run, give "
        f"{spelled('--labels', 'labels=')} {both}. To keep the old result, choose another workdir; `ovseg-batch query` "
        "makes one from the features that a run has kept."
    )


def _quoted(labels: Sequence[Label]) -> str:
    """Return labels as a text for `--labels`, in quotes; of many, the first ones."""
    shown = format_labels((printable(one.name), [*map(printable, one.synonyms)]) for one in labels[:LISTED])
    return f'"{shown}; …" ({len(labels)} labels)' if len(labels) > LISTED else f'"{shown}"'
