"""A finished run asked for other words, beside the run itself; and whether the answer is what a new run would say."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import torch

from benching.measure import measured
from benching.speed import chosen_folder, machine, model_flags, shared_options
from ovseg_batch import scenes
from ovseg_batch.store import Workdir

OTHER_WORDS = "sand; snow; brick; wood; fish; flower; mushroom; balloon; sun; cat; ball; person; sky; grass"
KEPT = ("dense.cache=features", "refine.method=automatic")


@click.command()
@shared_options
@click.option("--ask", default=OTHER_WORDS, show_default=True, help="The words of the question.")
@click.option("--check", is_flag=True, help="Also run the folder anew with these words, and compare.")
def query(ask: str, check: bool, overrides: tuple[str, ...], json_file: Path | None, **asked: Any) -> None:
    """Seconds of a first run and of a question to it, each as a person waits for it: Python's start included."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folder = chosen_folder(asked, root)
        settings = [part for one in (*KEPT, *overrides) for part in ("--set", one)]
        models = [f"{key}={value}" for key, value in model_flags(asked).items() if value is not None]
        settings += [part for one in models for part in ("--set", one)]
        words = asked["labels"] or "; ".join(scenes.CLASSES)
        environment = {"OVSEG_CACHE": str(root / "cache")}  # so that no word has been heard before
        first, answer, anew = (Workdir(root / name) for name in ("first", "answer", "anew"))

        def run(workdir: Workdir, labels: str) -> float:
            arguments = ["run", str(folder), "-o", str(workdir.root), "--labels", labels, *settings]
            return measured(arguments, environment)[0]

        figures: dict[str, Any] = {"machine": machine(torch.device("cpu")), "run": run(first, words)}
        arguments = ["query", str(first.root), "--labels", ask, "-o", str(answer.root)]
        figures["query"] = measured(arguments, environment)[0]
        figures["ratio"] = figures["run"] / figures["query"]
        _tell("the run", first, figures["run"])
        _tell("the query", answer, figures["query"], first)
        click.echo(f"ratio {figures['ratio']:.1f}")
        if check:
            figures["anew"] = run(anew, ask)
            _tell("a new run", anew, figures["anew"])
            figures["equal"] = answer.annotations.read_bytes() == anew.annotations.read_bytes()
            masks = len(json.loads(answer.annotations.read_text())["annotations"])
            click.echo(f"{masks} masks, {'the same bytes' if figures['equal'] else 'NOT the same'} as the new run's")
        if json_file is not None:
            json_file.write_text(json.dumps(figures, indent=2) + "\n")


def _tell(name: str, workdir: Workdir, seconds: float, asked: Workdir | None = None) -> None:
    """The seconds of a command, and of its stages but those that were there already."""
    kept = {store.folder.name for store in asked.stores()} if asked else set()
    own = [store for store in workdir.stores() if store.folder.name not in kept]
    stages = ", ".join(f"{store.stage} {sum(commit.seconds for commit in store.commits()):.1f} s" for store in own)
    click.echo(f"{name:10} {seconds:8.1f} s   ({stages})")
