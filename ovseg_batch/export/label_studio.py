"""Label Studio: tasks with brush predictions, the least certain first, and the labelling config that displays them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from ovseg_batch.export.coco import dumps, write_list
from ovseg_batch.export.exporting import Plan, Tally
from ovseg_batch.export.parts import WHOLE, ShardFiles, ShardLines, of_split
from ovseg_batch.export.selection import ChosenImage
from ovseg_batch.io import rle
from ovseg_batch.io.atomic import atomic_path, create_text, write_text
from ovseg_batch.io.entries import without_controls
from ovseg_batch.io.remote import is_remote
from ovseg_batch.methods.colours import hex_palette
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.runs import placed_counts

FROM_NAME, TO_NAME = "masks", "image"
TASKS_PER_FILE = 500  # Label Studio loads a whole file into memory
RUN_BITS = 16  # bits of a run length in the brush format
LONGEST = 1 << RUN_BITS


class LabelStudioWriter:
    """Writes `tasks-00001.json` … in review order, and `label-config.xml`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def shard(self, shard: int, images: Iterable[ChosenImage]) -> Tally:
        tally = Tally()
        lines = ShardLines(("tasks", "order"), self._plan.splits)
        for image in images:
            lines.add("tasks", image.split, dumps(self._task(image)))
            lines.add("order", image.split, f"{-image.confidence.doubt:.9f}")
            tally.update(images=1, masks=len(image.annotations))
        lines.write(self._plan.parts, shard)
        return tally

    def _task(self, image: ChosenImage) -> dict[str, Any]:
        results = [
            {
                "id": f"{image.row.row}-{number}",
                "type": "brushlabels",
                "from_name": FROM_NAME,
                "to_name": TO_NAME,
                "original_width": image.width,
                "original_height": image.height,
                "image_rotation": 0,
                "score": round(one.confidence, 6),
                "meta": {"text": [f"{one.source}, confidence {one.confidence:.2f}"]},
                "value": {
                    "format": "rle",
                    "rle": list(brush_counts(rle.decode_placed(one.rle, *image.size), image.size)),
                    "brushlabels": [without_controls(one.category)],
                },
            }
            for number, one in enumerate(image.annotations, start=1)
        ]
        least = round(image.confidence.least, 6)
        prediction = {"model_version": "ovseg_batch", "score": least, "result": results}
        data = {"image": self._url(image), "key": image.row.key, "confidence": least, "unsure": str(image.confidence)}
        return {"data": data, "predictions": [prediction]}

    def _url(self, image: ChosenImage) -> str:
        path = image.row.path
        if is_remote(path):
            return path
        return self._plan.options.image_url + quote(os.fsencode(Path(path).absolute()).lstrip(b"/"))

    def finish(self, shards: Sequence[int]) -> list[Path]:
        with self._plan.files(WHOLE) as files:
            return self._write(files, shards)

    def _write(self, files: ShardFiles, shards: Sequence[int]) -> list[Path]:
        plan, paths = self._plan, [files.path("label-config.xml")]
        write_text(paths[0], label_config(plan.labels))
        for split in plan.splits or ("",):
            tasks = self._in_order(shards, split)
            number = 0
            while (batch := _next_lines(tasks, TASKS_PER_FILE)) is not None:
                number += 1
                paths.append(files.path(f"{of_split('tasks', split)}-{number:05d}.json"))
                with atomic_path(paths[-1]) as temporary, create_text(temporary) as file:
                    file.write("[")
                    write_list(file, batch)
                    file.write("]\n")
        return paths

    def _in_order(self, shards: Sequence[int], split: str) -> Iterator[str]:
        """Yield the tasks, least certain first. 16 bytes per task are held in memory."""
        parts, kind = self._plan.parts, of_split("tasks", split)
        places = []
        for shard in shards:
            order = np.array([float(line) for line in parts.read([shard], of_split("order", split))])
            if len(order):
                with parts.path(shard, kind).open("rb") as file:
                    starts = np.cumsum([0, *(len(line) for line in file)])[:-1]
                places.append(np.rec.fromarrays([order, np.full(len(order), shard, np.int32), starts]))
        if not places:
            return
        together = np.concatenate(places)
        for _, shard, start in together[np.argsort(together["f0"], kind="stable")].tolist():
            with parts.path(shard, kind).open("rb") as file:
                file.seek(start)
                yield file.readline().decode().removesuffix("\n")


def _next_lines(lines: Iterator[str], count: int) -> list[str] | None:
    """Return at most `count` next lines, or None at the end."""
    lines_read = [line for _, line in zip(range(count), lines, strict=False)]
    return lines_read or None


def label_config(labels: Sequence[str]) -> str:
    """Return the labelling config of a project. Without it, Label Studio does not show the masks."""
    lines = []
    for label, colour in zip(labels, hex_palette(len(labels)), strict=True):
        lines.append(f'    <Label value={quoteattr(without_controls(label))} background="{colour}"/>')
    return "\n".join(
        [
            "<View>",
            f'  <Image name="{TO_NAME}" value="$image" zoom="true"/>',
            f'  <BrushLabels name="{FROM_NAME}" toName="{TO_NAME}">',
            *lines,
            "  </BrushLabels>",
            "</View>\n",
        ]
    )


def brush_counts(mask: PlacedMask, size: tuple[int, int]) -> bytes:
    """Encode a mask of an image of (H, W) pixels in Label Studio's brush format: run lengths of RGBA bytes, as bits.

    The format is rle-pack of thi.ng/umbrella. Header: 32 bits for the number of values, 5 bits for the bits per value
    minus 1, and four times 4 bits for the possible bits of a length minus 1. Each run: a bit 1, two bits that select
    the size of the length, the length minus 1, and the value. Here, all sizes are 16 bits, and values are 0 and 255.
    """
    lengths = placed_counts(mask.pixels, mask.left, mask.top, size) * 4  # each pixel is four equal bytes
    inside = (np.arange(len(lengths)) % 2 == 1)[lengths > 0]
    lengths = lengths[lengths > 0]
    pieces = -(-lengths // LONGEST)
    values = np.repeat(inside, pieces)
    sizes = np.full(pieces.sum(), LONGEST)
    sizes[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * LONGEST
    runs = np.zeros((len(sizes), 1 + 2 + RUN_BITS + 8), np.uint8)
    runs[:, 0] = 1
    runs[:, 3 : 3 + RUN_BITS] = (sizes[:, None] - 1) >> np.arange(RUN_BITS - 1, -1, -1) & 1
    runs[:, 3 + RUN_BITS :] = values[:, None]
    head = [int(bit) for bit in f"{size[0] * size[1] * 4:032b}{8 - 1:05b}" + f"{RUN_BITS - 1:04b}" * 4]
    return np.packbits(np.concatenate([np.array(head, np.uint8), runs.ravel()])).tobytes()
