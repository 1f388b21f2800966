#!/usr/bin/env python
"""Run the whole job over a folder of poison images and odd ones that are well: a table of file → status, code, size.

scripts/poison_zoo.py           # ends with 1 when an image gets another answer than it must
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import click
from breaking import zoo
from breaking.job import start_command

from ovseg_batch import scenes
from ovseg_batch.io.images import read_image
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.io.tables import TABLE, read_results
from ovseg_batch.workdir.store import Workdir


def answers(root: Path) -> tuple[int, dict[str, tuple[str, tuple[int, int] | None]]]:
    """Run the job over the zoo in `root`: the exit code, and file name → (first failure code, (width, height))."""
    zoo.fill(root / "images")
    labels = ", ".join(scenes.CLASSES)
    command = ["run", str(root / "images"), "-o", str(root / "run"), "--labels", labels]
    command += ["--set", "manifest.shard_rows=16", "--set", f"run.max_pixels={zoo.MAX_PIXELS}"]
    ended = start_command(command, {"OVSEG_CACHE": str(root / "cache")}, root / "log").wait()
    if ended.code not in (0, 3):
        raise click.ClickException(f"the run ended with {ended.code}:\n{ended.stderr}")
    workdir = Workdir(root / "run")
    manifest = Manifest.open(workdir.manifest)
    found: dict[str, tuple[str, tuple[int, int] | None]] = {}
    for store in workdir.stores():
        for shard in range(manifest.shards):
            names = {row.row: Path(row.path).name for row in manifest.read_shard(shard)}
            for line in read_results(store.data_path(shard, TABLE)):
                size = (line["width"], line["height"]) if line["status"] == "ok" else None
                known = found.get(names[line["row"]])
                found[names[line["row"]]] = known if known and known[0] else (line["code"] or "", size)
    return ended.code, found


def wrong(root: Path, animal: zoo.Animal, answer: tuple[str, tuple[int, int] | None] | None) -> str:
    """What is wrong with a run's answer to one animal; empty where it is right."""
    if answer is None:
        return "no answer"
    code, size = answer
    if code != animal.code:
        return f"should be {animal.code or 'well'}"
    if not code and size != animal.size:
        return f"should be {animal.size}"
    if not code and not zoo.upright(read_image(root / "images" / animal.name, Limits(zoo.MAX_PIXELS, 1 << 30))):
        return "lies on its side"
    return ""


@click.command()
def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="ovseg-zoo-") as temporary:
        root = Path(temporary)
        exit_code, found = answers(root)
        click.echo("| file | status | code | width × height | |")
        click.echo("|---|---|---|---|---|")
        bad = [exit_code != 3]
        for animal in zoo.animals():
            remark = wrong(root, animal, found.get(animal.name))
            bad.append(bool(remark))
            code, size = found.get(animal.name, ("no answer", None))
            status, shape = "failed" if code else "ok", " × ".join(map(str, size or ()))
            click.echo(f"| {json.dumps(animal.name)} | {status} | {code} | {shape} | {remark} |")
    click.echo(f"{len(bad) - 1} files, exit code {exit_code}, {sum(bad)} wrong answers")
    sys.exit(any(bad))


if __name__ == "__main__":
    main()
