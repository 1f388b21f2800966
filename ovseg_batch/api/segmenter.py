"""Segment images that are in memory, with models that stay loaded between calls."""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from PIL import Image

from ovseg_batch.api.calling import Labels, Settings, load_settings, warn_of_embedded_models, without_workers
from ovseg_batch.api.records import SegmentedImage, label_colours
from ovseg_batch.errors import DeviceLost, OvsegError, RowError, UsageError
from ovseg_batch.io.atomic import naming
from ovseg_batch.io.images import decode
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.settings import Config
from ovseg_batch.types.arrays import AnyArray, Pixels
from ovseg_batch.wording import for_python
from ovseg_batch.workdir.results import failed_rows, finished_images, mask_stage
from ovseg_batch.workdir.store import StageStore

if TYPE_CHECKING:
    from ovseg_batch.stages.base import Stage

MemoryImage = AnyArray | Image.Image

log = logging.getLogger(__name__)

FASTEST = 1  # zlib level; the files are deleted after each call


class Segmenter:
    """Segments images in memory: `Segmenter(labels)(image)`. The models are loaded once, by the first call.

    The masks equal those of `ovseg_batch.run` for a folder that holds the same images as PNG. The same stages compute
    them: each call writes the images and the tables of the stages to a temporary folder, and deletes it. All stages
    stay loaded in this process, on one device. `run.engine`, `run.workers` and `edit` have no effect.
    """

    @for_python()
    def __init__(self, labels: Labels, *, config: str | Path | None = None, settings: Settings | None = None) -> None:
        """Check the settings. No model is loaded yet.

        Args:
            labels, config, settings: as in `ovseg_batch.run`.

        Raises:
            UsageError: settings are not valid.
            OvsegError: weights are not on this machine.
        """
        import torch

        from ovseg_batch.runs import planning
        from ovseg_batch.runs.cautions import cautions

        loaded = without_workers(load_settings(config, labels, settings))
        no_edit = loaded.edit.model_copy(update={"mode": "none"})
        self._config: Config = planning.settle(loaded.model_copy(update={"edit": no_edit}))
        warn_of_embedded_models(self._config)
        for caution in cautions(self._config):
            log.warning("warning: %s", caution)
        self._colours = label_colours([label.name for label in self._config.labels])
        self._stages: dict[str, Stage] = {}  # with their models
        self._threads = torch.get_num_threads()
        self._lock = threading.Lock()  # the models process one call at a time

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels, in order."""
        return tuple(self._colours)

    @overload
    def __call__(self, images: MemoryImage) -> SegmentedImage: ...

    @overload
    def __call__(self, images: Sequence[MemoryImage]) -> list[SegmentedImage]: ...

    @for_python()
    def __call__(self, images: MemoryImage | Sequence[MemoryImage]) -> SegmentedImage | list[SegmentedImage]:
        """Segment an image, or several. Several are faster together than one by one.

        Args:
            images: (H, W, 3) uint8 RGB, or a Pillow image, which is converted as a file is; or a sequence of these.

        Returns:
            The image with its masks, or a list for a sequence.

        Raises:
            UsageError: an argument is not such an image.
            OvsegError: an image cannot be segmented, or a GPU fails.
        """
        if isinstance(images, np.ndarray | Image.Image):
            return self._segment([_pixels(images, "The image")])[0]
        if isinstance(images, str | Path):
            raise UsageError(f"{str(images)!r} is a path. Segment files with ovseg_batch.run, or open them first.")
        return self._segment([_pixels(image, f"Image {k}") for k, image in enumerate(images)])

    def _segment(self, images: Sequence[Pixels]) -> list[SegmentedImage]:
        if not images:
            return []
        with self._lock, tempfile.TemporaryDirectory(prefix="ovseg-") as folder, self._own_threads():
            (root := Path(folder) / "images").mkdir()
            for k, pixels in enumerate(images):
                with naming(root):
                    Image.fromarray(pixels).save(root / f"{k:06d}.png", compress_level=FASTEST)
            listed = Path(folder) / "manifest.parquet"
            build_manifest([str(root)], listed, self._config.manifest.shard_rows)
            manifest = Manifest.open(listed)
            stores = self._compute(manifest, listed)
            for row, _, stage, code, message in failed_rows(manifest, stores):
                raise OvsegError(f"Image {row} cannot be segmented: {stage} failed with {code}: {message}")
            masks = mask_stage(stores, lambda store: store.stage)
            finished = list(finished_images(manifest, masks))
        return [
            SegmentedImage.from_finished(f"{k:06d}.png", None, image, self._colours, functools.partial(np.copy, pixels))
            for k, (pixels, image) in enumerate(zip(images, finished, strict=True))
        ]

    def _compute(self, manifest: Manifest, listed: Path) -> list[StageStore]:
        """Run every stage over all shards. Return the folders of the stages. The first call loads the models."""
        from ovseg_batch.engine.job import OpenJob, StageJob
        from ovseg_batch.models.device import resolve_device
        from ovseg_batch.models.faults import first_line, is_lost
        from ovseg_batch.stages.registry import make_plan, make_stage, resolve, stage_names

        device, threads = str(resolve_device(self._config.run.device)), self._config.run.threads or self._threads
        stores: dict[str, StageStore] = {}
        try:
            resolved = resolve(self._config)
            for name in stage_names(self._config):
                upstream = {need: stores[need] for need in make_plan(resolved, name).needs}
                store = StageStore(listed.parent / "stages" / name, name, fingerprint="", upstream=upstream)
                job = StageJob(functools.partial(make_stage, resolved, name), store, listed, threads)
                if name not in self._stages:
                    self._stages[name] = job.open(device).stage
                opened = OpenJob(job, self._stages[name], manifest)
                for shard in range(manifest.shards):
                    opened.compute(shard, {})
                stores[name] = store
        except (DeviceLost, RuntimeError) as error:
            if not is_lost(error):
                raise
            self._stages.clear()
            raise OvsegError(f"The GPU failed: {first_line(error)}. Start a new Python process.") from None
        return list(stores.values())

    @contextlib.contextmanager
    def _own_threads(self) -> Iterator[None]:
        """Compute with the number of threads in the settings. PyTorch has one number for the whole process."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self._config.run.threads or self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@overload
