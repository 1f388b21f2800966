"""The same work as the published single-image scripts do it, to measure against.

fp32, an image after the other; a window at a time through open_clip's own blocks, all class logits upsampled to full
size; `set_image` once an image and `predict` once a point with its three full-size masks; every component prompted; RLE
by pycocotools, mask by mask. Decisions (which components, which mask, who is in front) are the product's, so that the
results can be compared; nothing of how it computes is. The automatic form runs SAM2's own mask generator and votes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from pycocotools import mask as coco
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from sam2.sam2_image_predictor import SAM2ImagePredictor
from torch import Tensor

from ovseg_batch.config import load_config
from ovseg_batch.methods.class_scores import class_probabilities
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.prompts import component_points
from ovseg_batch.methods.voting import MaskCandidate, assemble
from ovseg_batch.methods.windows import resized_size, window_boxes
from ovseg_batch.models import clip, sam, zoo
from ovseg_batch.settings import Config
from ovseg_batch.stages.registry import make_vocabulary, resolve
from ovseg_batch.stages.text import text_features

Array = np.ndarray[Any, Any]


class Reference:
    """A CLIP and a SAM2, called as a script calls them."""

    def __init__(self, config: Config, templates: Sequence[str], automatic: bool) -> None:
        spec = zoo.resolve("clip", config.clip.model, config.clip.weights)
        self._config, self._vocabulary = config, make_vocabulary(config)
        ours = clip.DenseClip.load(spec, torch.device("cpu"), "fp32")
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._text = text_features(ours, spec, self._vocabulary.queries, templates).to(self._device)
        model, _, _, preprocess = clip.build(spec)
        self._visual: Any = model.float().eval().to(self._device).visual
        mean, std = (torch.tensor(preprocess[name]).view(3, 1, 1) for name in ("mean", "std"))
        self._mean, self._std = mean.to(self._device), std.to(self._device)
        resolved = resolve(config)
        self._window, self._stride = resolved.window, resolved.stride
        self._short = config.dense.short_side or spec.short_side
        own = sam.load_own(zoo.resolve("sam", config.sam.model, config.sam.weights)).eval().to(self._device)
        self._predictor = SAM2ImagePredictor(own)
        side = self._predictor.model.image_size
        self._predictor._bb_feat_sizes = [(side // 4, side // 4), (side // 8, side // 8), (side // 16, side // 16)]
        self._generator = SAM2AutomaticMaskGenerator(own, output_mode="coco_rle") if automatic else None

    @torch.inference_mode()
    def __call__(self, path: Path) -> list[dict[str, Any]]:
        """(label, RLE) of every mask of an image."""
        image = np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        labels = self._dense(image)
        least = max(1, int(np.ceil(self._config.refine.min_area * labels.size)))
        found = self._generated(image, labels) if self._generator else self._prompted(image, labels, least)
        candidates = [claim for claim, _ in found]
        owner, segments, _ = assemble(labels, candidates, lambda index: PlacedMask.crop(found[index][1]), least, least)
        pixels = owner.pixels()
        return [
            {"label": self._vocabulary.names[segment.label], "rle": _encoded(pixels == segment.index)}
            for segment in segments
        ]

    def _dense(self, image: Array) -> Array:
        """(H, W) int16: the class of every pixel, as SCLIP's script has it."""
        height, width = image.shape[:2]
        short = self._short if isinstance(self._short, int) else None
        size = resized_size(height, width, short, self._config.dense.long_side)
        small = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        total = torch.zeros(1, len(self._text), *size, device=self._device)
        count = torch.zeros(1, 1, *size, device=self._device)
        for y0, x0, y1, x1 in window_boxes(*size, self._window, self._stride).tolist():
            pixels = torch.from_numpy(small[y0:y1, x0:x1].copy()).to(self._device).permute(2, 0, 1)
            features = self._features((pixels.float() / 255 - self._mean)[None] / self._std[None])
            logits = torch.einsum("bhwd,qd->bqhw", features, self._text)
            total[:, :, y0:y1, x0:x1] += F.interpolate(logits, (y1 - y0, x1 - x0), mode="bilinear")
            count[:, :, y0:y1, x0:x1] += 1
        full = F.interpolate(total / count, (height, width), mode="bilinear")[0]
        classes = len(self._vocabulary.names)
        scores = class_probabilities(full, self._vocabulary.query_class, classes, self._config.dense.logit_scale)
        won: Array = scores.argmax(dim=0).to(torch.int16).cpu().numpy()
        return won

    def _features(self, images: Tensor) -> Tensor:
        """(1, gh, gw, D): open_clip's blocks as they are, the last one's attention as SCLIP writes it."""
        visual = self._visual
        x = visual.conv1(images)
        grid = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(1, 1, -1), x], dim=1) + visual.positional_embedding
        x = visual.ln_pre(x)
        *blocks, last = visual.transformer.resblocks
        for block in blocks:
            x = block(x)
        heads, width = last.attn.num_heads, x.shape[-1]
        q, k, v = (
            part.view(x.shape[1], heads, width // heads).transpose(0, 1)
            for part in F.linear(last.ln_1(x), last.attn.in_proj_weight, last.attn.in_proj_bias)[0].chunk(3, dim=-1)
        )
        scale = (width // heads) ** -0.5
        weights = (q @ q.transpose(1, 2) * scale).softmax(-1) + (k @ k.transpose(1, 2) * scale).softmax(-1)
        x = x + last.attn.out_proj((weights @ v).transpose(0, 1).reshape(1, -1, width))
        x = x + last.mlp(last.ln_2(x))
        tokens = F.normalize((visual.ln_post(x) @ visual.proj)[:, 1:], dim=-1)
        return tokens.view(1, *grid, -1)

    def _prompted(self, image: Array, labels: Array, least: int) -> list[tuple[MaskCandidate, Array]]:
        settings = self._config.refine
        points = component_points(labels, least, settings.min_distance, settings.point)
        found: list[tuple[MaskCandidate, Array]] = []
        if points:
            self._predictor.set_image(image)
        vote = float(settings.vote)
        for point in points:
            masks, rated, _ = self._predictor.predict(np.array([[point.x, point.y]]), np.array([1]))
            best, most = None, -1.0
            for mask, quality in zip(masks.astype(bool), rated, strict=True):
                coverage = float((labels[mask] == point.label).mean()) if mask.any() else 0.0
                if coverage >= vote and coverage * quality > most:
                    claim = MaskCandidate(point.label, int(mask.sum()), coverage, float(quality), 1.0, float(quality))
                    best, most = (claim, mask), coverage * quality
            found += [best] if best else []
        return found

    def _generated(self, image: Array, labels: Array) -> list[tuple[MaskCandidate, Array]]:
        assert self._generator is not None
        found = []
        for one in self._generator.generate(image):
            mask = coco.decode(one["segmentation"]).astype(bool)
            counts = np.bincount(labels[mask], minlength=1)
            label, coverage = int(counts.argmax()), float(counts.max() / max(mask.sum(), 1))
            if coverage >= float(self._config.refine.vote):
                rated = one["predicted_iou"]
                found.append((MaskCandidate(label, int(mask.sum()), coverage, rated, 1.0, rated), mask))
        return found


def _encoded(mask: Array) -> dict[str, Any]:
    encoded: dict[str, Any] = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {**encoded, "counts": encoded["counts"].decode("ascii")}


@click.command("run-reference", hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("config_file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--automatic", is_flag=True)
@click.option("--most", type=int, help="Stop after so many images.")
def run_reference(folder: Path, config_file: Path, out: Path, automatic: bool, most: int | None) -> None:
    """The reference over a folder; its seconds without loading, and its masks, as JSON."""
    config = load_config(config_file, environment={})
    templates = config.dense.templates
    assert not isinstance(templates, str)
    reference = Reference(config, templates, automatic)
    masks, seconds = {}, {}
    for path in sorted(folder.iterdir())[:most]:
        started = time.perf_counter()
        masks[path.name] = reference(path)
        seconds[path.name] = time.perf_counter() - started
    out.write_text(json.dumps({"seconds": seconds, "masks": masks}))
