"""Runs from Python: start one, go through its masks as arrays, look at them in a notebook.

```python
import ovseg_batch

run = ovseg_batch.run("photos", ["dog", "cat", "sofa: sofa, couch"], "out")
for image in run:
    for mask in image.masks:
        print(image.name, mask.label, mask.confidence, mask.array.sum())
```
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovseg_batch import pipeline
from ovseg_batch.config import load_config
from ovseg_batch.errors import OvsegError, UsageError, nearest
from ovseg_batch.export.choosing import Selection
from ovseg_batch.export.exporting import Exported, Options
from ovseg_batch.export.exporting import export as write_export
from ovseg_batch.export.formats import WRITERS
from ovseg_batch.findings import read_findings
from ovseg_batch.io import rle
from ovseg_batch.io.images import read_image
from ovseg_batch.methods.colours import palette
from ovseg_batch.methods.confidence import ImageConfidence
from ovseg_batch.report.building import LIMIT, build_report
from ovseg_batch.results import Results, failed_rows
from ovseg_batch.settings import RunConfig
from ovseg_batch.stages.base import read_limits
from ovseg_batch.store import Workdir

Array = np.ndarray[Any, Any]

STRENGTH = 0.55  # of a label's colour over the image
EDGE = 0.5  # what is left of its brightness along the outline


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask. `bbox` is x, y, width, height and `area` counts, both in pixels of the upright image.

    `score` ranks the masks of a label; `confidence` says how far this one can be believed (docs/confidence.md). `rle`
    is COCO's compressed counts. `source` is `sam` or `dense`: what drew the outline.
    """

    label: str
    score: float
    confidence: float
    bbox: tuple[float, float, float, float]
    area: int
    rle: bytes
    size: tuple[int, int]
    source: str

    @property
    def array(self) -> Array:
        """(H, W) bool, decoded anew each time."""
        return rle.decode(self.rle, *self.size)


