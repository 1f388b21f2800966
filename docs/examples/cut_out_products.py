#!/usr/bin/env python
"""Cut out the products of a folder of photographs: transparent PNGs with soft edges.

    python cut_out_products.py photos out --labels "shoe; bag"

The cut-outs are in `out/edited/`, in the folders of the input. The program lists the images to check by hand:
those without a product, and those with a mask that is not certain.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ovseg_batch

#: `docs/settings.md` describes each of them
SETTINGS = {
    "edit.mode": "cutout",  # everything but the labels becomes transparent
    "edit.on_empty": "skip",  # an image without a product gets no file
    "edit.alpha.soft": True,
    "edit.alpha.decontaminate": True,  # remove the old background's colour from the edge
    "edit.metadata": "colour",  # keep the colour profile, drop the place and the date
}


def cut_out(folder: Path, labels: str, workdir: Path, config: str) -> list[str]:
    """Cut out the labels in every image, and return the names of the images to check by hand."""
    run = ovseg_batch.run(folder, labels, workdir, config=config, settings=SETTINGS)
    return [image.name for image in run if not image.masks or image.unsure]


def main() -> None:
    """Read the command line, cut out the products, and print what to check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of photographs, read with its subfolders")
    parser.add_argument("workdir", type=Path, help="where the run is kept")
    parser.add_argument("--labels", required=True, help='the products, as in "shoe; bag: bag, handbag"')
    parser.add_argument("-c", "--config", default="prompted", help="preset or YAML file (default: prompted)")
    given = parser.parse_args()
    unsure = cut_out(given.folder, given.labels, given.workdir, given.config)
    print(f"cut-outs: {given.workdir / 'edited'}")
    print("check by hand:", ", ".join(unsure) or "no image")


if __name__ == "__main__":  # worker processes import this file again, and must not start a run
    main()
