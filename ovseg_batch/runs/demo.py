"""The demo: render scenes, segment them, and evaluate the masks against the ground truth."""

from __future__ import annotations

from pathlib import Path

from ovseg_batch import datasets, scenes
from ovseg_batch.config import load_config
from ovseg_batch.evaluate.run import evaluate
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.report.build import build_report
from ovseg_batch.runs import pipeline
from ovseg_batch.units import counted
from ovseg_batch.workdir.store import Workdir


def run_demo(output: Path, images: int, progress: bool | None = None) -> list[str]:
    """Fill `output` with images/, truth/, run/ (an ordinary workdir) and report/.

    Run again, it resumes, as any run does.

    Returns:
        the lines to print: where to look, and the mean IoU.

    Raises:
        OvsegError, OSError: as `pipeline.run`.
    """
    present = len(list((output / "images").glob("scene-*"))) if (output / "images").is_dir() else 0
    if present != images:
        write_scenes(output, scenes.DEMO_SEEDS[:images])
    config = load_config("demo", flags={"labels": list(scenes.CLASSES)}, environment={})
    workdir = Workdir(output / "run")
    outcome = pipeline.run([str(output / "images")], workdir, config, progress)
    found = evaluate(workdir, datasets.load("scenes"), output).figures()
    page = build_report(workdir, output / "report").page
    shares = {name: f"{value:.3f}" for name, value in found.items()}
    numbers = {"image": outcome.images, "mask": outcome.annotations, "failure": outcome.failures}
    return [
        ", ".join(counted(number, noun) for noun, number in numbers.items()),
        f"mIoU {shares['mIoU']} (stuff {shares['mIoU stuff']}, things {shares['mIoU things']}), accuracy "
        f"{shares['pixel accuracy']}, boundary F1 {shares['boundary F1']} against the truth of the scenes",
        f"images  {output / 'images'}",
        f"masks   {outcome.annotations_path}",
        f"report  {page}",
    ]
