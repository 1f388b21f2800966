"""Speed of the models by batch size, of label maps, and end to end; and the settings that these figures recommend.

Times are medians between CUDA events, after a warm-up. A table ends at the first size that does not fit the memory.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from gpu_checks.configurations import FULL_CLIP, FULL_SAM, RANDOM
from gpu_checks.records import Options, Report
from gpu_checks.throughput import end_to_end, timing_event
from ovseg_batch import scenes
from ovseg_batch.methods.attention import VARIANTS
from ovseg_batch.methods.labelling import label_map
from ovseg_batch.methods.vocabulary import Vocabulary
from ovseg_batch.models import zoo
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.device import half_precision, prepare
from ovseg_batch.models.faults import release_memory
from ovseg_batch.models.sam import Sam

Array = np.ndarray[Any, Any]

NEAR_BEST = 1.05  # a setting may cost so much more time than the best one


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured.

    Attributes:
        images: of an encoder call of SAM2.
        points: of a decoder call.
        windows: of a call of CLIP.
        pictures: (H, W) of label maps.
        classes: of label maps.
        repeats: timed calls.
    """

    images: Sequence[int]
    points: Sequence[int]
    windows: Sequence[int]
    pictures: Sequence[tuple[int, int]]
    classes: Sequence[int]
    repeats: int


FULL = Sizes(
    (1, 2, 4, 8), (8, 16, 32, 64, 128, 256), (8, 16, 32, 64, 128, 256), ((384, 512), (3000, 4000)), (3, 171), 7
)
QUICK = Sizes((1, 2), (2, 4), (1, 2), ((48, 64),), (3,), 1)
SEEN = (336, 448)  # pixels of a picture as CLIP sees it


def run(report: Report, options: Options) -> None:
    """Measure, and recommend settings."""
    prepare(options.device)
    sizes, device = QUICK if options.quick else FULL, torch.device(options.device)
    with report.guarded("models"):
        _models(report, options, sizes, device)
    for height, width in sizes.pictures:
        for classes in sizes.classes:
            name = f"label map, {height * width / 1e6:.1f} MP, {classes} classes"
            with report.guarded(name):
                spent = label_map_time((height, width), classes, sizes.repeats, device)
                report.measured(name, f"{spent:.1f} ms")
    release_memory()
    end_to_end(report, options)


def _models(report: Report, options: Options, sizes: Sizes, device: torch.device) -> None:
    """Time both models in every precision, and in the default one by batch size."""
    half = half_precision()
    kinds = dict.fromkeys(("fp32", half) if options.quick else ("fp32", half, "fp16"))  # the more exact one first
    totals: dict[str, float] = {}
    for kind in kinds:
        clip, sam = _load(options.quick, kind, device)
        timer = Timer(clip, sam, device, sizes.repeats)
        point = min(sizes.points[-1], 64)
        window = min(sizes.windows[-1], 32)
        parts = {"encoder": timer.encoder(1), "decoder": timer.decoder(point), "CLIP": timer.clip(window)}
        totals[kind] = sum(parts.values())
        each = ", ".join(f"{name} {spent:.1f}" for name, spent in parts.items())
        report.measured(f"{kind}: 1 image, {point} points, {window} windows", f"{totals[kind]:.1f} ms ({each})")
        if kind == half:
            _table(report, f"SAM2 encoder, {kind}", "images", sizes.images, timer.encoder)
            points = _table(report, f"SAM2 decoder, {kind}", "points", sizes.points, timer.decoder)
            windows = _table(report, f"CLIP, {kind}", "windows", sizes.windows, timer.clip)
            report.recommend("run.batch_size", smallest_near_best(windows))
            report.recommend("run.point_chunk", smallest_near_best(points))
        del clip, sam, timer
        release_memory()
    report.recommend("run.precision", first_near_best(totals))


