"""The entry of an image in the gallery, and its details, which the viewer loads. assets/state.js reads both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from ovseg_batch.errors import OvsegError
from ovseg_batch.io import rle
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.remote import is_remote, shown
from ovseg_batch.methods.confidence import step_of
from ovseg_batch.report.dense_view import DENSE, DenseView, cells_of, classes_within
from ovseg_batch.report.originals import browsers_show
from ovseg_batch.report.outlines import path_of, space_of
from ovseg_batch.report.thumbnails import CLOSED, Album
from ovseg_batch.types import Annotation, FinishedImage, ImageRow
from ovseg_batch.workdir.committed import foreign, read_lines
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import FILES, Workdir

SOURCES = ("sam", "dense")  # origins of a mask's outline, which entries hold as numbers
AREA_STEPS = 100_000  # of a mask's share of the image
COMPARED = 200  # most masks of an image whose overlaps are listed
RIVALS = 6  # most other masks that are listed for a mask
PROMPTS = "prompts"  # column of the refine stage

Pair = tuple[list[Any], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Job:
    """The parameters of a process that writes the pictures, entries and details of a shard.

    Attributes:
        rows: shard → rows in the gallery.
        dense_rows: rows whose dense map is shown.
        portable: write a rendition of every image.
    """

    workdir: Path
    output: Path
    rows: dict[int, list[int]]
    failures: dict[int, tuple[str, str, str]]
    codes: tuple[str, ...]
    limits: Limits
    dense: DenseView
    dense_rows: frozenset[int]
    portable: bool


def shard_entries(job: Job, shard: int) -> list[Pair]:
    """Write the pictures of a shard's images in the gallery. Return their entries and details."""
    results = Results.open(Workdir(job.workdir))
    album, wanted = Album(job.output), job.rows[shard]
    committed = results.masks.read_commit(shard) is not None
    images = {image.row.row: image for image in results.shard(shard)} if committed else {}
    rows = {row.row: row for row in results.manifest.read_shard(shard)}
    edited, prompts = edited_files(results, shard), prompts_of(results, shard) if committed else {}
    pairs = []
    for number in wanted:
        image = images.get(number)
        row = rows[number] if image is None else image.row
        entry, details = _entry(job, results, album, row, image, edited.get(number))
        if number in prompts and image is not None:
            details["prompts"] = _scaled(prompts[number], image.size)
        pairs.append((entry, details))
    _add_dense(job, results, shard, images, pairs)
    return pairs


def edited_files(results: Results, shard: int) -> dict[int, tuple[Path, str]]:
    """Return row → first output file of the edit stage, and the digest of its content."""
    store = results.edits
    commit = None if store is None else store.read_commit(shard)
    if store is None or commit is None:
        return {}
    digests = {file.path: file.blake2b for file in commit.files}
    lines = read_lines(store, shard, ["row", "status", "files"])
    named = {line["row"]: line["files"][0] for line in lines if line["status"] == "ok" and line["files"]}
    return {row: (store.files / name, digests[f"{FILES}/{name}"]) for row, name in named.items()}


