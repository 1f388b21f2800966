"""Masks that are found for each word alone: suppression, rivals, and the fusion of two heads."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ovseg_batch.io import rle
from ovseg_batch.methods.concepts import distinct_in_class, fused_labels, fused_word, rival_scores, stored
from ovseg_batch.methods.vocabulary import UNLABELLED


def of_boxes(*boxes: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the IoU of boxes x0, y0, x1, y1 in an image of 100 pixels, and the share of each in the others."""
    masks = np.zeros((len(boxes), 100, 100), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return rle.overlaps([rle.encode(mask) for mask in masks], 100, 100)


def test_the_better_mask_of_a_class_stays_and_other_classes_do_not_count() -> None:
    overlap, inside = of_boxes((0, 0, 40, 40), (2, 0, 42, 40), (0, 0, 40, 40), (60, 60, 80, 80))
    scores = np.array([0.7, 0.9, 0.8, 0.4])
    assert distinct_in_class(scores, [0, 0, 1, 0], overlap, inside, 0.7, 0.95) == [1, 2, 3]
    assert distinct_in_class(scores, [0, 0, 1, 0], overlap, inside, 1.0, 1.0) == [1, 2, 0, 3]
    assert distinct_in_class(np.zeros(0), [], *of_boxes(), 0.7, 0.9) == []


def test_a_part_and_a_whole_of_a_class_do_not_both_stay() -> None:
    overlap, inside = of_boxes((0, 0, 60, 60), (0, 0, 20, 20))
    assert overlap[0, 1] < 0.2
    for scores, stays in (([0.9, 0.8], 0), ([0.8, 0.9], 1)):
        assert distinct_in_class(np.array(scores), [0, 0], overlap, inside, 0.7, 0.9) == [stays]
    assert len(distinct_in_class(np.array([0.9, 0.8]), [0, 1], overlap, inside, 0.7, 0.9)) == 2


def test_a_rival_is_the_best_mask_of_another_class_at_the_same_place() -> None:
    overlap, _ = of_boxes((0, 0, 40, 40), (0, 0, 40, 40), (0, 0, 40, 30), (0, 0, 40, 19))
    scores = np.array([0.6, 0.5, 0.4, 0.9])
    assert np.allclose(rival_scores(scores, [0, 0, 1, 2], overlap), [0.4, 0.4, 0.9, 0.4])
    assert rival_scores(np.zeros(0), [], overlap[:0, :0]).shape == (0,)


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_the_fused_map_is_the_maximum_over_queries_and_the_soft_map(seed: int, queries: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    masks, scores = torch.rand(queries, 5, 6, generator=draw), torch.rand(queries, generator=draw)
    soft, presence = torch.rand(5, 6, generator=draw), 0.7
    found = fused_word(masks, scores, presence, soft)
    for y in range(5):
        for x in range(6):
            values = [float(score * mask[y, x]) for score, mask in zip(scores, masks, strict=True)]
            assert abs(float(found[y, x]) - max([*values, presence * float(soft[y, x])])) < 1e-6
    assert np.abs(stored(found) / 255 - found.numpy()).max() <= 0.5 / 255 + 1e-6


@given(st.integers(0, 2**32 - 1))
def test_a_pixel_has_the_class_of_its_highest_map(seed: int) -> None:
    random = np.random.default_rng(seed)
    maps = random.integers(0, 256, (4, 6, 5), np.uint8)
    classes, least, size = [2, 0, 2, 1], [0.5, 0.0, 0.6], (17, 11)
    labels, best, lead = fused_labels(maps, classes, least, size)
    of_class = np.stack([maps[1], maps[3], np.maximum(maps[0], maps[2])]).astype(np.float32) / 255
    resized = F.interpolate(torch.from_numpy(of_class)[None], size, mode="bilinear", align_corners=False)[0].numpy()
    ordered = np.sort(resized, axis=0)
    assert np.allclose(best, ordered[-1], atol=1e-5) and np.allclose(lead, ordered[-1] - ordered[-2], atol=1e-5)
    clear = (ordered[-1] - ordered[-2] > 1e-5) & (np.abs(ordered[-1] - np.array(least)[resized.argmax(axis=0)]) > 1e-5)
    expected = np.where(ordered[-1] >= np.array(least)[resized.argmax(axis=0)], resized.argmax(axis=0), UNLABELLED)
    assert (labels == expected)[clear].all()


def test_an_image_without_words_has_no_label() -> None:
    labels, best, _ = fused_labels(np.zeros((0, 4, 4), np.uint8), [], [0.5], (3, 2))
    assert labels.shape == (3, 2) and (labels == UNLABELLED).all() and not best.any()
