"""Shell completion of option values: presets and configs, keys of settings, and label files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

CONFIGS = (".yaml", ".yml")
LABEL_FILES = (".txt",)
FILE = "file"  # type of items for which the shell completes paths


def complete_config(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the presets and YAML files that begin with the text. If there are none, the shell completes a path."""
    from ovseg_batch.config import presets

    names = [name for name in presets() if name.startswith(incomplete)]
    return _items([*names, *_files(incomplete, CONFIGS)]) or _paths(incomplete)


def complete_setting(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the keys that begin with the text, with their meanings. After `=`, return the choices of the key."""
    from ovseg_batch.settings.listing import LABEL, choices, setting_lines

    key, equals, begun = incomplete.partition("=")
    if equals:
        return _items(f"{key}={value}" for value in choices(key) if value.startswith(begun))
    lines = (line for line in setting_lines() if line.key.startswith(key) and not line.key.startswith(LABEL))
    return [CompletionItem(f"{line.key}=", help=line.meaning) for line in lines]


def complete_labels(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return matching text files after `@`, and matching data sets after `dataset:`."""
    from ovseg_batch import datasets

    if incomplete.startswith("@"):
        return _items(f"@{file}" for file in _files(incomplete[1:], LABEL_FILES))
    sets = (f"{datasets.PREFIX}{name}" for name in datasets.NAMES)
    files = (f"@{file}" for file in _files(incomplete, LABEL_FILES))
    return _items([*(name for name in sets if name.startswith(incomplete)), *files])


def complete_path(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a path."""
    return _paths(incomplete)


def _files(incomplete: str, suffixes: Iterable[str]) -> list[str]:
    """Return the matching files with these suffixes, and matching folders with a `/`."""
    folder, slash, begun = incomplete.rpartition("/")
    try:
        entries = sorted(Path(f"{folder}{slash}" or ".").iterdir())
    except OSError:
        return []
    shown = [entry for entry in entries if entry.name.startswith(begun) and (begun or not entry.name.startswith("."))]
    wanted = [(entry, entry.is_dir()) for entry in shown if entry.suffix in suffixes or entry.is_dir()]
    return [f"{folder}{slash}{entry.name}{'/' if is_folder else ''}" for entry, is_folder in wanted]


def _items(values: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(value) for value in values]


def _paths(incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type=FILE)]
