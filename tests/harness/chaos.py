"""Run a job on a Ray cluster, kill its nodes and its driver at random, and compare with one and two local workers.

python -m tests.harness chaos --kills 6
python -m tests.harness chaos --kills 6 --seed 7

The cluster is real and on this machine: a head that computes nothing, and two nodes of one CPU each. Every few seconds
a node is killed with all its processes and another one joins, or the driver is killed and started again. The output
lists every kill, and whether the bytes of all data files and outputs are equal.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

import click
from ray.cluster_utils import Cluster

from ovseg_batch.workdir.progress import status
from ovseg_batch.workdir.store import Workdir
from tests.harness.job import Job, contents, leftovers

IMAGES = 24
PAUSE = (8.0, 25.0)  # seconds between kills


def results(workdir: Path) -> dict[str, str]:
    """All but the settings, which name the engine."""
    return {name: digest for name, digest in contents(workdir).items() if name != "config.yaml"}


class Chaos:
    """A cluster whose nodes and driver are killed at random."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._started = time.monotonic()
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes = [self._cluster.add_node(num_cpus=1) for _ in range(2)]
        self._cluster.wait_for_nodes()

    def run(self, job: Job, workdir: Path, kills: int) -> None:
        """Start the command again until it finishes, with so many kills on the way."""
        while True:
            running = job.start(workdir, "--engine", "ray", "--workers", "2", RAY_ADDRESS=self._cluster.address)
            self._print("the command is given")
            while running.process.is_alive() and kills:
                running.process.join(self._draw.uniform(*PAUSE))
                if not running.process.is_alive():
                    break
                kills -= 1
                if self._draw.random() < 0.3:
                    running.process.kill()
                    self._print(f"driver killed ({_done(workdir)})")
                else:
                    self._replace_node(workdir)
            ended = running.wait()
            if ended.code == 0:
                self._print(f"finished ({_done(workdir)})")
                return
            if ended.code > 0:
                raise click.ClickException(f"ended with {ended.code}:\n{ended.stderr}")

    def _replace_node(self, workdir: Path) -> None:
        number = self._draw.randrange(len(self._nodes))
        self._cluster.remove_node(self._nodes.pop(number), allow_graceful=False)
        self._print(f"node {number + 1} killed, another joins ({_done(workdir)})")
        self._nodes.append(self._cluster.add_node(num_cpus=1))

    def _print(self, text: str) -> None:
        click.echo(f"{time.monotonic() - self._started:6.1f} s  {text}")

    def end(self) -> None:
        self._cluster.shutdown()


def _done(workdir: Path) -> str:
    if not Workdir(workdir).plan.exists():
        return "nothing committed"
    stages = status(Workdir(workdir))["stages"]
    return ", ".join(f"{stage['name']} {stage['shards_done']}/{stage['shards']}" for stage in stages)


@click.command()
@click.option("--kills", default=6, show_default=True, help="Number of kills.")
@click.option("--seed", type=int, help="Default: drawn from the clock, and printed.")
def main(kills: int, seed: int | None) -> None:
    """Kill nodes and the driver of a Ray cluster during a run, and compare with local workers."""
    seed = int(time.time()) if seed is None else seed
    click.echo(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="ovseg-chaos-", ignore_cleanup_errors=True) as temporary:
        root = Path(temporary)
        job = Job(root, IMAGES, shard_rows=1)
        found = {}
        for workers in ("1", "2"):
            ended = job.run(root / workers, "--workers", workers)
            if ended.code:
                raise click.ClickException(ended.stderr)
            found[f"local × {workers}"] = results(root / workers)
        chaos = Chaos(seed)
        try:
            chaos.run(job, root / "ray", kills)
        finally:
            chaos.end()
        found["Ray, killed"] = results(root / "ray")
        wanted = found["local × 1"]
        for name, files in found.items():
            same = sum(files.get(path) == digest for path, digest in wanted.items())
            click.echo(f"{name:12} {len(files)} files, {same} of {len(wanted)} the same bytes")
        click.echo(f"drafts left: {len(leftovers(root / 'ray'))}")
        sys.exit(any(files != wanted for files in found.values()))
