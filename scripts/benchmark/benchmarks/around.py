"""The time of one thread for everything around the models, for one photograph."""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ovseg_batch.io.images import decode
from ovseg_batch.methods.class_scores import vocabulary_probabilities
from ovseg_batch.methods.labelling import label_map, resampled
from ovseg_batch.methods.prompts import PointPrompt
from ovseg_batch.methods.stitching import Stitched
from ovseg_batch.methods.vocabulary import Vocabulary
from ovseg_batch.methods.windows import resized_size, window_boxes
from ovseg_batch.models.device import keep_memory
from ovseg_batch.settings import RefineConfig
from ovseg_batch.stages.answer import Answer, DenseMap, Painting, annotate
from ovseg_batch.stages.refine.methods import points_of, prompted
from ovseg_batch.types.arrays import Indices

Result = TypeVar("Result")

SCALE, MIN_AREA, MASKS, SIDE = 40.0, 0.0005, 64, 256
SIZES = {"0.2 MP": (375, 500), "12 MP": (3000, 4000)}


@click.command()
@click.option("--words", default="12,171", show_default=True, help="Numbers of words.")
@click.option("--size", type=click.Choice([*SIZES]), multiple=True, default=[*SIZES], show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--repeats", default=5, show_default=True, help="The fastest of so many.")
@torch.inference_mode()
def around(words: str, size: tuple[str, ...], threads: int, repeats: int) -> None:
    """Milliseconds around the models: decoding, label map, points, assembling, of random smooth maps and 64 masks."""
    keep_memory()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter

    def timed(name: str, work: Callable[[], Result]) -> Result:
        best = float("inf")
        for _ in range(repeats):
            started = clock()
            result = work()
            best = min(best, clock() - started)
        click.echo(f"  {name:24} {best * 1000:8.1f} ms")
        return result

    for name in size:
        height, width = SIZES[name]
        click.echo(name)
        photograph = _photograph(height, width)
        timed("decoding", functools.partial(_decode, photograph))
        for count in map(int, words.split(",")):
            click.echo(f" {count} words")
            _measure((height, width), count, timed)


def _decode(data: bytes) -> object:
    return decode(Image.open(io.BytesIO(data)), "photograph")


def _measure(size: tuple[int, int], words: int, timed: Callable[[str, Callable[[], Any]], Any]) -> None:
    vocabulary = Vocabulary.build([(f"word {k}", [f"word {k}"], 0.0) for k in range(words)])
    resized = resized_size(*size, 336, 2048, 16)
    similarities = smooth_similarities(resized, window_boxes(*resized, 224, 112), 16, words)
    found = timed("label map", lambda: label_map(similarities, size, vocabulary, SCALE, 0.0, 0.0))

    def probabilities(box: tuple[int, int, int, int], at: tuple[int, int]) -> torch.Tensor:
        return vocabulary_probabilities(vocabulary, resampled(similarities, box, size, at), SCALE)

    dense = DenseMap(found.labels, found.confidence, found.lead, probabilities, (), None)
    settings, least = RefineConfig(max_points=MASKS), round(MIN_AREA * size[0] * size[1])
    points = timed("points", lambda: points_of(dense, settings, least))
    sam, no_embedding = cast(Any, DrawnSam(dense, points)), cast(Any, lambda box: None)
    candidates = timed("vote", lambda: prompted(sam, no_embedding, dense, points, settings))
    answer = Answer(size, candidates.candidates, candidates.mask_of, dense)
    annotations = timed("annotations", lambda: annotate(answer, vocabulary, Painting(least, least)))
    click.echo(f"  {len(points)} points, {len(candidates.candidates)} masks, {len(annotations)} annotations")


class DrawnSam:
    """Takes SAM2's place: the masks of its prompts are drawn from the components that the points lie in."""

    def __init__(self, dense: DenseMap, points: list[PointPrompt]) -> None:
        drawn = torch.stack([self._draw(dense, point) for point in points])
        self._logits = drawn[:, None].expand(-1, 3, -1, -1).contiguous()

    @staticmethod
    def _draw(dense: DenseMap, point: PointPrompt) -> torch.Tensor:
        height, width = dense.labels.shape
        x0, y0, x1, y1 = point.box
        inside = np.zeros((height, width), np.float32)
        inside[y0:y1, x0:x1] = dense.labels[y0:y1, x0:x1] == point.label
        return torch.from_numpy((cv2.resize(inside, (SIDE, SIDE), interpolation=cv2.INTER_AREA) - 0.5) * 10)

    def predict(self, embedding: object, points: np.ndarray[Any, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        return self._logits, torch.tensor([[0.9, 0.8, 0.7]]).expand(len(points), 3)


def _photograph(height: int, width: int) -> bytes:
    """Return a JPEG of smooth noise with some grain."""
    drawn = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(drawn.integers(0, 255, (height, width, 3), np.uint8), (0, 0), 3)
    grain = drawn.integers(0, 12, smooth.shape, np.uint8)
    data = io.BytesIO()
    Image.fromarray(cv2.add(cv2.normalize(smooth, smooth, 0, 240, cv2.NORM_MINMAX), grain)).save(
        data, "JPEG", quality=90
    )
    return data.getvalue()


def smooth_similarities(resized: tuple[int, int], boxes: Indices, patch: int, words: int, seed: int = 0) -> Stitched:
    """Return the windows of a random map that changes slowly, with a little noise from patch to patch.

    Args:
        resized: (h, w) of the image as CLIP sees it.
        boxes: windows, of `window_boxes`.
        patch: side of a patch in pixels.
        words: number of queries.
        seed: of the random numbers.
    """
    made = torch.Generator().manual_seed(seed)
    h, w = resized
    patches = F.interpolate(torch.randn(1, words, 7, 9, generator=made), (h // patch, w // patch), mode="bicubic")[0]
    patches = patches * 0.03 + torch.randn(patches.shape, generator=made) * 0.002 + 0.25
    whole = F.interpolate(patches[None], (h, w), mode="bilinear")[0]
    parts = [whole[:, y0:y1, x0:x1] for y0, x0, y1, x1 in boxes.tolist()]
    return Stitched(torch.stack([F.avg_pool2d(part, patch) for part in parts]).half(), boxes, (h, w))
