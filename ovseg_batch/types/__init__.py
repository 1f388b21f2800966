"""The records that modules exchange. They are immutable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Generic, Protocol, TypeVar

from pydantic import AfterValidator, TypeAdapter

from ovseg_batch.errors import FailureCode

if TYPE_CHECKING:
    from ovseg_batch.types.arrays import AnyArray


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One line of the manifest.

    Attributes:
        row: row number in the whole manifest, from 0.
        key: unique and stable name of the image.
        file_name: name of the image in outputs; relative, `/`-separated.
        path: path or URL of the image file.
        bytes, mtime_ns: size and modification time of the file, if known.
        width, height: pixels before EXIF rotation, if known before decoding.
        revision: revision of the manifest in which the row was added or last changed.
        shared: whether other rows have the same `file_name`.
        extra: other columns of the manifest.
        content: hash of the file's bytes that stages have read. None: no stage has read it.
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

    Attributes:
        category: label of the mask.
        score: rank among the masks of a class, in [0, 1].
        bbox: x, y, width, height in pixels.
        area: number of pixels.
        rle: COCO's compressed run-length counts.
        source: origin of the outline, `sam` or `dense`.
        confidence: reliability of the mask, in [0, 1].
        margin: mean lead of the best class over the second, in [0, 1].
        coverage: share of the mask whose class in the dense map is its label, in [0, 1]. None without a dense map.
        predicted_iou, stability: SAM2's ratings, in [0, 1]. None for masks that SAM2 did not compute.
        reason: why this mask was selected, if a rule decided between several.
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


class PromptOutcome(StrEnum):
    """What became of a point prompt."""

    KEPT = "kept"  # its mask is in the annotations
    MERGED = "merged"  # its mask shows the object of a larger mask of the label, and is part of that mask
    OUTVOTED = "outvoted"  # too few pixels of each of its masks have the label in the dense map (`refine.vote`)
    ABSENT = "absent"  # too few pixels of its mask are sure of the label (`presence.share`)
    BACKGROUND = "background"  # most of its mask is background
    EMPTY = "empty"  # SAM2 drew no pixel
    SMALL = "small"  # its mask is smaller than `refine.min_area`
    COVERED = "covered"  # masks over it leave fewer visible pixels than `refine.min_area`
    DUPLICATE = "duplicate"  # its mask repeats a better one of the label (`refine.same_object`)
    DOUBTFUL = "doubtful"  # the predicted IoU of its mask is too low (`refine.predicted_iou`)
    BLENDED = "blended"  # its mask has refined the dense map, from which the annotations are made


@dataclass(frozen=True, slots=True)
class PromptPoint:
    """A point prompt of SAM2, and what became of it. `x` and `y` are pixels of the image after EXIF rotation."""

    x: float
    y: float
    label: str
    outcome: PromptOutcome


class MaskRecord(Protocol):
    """What every record of a mask has, as in `Annotation`."""

    @property
    def category(self) -> str: ...
    @property
    def confidence(self) -> float: ...
    @property
    def area(self) -> int: ...


@dataclass(frozen=True, slots=True)
class MaskSummary:
    """The fields of an `Annotation` that statistics need."""

    category: str
    confidence: float
    area: int


M = TypeVar("M", bound=MaskRecord)


def painting_order(annotations: Sequence[Annotation]) -> list[int]:
    """Return the indices of masks in the order in which to paint them where a pixel has one owner.

    The mask with the highest score comes last, so that it keeps all of its pixels.
    """
    return sorted(range(len(annotations)), key=lambda index: annotations[index].score)


@dataclass(frozen=True, slots=True)
class Proposal:
    """One mask of one image without a class, in the frame after EXIF rotation and at the original size.

    Attributes:
        bbox, area, rle: as in `Annotation`.
        predicted_iou, stability: SAM2's ratings, approximately in [0, 1].
        point: x, y of the prompt in pixels.
    """

    bbox: tuple[float, ...]
    area: int
    rle: bytes
    predicted_iou: float
    stability: float
    point: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class WordMask:
    """One mask that a model has found for one word, in the frame after EXIF rotation and at the original size.

    Attributes:
        query: index of the word among those of the vocabulary.
        score: probability of the object, in [0, 1].
        box: x0, y0, x1, y1 that the model gives, in pixels, inside of the image.
        area, rle: as in `Annotation`.
    """

    query: int
    score: float
    box: tuple[float, ...]
    area: int
    rle: bytes


@dataclass(frozen=True, slots=True)
class FinishedImage(Generic[M]):
    """An image with the masks that a run has committed. `height` and `width` are pixels after EXIF rotation."""

    row: ImageRow
    height: int
    width: int
    annotations: tuple[M, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.height, self.width


class Unchanged(StrEnum):
    """Why an edit has no effect on an image."""

    NO_MASK = "no_mask"  # the image has no mask of the chosen labels; `edit.on_empty` decides its output
    WHOLE_IMAGE = "whole_image"  # the kept masks cover the whole image


@dataclass(frozen=True, slots=True)
class RowResult:
    """The result of a stage for one row. There is exactly one per row and stage.

    Attributes:
        row, key: those of the image.
        values: columns of the stage's Parquet table.
        arrays: arrays of the shard's NPZ, stored as `<row>/<name>`.
        files: output files by name, relative and `/`-separated. Names are unique within a stage.
        content: hash of the image file's bytes that the result was computed from.
        code, message: reason of a failure. Failed rows have no values, arrays or files.
        reused: words whose results come from an earlier run. It is stored in the commit, and in no row.
    """

    row: int
    key: str
    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, AnyArray] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    content: str | None = None
    code: FailureCode | None = None
    message: str = ""
    reused: int = 0

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
        """Parse a record. Raises ValueError if it is invalid or names a file outside of its folder."""
        return _FILE.validate_python(record)


@dataclass(frozen=True, slots=True)
class Commit:
    """The commit record of a shard, which makes the shard valid. Only this record contains clock times.

    Attributes:
        revision: revision of the manifest in which the shard's rows last changed.
        upstream: earlier stage → digest of its commit of this shard, from which the results were computed.
        keeps: digest of the previous commit, whose finished rows are unchanged in this one. Empty if there are none.
        reused: words of images whose results come from commits with other words.
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
    reused: int = 0

    @property
    def digest(self) -> str:
        """The hash of the committed files. Commits with equal digests have equal results."""
        lines = "".join(f"{file.path}\0{file.blake2b}\n" for file in self.files)
        return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()

    def follows(self, upstream: Mapping[str, Commit]) -> bool:
        """Return whether the results were computed from these commits, or from commits whose rows these keep.

        Commits of versions without digests follow any commit.
        """
        return all(self.upstream.get(name, new.digest) in (new.digest, new.keeps) for name, new in upstream.items())

    def to_record(self) -> dict[str, Any]:
        """Return the record as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Commit:
        """Parse a record. Raises ValueError if it is invalid."""
        return _COMMIT.validate_python(record)


_FILE, _COMMIT = TypeAdapter(FileRecord), TypeAdapter(Commit)
