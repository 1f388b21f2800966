"""CVAT's XML format ("CVAT for images 1.1"). Masks are run lengths inside their box."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from ovseg_batch.export.exporting import Plan, Tally
from ovseg_batch.export.parts import ShardLines, of_split, split_path
from ovseg_batch.export.selection import ChosenImage
from ovseg_batch.io import rle
from ovseg_batch.io.atomic import atomic_path, create_text
from ovseg_batch.io.entries import without_controls
from ovseg_batch.methods.colours import hex_palette
from ovseg_batch.methods.runs import placed_counts
from ovseg_batch.types import Annotation
from ovseg_batch.types.arrays import Mask

HEAD = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task><labels>'
ATTRIBUTES = ("confidence", "score")


class CvatWriter:
    """Writes one XML file, or one per split. CVAT imports it into a task whose images have the same names."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def shard(self, shard: int, images: Iterable[ChosenImage]) -> Tally:
        tally = Tally()
        lines = ShardLines(("images",), self._plan.splits)
        for image in images:
            masks = "".join(_mask(one, image.height, image.width) for one in image.annotations)
            name = quoteattr(without_controls(image.row.file_name))
            attributes = f'id="{image.row.row}" name={name} width="{image.width}" height="{image.height}"'
            lines.add("images", image.split, f"<image {attributes}>{masks}</image>")
            tally.update(images=1, masks=len(image.annotations))
        lines.write(self._plan.parts, shard)
        return tally

    def finish(self, shards: Sequence[int]) -> list[Path]:
        plan, paths = self._plan, []
        labels = "".join(map(_label, plan.labels, hex_palette(len(plan.labels))))
        for split in plan.splits or ("",):
            path = split_path(plan.path, split)
            with atomic_path(path) as temporary, create_text(temporary) as file:
                file.write(f"{HEAD}{labels}</labels></task></meta>\n")
                for line in plan.parts.read(shards, of_split("images", split)):
                    file.write(f"{line}\n")
                file.write("</annotations>\n")
            paths.append(path)
        return paths


def _mask(one: Annotation, height: int, width: int) -> str:
    placed = rle.decode_placed(one.rle, height, width)
    tall, wide = placed.pixels.shape
    place = f'left="{placed.left}" top="{placed.top}" width="{wide}" height="{tall}"'
    values = "".join(f'<attribute name="{name}">{getattr(one, name):.4f}</attribute>' for name in ATTRIBUTES)
    label = quoteattr(without_controls(one.category))
    counts = row_counts(placed.pixels)
    return f'<mask label={label} source="auto" occluded="0" rle="{counts}" {place} z_order="0">{values}</mask>'


def row_counts(mask: Mask) -> str:
    """Return the run lengths of a mask (H, W) in raster order. The first run is outside the mask, and may be 0."""
    lengths = placed_counts(mask, 0, 0, mask.shape).tolist()
    return ", ".join(map(str, lengths if lengths[-1] else lengths[:-1]))


def _label(name: str, colour: str) -> str:
    attributes = "".join(
        f"<attribute><name>{attribute}</name><mutable>True</mutable><input_type>number</input_type>"
        "<default_value>0</default_value><values>0\n1\n0.0001</values></attribute>"
        for attribute in ATTRIBUTES
    )
    head = f"<name>{escape(without_controls(name))}</name><color>{colour}</color><type>mask</type>"
    return f"<label>{head}<attributes>{attributes}</attributes></label>"
