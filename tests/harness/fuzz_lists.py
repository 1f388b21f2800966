"""Mutated lists of images, manifests, labels, settings and truths, given to the functions that the commands call."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq

from ovseg_batch import datasets
from ovseg_batch.config import dump_config, load_config
from ovseg_batch.errors import OvsegError
from ovseg_batch.evaluate.truth.datasets import TruthReader
from ovseg_batch.io.manifest import Manifest, Summary, build_manifest
from ovseg_batch.io.updating import update_manifest
from ovseg_batch.runs import manifests
from ovseg_batch.runs.planning import check_manifest
from ovseg_batch.settings.labels import format_labels, read_labels
from ovseg_batch.settings.running import ManifestConfig
from ovseg_batch.stages.registry import make_vocabulary
from ovseg_batch.workdir.store import Workdir
from tests.harness.fuzzing import Input, Violation
from tests.harness.list_files import DRAWS, IMAGES, SHARD_ROWS, good_manifest, png

LONGEST_MESSAGE = 4000  # characters
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
LABELS = "sky; tree; road"  # words of the embedded model
CONFIG = load_config("demo", flags={"labels": LABELS}, environment={})
DATASET = "coco-object"
TRUTH = "annotations/instances_val2017.json"


class Lists:
    """Files of lists, manifests, labels, settings and truths."""

    name = "lists"

    def draw(self, seed: int) -> Input:
        """Return the mutated file of a seed."""
        random = Random(f"lists:{seed}")
        form = [*DRAWS][seed % len(DRAWS)]
        content, mutation, suffix = DRAWS[form](random)
        return Input(form, mutation, f"list{suffix}", content)

    def check(self, given: Input) -> bool:
        """Write the file beside images and give it to the product."""
        with tempfile.TemporaryDirectory(prefix="ovseg-fuzz-") as folder:
            root = Path(folder) / "lists" / "a"  # a list may name the folder above, which must not change
            root.mkdir(parents=True)
            for name in IMAGES:
                (root / name).parent.mkdir(exist_ok=True)
                (root / name).write_bytes(png())
            path = root / given.name
            path.write_bytes(given.content)
            try:
                CHECKS[given.form](path)
            except OvsegError as error:
                check_message(str(error))
                return False
            return True


def check_message(text: str) -> None:
    """Check that a refusal can be printed.

    Raises:
        Violation: it is empty or very long, or holds half of a surrogate pair or what controls a terminal.
    """
    if not text.strip():
        raise Violation("it is refused without a word")
    if len(text) > LONGEST_MESSAGE:
        raise Violation(f"the refusal has {len(text)} characters: {text[:500]}")
    if found := CONTROLS.search(text):
        raise Violation(f"the refusal holds {found[0]!r}: {text[:500]!r}")


# --- what is done with each file ---


def _list(path: Path) -> None:
    """List the file as `manifest` does, and read the manifest back."""
    out = path.parent / "out" / "manifest.parquet"
    out.parent.mkdir()
    listed = build_manifest([str(path)], out, SHARD_ROWS)
    _accounted(path, listed)
    _read(out, listed.rows)
    again = path.parent / "out" / "again.parquet"
    build_manifest([str(path)], again, SHARD_ROWS)
    if again.read_bytes() != out.read_bytes():
        raise Violation("listed twice, it gives two manifests")


def _accounted(path: Path, listed: Summary) -> None:
    """Check that the rows and the notes speak of every entry."""
    for note in listed.notes():
        check_message(note)
    entries = COUNTERS[path.suffix](path)
    if entries is not None and entries != listed.rows + listed.duplicates + listed.excluded:
        raise Violation(f"{entries} entries, {listed.rows} rows, {listed.duplicates} of them listed twice")


def _read(path: Path, rows: int | None = None) -> None:
    """Read a manifest as the commands do, and check that no row is lost or there twice."""
    manifest = Manifest.open(path)
    check_manifest(manifest, CONFIG)
    lines = [row for shard in range(manifest.shards) for row in manifest.read_shard(shard)]
    if len(lines) != manifest.rows or (rows is not None and rows != len(lines)):
        raise Violation(f"{rows} rows were listed, {manifest.rows} written and {len(lines)} read")
    if len({row.row for row in lines}) != len(lines) or len({row.key for row in lines}) != len(lines):
        raise Violation("two rows have one number or one key")
    for row in lines:
        if rows is not None and not all((row.key, row.file_name, row.path)):
            raise Violation(f"a listed row has no key, name or path: {row}")
        os.fsencode(row.path)
        f"{row.key}{row.file_name}".encode()
        with contextlib.suppress(ValueError):  # charged to the row
            make_vocabulary(CONFIG).left_out(row.extra.get("prompts"))
    if [where for _, where in manifest.read_paths()] != [row.path for row in lines]:
        raise Violation("read_paths and read_shard differ")


def _manifest(path: Path) -> None:
    """Take a ready-made manifest into a workdir, and bring a good one up to date with it."""
    workdir = Workdir(path.parent / "run")
    workdir.create()
    manifests.prepare_manifest([str(path)], workdir, ManifestConfig(shard_rows=SHARD_ROWS), None)
    _read(workdir.manifest)
    known = path.parent / "known.parquet"
    known.write_bytes(good_manifest())
    update_manifest(known, path)
    _read(known)


def _labels(path: Path) -> None:
    config = load_config("demo", flags={"labels": read_labels([f"@{path}"])}, environment={})
    _same_config(path, config)
    if all(_plain_words([label.name, *label.synonyms]) for label in config.labels):
        text = format_labels((label.name, label.synonyms) for label in config.labels)
        names = [label.name for label in load_config("demo", flags={"labels": text}, environment={}).labels]
        if names != [label.name for label in config.labels]:
            raise Violation(f"the labels written as a text are other labels: {names}")


def _plain_words(words: list[str]) -> bool:
    """Return whether words can stand in a text of labels: no separators and quotes."""
    return not any(re.search("[,;:，、；：\n\"'@«»“”„‘’./]", word) or word != word.strip() for word in words)


def _settings(path: Path) -> None:
    _same_config(path, load_config(path, environment={}))


def _same_config(path: Path, config: Any) -> None:
    """Check that settings are written as they are read back."""
    written = path.parent / "written.yaml"
    written.write_text(dump_config(config), encoding="utf-8")
    if load_config(written, environment={}) != config:
        raise Violation("config.yaml does not give the settings back")


def _truth(path: Path) -> None:
    """List a data set by its truth, as `manifest --dataset coco-object --oracle` does, and read every truth."""
    target = path.parent / TRUTH
    target.parent.mkdir()
    (path.parent / "val2017").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (path.parent / "val2017" / name).write_bytes(png())
    path.rename(target)
    reader = TruthReader(datasets.load(DATASET), path.parent)
    out = path.parent / "manifest.parquet"
    listed = build_manifest([reader.source(oracle=True)], out, SHARD_ROWS)
    if listed.rows != 2:
        raise Violation(f"two images, {listed.rows} rows")
    _read(out, 2)
    for name in ("1.jpg", "2.jpg"):
        truth = reader.read(name)
        for instance in truth.instances or []:
            if not (isinstance(instance.category, str) and 0 <= instance.area < float("inf")):
                raise Violation(f"an instance is {instance}")


def _class_map(path: Path) -> None:
    """Read a class map and a map of instances."""
    (path.parent / "images").mkdir()
    (path.parent / "truth").mkdir()
    (path.parent / "images" / "a.png").write_bytes(png())
    for kind in ("classes", "instances"):
        (path.parent / "truth" / f"a.png.{kind}.png").write_bytes(path.read_bytes())
    reader = TruthReader(datasets.load("scenes"), path.parent)
    out = path.parent / "manifest.parquet"
    _read(out, build_manifest([reader.source(oracle=True)], out, SHARD_ROWS).rows)


# --- how many entries a list has, counted another way ---


def _text_lines(path: Path) -> int:
    return sum(bool(line.strip()) for line in re.split("\r\n|\r|\n", path.read_bytes().decode("utf-8-sig", "replace")))


def _csv_records(path: Path) -> int | None:
    """Return the records below the header; None with a line `sep=`."""
    text = path.read_bytes().decode("utf-8-sig")
    if text.lstrip('"').lower().startswith("sep="):
        return None
    counts = {
        sum(1 for values in csv.reader(io.StringIO(text, newline=""), delimiter=one) if values) - 1 for one in ",;\t|"
    }
    return counts.pop() if len(counts) == 1 and not text[:1].isspace() else None


def _json_lines(path: Path) -> int:
    return _text_lines(path)


def _json_entries(path: Path) -> int:
    content = json.loads(path.read_bytes())  # in any of the encodings of Unicode
    return len(content if isinstance(content, list) else content["images"])


COUNTERS: dict[str, Callable[[Path], int | None]] = {
    ".txt": _text_lines,
    ".csv": _csv_records,
    ".tsv": _csv_records,
    ".jsonl": _json_lines,
    ".json": _json_entries,
    ".parquet": lambda path: int(pq.ParquetFile(path).metadata.num_rows),
}


#: Kind of file → what reads it.
CHECKS: dict[str, Callable[[Path], None]] = {
    "txt": _list,
    "csv": _list,
    "csv with ;": _list,
    "tsv": _list,
    "jsonl": _list,
    "json list": _list,
    "coco": _list,
    "parquet list, bytes": _list,
    "parquet list, values": _list,
    "manifest, bytes": _manifest,
    "manifest, values": _manifest,
    "labels": _labels,
    "settings": _settings,
    "settings, values": _settings,
    "coco truth": _truth,
    "class map": _class_map,
}
