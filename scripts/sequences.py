#!/usr/bin/env python
"""Run random sequences of commands on one workdir, and check after each that nothing is lost and nothing is mixed.

scripts/sequences.py --seeds 100 --steps 20
scripts/sequences.py --seeds 1 --first 17      # one of them again
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import click
from breaking.sequences import Scenes, run_sequence


@click.command()
@click.option("--seeds", default=100, show_default=True, help="Sequences; each has a seed of its own.")
@click.option("--first", default=0, show_default=True, help="The first seed.")
@click.option("--steps", default=20, show_default=True, help="Steps of a sequence, at most.")
def main(seeds: int, first: int, steps: int) -> None:
    """Run the sequences and print what they did. The first one that breaks a promise ends the command."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="ovseg-sequences-") as folder:
        scenes = Scenes(Path(folder))
        for seed in range(first, first + seeds):
            run_sequence(scenes, seed, steps, counts)
            done = ", ".join(f"{kind} {number}" for kind, number in sorted(counts.items()) if kind != "steps")
            click.echo(f"seed {seed}: {counts['steps']} steps so far ({done})")


if __name__ == "__main__":
    sys.exit(main())
