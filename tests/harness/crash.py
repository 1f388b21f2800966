"""Kill the real command at random moments, resume it, and compare with an undisturbed run, byte for byte.

python -m tests.harness crash --kills 200
python -m tests.harness crash --kills 200 --seed 7     # the same moments again, as far as the machine allows

A round draws a shard size, a number of workers and a list of stages. It kills that job up to four times, lets it
finish, and compares. The first difference ends the loop. The folders are then kept, and their path is printed.
"""

from __future__ import annotations

import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click

from ovseg_batch.settings import Config
from ovseg_batch.stages.registry import stage_names
from ovseg_batch.workdir.progress import status
from ovseg_batch.workdir.store import Workdir
from tests.harness.job import Job, Running, contents, difference

IMAGES = 6
MAX_DELAY = 0.3  # seconds
SHARD_ROWS = (1, 2, 4)
STAGES = ((), ("--set", "refine.method=none"))


class Loop:
    """Rounds over one folder of scenes."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.draw = random.Random(seed)
        self.jobs = {rows: Job(root / f"rows-{rows}", IMAGES, rows) for rows in SHARD_ROWS}
        self.known: dict[tuple[int, int], tuple[dict[str, str], float]] = {}
        self.moments: Counter[str] = Counter()
        self.kills = self.rounds = 0

    def round(self, kills: int) -> list[str]:
        """Kill one drawn job at most `kills` times and let it finish; how it differs from the undisturbed run."""
        rows, stages = self.draw.choice(SHARD_ROWS), self.draw.randrange(len(STAGES))
        wanted, seconds = self._undisturbed(rows, stages)
        workdir = self.root / f"round-{self.rounds}"
        self.rounds += 1
        for _ in range(min(kills, self.draw.randint(1, 4))):
            workers = self.draw.choice((0, 1, 2))
            running = self.jobs[rows].start(workdir, *STAGES[stages], "--workers", str(workers))
            self._wait(
                running, workdir, 1.1 * seconds * (1 + workers / 2), len(stage_names(Config())) * -(-IMAGES // rows)
            )
            running.process.kill()  # its workers must find out by themselves
            if running.wait().code == -signal.SIGKILL:
                self.kills += 1
                self.moments[_moment(workdir)] += 1
        ended = self.jobs[rows].run(workdir, *STAGES[stages], "--workers", "0")
        if ended.code != 0:
            return [f"{workdir}: ended with {ended.code}", ended.stderr]
        found = difference(workdir, wanted)
        if not found:
            shutil.rmtree(workdir)
        return [f"{workdir}: {line}" for line in found]

    def _wait(self, running: Running, workdir: Path, longest: float, commits: int) -> None:
        """Until a moment drawn by the clock, most of which is start-up; or by work: so many commits and a bit."""
        if self.draw.random() < 0.5:
            time.sleep(self.draw.uniform(0, longest))
            return
        wanted = self.draw.randint(0, commits)
        while running.process.is_alive() and len(list(workdir.glob("stages/*/commits/*/*.json"))) < wanted:
            time.sleep(0.002)
        time.sleep(self.draw.uniform(0, MAX_DELAY))

    def _undisturbed(self, rows: int, stages: int) -> tuple[dict[str, str], float]:
        if (rows, stages) not in self.known:
            workdir = self.root / f"undisturbed-{rows}-{stages}"
            started = time.monotonic()
            ended = self.jobs[rows].run(workdir, *STAGES[stages], "--workers", "0")
            if ended.code != 0:
                raise click.ClickException(f"the undisturbed run ended with {ended.code}:\n{ended.stderr}")
            self.known[rows, stages] = contents(workdir), time.monotonic() - started
        return self.known[rows, stages]


def _moment(workdir: Path) -> str:
    """How far the run had come when it was killed, by what it had committed."""
    if not Workdir(workdir).plan.exists():
        return "before the plan"
    state = status(Workdir(workdir))
    for stage in state["stages"]:
        if stage["shards_done"] < stage["shards"]:
            return f"in {stage['name']}"
    return "in the export" if not (workdir / "failures.csv").exists() else "after the export"


@click.command()
@click.option("--kills", default=20, show_default=True, help="Number of kills.")
@click.option("--seed", type=int, help="Default: drawn from the clock, and printed.")
def main(kills: int, seed: int | None) -> None:
    """Kill a run at random moments, resume it, and compare its files with those of an undisturbed run."""
    seed = int(time.time()) if seed is None else seed
    root = Path(tempfile.mkdtemp(prefix="ovseg-crash-"))
    loop = Loop(root, seed)
    click.echo(f"seed {seed}")
    while loop.kills < kills:
        found = loop.round(kills - loop.kills)
        if found:
            click.echo("\n".join(found))
            click.echo(f"{loop.kills} kills in {loop.rounds} rounds; the folders are in {root}")
            sys.exit(1)
    shutil.rmtree(root)
    click.echo(f"{loop.kills} kills in {loop.rounds} rounds, no difference from the undisturbed runs")
    for moment, count in sorted(loop.moments.items()):
        click.echo(f"  {count:4} {moment}")
