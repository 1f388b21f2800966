#!/usr/bin/env python
"""Check a GPU: is every result right there, does a run survive its faults, and which settings are fast?

    scripts/gpu_check.py                         # everything, at most 8 minutes
    scripts/gpu_check.py --only speed --json speed.json
    scripts/gpu_check.py --quick                 # minimum sizes

Needs no network and no weights. The last line is OK or the failed checks, with recommended settings. Exit codes: 0
passed, 1 failed, 2 no GPU.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "scripts")) if path not in sys.path]

from gpu_checks.records import Options  # noqa: E402 - the root may not be installed
from gpu_checks.sections import BUDGET, SECTIONS, run_sections  # noqa: E402
from gpu_checks.summary import Summary  # noqa: E402


@click.command()
@click.option("--quick", is_flag=True, help="Use minimum sizes, and the embedded models only.")
@click.option("--only", multiple=True, type=click.Choice(list(SECTIONS)), help="Section to run. May be repeated.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="File for all checks and settings.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to keep runs and logs in.")
@click.option("--budget", default=BUDGET, show_default=True, help="Time for all sections, in seconds.")
def main(quick: bool, only: tuple[str, ...], json_file: Path | None, out: Path | None, budget: float) -> None:
    """Check the GPU of this machine."""
    import torch

    if not torch.cuda.is_available():
        click.echo("PyTorch sees no GPU here: install a torch with CUDA, or run this on a machine with a GPU.")
        sys.exit(2)
    folder = (out or Path(tempfile.mkdtemp(prefix="ovseg-gpu-check-"))).resolve()
    inherited = [path for path in (os.environ.get("PYTHONPATH"), str(ROOT)) if path]
    os.environ.update(OVSEG_CACHE=str(folder / "cache"), HF_HUB_OFFLINE="1", PYTHONPATH=os.pathsep.join(inherited))
    summary = Summary(click.echo)
    names = [name for name in SECTIONS if not only or name in only]
    run_sections(names, Options(folder, quick), budget, summary.begin, summary.add)
    summary.finish(json_file, folder, keep=out is not None)
    sys.exit(0 if summary.passed else 1)


if __name__ == "__main__":
    main()
