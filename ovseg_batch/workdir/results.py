"""Read the results of a run shard by shard, for exports, reports and evaluation. No model is imported."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, overload

from ovseg_batch.errors import OF_THE_FILE
from ovseg_batch.io import rle
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.types import Annotation, FinishedImage, M, PromptOutcome, PromptPoint
from ovseg_batch.workdir.committed import foreign, read_lines
from ovseg_batch.workdir.store import StageStore, Workdir

T = TypeVar("T")

EDIT, REFINE = "edit", "refine"
PROMPTS = "prompts"  # the column of the stage `refine` with its point prompts
COLUMNS = ("status", "content", "height", "width", "annotations")


def mask_stage(stages: Sequence[T], name: Callable[[T], str]) -> T:
    """Return the stage of a run that computed the masks: the last one that is not the edit stage."""
    return next(stage for stage in reversed(stages) if name(stage) != EDIT)


@dataclass(frozen=True)
class Results:
    """The committed results of the latest run of a workdir, which may be unfinished.

    Attributes:
        labels: classes in order, without the background.
        stuff: those of them without single objects (`labels[].kind: stuff`).
        has_background: whether pixels without a mask are background.
        stores: folders of the stages, in order.
    """

    workdir: Workdir
    labels: tuple[str, ...]
    stuff: tuple[str, ...]
    has_background: bool
    stores: tuple[StageStore, ...]

    @classmethod
    def open(cls, workdir: Workdir) -> Results:
        """Open the latest run. Raises UsageError if there is none."""
        plan = workdir.read_plan()
        labels, stuff = tuple(plan["labels"]), tuple(plan["stuff"])
        return cls(workdir, labels, stuff, bool(plan.get("background")), tuple(workdir.stores()))

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.open(self.workdir.manifest)

    @property
    def masks(self) -> StageStore:
        """The stage that computed the masks."""
        return mask_stage(self.stores, lambda store: store.stage)

    @property
    def edits(self) -> StageStore | None:
        return self.stores[-1] if self.stores[-1].stage == EDIT else None

    def state_of(self, shard: int) -> str:
        """Return a digest of a shard's images and of their committed masks and edits."""
        digest = hashlib.blake2b(digest_size=16)
        for row in self.manifest.read_shard(shard):
            digest.update(repr((row.row, row.key, row.path, row.bytes, row.mtime_ns)).encode())
        for store in (self.masks, self.edits):
            commit = None if store is None else store.read_commit(shard)
            digest.update(b"-" if commit is None else commit.digest.encode())
        return digest.hexdigest()

    @overload
    def shard(self, shard: int) -> Iterator[FinishedImage[Annotation]]: ...
    @overload
    def shard(self, shard: int, masks: type[M]) -> Iterator[FinishedImage[M]]: ...
    def shard(self, shard: int, masks: type[Any] = Annotation) -> Iterator[FinishedImage[Any]]:
        """Yield the finished images of a committed shard, as `finished_images` does."""
        yield from finished_images(self.manifest, self.masks, [shard], self.labels, masks)

    def prompts(self, shard: int) -> dict[int, tuple[PromptPoint, ...]]:
        """Return the point prompts of the finished images of a committed shard, by row.

        Returns:
            Empty for runs without the stage `refine`. An image has no points under methods that prompt none.

        Raises:
            OvsegError: the table of the shard is damaged, or the stage did not write it.
        """
        store = next((store for store in self.stores if store.stage == REFINE), None)
        if store is None:
            return {}
        try:
            return {
                line["row"]: tuple(
                    PromptPoint(one["x"], one["y"], one["label"], PromptOutcome(one["outcome"]))
                    for one in line["prompts"]
                )
                for line in read_lines(store, shard, ["status", PROMPTS])
                if line["status"] == "ok"
            }
        except (KeyError, TypeError, ValueError) as error:
            raise foreign(store, shard, f"its column {PROMPTS} is not readable ({error})") from None


