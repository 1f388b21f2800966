#!/usr/bin/env python
"""Let the n-th write, fsync and rename of a run fail, for n = 1, 2, … until none is left to fail.

scripts/fault_sweep.py               # ENOSPC, then EIO
scripts/fault_sweep.py --every 7     # every seventh n

Each time: the run ends non-zero with one plain sentence, nothing torn is visible, and the same command finishes with
an undisturbed run's bytes once the disk is well again.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import click
from breaking.job import Job, contents, difference, leftovers

POINTS = ("write", "fsync", "rename", "renamed")
ERRORS = ("ENOSPC", "EIO")


def try_fault(job: Job, workdir: Path, fault: str, wanted: dict[str, str]) -> list[str] | None:
    """Let one operation fail, then resume: what is wrong; None where there was nothing left to fail."""
    hurt = job.run(workdir, points=fault)
    if hurt.code == 0:
        return None if "cannot keep text embeddings" not in hurt.stderr else difference(workdir, wanted)
    wrong = []
    if hurt.code != 1 or "Traceback" in hurt.stderr or "mend the cause" not in hurt.stderr:
        wrong.append(f"ended with {hurt.code}: {hurt.stderr}")
    wrong += [f"{name}: left over" for name in (leftovers(workdir) if workdir.exists() else [])]
    resumed = job.run(workdir)
    if resumed.code != 0:
        return [*wrong, f"resumed, ended with {resumed.code}: {resumed.stderr}"]
    return wrong + difference(workdir, wanted)


@click.command()
@click.option("--every", default=1, show_default=True)
def main(every: int) -> None:
    """Sweep, and count."""
    root = Path(tempfile.mkdtemp(prefix="ovseg-faults-"))
    job = Job(root, images=2, shard_rows=1)
    job.run(root / "undisturbed")
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
    shutil.rmtree(root)
    sys.exit(failed)


if __name__ == "__main__":
    main()
