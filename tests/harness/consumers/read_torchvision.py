"""torchvision's CocoDetection through the wrapper of its v2 transforms, as its detection references train on."""

import sys
from importlib.metadata import version
from pathlib import Path

from expected import Masks, compare, read_masks, report
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2


def read(images: Path, path: Path) -> Masks:
    plain = CocoDetection(str(images), str(path))
    names = {number: entry["name"] for number, entry in plain.coco.cats.items()}
    wrapped = wrap_dataset_for_transforms_v2(plain, target_keys=("masks", "labels", "image_id"))
    found: Masks = {}
    for _, target in wrapped:
        name = plain.coco.imgs[target["image_id"]]["file_name"]
        pairs = zip(target.get("labels", []), target.get("masks", []), strict=True)
        found[name] = [(names[int(label)], mask.numpy().astype(bool)) for label, mask in pairs]
    return found


root = Path(sys.argv[1])
masks = read_masks(root)
report(
    version("torchvision"),
    {name: compare(masks, read(root / "images", root / f"{name}.json")) for name in ("coco", "coco-polygon")},
)