@overload
def finished_images(
    manifest: Manifest,
    store: StageStore,
    shards: Iterable[int] | None = None,
    labels: Collection[str] | None = None,
) -> Iterator[FinishedImage[Annotation]]: ...
@overload
def finished_images(
    manifest: Manifest,
    store: StageStore,
    shards: Iterable[int] | None,
    labels: Collection[str] | None,
    masks: type[M],
) -> Iterator[FinishedImage[M]]: ...
def finished_images(
    manifest: Manifest,
    store: StageStore,
    shards: Iterable[int] | None = None,
    labels: Collection[str] | None = None,
    masks: type[Any] = Annotation,
) -> Iterator[FinishedImage[Any]]:
    """Yield the images that the mask stage has finished, in manifest order. Shards are read one at a time.

    Args:
        shards: shards to read. None: all.
        labels: allowed labels of masks. None: any.
        masks: the dataclass of a mask: `Annotation`, or one with some of its fields. Only these are read from disk.

    Raises:
        OvsegError: the table of a shard is damaged, or the stage did not write it.
    """
    for shard in range(manifest.shards) if shards is None else shards:
        rows = {row.row: row for row in manifest.read_shard(shard)}
        for line in read_lines(store, shard, COLUMNS, masks):
            try:
                if line["status"] != "ok" or line["row"] not in rows:
                    continue
                row = dataclasses.replace(rows[line["row"]], content=line.get("content"))
                image: FinishedImage[Any] = FinishedImage(
                    row, line["height"], line["width"], tuple(line["annotations"])
                )
                _check_masks(image, labels)
            except (KeyError, TypeError, ValueError) as error:
                reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
                raise foreign(store, shard, reason) from None
            yield image


def _check_masks(image: FinishedImage[Any], labels: Collection[str] | None) -> None:
    """Raise ValueError or TypeError if a mask of an image is invalid."""
    number = image.row.row
    if min(image.size) < 1:
        raise ValueError(f"row {number} has {image.width} × {image.height} pixels")
    for one in image.annotations:
        if labels is not None and one.category not in labels:
            raise ValueError(f"row {number} has a mask of {one.category!r}, which is no label")
        if not 0 <= one.confidence <= 1:
            raise ValueError(f"row {number} has a confidence of {one.confidence}")
        area = rle.area(one.rle, *image.size) if isinstance(one, Annotation) else one.area
        if not 0 <= area == one.area <= image.height * image.width:
            raise ValueError(f"row {number} has a mask that is not of its size")


def committed_content(stores: Iterable[StageStore]) -> str:
    """Return a hash of all committed results. Outputs with an equal hash are up to date."""
    digest = hashlib.blake2b(digest_size=16)
    for store in stores:
        for commit in store.commits():
            digest.update(f"{store.stage} {commit.shard} {commit.digest}\n".encode())
    return digest.hexdigest()


def failed_rows(
    manifest: Manifest, stores: Sequence[StageStore], shards: Iterable[int] | None = None
) -> Iterator[tuple[int, str, str, str, str]]:
    """Yield (row, key, stage, code, message) of every failed image. Only its first failure is listed.

    Args:
        shards: shards to read. None: all.
    """
    for shard in range(manifest.shards) if shards is None else shards:
        listed: set[int] = set()
        for store in stores:
            commit = store.read_commit(shard)
            if commit is None or not commit.failed:
                continue
            for line in read_lines(store, shard, ["row", "key", "status", "code", "message"]):
                if line["status"] == "failed" and line["row"] not in listed:
                    listed.add(line["row"])
                    yield line["row"], line["key"], store.stage, line["code"], line["message"]


def changed_keys(workdir: Workdir) -> frozenset[str]:
    """Return the keys of images whose file a stage has read, but a later stage could not read or found changed."""
    stores = tuple(workdir.stores())
    rows = failed_rows(Manifest.open(workdir.manifest), stores)
    return frozenset(key for _, key, stage, code, _ in rows if stage != stores[0].stage and code in OF_THE_FILE)
