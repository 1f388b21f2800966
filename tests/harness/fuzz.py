"""Give seeded mutations of images, lists and workdirs to the program, and count what it accepts, refuses and violates.

python -m tests.harness fuzz                        # 5 minutes, all families
python -m tests.harness fuzz --minutes 60 --seed 1000000 --only images
python -m tests.harness fuzz --one lists:17         # one case again
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from tests.harness import fuzz_images
from tests.harness.fuzz_images import Images
from tests.harness.fuzz_lists import Lists
from tests.harness.fuzz_workdirs import Workdirs
from tests.harness.fuzzing import MEBIBYTE, Outcome, Tally, measured, save, table, watched

SHARES = {"images": 0.3, "lists": 0.2, "workdirs": 0.3, "hybrid": 0.2}  # of the time
WORKDIRS = {"workdirs": "prompted", "hybrid": "hybrid"}  # family of damaged workdirs → configuration of the run
SECONDS = 60.0  # that one case of images and lists may take
LIST_PEAK = 256 * MEBIBYTE  # by which lists of a few lines may grow the memory


def cases(family: str, seeds: Iterator[int], until: float, root: Path) -> Iterator[tuple[int, Outcome]]:
    """Yield the seeds of a family and the outcomes of their cases, until a time or the end of the seeds."""
    if family in WORKDIRS:
        workdirs = Workdirs(root, WORKDIRS[family])
        for seed in seeds:
            if time.monotonic() > until:
                return
            yield seed, measured(workdirs, seed, sys.maxsize)  # the commands run in processes of their own
    elif family == "images":
        yield from watched(Images(), seeds, until, SECONDS, fuzz_images.PEAK)
    else:
        yield from watched(Lists(), seeds, until, SECONDS, LIST_PEAK)


@click.command()
@click.option("--minutes", default=5.0, show_default=True, help="Time for all families together.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first case; the next cases count on from it.")
@click.option("--only", type=click.Choice([*SHARES]), help="One family alone.")
@click.option("--one", metavar="FAMILY:SEED", help="Repeat one case.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    default=Path("fuzz-violations"),
    show_default=True,
    help="Folder for the inputs of violations.",
)
def main(minutes: float, seed: int, only: str | None, one: str | None, keep: Path) -> None:
    """Read seeded mutations of images, lists and workdirs, and print a table of what held."""
    families = [only] if only else [*SHARES]
    if one is not None:
        family, _, text = one.partition(":")
        if family not in SHARES or not text.isdecimal():
            raise click.UsageError(f"{one} is no case. Write FAMILY:SEED, as in images:17.")
        families, seed = [family], int(text)
    total = sum(SHARES[family] for family in families)
    tallies = []
    with tempfile.TemporaryDirectory(prefix="ovseg-fuzz-") as temporary:
        os.environ["OVSEG_CACHE"] = str(Path(temporary) / "cache")
        for family in families:
            tally = Tally(family)
            tallies.append(tally)
            seeds = iter([seed]) if one is not None else itertools.count(seed)
            root = Path(temporary) / family
            root.mkdir()
            until = time.monotonic() + 60 * minutes * SHARES[family] / total
            for number, outcome in cases(family, seeds, until, root):
                tally.add(number, outcome)
                if outcome.violation:
                    path = save(keep, family, number, outcome)
                    last = outcome.violation.strip().splitlines()[-1]
                    click.echo(f"VIOLATION {family}:{number} {outcome.input.form}: {last} ({path})", err=True)
            click.echo(f"{family}: {tally.cases:,} cases from seed {seed}", err=True)
    click.echo(table(tallies))
    sys.exit(any(tally.violations for tally in tallies))
