"""The command `settings`."""

from __future__ import annotations

import json
import textwrap

import click

from ovseg_batch.cli.base import guarded
from ovseg_batch.errors import UsageError, nearest

WIDTH = 100


@click.command()
@click.argument("word", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, for programs.")
@guarded
def settings(word: str | None, as_json: bool) -> None:
    """Explain every key of `--set` and of a config: type, default, meaning, and which stage reads it.

    With WORD, only keys whose name or meaning contains it, as in `settings refine.` or `settings threshold`.
    """
    from ovseg_batch.settings.listing import setting_lines

    lines = setting_lines()
    found = [line for line in lines if word is None or line.contains(word)]
    if not found:
        assert word is not None
        hint = nearest(word, [line.key for line in lines])
        raise UsageError(f"No key of the settings contains {word!r}, and no meaning does.{hint}")
    if as_json:
        click.echo(json.dumps([line.to_record() for line in found], indent=2, ensure_ascii=False))
        return
    for line in found:
        default = "required" if line.default is None else f"default: {line.default}"
        click.echo(f"{line.key}  [{line.type}]  [{default}]")
        for paragraph in (line.meaning, f"Read by: {line.read_by}"):
            click.echo(textwrap.fill(paragraph, WIDTH, initial_indent="    ", subsequent_indent="    "))
