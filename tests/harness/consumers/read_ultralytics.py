"""Ultralytics: its data set's own label reader for `yolo`, and its converter for COCO files with polygons."""

import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml
from expected import Masks, compare, read_masks, report
from ultralytics.data.converter import convert_coco
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import polygon2mask

root = Path(sys.argv[1])
masks = read_masks(root)


def painted(labels: list[dict], names: list[str], by_stem: dict[str, str]) -> Masks:
    found: Masks = {}
    for entry in labels:
        height, width = entry["shape"]
        found[by_stem[Path(entry["im_file"]).stem]] = [
            (names[int(k)], polygon2mask((height, width), [(s * (width, height)).reshape(-1)]).astype(bool))
            for (k,), s in zip(entry["cls"], entry["segments"], strict=True)
        ]
    return found


def read(images: Path, names: list[str]) -> list[dict]:
    data = {"names": dict(enumerate(names)), "channels": 3, "nc": len(names)}
    return YOLODataset(img_path=str(images), data=data, task="segment", augment=False, imgsz=256).labels


described = yaml.safe_load((root / "yolo" / "data.yaml").read_text())
names = list(described["names"].values())
stems = {Path(name).stem: name for name in masks}
own = painted(read(Path(described["path"]) / described["train"], names), names, stems)

polygons, converted = root / "polygons", root / "converted"
shutil.rmtree(polygons, ignore_errors=True)
shutil.rmtree(converted, ignore_errors=True)
polygons.mkdir()
shutil.copy(root / "coco-polygon.json", polygons / "instances_all.json")
convert_coco(str(polygons), str(converted), use_segments=True, cls91to80=False)
(converted / "images" / "all").mkdir()
for name in masks:
    (converted / "images" / "all" / name).symlink_to((root / "images" / name).resolve())
through = painted(read(converted / "images" / "all", names), names, stems)
assert all(np.asarray(mask).any() for entries in own.values() for _, mask in entries)
report(
    version("ultralytics"),
    {"yolo": compare(masks, own), "coco-polygon, convert_coco": compare(masks, through)},
)
