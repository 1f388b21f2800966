"""Export masks into every format, and read them back with the libraries that use it, each in its own environment.

python -m tests.harness round-trips                    # all consumers; environments are made in .consumers/
python -m tests.harness round-trips --only datumaro

The masks come from a run over rendered scenes with one mask a label, so that many have several parts or holes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import click
import cv2
import numpy as np

from ovseg_batch import scenes
from ovseg_batch.config import load_config
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.export.exporting import Options, export
from ovseg_batch.export.formats import WRITERS
from ovseg_batch.export.selection import Selection
from ovseg_batch.io import rle
from ovseg_batch.runs import pipeline
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir

READERS = Path(__file__).parent / "consumers"
CONSUMERS = {
    "pycocotools": ["pycocotools==2.0.11", "pillow"],
    "torchvision": ["torchvision", "pycocotools"],
    "datasets": ["datasets==5.2.0", "pillow", "pycocotools"],
    "ultralytics": ["ultralytics==8.4.190"],
    "label_studio": ["label-studio-sdk==2.1.2"],
    "datumaro": ["datumaro==1.13.12"],
}
FIRST = 1000  # of the held-out scenes
SUFFIXES = {"cvat": ".xml", "csv": ".csv"}


@click.command()
@click.option("--images", default=50, show_default=True, help="Number of scenes.")
@click.option("--only", type=click.Choice(list(CONSUMERS)), help="One consumer alone.")
@click.option(
    "--environments",
    type=click.Path(path_type=Path),
    default=Path(".consumers"),
    show_default=True,
    help="Folder for the environments of the consumers.",
)
def main(images: int, only: str | None, environments: Path) -> None:
    """Export masks into every format, read them back with the libraries that use it, and compare."""
    with tempfile.TemporaryDirectory(prefix="ovseg-round-trips-") as folder:
        root = Path(folder)
        write_scenes(root, scenes.HELD_OUT_SEEDS[FIRST : FIRST + images], jpeg_every=0)
        config = load_config("demo", ["refine.output=semantic"], {"labels": list(scenes.CLASSES)}, environment={})
        pipeline.run([str(root / "images")], Workdir(root / "run"), config, progress=False)
        _keep_masks(Results.open(Workdir(root / "run")), root)
        for name, format in WRITERS.items():
            target = root / (name if format.is_folder else name + SUFFIXES.get(name, ".json"))
            export(Workdir(root / "run"), format, target, Selection(), Options())
        failed = False
        for name in [only] if only else CONSUMERS:
            failed |= not _read_back(name, environments / name, root)
    sys.exit(failed)


def _keep_masks(results: Results, root: Path) -> None:
    """What the readers compare with; and what is in it."""
    arrays, labels = {}, {}
    parts = holes = several = pierced = 0
    for shard in range(results.manifest.shards):
        for image in results.shard(shard):
            name = image.row.file_name
            labels[name] = [one.category for one in image.annotations]
            for k, one in enumerate(image.annotations):
                mask = rle.decode(one.rle, *image.size)
                arrays[f"{name}/{k}"] = mask
                found, ranks = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
                inner = sum(int(rank[3] >= 0) for rank in ranks[0])
                parts, holes = parts + len(found) - inner, holes + inner
                several, pierced = several + (len(found) - inner > 1), pierced + (inner > 0)
    np.savez_compressed(root / "masks.npz", **arrays)  # type: ignore[arg-type]
    (root / "masks.json").write_text(json.dumps(labels))
    click.echo(f"{len(labels)} images, {len(arrays)} masks: {several} of several parts, {pierced} with holes")


def _read_back(name: str, environment: Path, root: Path) -> bool:
    """Whether the consumer could read everything; what came back is printed."""
    python = environment / "bin" / "python"
    if not python.exists():
        click.echo(f"making {environment}", err=True)
        venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *CONSUMERS[name]], check=True)
    done = subprocess.run([python, READERS / f"read_{name}.py", root], capture_output=True, text=True)
    if done.returncode:
        click.echo(f"{name}: failed\n{done.stderr[-3000:]}")
        return False
    answer = json.loads(done.stdout.splitlines()[-1])
    for format, figures in answer["results"].items():
        shown = "  ".join(f"{key} {value:.6g}" for key, value in figures.items())
        click.echo(f"{name:13} {answer['version']:9} {format:27} {shown}")
    return True
