"""Options that several commands share: labels, a file of settings, and single settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ovseg_batch.cli.completion import complete_config, complete_labels, complete_setting

SYNTAX = '"car; road; person: person, people", or labels.txt with one label per line.'
ADDS_UP = "Can be given several times."
QUOTES = 'Several labels need quotes, as in --labels "sky; tree".'
STRAY = "unexpected extra argument"  # start of click's message

Decorator = Callable[[Any], Any]


def labels_option(about: str, required: bool = False) -> Decorator:
    """Return the option `--labels` of a command: a tuple of texts, empty if it is not given."""
    return click.option(
        "--labels",
        multiple=True,
        required=required,
        metavar="LABELS",
        shell_complete=complete_labels,
        help=f"{about} {ADDS_UP}",
    )


def names_option(name: str, about: str) -> Decorator:
    """Return an option that takes names of a run's labels: a tuple of texts, empty if it is not given."""
    return click.option(name, multiple=True, metavar="LABELS", help=f"{about} {ADDS_UP}")


exclude_option = click.option(
    "--exclude", multiple=True, metavar="PATTERN", help=f"Skip files and folders, as in '*/raw/*.png'. {ADDS_UP}"
)


def config_option(about: str) -> Decorator:
    """Return the option `-c` of a command: the path of a settings file, or the name of a preset."""
    path = click.Path(path_type=Path)
    return click.option("-c", "--config", "config_file", type=path, shell_complete=complete_config, help=about)


def set_option(about: str) -> Decorator:
    """Return the option `--set` of a command: a tuple of `KEY=VALUE` texts."""
    return click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", shell_complete=complete_setting, help=about
    )


class LabelsCommand(click.Command):
    """A command whose error for an unexpected argument explains that labels need quotes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = [*args]
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if STRAY in error.message and "--labels" in given:
                raise click.UsageError(f"{error.message.rstrip('.')}. {QUOTES}", ctx) from None
            raise