def segment(
    images: MemoryImage,
    labels: Labels,
    *,
    config: str | Path | None = None,
    settings: Settings | None = None,
) -> SegmentedImage: ...


@overload
def segment(
    images: Sequence[MemoryImage],
    labels: Labels,
    *,
    config: str | Path | None = None,
    settings: Settings | None = None,
) -> list[SegmentedImage]: ...


def segment(
    images: MemoryImage | Sequence[MemoryImage],
    labels: Labels,
    *,
    config: str | Path | None = None,
    settings: Settings | None = None,
) -> SegmentedImage | list[SegmentedImage]:
    """Segment an image in memory, or several, and unload the models. Call a `Segmenter` to segment more.

    Args:
        images: as in `Segmenter.__call__`.
        labels, config, settings: as in `ovseg_batch.run`.

    Raises:
        UsageError: settings or images are not valid.
        OvsegError: weights are not on this machine, an image cannot be segmented, or a GPU fails.
    """
    return Segmenter(labels, config=config, settings=settings)(images)


def _pixels(image: MemoryImage, name: str) -> Pixels:
    """Convert an image in memory to (H, W, 3) uint8 RGB. Raises UsageError or OvsegError."""
    if isinstance(image, Image.Image):
        try:
            return decode(image, name)
        except RowError as error:
            raise OvsegError(error.message) from None
    if not isinstance(image, np.ndarray):
        raise UsageError(f"{name} is a {type(image).__name__}. Give (H, W, 3) uint8 RGB arrays or Pillow images.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        shape = "×".join(map(str, image.shape)) or "a number"
        raise UsageError(f"{name} is an array of {image.dtype}, {shape}. Give (H, W, 3) uint8 RGB.")
    return image
