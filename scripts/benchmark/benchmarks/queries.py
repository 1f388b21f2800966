"""Queries of a finished run: other words, beside the run itself; and a memory bank, beside none."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.measure import measured
from benchmarks.speed import chosen_folder, machine, model_flags, shared_options
from ovseg_batch import datasets, scenes
from ovseg_batch.evaluate.run import evaluate
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.io.bank_file import read_bank
from ovseg_batch.workdir.store import Workdir

OTHER_WORDS = "sand; snow; brick; wood; fish; flower; mushroom; balloon; sun; cat; ball; person; sky; grass"
CACHES = ("dense.cache=features", "refine.method=automatic")
CACHES = ("dense.cache=features", "sam.cache=embeddings")


@click.command()
@shared_options
@click.option("--words", default=OTHER_WORDS, show_default=True, help="The labels of the query.")
@click.option("--check", is_flag=True, help="Also run the folder anew with these words, and compare the masks.")
@click.option(
    "--same-proposals", is_flag=True, help="That run takes the first one's proposals, as no word decides them."
)
def query(
    words: str, check: bool, same_proposals: bool, overrides: tuple[str, ...], json_file: Path | None, **options: Any
) -> None:
    """Seconds of a first run and of a query of it, from the start of Python to the end of the command."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folder = chosen_folder(options, root)
        settings = [part for one in (*CACHES, *overrides) for part in ("--set", one)]
        models = [f"{key}={value}" for key, value in model_flags(options).items() if value is not None]
        settings += [part for one in models for part in ("--set", one)]
        labels = options["labels"] or "; ".join(scenes.CLASSES)
        environment = {"OVSEG_CACHE": str(root / "cache")}  # so that no word is cached
        first, answer, anew = (Workdir(root / name) for name in ("first", "answer", "anew"))

        def run(workdir: Workdir, labels: str) -> float:
            arguments = ["run", str(folder), "-o", str(workdir.root), "--labels", labels, *settings]
            return measured(arguments, environment)[0]

        figures: dict[str, Any] = {"machine": machine(torch.device("cpu")), "run": run(first, labels)}
        arguments = ["query", str(first.root), "--labels", words, "-o", str(answer.root)]
        figures["query"] = measured(arguments, environment)[0]
        figures["ratio"] = figures["run"] / figures["query"]
        _print("the run", first, figures["run"])
        _print("the query", answer, figures["query"], first)
        click.echo(f"ratio {figures['ratio']:.1f}")
        if same_proposals:
            for folder_of in first.root.glob("stages/propose-*"):
                shutil.copytree(folder_of, anew.root / "stages" / folder_of.name)
        if check:
            figures["anew"] = run(anew, words)
            _print("a new run", anew, figures["anew"])
            figures["equal"] = answer.annotations.read_bytes() == anew.annotations.read_bytes()
            masks = len(json.loads(answer.annotations.read_text())["annotations"])
            click.echo(f"{masks} masks, {'the same bytes' if figures['equal'] else 'NOT the same'} as the new run's")
        if json_file is not None:
            json_file.write_text(json.dumps(figures, indent=2) + "\n")


def _print(name: str, workdir: Workdir, seconds: float, earlier: Workdir | None = None) -> None:
    """The seconds of a command, and of its stages but those that were there already."""
    kept = {store.folder.name for store in earlier.stores()} if earlier else set()
    own = [store for store in workdir.stores() if store.folder.name not in kept]
    stages = ", ".join(f"{store.stage} {sum(commit.seconds for commit in store.commits()):.1f} s" for store in own)
    click.echo(f"{name:10} {seconds:8.1f} s   ({stages})")


@click.command()
@click.option("--first", default=5000, show_default=True, help="Of the held-out scenes.")
@click.option("--counts", default="300,200", show_default=True, help="Scenes of the two folders.")
@click.option("--set", "overrides", multiple=True)
def bank(first: int, counts: str, overrides: tuple[str, ...]) -> None:
    """mIoU of two folders without a bank, with their own, and with the other's; and what that costs."""
    settings = [part for one in (*CACHES, *overrides) for part in ("--set", one)]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        sizes = [int(count) for count in counts.split(",")]
        for k, size in enumerate(sizes):
            start = first + sum(sizes[:k])
            write_scenes(root / f"scenes{k}", scenes.HELD_OUT_SEEDS[start : start + size])
            arguments = ["run", str(root / f"scenes{k}" / "images"), "-o", str(root / f"run{k}")]
            seconds, _ = measured([*arguments, "--labels", "; ".join(scenes.CLASSES), *settings])
            built, _ = measured(["bank", "build", str(root / f"run{k}"), "-o", str(root / f"{k}.parquet")])
            regions, size_kb = (
                len(read_bank(root / f"{k}.parquet").features),
                (root / f"{k}.parquet").stat().st_size / 1e3,
            )
            click.echo(
                f"{size} scenes: run {seconds:.1f} s; a bank of {regions} regions, {size_kb:.0f} kB, {built:.1f} s"
            )
        for k, size in enumerate(sizes):
            results = [f"no bank {_mean_iou(root / f'run{k}', root / f'scenes{k}'):.4f}"]
            for name, other in (("its own", k), ("the other's", 1 - k)):
                answer = root / f"run{k}-{other}"
                use = ["bank", "use", str(root / f"run{k}"), "--bank", str(root / f"{other}.parquet")]
                seconds, _ = measured([*use, "-o", str(answer)])
                results.append(f"{name} {_mean_iou(answer, root / f'scenes{k}'):.4f} ({seconds:.1f} s)")
            click.echo(f"{size} scenes: mIoU {', '.join(results)}")


def _mean_iou(workdir: Path, root: Path) -> float:
    return float(evaluate(Workdir(workdir), datasets.load("scenes"), root).figures()["mIoU"])
