"""Print the plan of a run for `run --dry-run`, as text or as JSON."""

from __future__ import annotations

import json

import click

from ovseg_batch.cli.base import log
from ovseg_batch.runs.cautions import cautions
from ovseg_batch.runs.needed_models import needed_models
from ovseg_batch.runs.planning import DryRun, competition_lines, kind_lines
from ovseg_batch.settings import Config
from ovseg_batch.stages.registry import competition
from ovseg_batch.units import counted, extent
from ovseg_batch.workdir.findings import printable

GB = 1e9


def print_plan(found: DryRun, config: Config, replaced: str | None) -> None:
    """Print the work and the resources of a run. Warnings and competing words are log lines."""
    labels = "; ".join(_label(label.name, label.words) for label in config.labels)
    click.echo(f"labels   {labels}")
    click.echo(f"models   {', '.join(f'{kind} {model}' for kind, model in _models(config).items())}")
    click.echo(f"images   {extent(found.manifest.rows, found.manifest.shards)}{_changes(found)}")
    for planned, disk in zip(found.stages, found.disk, strict=True):
        size = ", disk depends on image content" if disk is None else f", about {disk / GB:.2f} GB" if disk else ""
        left = counted(len(planned.missing), "shard")
        click.echo(f"{planned.name:8} {planned.job.store.folder.name}  {left} to do{size if planned.missing else ''}")
    total, free = f"about {_total(found) / GB:.2f} GB", f"{found.free / GB:.0f} GB that are free"
    click.echo(f"disk     {total} of {free}, without tables and edited images")
    for warning in _warnings(found, config, replaced):
        log.warning("warning: %s", warning)
    for line in (*competition_lines(config, listed=True), *kind_lines(config)):
        log.info("%s", line)


def print_json(found: DryRun, config: Config, replaced: str | None) -> None:
    """Print the work and the resources of a run as one JSON object."""
    competing = competition(config)
    changes = found.changes
    click.echo(
        json.dumps(
            {
                "images": found.manifest.rows,
                "shards": found.manifest.shards,
                "changes": changes and {"new": changes.added, "changed": changes.changed, "gone": changes.removed},
                "labels": [{"name": label.name, "words": list(label.words)} for label in config.labels],
                "competing_words": list(competing.words),
                "left_out": {label: list(words) for label, words in competing.left_out.items()},
                "models": _models(config),
                "stages": [
                    {
                        "name": planned.name,
                        "folder": planned.job.store.folder.name,
                        "shards_to_do": len(planned.missing),
                        "bytes": disk if planned.missing else 0,
                    }
                    for planned, disk in zip(found.stages, found.disk, strict=True)
                ],
                "free_bytes": found.free,
                "warnings": _warnings(found, config, replaced),
            },
            indent=2,
            ensure_ascii=False,
        )
    )


def _label(name: str, words: tuple[str, ...]) -> str:
    others = [printable(word) for word in words if word != name]
    return f"{printable(name)} (also {', '.join(others)})" if others else printable(name)


def _models(config: Config) -> dict[str, str]:
    return {needed.kind: needed.model for needed in needed_models(config)}


def _changes(found: DryRun) -> str:
    if found.changes is None:
        return ""
    return f": {found.changes.added} new, {found.changes.changed} changed, {found.changes.removed} gone"


def _total(found: DryRun) -> int:
    return sum(disk or 0 for disk in found.disk)


def _warnings(found: DryRun, config: Config, replaced: str | None) -> list[str]:
    short = _total(found) > found.free
    disk = (
        ["The stages need more disk space than is free. dense.cache and sam.cache decide what is stored."]
        if short
        else []
    )
    return [*cautions(config), *([replaced] if replaced else []), *disk]
