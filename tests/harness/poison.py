"""Run a whole job over damaged and unusual images, and print a table of file, status, failure code and size.

python -m tests.harness poison           # the exit code is 1 when an image has a wrong result
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import click

from ovseg_batch import scenes
from ovseg_batch.io.images import read_image
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.io.tables import TABLE, read_results
from ovseg_batch.workdir.store import Workdir
from tests.harness.job import start_command
from tests.harness.unusual_images import MAX_PIXELS, UnusualImage, fill, unusual_images, upright


def answers(root: Path) -> tuple[int, dict[str, tuple[str, tuple[int, int] | None]]]:
    """Run the job in `root`. Return the exit code, and file name → (first failure code, (width, height))."""
    fill(root / "images")
    labels = ", ".join(scenes.CLASSES)
    command = ["run", str(root / "images"), "-o", str(root / "run"), "--labels", labels]
    command += ["--set", "manifest.shard_rows=16", "--set", f"run.max_pixels={MAX_PIXELS}"]
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


def wrong(root: Path, image: UnusualImage, answer: tuple[str, tuple[int, int] | None] | None) -> str:
    """Return what is wrong with a run's result for one image, empty where it is right."""
    if answer is None:
        return "no result"
    code, size = answer
    if code != image.code:
        return f"should be {image.code or 'well'}"
    if not code and size != image.size:
        return f"should be {image.size}"
    if not code and not upright(read_image(root / "images" / image.name, Limits(MAX_PIXELS, 1 << 30))):
        return "lies on its side"
    return ""


@click.command()
def main() -> None:
    """Run over damaged and unusual images, and print the status and failure code of each."""
    with tempfile.TemporaryDirectory(prefix="ovseg-poison-") as temporary:
        root = Path(temporary)
        exit_code, found = answers(root)
        click.echo("| file | status | code | width × height | |")
        click.echo("|---|---|---|---|---|")
        bad = [exit_code != 3]
        for image in unusual_images():
            remark = wrong(root, image, found.get(image.name))
            bad.append(bool(remark))
            code, size = found.get(image.name, ("no result", None))
            status, shape = "failed" if code else "ok", " × ".join(map(str, size or ()))
            click.echo(f"| {json.dumps(image.name)} | {status} | {code} | {shape} | {remark} |")
    click.echo(f"{len(bad) - 1} files, exit code {exit_code}, {sum(bad)} wrong results")
    sys.exit(any(bad))
