#!/usr/bin/env python
"""How fast, how much memory. Every figure is a ratio of two things measured side by side in one run.

bench.py speed                    # the stages against the bare forwards of the same batches
bench.py speed --clip ViT-B-16-quickgelu --clip-weights random:0 --sam sam2.1-tiny --sam-weights random:0
bench.py reference --folder PHOTOGRAPHS   # end to end beside the same work done as single-image scripts do it
bench.py kernels                  # the models' forwards, their libraries' and ours
bench.py query                    # another question to a finished run, beside the run
bench.py around                   # one thread's milliseconds around the models: decoding, label map, masks
bench.py words                    # three labels and the words that compete, beside four plain labels
bench.py paper-gpu                # an H100 on paper: its busy share, and the CPU cores that it needs
bench.py forecast                 # the forecast of `try` beside the run that it forecasts, and a second trial
bench.py bank                     # mIoU with a memory bank and without, on two folders of scenes
bench.py memory                   # peak memory of 2,000 images against 200
bench.py manifest                 # write, plan and read the status of a million rows
bench.py restart                  # a finished run of a million rows, started again
bench.py edits                    # cutting out against bare Pillow decoding and encoding the same files
bench.py edit-memory              # peak memory of cutting out 5,000 images against 500
bench.py generator                # Stable Diffusion 1.5's inpainting pipeline at full size, random weights
bench.py exports                  # a million masks into other formats: time and peak memory
bench.py formats                  # milliseconds of every export format for photographs of 12 megapixels
bench.py report                   # a report of 100,000 images: until a browser shows it
bench.py rows                     # peak memory of a trivial stage over a million rows against ten thousand
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
from benchmarks.around import around
from benchmarks.edits import GivenMasks, edit_memory, edits, generator, run_edits
from benchmarks.forecast import forecast
from benchmarks.formats import formats
from benchmarks.kernels import kernels, run_kernels
from benchmarks.measure import measured, measured_process
from benchmarks.outputs import exports, report
from benchmarks.paper_gpu import paper_gpu
from benchmarks.queries import bank, query
from benchmarks.speed import COMMANDS as SPEED
from benchmarks.words import words

from ovseg_batch import scenes
from ovseg_batch.config import load_config
from ovseg_batch.engine import local
from ovseg_batch.engine.job import StageJob
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.export.coco import write_coco
from ovseg_batch.io.atomic import file_record
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.io.tables import TABLE
from ovseg_batch.runs import planning
from ovseg_batch.stages.base import Upstream
from ovseg_batch.types import Annotation, Commit, ImageRow, RowResult
from ovseg_batch.workdir.progress import stage_status
from ovseg_batch.workdir.store import StageStore, Workdir

LABELS = list(scenes.CLASSES)


@click.group()
def main() -> None:
    """Measure; see the module's first lines."""


