#!/usr/bin/env python
"""docs/cli.md from the commands' own help; `tests/whole/test_docs.py` sees that it is up to date."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from ovseg_batch.cli import main as program
from ovseg_batch.export import FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
NAME = "ovseg-batch"
WIDTH = 100

INTRODUCTION = f"""# Command line

The output of `{NAME} COMMAND --help`; this page is written by `scripts/docs/write_cli_docs.py`.

Results go to stdout, progress and logs to stderr. Exit codes: 0 all done, 1 error, 2 usage, 3 finished with failed
images, 130 interrupted (the first Ctrl-C finishes the shards in flight).

Settings come from, in falling order: options, `--set KEY=VALUE`, the environment (`OVSEG_REFINE__VOTE=0.5` is
`refine.vote`), the file or preset of `-c`, the defaults. [Settings](settings.md) lists every key.

Completion of commands, options, presets, keys of `--set` and files of labels for bash, zsh and fish:

```
eval "$(_OVSEG_BATCH_COMPLETE=bash_source {NAME})"      # in ~/.bashrc; zsh_source and fish_source likewise
```
"""


def pages() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for name, command in commands(program, NAME):
        settings = {**program.context_settings, "max_content_width": WIDTH, "terminal_width": WIDTH}
        context = click.Context(command, info_name=name, **settings)
        parts.append(f"## {name}\n\n```\n{command.get_help(context).rstrip()}\n```\n")
        if name == f"{NAME} export":
            parts.append("\n".join(f"- `{kind}`: {about}" for kind, about in FORMATS.items()) + "\n")
    return "\n".join(parts)


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    """(full name, command) of the group and everything in it."""
    yield name, group
    for short, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {short}")
        else:
            yield f"{name} {short}", command


if __name__ == "__main__":
    PAGE.write_text(pages(), encoding="utf-8")
