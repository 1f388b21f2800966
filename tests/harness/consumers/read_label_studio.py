"""Label Studio's SDK: its decoder of brush masks, and its own check of tasks against the labelling config."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from expected import Masks, compare, read_masks, report
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface

root = Path(sys.argv[1])
folder = root / "label-studio"
interface = LabelInterface((folder / "label-config.xml").read_text())
found: Masks = {}
scores = []
for path in sorted(folder.glob("tasks-*.json")):
    for task in json.loads(path.read_text()):
        [prediction] = task["predictions"]
        assert interface.validate_task({"data": task["data"]}), task["data"]
        problems = interface.validate_prediction(prediction, return_errors=True)
        assert not problems, problems
        scores.append(prediction["score"])
        entries = []
        for one in prediction["result"]:
            shape = (one["original_height"], one["original_width"], 4)
            decoded = np.reshape(decode_rle(one["value"]["rle"]), shape)
            entries.append((one["value"]["brushlabels"][0], decoded[..., 3] > 0))
        found[task["data"]["key"]] = entries
assert scores == sorted(scores), "the least certain come first"
report(version("label-studio-sdk"), {"label-studio": compare(read_masks(root), found)})
