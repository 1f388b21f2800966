"""datumaro's readers of CVAT's XML and of COCO's files."""

import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import datumaro as dm
import numpy as np
from expected import Masks, compare, read_masks, report

root = Path(sys.argv[1])
masks = read_masks(root)


def read(path: Path, kind: str) -> Masks:
    dataset = dm.Dataset.import_from(str(path), kind)
    labels = [label.name for label in dataset.categories()[dm.AnnotationType.label]]
    stems = {Path(name).stem: name for name in masks}
    found: Masks = {}
    for item in dataset:
        entries = []
        for one in item.annotations:
            if one.type == dm.AnnotationType.mask:
                entries.append((labels[one.label], np.asarray(one.image).astype(bool)))
            elif one.type == dm.AnnotationType.polygon:
                raise AssertionError("a polygon where masks went out")
        found[stems[Path(item.id).stem]] = entries
    return found


coco = root / "datumaro-coco"
shutil.rmtree(coco, ignore_errors=True)
(coco / "annotations").mkdir(parents=True)
(coco / "images").symlink_to(root / "images")
shutil.copy(root / "coco.json", coco / "annotations" / "instances_all.json")
report(
    version("datumaro"),
    {
        "cvat": compare(masks, read(root / "cvat.xml", "cvat")),
        "coco": compare(masks, read(coco, "coco_instances")),
    },
)
