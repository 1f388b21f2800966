"""Evaluate edited images against the ground truth of rendered scenes: the scene without an object, and its alpha.

Metrics without ground truth apply to any images: the similarity of edited images to their prompts, and the distance
between the sets of edited and original images. FID needs Inception weights, which the user must provide. The Fréchet
distance of CLIP features is always computed, and is reported under that name.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from ovseg_batch import scenes
from ovseg_batch.config import load_config
from ovseg_batch.errors import UsageError
from ovseg_batch.evaluate.generation import clip_score, frechet_distance
from ovseg_batch.evaluate.matting import alpha_errors, composite_error, psnr, ssim
from ovseg_batch.evaluate.scenes import read_seeds
from ovseg_batch.io.images import read_image
from ovseg_batch.methods.blending import widened
from ovseg_batch.models import zoo
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.inception import Inception, inception_weights
from ovseg_batch.settings import Config, RunConfig
from ovseg_batch.settings.edit_modes import modes_that
from ovseg_batch.stages.base import read_limits
from ovseg_batch.stages.text import text_features
from ovseg_batch.types import Annotation, FinishedImage
from ovseg_batch.types.arrays import Floats, Mask, Pixels
from ovseg_batch.workdir.committed import read_lines
from ovseg_batch.workdir.progress import status
from ovseg_batch.workdir.results import EDIT, Results
from ovseg_batch.workdir.store import Workdir

log = logging.getLogger(__name__)

REMOVAL_MARGIN = 8  # pixels around an object in which its removal is evaluated
MARGIN = 0.15  # context around the box of a mask in crops for CLIP, as a share of the box
MIN_CROP = 12  # pixels per side; smaller crops are not meaningful for CLIP
BATCH = 64
REMOVING = ("erase", "remove")
PAINTED = modes_that(lambda mode: mode.needs_prompt)
TEMPLATE = "a photo of a {}."


@dataclass(slots=True)
class _Tally:
    """The measured values by metric, and the crops for CLIP."""

    values: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    before: list[Pixels] = field(default_factory=list)
    after: list[Pixels] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)  # labels before the edit


def edit_figures(workdir: Workdir, root: Path) -> dict[str, float]:
    """Compute the metrics of a finished run's edits. Empty without edits.

    Args:
        root: the folder of the images. For rendered scenes, the folder of `write_scenes`, whose ground truth is used.

    Returns:
        cutout, mask: SAD, MSE, gradient of alpha; cutout also the composite's error. erase, remove: PSNR and SSIM
        around the removed objects, and the Fréchet distance of CLIP features to the true scenes. replace, style: CLIP
        score, the shares of crops that CLIP assigns to the old label and to the prompt's label, and the distance to the
        originals. FID is added if Inception weights are found.

    Raises:
        UsageError: there is no run, or it is not finished.
    """
    state = status(workdir)
    if not state["complete"]:
        raise UsageError(f"The run in {workdir.root} is not finished. Give its command again first.")
    if state["stages"][-1]["name"] != EDIT:
        return {}
    config = load_config(workdir.config, environment={})
    seeds, tally = read_seeds(root), _Tally()
    for image, edits in _edited(workdir):
        seed = seeds.get(Path(image.row.file_name).name)
        files = [workdir.edited / name for name in edits["files"]]
        if edits["masks"] and files and not config.edit.apart:
            _measure(config, image, edits, files[0], seed, tally)
    return {**{name: float(np.mean(values)) for name, values in tally.values.items()}, **_by_clip(config, tally)}


def _edited(workdir: Workdir) -> Iterator[tuple[FinishedImage[Annotation], dict[str, Any]]]:
    """Yield every edited image, and its line in the table of the edit stage."""
    results = Results.open(workdir)
    assert results.edits is not None
    for shard in range(results.manifest.shards):
        edits = {line["row"]: line for line in read_lines(results.edits, shard) if line["status"] == "ok"}
        for image in results.shard(shard):
            if image.row.row in edits:
                yield image, edits[image.row.row]


def _measure(
    config: Config,
    image: FinishedImage[Annotation],
    edits: Mapping[str, Any],
    file: Path,
    seed: int | None,
    tally: _Tally,
) -> None:
    edit = config.edit
    chosen = set(edit.keep or edit.drop or [label.name for label in config.labels])
    with Image.open(file) as opened:
        made = np.asarray(opened)
    numbers = [] if seed is None else [t.instance for t in scenes.render(seed).things if t.name in chosen]
    if edit.mode in ("cutout", "mask") and seed is not None and edit.keep and chosen <= set(scenes.THING_NAMES):
        _measure_alpha(made, scenes.cut_out(seed, numbers), tally)
    elif edit.mode in REMOVING and seed is not None and numbers:
        _measure_removal(made[..., :3], seed, numbers, tally)
    elif edit.mode in PAINTED:
        original = read_image(image.row.path, read_limits(RunConfig()))
        boxes = [
            (one.bbox, one.category)
            for one in image.annotations
            if one.category in chosen and one.score >= edit.min_score
        ]
        for (box, label), prompt in zip(boxes, edits["prompts"], strict=False):
            region = _box(box, original.shape)
            tally.labels.append(label)
            tally.before.append(_for_clip(original, region))
            tally.after.append(_for_clip(made[..., :3], region))
            tally.prompts.append(prompt)


def _measure_alpha(made: Pixels, truth: scenes.Cutout, tally: _Tally) -> None:
    """Measure a mask (H, W), or a cut-out (H, W, 4), against the true one."""
    alpha = (made if made.ndim == 2 else made[..., 3]) / 255
    for name, value in alpha_errors(alpha, truth.alpha).items():
        tally.values[name].append(value)
    if made.ndim == 3:
        error = composite_error(made[..., :3] / 255, alpha, truth.colour / 255, truth.alpha)
        tally.values["composite"].append(error)


def _measure_removal(made: Pixels, seed: int, numbers: list[int], tally: _Tally) -> None:
    """Measure an image (H, W, 3) from which the things of a scene with these numbers were removed."""
    scene, without = scenes.render(seed), scenes.render(seed, without=numbers)
    region = widened(np.isin(scene.instances, numbers), REMOVAL_MARGIN)
    for name, measure in (("PSNR", psnr), ("SSIM", ssim)):
        tally.values[name].append(measure(made, without.image, region))
    tally.before.append(_for_clip(without.image, region))
    tally.after.append(_for_clip(made, region))


def _box(bbox: Sequence[float], shape: tuple[int, ...]) -> Mask:
    x, y, w, h = bbox
    margin = MARGIN * max(w, h) + max(0.0, (MIN_CROP - max(w, h)) / 2)
    region = np.zeros(shape[:2], bool)
    region[max(0, int(y - margin)) : int(y + h + margin) + 1, max(0, int(x - margin)) : int(x + w + margin) + 1] = True
    return region


def _for_clip(image: Pixels, region: Mask) -> Pixels:
    """Return the square around a region, resized for CLIP."""
    x, y, w, h = cv2.boundingRect(region.astype(np.uint8))
    side = min(max(w, h, MIN_CROP), *image.shape[:2])
    left = min(max(0, x + w // 2 - side // 2), image.shape[1] - side)
    top = min(max(0, y + h // 2 - side // 2), image.shape[0] - side)
    part = np.ascontiguousarray(image[top : top + side, left : left + side])
    return np.asarray(cv2.resize(part, (224, 224), interpolation=cv2.INTER_CUBIC if side < 224 else cv2.INTER_AREA))


@torch.inference_mode()
def _by_clip(config: Config, tally: _Tally) -> dict[str, float]:
    """Compute the metrics that use the run's CLIP, and FID."""
    if not tally.after:
        return {}
    spec = zoo.resolve("clip", config.clip.model, config.clip.weights)
    if spec.is_tipsv2:
        log.warning("clip.model %s is a TIPSv2: the figures that compare images with a CLIP are left out", spec.name)
        return {}
    clip = DenseClip.load(spec, resolve_device(config.run.device), "fp32")
    before, after = (_features(clip, pictures) for pictures in (tally.before, tally.after))
    figures = {"pictures": float(len(after))}
    if len(after) > 1:
        figures["Fréchet distance (CLIP)"] = frechet_distance(before, after)
        if (weights := inception_weights()) is not None:
            network = Inception(weights, resolve_device(config.run.device))
            seen = (np.concatenate([network.features(b) for b in _batches(p)]) for p in (tally.before, tally.after))
            figures["FID"] = frechet_distance(*seen)
    if tally.prompts:
        words = text_features(clip, spec, tally.prompts, ["{}"]).numpy()
        figures["CLIP score"] = clip_score(after, words)
        prompted = [_label_in(prompt, [label.name for label in config.labels]) for prompt in tally.prompts]
        # A crop also shows the surroundings, so both the old label and the prompt's label are counted.
        names = sorted({*tally.labels, *(name for name in prompted if name)})
        known = text_features(clip, spec, names, [TEMPLATE]).numpy()
        for title, features, wanted in (("named before", before, tally.labels), ("named as asked", after, prompted)):
            named = (features @ known.T).argmax(1)
            right = [names[int(k)] == name for k, name in zip(named, wanted, strict=True) if name]
            if right:
                figures[title] = float(np.mean(right))
    return figures


def _label_in(prompt: str, labels: Sequence[str]) -> str | None:
    """Return the longest label in the prompt, or None."""
    words = f" {''.join(c if c.isalnum() else ' ' for c in prompt.lower())} "
    found = [label for label in labels if f" {label.lower()} " in words]
    return max(found, key=len) if found else None


def _features(clip: DenseClip, pictures: Sequence[Pixels]) -> Floats:
    side = clip.image_size
    resized = [
        np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), np.uint8) for picture in pictures
    ]
    device = next(clip.model.parameters()).device
    batches = (torch.from_numpy(batch).to(device) for batch in _batches(resized))
    return torch.cat([clip.image_features(clip.normalise(batch)).cpu() for batch in batches]).numpy()


def _batches(pictures: Sequence[Pixels]) -> Iterator[Pixels]:
    yield from (np.stack(pictures[k : k + BATCH]) for k in range(0, len(pictures), BATCH))
