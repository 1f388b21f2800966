"""Run one of the harnesses."""

from __future__ import annotations

import importlib

import click

#: command → what it does. The module of the same name holds it as `main`.
HARNESSES = {
    "crash": "Kill a run at random moments, resume it, and compare.",
    "crash-matrix": "Kill a run at every failpoint, resume it, and compare.",
    "faults": "Let every write, fsync and rename of a run fail in turn.",
    "chaos": "Kill nodes and the driver of a Ray cluster during a run.",
    "poison": "Run over damaged and unusual images, and list the results.",
    "fuzz": "Read seeded mutations of images, lists and workdirs.",
    "sequences": "Run random sequences of commands on one workdir.",
    "edit-identity": "Compare the pixels outside the masks before and after edits.",
    "round-trips": "Read exports back with the libraries that use their formats.",
}


class Runner(click.Group):
    """Imports a harness only to run it: each needs other libraries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*HARNESSES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in HARNESSES:
            return None
        command = importlib.import_module(f"tests.harness.{cmd_name.replace('-', '_')}").main
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Harnesses"):
            formatter.write_dl([*HARNESSES.items()])


@click.command(cls=Runner)
def main() -> None:
    """Try to break the program. The exit code is 0 where every promise holds."""


if __name__ == "__main__":
    main(prog_name="python -m tests.harness")
