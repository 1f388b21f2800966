"""The writer of every format."""

from __future__ import annotations

from ovseg_batch.export.coco import CocoPolygonWriter, CocoWriter
from ovseg_batch.export.cvat import CvatWriter
from ovseg_batch.export.exporting import Format
from ovseg_batch.export.hugging_face import ImageFolderWriter, ParquetWriter
from ovseg_batch.export.label_studio import LabelStudioWriter
from ovseg_batch.export.pictures import MasksWriter, PanopticWriter, SemanticWriter
from ovseg_batch.export.table import CsvWriter
from ovseg_batch.export.yolo import YoloWriter

WRITERS = {
    name: Format(name, make, is_folder)
    for name, make, is_folder in (
        ("coco", CocoWriter, False),
        ("coco-polygon", CocoPolygonWriter, False),
        ("panoptic", PanopticWriter, True),
        ("semantic", SemanticWriter, True),
        ("yolo", YoloWriter, True),
        ("label-studio", LabelStudioWriter, True),
        ("cvat", CvatWriter, False),
        ("hf", ParquetWriter, True),
        ("hf-imagefolder", ImageFolderWriter, True),
        ("masks", MasksWriter, True),
        ("csv", CsvWriter, False),
    )
}
