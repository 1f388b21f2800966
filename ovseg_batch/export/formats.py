"""The table of export formats."""

from __future__ import annotations

from ovseg_batch.export import coco, cvat, hugging_face, table, yolo
from ovseg_batch.export.coco import CocoPolygonWriter, CocoWriter
from ovseg_batch.export.cvat import CvatWriter
from ovseg_batch.export.exporting import Format
from ovseg_batch.export.hugging_face import ImageFolderWriter, ParquetWriter
from ovseg_batch.export.label_studio import LabelStudioWriter
from ovseg_batch.export.pictures import MasksWriter, PanopticWriter, SemanticWriter
from ovseg_batch.export.selection import stem_of
from ovseg_batch.export.table import CsvWriter
from ovseg_batch.export.yolo import YoloWriter

FOLDER = ""
NAMINGS = {"yolo": yolo.name_of, "hf-imagefolder": hugging_face.name_of}

WRITERS = {
    name: Format(name, make, head, NAMINGS.get(name, stem_of))
    for name, make, head in (
        ("coco", CocoWriter, coco.HEAD),
        ("coco-polygon", CocoPolygonWriter, coco.HEAD),
        ("panoptic", PanopticWriter, FOLDER),
        ("semantic", SemanticWriter, FOLDER),
        ("yolo", YoloWriter, FOLDER),
        ("label-studio", LabelStudioWriter, FOLDER),
        ("cvat", CvatWriter, cvat.HEAD),
        ("hf", ParquetWriter, FOLDER),
        ("hf-imagefolder", ImageFolderWriter, FOLDER),
        ("masks", MasksWriter, FOLDER),
        ("csv", CsvWriter, table.HEAD),
    )
}
