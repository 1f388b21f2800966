"""Let the n-th write, fsync and rename of a run fail, for n = 1, 2, … until the run has no more of them.

python -m tests.harness faults               # ENOSPC, then EIO
python -m tests.harness faults --every 7     # every seventh n

Each time the run must end non-zero with one plain sentence and leave no torn file visible. The same command must then
finish with the bytes of an undisturbed run. At the end the faults are real: a limit on the size of a file, a full disk,
and a disk that turns read-only during the run.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import click

from tests.harness.disk import CannotMount, small_disk
from tests.harness.job import Ended, Job, contents, difference, leftovers, torn

POINTS = ("write", "fsync", "rename", "renamed")
ERRORS = ("ENOSPC", "EIO")
HERE = ("--workers", "0")  # one process, so that the n-th write is the n-th of the run
ENOUGH = 100_000  # KiB


def try_fault(job: Job, workdir: Path, fault: str, wanted: dict[str, str]) -> list[str] | None:
    """Let one operation fail, then resume: what is wrong; None where there was nothing left to fail."""
    hurt = job.run(workdir, *HERE, points=fault)
    if hurt.code == 0:
        return None if "cannot write the text cache" not in hurt.stderr else difference(workdir, wanted)
    return stopped_cleanly(hurt, workdir) + resumed_well(job, workdir, wanted)


def stopped_cleanly(ended: Ended, workdir: Path, removable: bool = True) -> list[str]:
    """What is wrong with the way a run gave up; where nothing is `removable`, drafts may lie until it is resumed."""
    wrong = [f"{name}: left over" for name in (leftovers(workdir) if removable and workdir.exists() else [])]
    wrong += [f"{name}: torn" for name in (torn(workdir) if workdir.exists() else [])]
    if ended.code != 1 or "Traceback" in ended.stderr or "give the same command again" not in ended.stderr:
        wrong.append(f"ended with {ended.code}: {ended.stderr}")
    return wrong


def resumed_well(job: Job, workdir: Path, wanted: dict[str, str]) -> list[str]:
    """What is wrong after the same command was given again."""
    resumed = job.run(workdir, *HERE)
    if resumed.code != 0:
        return [f"resumed, ended with {resumed.code}: {resumed.stderr}"]
    return difference(workdir, wanted)


def try_file_limit(job: Job, workdir: Path, wanted: dict[str, str]) -> list[str]:
    """No file may grow beyond 20 KB, which the logits do."""
    hurt = job.start(workdir, *HERE, file_bytes=20_000).wait()
    return stopped_cleanly(hurt, workdir) + resumed_well(job, workdir, wanted)


def try_full_disk(job: Job, folder: Path, wanted: dict[str, str]) -> list[str]:
    """A disk with room for the first shard and not for the others; then a larger one."""
    with small_disk(folder, kib=200) as disk:
        wrong = stopped_cleanly(job.run(folder / "run", *HERE), folder / "run")
        disk.grow(ENOUGH)
        return wrong + resumed_well(job, folder / "run", wanted)


def try_read_only_disk(job: Job, folder: Path, wanted: dict[str, str]) -> list[str]:
    """A disk that turns read-only as soon as the run leaves it alone for a moment, which is between the stages."""
    with small_disk(folder, kib=ENOUGH) as disk:
        running = job.start(folder / "run", *HERE)
        while running.process.is_alive() and not list(folder.glob("run/stages/dense-*/commits/*/*.json")):
            running.process.join(0.005)
        disk.turn_read_only(patience=60)
        wrong = stopped_cleanly(running.wait(), folder / "run", removable=False)
        again = job.run(folder / "run", *HERE)
        wrong += stopped_cleanly(again, folder / "run", removable=False)
        disk.turn_writable()
        return wrong + resumed_well(job, folder / "run", wanted)


REAL = {"a limit on file size": try_file_limit, "a full disk": try_full_disk, "a read-only disk": try_read_only_disk}


@click.command()
@click.option("--every", default=1, show_default=True, help="Step between two values of n.")
def main(every: int) -> None:
    """Let each write, fsync and rename of a run fail in turn, then fill the disk and make it read-only."""
    root = Path(tempfile.mkdtemp(prefix="ovseg-faults-"))
    job = Job(root, images=2, shard_rows=1)
    job.run(root / "undisturbed", *HERE)
    wanted = contents(root / "undisturbed")
    failed = False
    for error in ERRORS:
        for point in POINTS:
            number, tried = 1, 0
            while True:
                workdir = root / f"{error}-{point}-{number}"
                shutil.rmtree(root / "cache", ignore_errors=True)
                wrong = try_fault(job, workdir, f"{point}:{number}={error}", wanted)
                if wrong is None:
                    break
                for line in wrong:
                    click.echo(f"{point}:{number}={error}: {line}")
                failed |= bool(wrong)
                tried += 1
                number += every
                shutil.rmtree(workdir, ignore_errors=True)
            click.echo(f"{error:7} {point:8} {tried:4} times")
    for number, (name, attempt) in enumerate(REAL.items()):
        try:
            wrong = attempt(job, root / f"real-{number}", wanted)
        except CannotMount as error:
            click.echo(f"{name}: not tried, {error}")
            continue
        failed |= bool(wrong)
        click.echo("\n".join([f"{name}: {line}" for line in wrong]) or f"{name}: well")
    shutil.rmtree(root)
    sys.exit(failed)
