"""Decisions of a person about the masks and images of a run: right, wrong or unsure.

The page of the report writes them as one JSON file (docs/formats.md). Exports and later reports read it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ovseg_batch.errors import UsageError
from ovseg_batch.io.records import parse_json
from ovseg_batch.types import Annotation as Mask
from ovseg_batch.workdir.results import Results

FORMAT, VERSION = "ovseg_batch decisions", 1
CLOSE = 0.11  # pixels; files hold tenths of a pixel

Decision = Literal["right", "wrong", "unsure"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)


class _Record(BaseModel):
    """A part of the file. Unknown keys are allowed, so that other tools can add their own."""

    model_config = ConfigDict(extra="ignore")


class MaskRecord(_Record):
    """The decision about a mask. `label` and `bbox` identify the mask that was decided on."""

    index: Annotated[int, Field(ge=0)]
    label: str
    bbox: tuple[float, float, float, float]
    decision: Decision


class ImageRecord(_Record):
    """The decision about an image, if any, and those about its masks."""

    key: str
    file_name: str = ""
    decision: Decision | None = None
    masks: list[MaskRecord] = []


class RunRecord(_Record):
    """The run that was decided on: the fingerprint of the stage that computed the masks."""

    fingerprint: str
    workdir: str = ""


class FileRecord(_Record):
    """The content of a file of decisions."""

    format: Literal["ovseg_batch decisions"]
    version: Annotated[int, Field(ge=1)]
    run: RunRecord
    images: list[ImageRecord]

    @field_validator("images")
    @classmethod
    def _keys_are_unique(cls, images: list[ImageRecord]) -> list[ImageRecord]:
        if len({image.key for image in images}) < len(images):
            raise ValueError("an image occurs twice")
        return images


@dataclass(frozen=True, slots=True)
class DecidedImage:
    """The decisions about one image. `masks` is index of the mask → label, box and decision."""

    decision: Decision | None
    masks: dict[int, tuple[str, tuple[float, ...], Decision]]

    def of(self, index: int) -> Decision | None:
        """Return the decision about a mask: its own, or that about the image."""
        return self.masks[index][2] if index in self.masks else self.decision


@dataclass(frozen=True, slots=True)
class Decisions:
    """The decisions about a run.

    Attributes:
        images: key of the image → its decisions.
        only_right: keep only what was judged right. Otherwise everything is kept that was not judged wrong.
    """

    fingerprint: str
    images: dict[str, DecidedImage]
    record: dict[str, Any]
    only_right: bool = False

    def strictly(self) -> Decisions:
        """Return the decisions that keep only what was judged right."""
        return dataclasses.replace(self, only_right=True)

    def identity(self) -> dict[str, Any]:
        """Return what decides the kept masks, for fingerprints."""
        kept = {key: [image.decision, sorted(image.masks.items())] for key, image in sorted(self.images.items())}
        return {"images": kept, "only_right": self.only_right}

    def to_record(self) -> dict[str, Any]:
        """Return the content of the file, as plain values for JSON."""
        return self.record

    def shows(self, key: str) -> bool:
        """Return whether an image is kept."""
        found = self.images.get(key)
        if found is None:
            return not self.only_right
        if self.only_right:
            judged = {decision for _, _, decision in found.masks.values()}
            return found.decision == "right" or (found.decision != "wrong" and "right" in judged)
        return found.decision != "wrong"

    def keeps(self, key: str, index: int) -> bool:
        """Return whether a mask of an image that is kept is kept too."""
        found = self.images.get(key)
        decision = None if found is None else found.of(index)
        return decision == "right" if self.only_right else decision != "wrong"

    def check(self, results: Results) -> None:
        """Require that the decisions are about the present masks of a run.

        Raises:
            UsageError: they are about another run, or about masks that the run does not have any more.
        """
        if self.fingerprint != results.masks.fingerprint:
            raise UsageError(
                f"The decisions are about another run: its masks have the fingerprint {self.fingerprint}, and those of "
                f"{results.workdir.root} have {results.masks.fingerprint}. Give the workdir that was decided on, or "
                f"decide again in its new report."
            )
        if missing := set(self.images).difference(results.manifest.read_column("key")):
            raise UsageError(
                f"The decisions name {min(missing)!r}, which the run in {results.workdir.root} does not have. {_AGAIN}"
            )
        self._check_masks(results)

    def _check_masks(self, results: Results) -> None:
        left = {key for key, image in self.images.items() if image.masks}
        for commit in results.masks.commits():
            if not left:
                return
            rows = {row.key for row in results.manifest.read_shard(commit.shard)}
            if rows.isdisjoint(left):
                continue
            for image in results.shard(commit.shard):
                if image.row.key in left:
                    _check_image(image.row.key, self.images[image.row.key], image.annotations)
            left -= rows


_AGAIN = "The masks have changed since: decide again in the new report."


def _check_image(key: str, decided: DecidedImage, masks: Sequence[Mask]) -> None:
    """Raise UsageError unless every decided mask is the present mask of that index."""
    for index, (label, bbox, _) in decided.masks.items():
        if index >= len(masks):
            raise UsageError(f"The decisions name mask {index} of {key!r}, which has {len(masks)} masks. {_AGAIN}")
        found = masks[index]
        same = all(abs(a - b) <= CLOSE for a, b in zip(found.bbox, bbox, strict=True))
        if found.category != label or not same:
            raise UsageError(
                f"The decisions describe mask {index} of {key!r} as {label!r} at {list(bbox)}, and the run has "
                f"{found.category!r} at {list(found.bbox)}. {_AGAIN}"
            )


def read_decisions(path: Path) -> Decisions:
    """Read a file of decisions. Raises UsageError if it is not one."""
    try:
        content = parse_json(path.read_bytes())
        record = FileRecord.model_validate(content)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}. Give the file that the report saved."
        ) from None
    except (ValidationError, ValueError) as error:
        raise UsageError(f"{path} is no file of decisions that the report saved: {_first(error)}.") from None
    if record.version != VERSION:
        raise UsageError(f"{path} has version {record.version} of the format, and this program reads {VERSION}.")
    return Decisions(record.run.fingerprint, _images(record), content)


def _images(record: FileRecord) -> dict[str, DecidedImage]:
    return {
        image.key: DecidedImage(
            image.decision, {mask.index: (mask.label, mask.bbox, mask.decision) for mask in image.masks}
        )
        for image in record.images
    }


def _first(error: ValueError) -> str:
    """Return the first problem of an error as one line."""
    if isinstance(error, ValidationError):
        problem: Mapping[str, Any] = error.errors()[0]
        return f"{'.'.join(map(str, problem['loc'])) or 'it'}: {problem['msg']}"
    return str(error)