@main.command()
@click.option("--small", default=200, show_default=True)
@click.option("--large", default=2000, show_default=True)
def memory(small: int, large: int) -> None:
    """Peak memory of a whole run over many images against one over few."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        peaks = []
        for count in (small, large):
            write_scenes(root / str(count), scenes.HELD_OUT_SEEDS[10_000 : 10_000 + count])
            arguments = ["run", str(root / str(count) / "images"), "-o", str(root / f"run{count}")]
            # One window in four, so that many images take minutes; what a window or an image holds is the same.
            arguments += ["--labels", ", ".join(LABELS), "--set", "dense.stride=64", "--workers", "0"]
            seconds, peak = measured(arguments)  # no workers: all in the one process that is measured
            click.echo(f"{count:7} images  {seconds:7.1f} s   peak {peak:7.0f} MiB")
            peaks.append(peak)
        click.echo(f"ratio {peaks[1] / peaks[0]:.3f}")


@main.command("manifest")
@click.option("--rows", default=1_000_000, show_default=True)
def manifest_command(rows: int) -> None:
    """Write, plan and query a manifest of so many rows, beside one of a tenth of them."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_scenes(root, scenes.HELD_OUT_SEEDS[:1], jpeg_every=0)
        [image] = (root / "images").iterdir()
        for count in (rows // 10, rows):
            listing = root / f"{count}.csv"
            with listing.open("w") as file:
                file.write("file_name,key\n")
                file.writelines(f"{image},image-{k:09d}\n" for k in range(count))
            out, workdir = root / f"{count}.parquet", root / f"run{count}"
            labels = ["--labels", "sky, car"]
            for name, arguments in (
                ("manifest", ["manifest", str(listing), "-o", str(out)]),
                ("run --dry-run", ["run", str(out), "-o", str(workdir), *labels, "--dry-run"]),
            ):
                seconds, peak = measured(arguments)
                click.echo(f"{count:9} rows  {name:14} {seconds:6.1f} s   peak {peak:6.0f} MiB")
            # A run that has just begun, then one whose every shard is committed.
            measured(
                ["run", str(out), "-o", str(workdir), *labels, "--workers", "0"], {"OVSEG_FAILPOINTS": "dense.row"}, -9
            )
            for state in ("begun", "committed"):
                if state == "committed":
                    _commit_everything(workdir, count)
                seconds, peak = measured(["status", str(workdir)])
                click.echo(f"{count:9} rows  status, {state:9} {seconds:3.1f} s   peak {peak:6.0f} MiB")
        click.echo("(each command starts Python and its libraries; `ovseg-batch --version` alone takes", nl=False)
        click.echo(f" {measured(['--version'])[0]:.1f} s)")


class TrivialStage(GivenMasks):
    """Says of every image that it has one small mask, without looking."""

    name = "trivial"

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        mask = Annotation("sky", 1.0, (0.0, 0.0, 2.0, 2.0), 4, b"04", "dense", 1.0, 1.0)
        for row in rows:
            values = {"height": 2, "width": 2, "points": 0, "annotations": [mask]}
            yield RowResult(row.row, row.key, values)


@main.command()
@click.option("--small", default=10_000, show_default=True)
@click.option("--large", default=1_000_000, show_default=True)
def rows(small: int, large: int) -> None:
    """Peak memory of manifest, engine, commits and export, with a stage that does nothing, by the number of rows."""
    peaks = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in (small, large):
            command = [sys.executable, __file__, "run-rows", str(Path(temporary) / str(count)), str(count)]
            seconds, peak = measured_process(command)
            click.echo(f"{count:9} rows  {seconds:7.1f} s   peak {peak:7.0f} MiB")
            peaks.append(peak)
    click.echo(f"ratio {peaks[1] / peaks[0]:.3f}")


@main.command("run-rows", hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("count", type=int)
def run_rows(folder: Path, count: int) -> None:
    """What `rows` measures."""
    folder.mkdir()
    listing = folder / "list.csv"
    with listing.open("w") as file:
        file.write("file_name,key\n")
        file.writelines(f"{__file__},image-{k:09d}\n" for k in range(count))
    workdir = Workdir(folder / "run")
    workdir.create()
    build_manifest([str(listing)], workdir.manifest, 256)
    manifest = Manifest.open(workdir.manifest)
    store = workdir.stage("trivial", "0" * 32)
    store.create({})
    job = StageJob(TrivialStage, store, workdir.manifest, threads=1)
    for _ in local.run_stage(job, store.missing(manifest.shards), ["cpu"], in_process=True):
        pass
    write_coco(workdir.annotations, ["sky"], {}, manifest, store)
    if stage_status(store, manifest.shards).ok != count:
        raise click.ClickException("not every row was done")


@main.command()
@click.option("--rows", default=1_000_000, show_default=True)
def restart(rows: int) -> None:
    """The same command again on a finished run of so many rows, its stages trivial; and `status` of it."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        listing, workdir = root / "list.csv", Workdir(root / "run")
        with listing.open("w") as file:
            file.write("file_name,key\n")
            file.writelines(f"{__file__},image-{k:09d}\n" for k in range(rows))
        workdir.create()
        build_manifest([str(listing)], workdir.manifest, 256)
        manifest = Manifest.open(workdir.manifest)
        config = load_config("demo", flags={"labels": "sky"}, environment={})
        for planned in planning.plan(config, workdir, manifest, workdir.manifest):
            store = planned.job.store
            store.create(planned.inputs)
            job = StageJob(TrivialStage, store, workdir.manifest, threads=1)
            for _ in local.run_stage(job, store.missing(manifest.shards), ["cpu"], in_process=True):
                pass
        again = ["run", str(workdir.manifest), "-o", str(workdir.root), "--labels", "sky"]
        for name, arguments in (
            ("outputs written", again),
            ("restart", again),
            ("restart", again),
            ("status", ["status", str(workdir.root)]),
            ("(--version)", ["--version"]),
        ):
            seconds, peak = measured(arguments)
            click.echo(f"{rows:9} rows  {name:16} {seconds:6.1f} s   peak {peak:6.0f} MiB")


def _commit_everything(workdir: Path, rows: int) -> None:
    """Commit records, through the store, as a finished run of so many rows would have."""
    plan = json.loads((workdir / "stages" / "plan.json").read_text())
    for stage in plan["stages"]:
        store = StageStore(workdir / "stages" / stage["folder"], stage["name"], stage["fingerprint"])
        for shard in range(plan["shards"]):
            path = store.data_path(shard, TABLE)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
            store.commit_path(shard).parent.mkdir(parents=True, exist_ok=True)
            files = (file_record(path, store.folder),)
            store.write_commit(Commit(stage["name"], stage["fingerprint"], shard, 256, 256, {}, files, 1, 0.0, ""))


EDITS = (edits, edit_memory, run_edits, generator)
OTHERS = (exports, formats, report, query, bank, around, words, paper_gpu, forecast)
for command in (*SPEED, kernels, run_kernels, *EDITS, *OTHERS):
    main.add_command(command)


if __name__ == "__main__":
    main()
