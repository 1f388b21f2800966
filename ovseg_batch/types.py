"""The records that travel between modules. Frozen and slotted: what a stage is handed, it cannot change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, TypeAdapter

from ovseg_batch.errors import FailureCode

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One line of the manifest.

    `row` counts from 0 over the whole manifest; `key` is unique and stable; `file_name` is what outputs call the
    image (relative, `/`-separated); `path` is where to open it. `width` and `height` are pixels before EXIF rotation
    and may be unknown until the image is decoded. `revision` is the manifest's in which the row came in or changed;
    `shared` says whether other rows have the same `file_name`; `extra` keeps the manifest's other columns. `content` is
    the hash of the file's bytes that stages have read, None where none has.
    """

    row: int
    key: str
    file_name: str
    path: str
    bytes: int | None = None
    mtime_ns: int | None = None
    width: int | None = None
    height: int | None = None
    revision: int = 0
    shared: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    content: str | None = None


@dataclass(frozen=True, slots=True)
class Annotation:
    """One mask of one image, in the frame after EXIF rotation and at the original size.

    `rle` is COCO's compressed run-length counts; `bbox` is x, y, width, height in pixels; `area` is pixels. `score`
    ranks the masks of a class; `confidence` says how far a mask can be believed; `margin` is the lead of the best class
    over the next in it. They, `coverage`, `predicted_iou` and `stability` lie in [0, 1]; the last two are None where
    SAM2 had no part, `coverage` where there is no dense map. `source` says what drew the outline: `sam` or `dense`.
    `reason` says why this mask was chosen, where that was a decision.
    """

    category: str
    score: float
    bbox: tuple[float, ...]
    area: int
    rle: bytes
    source: str
    confidence: float
    margin: float
    coverage: float | None = None
    predicted_iou: float | None = None
    stability: float | None = None
    reason: str | None = None


def painting_order(annotations: Sequence[Annotation]) -> list[int]:
    """Return the indices of masks in the order in which to paint them where a pixel has one owner.

    The mask with the highest score comes last, so that it keeps all of its pixels.
    """
    return sorted(range(len(annotations)), key=lambda index: annotations[index].score)


@dataclass(frozen=True, slots=True)
class Proposal:
    """One mask of one image without a class, in the frame after EXIF rotation and at the original size.

    `bbox`, `area` and `rle` are as in `Annotation`. `predicted_iou` and `stability` are SAM2's, about in [0, 1].
    `point` is x, y of the prompt in pixels.
    """

    bbox: tuple[float, ...]
    area: int
    rle: bytes
    predicted_iou: float
    stability: float
    point: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """An image with the masks that a run has committed. `height` and `width` are pixels after EXIF rotation."""

    row: ImageRow
    height: int
    width: int
    annotations: tuple[Annotation, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.height, self.width


class Unchanged(StrEnum):
    """Why an edit has no effect on an image."""

    NO_MASK = "no_mask"  # the image has no mask of the chosen labels; `edit.on_empty` says what became of it
    WHOLE_IMAGE = "whole_image"  # what is kept is the whole image


@dataclass(frozen=True, slots=True)
class RowResult:
    """What a stage says of one row: exactly one of these per row and stage.

    `values` are the columns the stage adds to its Parquet row; `arrays` go into the shard's NPZ under
    `<row>/<name>`; `files` are whole files by name, relative and `/`-separated, no name twice in a stage. `content` is
    the hash of the image file's bytes that the result comes from. A failed row has a code and a message alone.
    """

    row: int
    key: str
    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    content: str | None = None
    code: FailureCode | None = None
    message: str = ""

    @property
    def ok(self) -> bool:
        return self.code is None


def _below(path: str) -> str:
    if path.startswith("/") or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ValueError("it leads out of its folder")
    return path


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A data file as it was when its shard was committed. `path` is relative to the stage folder."""

    path: Annotated[str, AfterValidator(_below)]
    bytes: int
    blake2b: str

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> FileRecord:
        """Raises ValueError where the record is not a file's, or names a file outside of its folder."""
        return _FILE.validate_python(record)


@dataclass(frozen=True, slots=True)
class Commit:
    """The record that makes a shard exist. Clock times live here and nowhere else.

    Attributes:
        revision: of the manifest, in which the shard's rows last changed.
        upstream: stage → digest of its commit of this shard, which the results were computed from.
        keeps: digest of the commit before, whose finished rows this one holds unchanged; empty where it holds none.
    """

    stage: str
    fingerprint: str
    shard: int
    rows: int
    ok: int
    failed: dict[str, int]
    files: tuple[FileRecord, ...]
    attempt: int
    seconds: float
    host: str
    version: int = 1
    revision: int = 0
    upstream: dict[str, str] = field(default_factory=dict)
    keeps: str = ""

    @property
    def digest(self) -> str:
        """Hash of the committed files. Two commits with one digest have the same results."""
        lines = "".join(f"{file.path}\0{file.blake2b}\n" for file in self.files)
        return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()

    def follows(self, upstream: Mapping[str, Commit]) -> bool:
        """Return whether the results were computed from these commits, or from those whose rows these keep.

        A commit that was written before digests were recorded follows any.
        """
        return all(self.upstream.get(name, new.digest) in (new.digest, new.keeps) for name, new in upstream.items())

    def to_record(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Commit:
        """Raises ValueError where the record is not a commit's."""
        return _COMMIT.validate_python(record)


_FILE, _COMMIT = TypeAdapter(FileRecord), TypeAdapter(Commit)
