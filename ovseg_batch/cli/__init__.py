"""The command line. It parses options, prints results and returns exit codes. It contains no other logic."""

from __future__ import annotations

import click

from ovseg_batch.cli.base import CommandLine
from ovseg_batch.cli.comparing import compare
from ovseg_batch.cli.doctor import doctor
from ovseg_batch.cli.evaluating import eval_run
from ovseg_batch.cli.models import methods, models
from ovseg_batch.cli.outputs import export, report
from ovseg_batch.cli.reproducing import reproduce
from ovseg_batch.cli.running import bank, demo, gc, manifest, query, retry, run, status, verify
from ovseg_batch.cli.settings import settings
from ovseg_batch.cli.trying import try_images
from ovseg_batch.version import __version__


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ovseg-batch")
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", help="Format of log lines on stderr."
)
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors.")
def main(log_format: str, quiet: bool) -> None:
    """Segment every image of a folder by a list of words. An interrupted command resumes when it is given again."""


for command in (
    run,
    try_images,
    status,
    query,
    bank,
    retry,
    verify,
    gc,
    manifest,
    export,
    report,
    eval_run,
    compare,
    reproduce,
    models,
    methods,
    settings,
    demo,
    doctor,
):
    main.add_command(command)
