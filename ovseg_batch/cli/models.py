"""Commands for models and presets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from ovseg_batch.cli.base import guarded
from ovseg_batch.cli.options import config_option, set_option
from ovseg_batch.errors import UsageError
from ovseg_batch.models import presets


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@guarded
def methods(as_json: bool) -> None:
    """List the presets for `run -c`: stages, cost, purpose and source."""
    from ovseg_batch.stages.registry import describe_presets

    described = describe_presets()
    if as_json:
        click.echo(json.dumps([asdict(preset) for preset in described], indent=2, ensure_ascii=False))
        return
    for preset in described:
        click.echo(preset.name)
        for line in (
            preset.what,
            f"{' → '.join(preset.stages)}: {preset.cost}",
            f"good at {preset.good_at}",
            f"source: {preset.source}",
        ):
            click.echo(f"    {line}")


@click.group()
def models() -> None:
    """List, fetch and check the weights of CLIP, SAM2 and the inpainting pipelines."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Write the list as JSON.")
@guarded
def list_models(as_json: bool) -> None:
    """List the named models with size, licence, and location on this machine."""
    from ovseg_batch.models import inventory

    listed = inventory.list_models()
    click.echo(json.dumps([asdict(line) for line in listed], indent=2) if as_json else inventory.table(listed))


@models.command("fetch")
@click.argument("names", nargs=-1, metavar="[MODEL]...")
@config_option("Fetch every model that these settings need: a YAML file, or a name from `methods`.")
@set_option("One setting of --config. Repeatable.")
@guarded
def fetch_models(names: tuple[str, ...], config_file: Path | None, overrides: tuple[str, ...]) -> None:
    """Download models by name, or all models that a configuration needs.

    MODEL is a name from `models list`, an open_clip ARCHITECTURE:TAG, hf-hub:OWNER/NAME for a CLIP of the Hugging Face
    hub, or OWNER/NAME for an inpainting pipeline of the hub. Files go to the hub's cache (HF_HOME). An interrupted
    download continues. The hash of every file is compared with the published one. Models on this machine are skipped.
    """
    from ovseg_batch.models import fetching

    def report(line: str) -> None:
        click.echo(line, err=True)

    if not names and config_file is None:
        raise UsageError("Nothing to fetch. Name models, or a configuration with -c. `models list` shows the names.")
    fetched = {name: fetching.fetch(name, report) for name in names}
    if config_file is not None:
        from ovseg_batch.config import load_config
        from ovseg_batch.runs.needed_models import fetch_missing

        fetched |= fetch_missing(load_config(config_file, overrides), report)
        click.echo(f"Every model of {config_file} is on this machine.", err=True)
    for name, path in fetched.items():
        click.echo(f"{name} is on this machine: {path}" if path else f"{name} comes with the package.")


#: kind → help of the model and of its weights
CHECKED: dict[presets.Kind, tuple[str, str]] = {
    "clip": (
        "A name from `models list`, or an open_clip architecture.",
        "A file, a pretrained tag, or a hub id.",
    ),
    "sam": (
        "A name from `models list`, or a Hydra config of sam2.",
        "A .pt file as Meta publishes it, or safetensors.",
    ),
    "dino": ("A name from `models list`, or `local-dir:FOLDER`.", "Safetensors as timm writes them."),
    "owl": ("A name from `models list`, or `local-dir:FOLDER`.", "Safetensors as transformers writes them."),
    "sam3": ("A name from `models list`, or `local-dir:FOLDER`.", "Safetensors as transformers writes them."),
    "matte": ("A name from `models list`, a hub id, or a folder.", "Safetensors as transformers writes them."),
}


def _checked_options(command: Callable[..., None]) -> Callable[..., None]:
    for kind, (model, weights) in reversed(CHECKED.items()):
        command = click.option(f"--{kind}-weights", help=weights)(command)
        command = click.option(f"--{kind}", help=model)(command)
    return command


@models.command("check")
@_checked_options
@click.option("--device", default="auto", show_default=True)
@guarded
def check_models(device: str, **given: str | None) -> None:
    """Load the models, run each once, and print their properties. Without a model, check the embedded ones."""
    from ovseg_batch.models import zoo
    from ovseg_batch.models.check import check_model

    named = {kind: given[kind] for kind in CHECKED if given[kind] is not None}
    chosen = named or {"clip": "demo", "sam": "demo"}
    for kind in CHECKED:
        if name := chosen.get(kind):
            for key, value in check_model(zoo.resolve(kind, name, given[f"{kind}_weights"]), device).items():
                click.echo(f"{kind:5} {key:16} {value}")
