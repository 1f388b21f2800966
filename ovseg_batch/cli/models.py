"""Commands about the models and what is done with them."""

from __future__ import annotations

import click

from ovseg_batch.cli.base import guarded


@click.command()
@guarded
def methods() -> None:
    """The presets for `run -c`, with what they ask of the models and what they are good at."""
    from ovseg_batch.stages.registry import describe_presets

    for name, lines in describe_presets():
        click.echo(name)
        for line in lines:
            click.echo(f"    {line}")


@click.group()
def models() -> None:
    """The CLIP and SAM2 weights this machine has or could have."""


@models.command("list")
@guarded
def list_models() -> None:
    """Every named model, where its weights come from, and whether they are here."""
    from ovseg_batch.models import zoo

    for line in zoo.list_models():
        widths = {"kind": 7, "name": 18, "state": 9, "architecture": 50, "licence": 0}
        click.echo(" ".join(line[column].ljust(width) for column, width in widths.items()))


@models.command("fetch")
@click.argument("model")
@guarded
def fetch_model(model: str) -> None:
    """Download the weights of a named model into the hub's cache."""
    from ovseg_batch.models import zoo

    click.echo(zoo.fetch(model, lambda text: click.echo(text, err=True)))


@models.command("check")
@click.option("--clip", "clip_model", help="A name from `models list`, or an open_clip architecture.")
@click.option("--clip-weights", help="A file, a pretrained tag, or a hub id.")
@click.option("--sam", "sam_model", help="A name from `models list`, or a Hydra config of sam2.")
@click.option("--sam-weights", help="A .pt as Meta ships it, or safetensors.")
@click.option("--device", default="auto", show_default=True)
@guarded
def check_models(
    clip_model: str | None, clip_weights: str | None, sam_model: str | None, sam_weights: str | None, device: str
) -> None:
    """Load the models, run each once, and say what they are."""
    from ovseg_batch.models import zoo
    from ovseg_batch.models.check import check_model

    chosen: list[tuple[zoo.Kind, str | None, str | None]] = [
        ("clip", clip_model, clip_weights),
        ("sam", sam_model, sam_weights),
    ]
    if clip_model is None and sam_model is None:
        chosen = [("clip", "demo", None), ("sam", "demo", None)]
    for kind, name, weights in chosen:
        if name is not None:
            for key, value in check_model(zoo.resolve(kind, name, weights), device).items():
                click.echo(f"{kind:5} {key:16} {value}")