def prompts_of(results: Results, shard: int) -> dict[int, list[Mapping[str, Any]]]:
    """Return row → the points that prompted SAM2, where the mask stage keeps them."""
    lines = read_lines(results.masks, shard, [PROMPTS])
    found = {line["row"]: line[PROMPTS] for line in lines if line.get(PROMPTS) is not None}
    try:
        return {row: [_plain(one) for one in points] for row, points in found.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise foreign(results.masks, shard, f"its prompts have other fields ({error})") from None


def _plain(point: Any) -> dict[str, Any]:
    """Return a prompt as plain values. Raises KeyError, TypeError or ValueError if it is none."""
    values = asdict(point) if is_dataclass(point) and not isinstance(point, type) else point
    place = {"x": float(values["x"]), "y": float(values["y"])}
    return {**place, "label": str(values["label"]), "outcome": str(values["outcome"])}


def _scaled(points: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> list[list[Any]]:
    """Return x and y in the coordinates of the outlines, label and outcome of each point."""
    scale = space_of(size)[1] / size[1]
    return [[round(one["x"] * scale, 1), round(one["y"] * scale, 1), one["label"], one["outcome"]] for one in points]


def _entry(
    job: Job,
    results: Results,
    album: Album,
    row: ImageRow,
    image: FinishedImage[Annotation] | None,
    edited: tuple[Path, str] | None,
) -> Pair:
    stage, code, message = job.failures.get(row.row, ("", "", ""))
    photo, layer, large, original = "", "", False, False
    remote = is_remote(row.path)
    if not remote and code not in CLOSED:
        original = browsers_show(row)
        photo, large = album.add_image(row, job.limits, job.portable or not original)
    if image is not None and image.annotations:
        layer = album.add_layer(image, results.labels)
    after, after_large = ("", False) if edited is None else album.add_edited(row.row, *edited, job.portable)
    details: dict[str, Any] = {
        "path": shown(row.path) if remote else Path(row.path).absolute().as_uri(),
        "original": original,
        "large": large,
    }
    if code:
        details["failed"] = [stage, message]
    if edited is not None and after:
        details["edited"] = [edited[0].absolute().as_uri(), after_large]
    masks: list[int] = []
    if image is not None:
        masks = _numbers(image, results.labels)
        details |= _masks(image)
    number = job.codes.index(code) if code else -1
    key = [row.key] if row.key != row.file_name else []
    return [row.row, row.file_name, number, photo, layer, after, masks, *key], details


def _numbers(image: FinishedImage[Annotation], labels: Sequence[str]) -> list[int]:
    """Return label, confidence in thousandths (rounded down), share of the image and source of each mask, in a row."""
    numbers: list[int] = []
    for one in image.annotations:
        share = max(1, round(AREA_STEPS * one.area / (image.height * image.width)))
        source = SOURCES.index(one.source) if one.source in SOURCES else len(SOURCES) - 1
        numbers += [labels.index(one.category), step_of(one.confidence), share, source]
    return numbers


def _masks(image: FinishedImage[Annotation]) -> dict[str, Any]:
    """Return the size of an image, and the outlines and figures of its masks."""
    size, (height, width) = image.size, space_of(image.size)
    masks = [
        {
            "d": path_of(one, size),
            "bbox": [round(value, 1) for value in one.bbox],
            "area": one.area,
            "figures": [_short(one.coverage), _short(one.predicted_iou), _short(one.stability), _short(one.margin)],
            "reason": one.reason or "",
        }
        for one in image.annotations
    ]
    for mask, rivals in zip(masks, _rivals(image.annotations, size), strict=True):
        if rivals:
            mask["rivals"] = rivals
    return {"size": [size[1], size[0]], "space": [width, height], "masks": masks}


def _rivals(annotations: Sequence[Annotation], size: tuple[int, int]) -> list[list[list[float]]]:
    """Return the other masks that overlap each mask: index, IoU, and the share of the mask that lies in the other."""
    if not 1 < len(annotations) <= COMPARED:
        return [[] for _ in annotations]
    iou, inside = rle.overlaps([one.rle for one in annotations], *size)
    found = []
    for k in range(len(annotations)):
        order = sorted((j for j in range(len(annotations)) if j != k and iou[k, j] > 0), key=lambda j: -iou[k, j])
        found.append([[j, round(float(iou[k, j]), 3), round(float(inside[k, j]), 3)] for j in order[:RIVALS]])
    return found


def _add_dense(
    job: Job, results: Results, shard: int, images: Mapping[int, FinishedImage[Annotation]], pairs: Sequence[Pair]
) -> None:
    """Add the dense map of images, and the two most probable classes within each of their masks."""
    chosen = [(images[entry[0]], details) for entry, details in pairs if entry[0] in job.dense_rows & images.keys()]
    store = next((store for store in results.stores if store.stage == DENSE), None)
    try:
        maps = None if store is None or not chosen else job.dense.read(store, shard)
    except OvsegError as error:
        for _, details in chosen:
            details["dense_error"] = str(error)
        return
    if maps is None:
        return
    from ovseg_batch.report.dense_maps import grid_probabilities

    with maps:
        for image, details in chosen:
            try:
                probabilities = grid_probabilities(job.dense, maps, image.row)
            except (OvsegError, KeyError, TypeError, ValueError) as error:  # the masks are shown all the same
                details["dense_error"] = f"The dense map cannot be read: {error}"
                continue
            details["dense"] = cells_of(probabilities)
            for mask, found in zip(
                details["masks"], classes_within(image.annotations, image.size, probabilities), strict=True
            ):
                mask["dense"] = found


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
