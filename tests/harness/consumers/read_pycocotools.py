"""COCO's own reader, for instances and, with the panoptic format's published definition, segments."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from expected import Masks, compare, read_masks, report
from PIL import Image
from pycocotools.coco import COCO


def instances(path: Path) -> Masks:
    coco = COCO(str(path))
    names = {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())}
    return {
        image["file_name"]: [
            (names[one["category_id"]], coco.annToMask(one).astype(bool))
            for one in coco.loadAnns(coco.getAnnIds(imgIds=[number], iscrowd=False))
        ]
        for number, image in coco.imgs.items()
    }


def panoptic(folder: Path) -> Masks:
    described = json.loads((folder / "panoptic.json").read_text())
    names = {c["id"]: c["name"] for c in described["categories"]}
    files = {image["id"]: image["file_name"] for image in described["images"]}
    found: Masks = {}
    for entry in described["annotations"]:
        colours = np.asarray(Image.open(folder / "panoptic" / entry["file_name"]).convert("RGB")).astype(np.int64)
        ids = colours @ [1, 256, 256**2]
        found[files[entry["image_id"]]] = [(names[s["category_id"]], ids == s["id"]) for s in entry["segments_info"]]
    return found


root = Path(sys.argv[1])
masks = read_masks(root)
report(
    version("pycocotools"),
    {
        "coco": compare(masks, instances(root / "coco.json")),
        "coco-polygon": compare(masks, instances(root / "coco-polygon.json")),
        "panoptic": compare(masks, panoptic(root / "panoptic")),
    },
)
