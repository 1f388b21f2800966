"""Export the committed results of a run. Each module writes one family of formats."""

#: names for `export -f`, with their descriptions
FORMATS = {
    "coco": "COCO instances with RLE masks: a .json",
    "coco-polygon": "COCO instances with polygons: a .json",
    "panoptic": "COCO panoptic: PNGs of segment ids and a .json",
    "semantic": "a PNG of class indices for each image",
    "yolo": "Ultralytics' segmentation labels with data.yaml",
    "label-studio": "tasks with predictions, least certain first, and the labelling config",
    "cvat": "CVAT for images 1.1 with masks: an .xml",
    "hf": "Parquet with images inside, for Hugging Face's datasets",
    "hf-imagefolder": "images, masks and metadata.jsonl, for Hugging Face's datasets",
    "masks": "a PNG for each mask, in a folder for each image",
    "csv": "a line for each mask",
}