def _table(
    report: Report, title: str, unit: str, sizes: Sequence[int], measure: Callable[[int], float]
) -> dict[int, float]:
    """Report the time of every size that fits; milliseconds per item by size."""
    found = {}
    for size in sizes:
        try:
            spent = measure(size)
        except torch.OutOfMemoryError:
            report.measured(f"{title}, {size} {unit}", "does not fit the memory")
            release_memory()
            break
        found[size] = spent / size
        report.measured(f"{title}, {size} {unit}", f"{spent:.2f} ms, {1000 * size / spent:.0f} {unit}/s")
    return found


def smallest_near_best(each: Mapping[int, float]) -> int:
    """Return the smallest size whose time per item is within 5 % of the best. Raises ValueError where there is none."""
    best = min(each.values())
    return min(size for size, spent in each.items() if spent <= NEAR_BEST * best)


def first_near_best(times: Mapping[str, float]) -> str:
    """Return the first name whose time is within 5 % of the best."""
    best = min(times.values())
    return next(name for name, spent in times.items() if spent <= NEAR_BEST * best)


def _load(quick: bool, kind: str, device: torch.device) -> tuple[DenseClip, Sam]:
    clip = zoo.resolve("clip", "demo") if quick else zoo.resolve("clip", FULL_CLIP, RANDOM)
    sam = zoo.resolve("sam", "demo") if quick else zoo.resolve("sam", FULL_SAM, RANDOM)
    return DenseClip.load(clip, device, kind), Sam.load(sam, device, kind)


class Timer:
    """Times model calls on a device.

    Args:
        clip, sam: loaded models.
        device: where they are.
        repeats: timed calls; the median counts.
    """

    def __init__(self, clip: DenseClip, sam: Sam, device: torch.device, repeats: int) -> None:
        self._clip, self._sam, self._device, self._repeats = clip, sam, device, repeats
        self._image = scenes.render(scenes.HELD_OUT_SEEDS[8000]).image
        self._pixels = sam.preprocess(self._image)
        [self._embedding] = sam.embed([self._image])

    def encoder(self, images: int) -> float:
        """Return milliseconds of SAM2's image encoder on so many images."""
        batch = self._pixels.expand(images, -1, -1, -1).contiguous()
        return milliseconds(lambda: self._sam.forward_bare(batch), self._repeats)

    def decoder(self, points: int) -> float:
        """Return milliseconds of one call of SAM2's decoder with so many points. Raises torch.OutOfMemoryError."""
        height, width = self._embedding.size
        places = np.random.default_rng(0).uniform(0, min(height, width), (points, 2)).astype(np.float32)
        self._sam.points.items = points
        spent = milliseconds(lambda: self._sam.predict(self._embedding, places), self._repeats)
        if self._sam.points.items != points:  # the model has halved its batch
            raise torch.OutOfMemoryError(f"{points} points do not fit")
        return spent

    def clip(self, windows: int) -> float:
        """Return milliseconds of CLIP's patch features of so many windows."""
        side = self._clip.image_size
        window = torch.from_numpy(cv2.resize(self._image, (side, side))).to(self._device)
        batch = self._clip.normalise(window.expand(windows, -1, -1, -1))
        return milliseconds(lambda: self._clip.patch_features(batch, VARIANTS["csa"]), self._repeats)


def label_map_time(size: tuple[int, int], classes: int, repeats: int, device: torch.device) -> float:
    """Return milliseconds of a label map of (H, W) pixels, with the copies of its strips to the host."""
    vocabulary = Vocabulary.build([(f"class {k}", [f"word {k}"], 0.0) for k in range(classes)])
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand((classes, *SEEN), generator=generator).to(device)
    return milliseconds(lambda: label_map(logits, size, vocabulary, 40.0, 0.0, 0.0), min(repeats, 3), warm_up=1)


@torch.inference_mode()
def milliseconds(compute: Callable[[], object], repeats: int, warm_up: int = 2) -> float:
    """Return the median time of a call on the GPU, between two events on the current stream."""
    for _ in range(min(warm_up, repeats)):
        compute()
    times: list[float] = []
    for _ in range(repeats):
        start, end = timing_event(), timing_event()
        start.record()
        compute()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)
