#!/usr/bin/env python
"""Annotate a folder of images, print what each image shows, and draw the masks.

    python annotate_folder.py photos out --labels "dog; cat; sofa: sofa, couch"

`out/annotations.json` holds all masks as COCO, `out-overlays/` a picture of each image with its masks.
The same command again resumes, or shows the finished run.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import ovseg_batch


def annotate(folder: Path, labels: str, workdir: Path, config: str) -> ovseg_batch.Run:
    """Segment the images of a folder, and print and draw the masks of each image."""
    run = ovseg_batch.run(folder, labels, workdir, config=config)
    overlays = workdir.with_name(f"{workdir.name}-overlays")
    for image in run:  # reads one shard at a time, so the masks of a large run fit in memory
        found = Counter(mask.label for mask in image.masks)
        print(f"{image.name}: {', '.join(f'{count} {label}' for label, count in found.items()) or 'no masks'}")
        target = overlays / f"{image.name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        image.overlay().save(target)
    for failure in run.failures:  # an image that cannot be read fails alone; the run goes on
        print(f"failed in {failure.stage}: {failure.message}")
    return run


def main() -> None:
    """Read the command line and annotate the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of images, read with its subfolders")
    parser.add_argument("workdir", type=Path, help="where the run is kept")
    parser.add_argument("--labels", required=True, help='what to look for, as in "dog; sofa: sofa, couch"')
    parser.add_argument("-c", "--config", default="prompted", help="preset or YAML file (default: prompted)")
    given = parser.parse_args()
    annotate(given.folder, given.labels, given.workdir, given.config)


if __name__ == "__main__":  # worker processes import this file again, and must not start a run
    main()
