"""Two workers on the GPU, kill -9 of their parent in the middle, and resume: the files of an undisturbed run.

A command that hangs is ended with the section.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_checks.configurations import QUICK, preset_config
from gpu_checks.records import Options, Report
from ovseg_batch import scenes
from ovseg_batch.config import dump_config
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.runs import pipeline
from ovseg_batch.workdir.store import Workdir
from tests.harness.job import contents, leftovers

ROOT = Path(__file__).resolve().parents[2]
SEEDS = scenes.HELD_OUT_SEEDS[8100:]
IMAGES, QUICK_IMAGES = 16, 3
WORKERS = 2
GONE = 20.0  # seconds in which the workers of a killed parent must end
OWN = "config.yaml"  # names the number of workers


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine. The start time distinguishes it from a later one with the same id."""

    pid: int
    started: int


def run(report: Report, options: Options) -> None:
    """Compare a killed and resumed run with one that nothing disturbed."""
    images = QUICK_IMAGES if options.quick else IMAGES
    write_scenes(options.folder, SEEDS[:images])
    more: dict[str, Any] = {"manifest.shard_rows": 1, "run.threads": 1}
    more |= {} if options.quick else {"edit.mode": "cutout", "edit.keep": list(scenes.THING_NAMES)}
    config = preset_config("prompted", options.device, "fp32" if options.quick else "auto", {**more, **QUICK})
    settings = options.folder / "settings.yaml"
    settings.write_text(dump_config(config), encoding="utf-8")
    undisturbed = Workdir(options.folder / "undisturbed")
    pipeline.run([str(options.folder / "images")], undisturbed, config, progress=False)
    workdir = options.folder / "killed"
    command = _command(options.folder / "images", workdir, settings, options.device)
    in_dense, in_refine = images // 3, images + images // 3
    for commits in (in_dense,) if options.quick else (in_dense, in_refine):
        _kill(report, command, workdir, commits)
    with (options.folder / "resumed.txt").open("w") as log:
        ended = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False)
    report.check("resume after kill -9", f"exit {ended.returncode}", "exit 0", ended.returncode == 0)
    wanted, found = contents(undisturbed.root), contents(workdir)
    changed = sorted(name for name in {*wanted, *found} - {OWN} if wanted.get(name) != found.get(name))
    value = f"{len(wanted)} files, {len(changed)} differ" + (f": {changed[0]}" if changed else "")
    report.check("the same bytes as an undisturbed run", value, "0 differ", bool(wanted) and not changed)
    left = leftovers(workdir)
    report.check("temporary files after resume", str(len(left)), "0", not left)


def _command(images: Path, workdir: Path, settings: Path, device: str) -> list[str]:
    arguments = ["run", str(images), "-o", str(workdir), "-c", str(settings), "--device", device]
    return [sys.executable, "-m", "ovseg_batch", *arguments, "--workers", str(WORKERS)]


def _kill(report: Report, command: list[str], workdir: Path, commits: int) -> None:
    """Start the command, kill its first process after so many commits, and check that its workers end."""
    log = workdir.parent / f"killed-{commits}.txt"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    while process.poll() is None and committed(workdir) < commits:
        time.sleep(0.01)
    family = descendants(process.pid)
    process.kill()
    code, done = process.wait(), committed(workdir)
    value = f"{len(family)} processes of it, {done} commits, exit {code}"
    limit = f"≥ {WORKERS}, ≥ {commits}, -9"
    passed = len(family) >= WORKERS and done >= commits and code == -9
    report.check(f"kill -9 after {commits} commits", value, limit, passed)
    end = time.monotonic() + GONE
    while (alive := living(family)) and time.monotonic() < end:
        time.sleep(0.05)
    value = ", ".join(f"pid {one.pid}" for one in alive) or "none"
    report.check(f"workers left {GONE:g} s after kill -9 at {commits}", value, "none", not alive)


def committed(workdir: Path) -> int:
    """Return the number of committed shards of all stages."""
    return sum(1 for _ in workdir.glob("stages/*/commits/*/*.json"))


def descendants(pid: int) -> list[Process]:
    """Return the living children of a process, their children, and so on."""
    parents = _processes()
    found: list[Process] = []
    family = {pid}
    while new := [one for one, parent in parents.items() if parent in family and one.pid not in family]:
        found += new
        family |= {one.pid for one in new}
    return found


def living(processes: Iterable[Process]) -> list[Process]:
    """Return the processes that have not ended."""
    present = _processes()
    return [one for one in processes if one in present]


def _processes() -> dict[Process, int]:
    """Return the parent's id of every process of this machine that is no zombie."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            text = (folder / "stat").read_text()
        except OSError:  # it has ended meanwhile
            continue
        fields = text.rpartition(")")[2].split()  # after the name, which may hold spaces: state, parent, …
        if fields[0] not in "ZX":
            found[Process(int(folder.name), int(fields[19]))] = int(fields[1])
    return found