@dataclass(frozen=True, slots=True)
class SegmentedImage:
    """An image with its masks. `name` is relative to INPUT, `path` is where it was opened.

    `confidence` is that of the least sure mask, 1 without masks; `unsure` counts the masks of a confidence below 0.5.
    """

    name: str
    path: str
    height: int
    width: int
    confidence: float
    unsure: int
    masks: tuple[Mask, ...]
    colours: Mapping[str, tuple[int, int, int]]

    def read(self) -> Array:
        """The image, upright: (H, W, 3) uint8 RGB."""
        return read_image(self.path, read_limits(RunConfig()))

    def label_map(self, labels: Sequence[str]) -> Array:
        """(H, W) int16: places in `labels`, -1 where no mask of them is."""
        found = np.full((self.height, self.width), -1, np.int16)
        for mask in self.masks:
            if mask.label in labels:
                found[mask.array] = labels.index(mask.label)
        return found

    def overlay(self) -> Image.Image:
        """The image with every mask in its label's colour."""
        pixels = self.read().astype(np.float32)
        for mask in self.masks:
            inside = mask.array
            pixels[inside] += STRENGTH * (np.array(self.colours[mask.label]) - pixels[inside])
            kept = inside.copy()
            kept[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
            pixels[inside & ~kept] *= EDGE
        return Image.fromarray(pixels.astype(np.uint8))

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.overlay().save(file, "PNG")
        return file.getvalue()


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that has no masks: which stage gave it up, with which code, and why."""

    row: int
    key: str
    stage: str
    code: str
    message: str


class Run:
    """What a run has left in its workdir. Iterating gives every finished image in the order of the list."""

    def __init__(self, workdir: str | Path) -> None:
        """Open the latest run of a workdir, finished or not.

        Raises:
            UsageError: there is none.
        """
        self.workdir = Path(workdir)
        self._results = Results.open(Workdir(self.workdir))

    @property
    def labels(self) -> tuple[str, ...]:
        return self._results.labels

    @property
    def complete(self) -> bool:
        """Whether every stage has finished every image."""
        return all(not store.missing(self._results.manifest.shards) for store in self._results.stores)

    @property
    def label_images(self) -> dict[str, int] | None:
        """Number of images that have a mask of each label; a label that was never found has 0.

        None while the run is not finished, and where an older version wrote its outputs.
        """
        found = read_findings(Workdir(self.workdir)) if self.complete else None
        return None if found is None else found.label_images

    def __len__(self) -> int:
        """Images that have been finished."""
        return sum(commit.ok for commit in self._results.masks.commits())

    def __iter__(self) -> Iterator[SegmentedImage]:
        for commit in self._results.masks.commits():
            for row, line in self._results.shard(commit.shard):
                yield self._image(row.file_name, row.path, line)

    def __getitem__(self, name: str) -> SegmentedImage:
        """The image of that name; looks through the list. Raises KeyError."""
        manifest = self._results.manifest
        for row, found in zip(manifest.read_column("row"), manifest.read_column("file_name"), strict=True):
            if found == name:
                shard = manifest.shard_of(row)
                if self._results.masks.read_commit(shard) is not None:
                    for listed, line in self._results.shard(shard):
                        if listed.row == row:
                            return self._image(listed.file_name, listed.path, line)
        raise KeyError(name)

    @cached_property
    def _colours(self) -> dict[str, tuple[int, int, int]]:
        chosen = palette(len(self.labels)).tolist() if self.labels else []
        return {label: (red, green, blue) for label, (red, green, blue) in zip(self.labels, chosen, strict=True)}

    def _image(self, name: str, path: str, line: Mapping[str, Any]) -> SegmentedImage:
        size = (line["height"], line["width"])
        masks = tuple(
            Mask(
                one["category"],
                one["score"],
                one["confidence"],
                tuple(one["bbox"]),
                one["area"],
                one["rle"],
                size,
                one["source"],
            )
            for one in line["annotations"]
        )
        sure = ImageConfidence.from_masks(mask.confidence for mask in masks)
        return SegmentedImage(name, path, *size, sure.least, sure.unsure, masks, self._colours)

    @property
    def failures(self) -> list[Failure]:
        return [Failure(*found) for found in failed_rows(self._results.manifest, self._results.stores)]

    def to_coco(self) -> dict[str, Any]:
        """`annotations.json`, read: images, annotations with RLE counts as text, categories.

        Raises:
            OvsegError: the run is not finished.
        """
        path = Workdir(self.workdir).annotations
        if not self.complete or not path.is_file():
            raise OvsegError(f"The run in {self.workdir} is not finished, so it has no {path.name} yet; run it again.")
        content: dict[str, Any] = json.loads(path.read_bytes())
        return content

    def export(
        self, format: str, path: str | Path, selection: Selection | None = None, options: Options | None = None
    ) -> Exported:
        """The masks in another tool's format, as `ovseg-batch export` writes them.

        Raises:
            UsageError: no such format, or what is asked for does not fit the run.
        """
        if format not in WRITERS:
            raise UsageError(f"There is no format {format!r}.{nearest(format, WRITERS)} Formats: {', '.join(WRITERS)}.")
        return write_export(
            Workdir(self.workdir), WRITERS[format], Path(path), selection or Selection(), options or Options()
        )

    def query(
        self, labels: str | Sequence[str], workdir: str | Path, *, settings: Mapping[str, Any] | None = None
    ) -> Run:
        """Ask for other words, without opening an image, as `ovseg-batch query` does.

        Raises:
            UsageError: the run has not kept what the question needs.
        """
        asked = labels if isinstance(labels, str) else "; ".join(labels)
        overrides = [f"{key}={json.dumps(value)}" for key, value in (settings or {}).items()]
        pipeline.query(Workdir(self.workdir), Workdir(Path(workdir)), asked, overrides)
        return Run(workdir)

    def report(self, path: str | Path, limit: int = LIMIT) -> Path:
        """Write the report; its page."""
        return build_report(Workdir(self.workdir), Path(path), limit).page

    def __repr__(self) -> str:
        state = "complete" if self.complete else "not finished"
        return f"<Run {self.workdir}: {len(self)} images of {len(self.labels)} labels, {state}>"


def run(
    images: str | Path | Sequence[str | Path],
    labels: str | Sequence[str],
    workdir: str | Path = "ovseg-out",
    *,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    update: bool = False,
) -> Run:
    """Segment images, as `ovseg-batch run` does. Called again, it resumes, or gives back what is there.

    Args:
        images: folders, globs, lists, COCO files: whatever `run` takes as INPUT.
        labels: "car; person: person, people; sky", or a sequence of such labels.
        workdir: where everything is kept.
        config: a YAML file, or a preset by name.
        settings: single keys, as in {"refine.vote": 0.5, "clip.model": "openai-b16"}.
        progress: a bar for every stage.
        update: look again which images there are, and do what is new or has changed.

    Raises:
        UsageError: settings or input that cannot mean anything; nothing has been written then.
        OvsegError, OSError: the run cannot go on; what is committed stays, and the same call resumes.
        Interrupted: it was asked to stop; the shard in flight was finished.
    """
    inputs = [images] if isinstance(images, str | Path) else list(images)
    flags = {"labels": labels if isinstance(labels, str) else "; ".join(labels), **(settings or {})}
    loaded = load_config(None if config is None else Path(config), (), flags)
    pipeline.run([str(one) for one in inputs], Workdir(Path(workdir)), loaded, progress=progress, update=update)
    return Run(workdir)
