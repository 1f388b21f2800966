"""Hugging Face's `datasets`: Parquet and imagefolder, with the images and the masks as its Image feature gives them."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datasets import load_dataset
from expected import Masks, by_label, compare, read_masks, report
from PIL import Image
from pycocotools import mask as coco

root = Path(sys.argv[1])
masks = read_masks(root)
cache = str(root / "cache")


def pictures_are_the_same(rows: list[dict]) -> None:
    for row in rows:
        original = np.asarray(Image.open(root / "images" / row["key"]).convert("RGB"))
        assert np.array_equal(np.asarray(row["image"].convert("RGB")), original), row["key"]


def class_maps(rows: list[dict], labels: list[str]) -> Masks:
    found: Masks = {}
    for row in rows:
        classes = np.asarray(row["mask"])
        found[row["key"]] = [(labels[k], classes == k) for k in np.unique(classes) if k < len(labels)]
    return found


parquet = load_dataset(str(root / "hf"), split="train", cache_dir=cache)
labels = parquet.features["objects"].feature["category"].names
rows = list(parquet)
pictures_are_the_same(rows)
objects = {
    row["key"]: [
        (labels[one["category"]], coco.decode({"size": [row["height"], row["width"]], "counts": one["counts"]}) > 0)
        for one in row["objects"]
    ]
    for row in rows
}
folder = list(load_dataset("imagefolder", data_dir=str(root / "hf-imagefolder"), split="train", cache_dir=cache))
pictures_are_the_same(folder)
semantic = json.loads((root / "semantic" / "classes.json").read_text())["classes"].values()
report(
    version("datasets"),
    {
        "hf, objects": compare(masks, objects),
        "hf, class map": compare(by_label(masks), class_maps(rows, labels)),
        "hf-imagefolder": compare(by_label(masks), class_maps(folder, list(semantic))),
    },
)
