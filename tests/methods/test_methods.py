from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from ovseg_batch.methods import labelling
from ovseg_batch.methods.class_scores import (
    class_probabilities,
    decide,
    drop_unlikely,
    pool_background,
    scarce_classes,
    vocabulary_probabilities,
)
from ovseg_batch.methods.labelling import closed, label_map, resampled, upsampled_strips
from ovseg_batch.methods.pamr import pamr
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.prompts import component_points
from ovseg_batch.methods.stitching import Stitched
from ovseg_batch.methods.tiles import place_views
from ovseg_batch.methods.vocabulary import TEMPLATES, UNLABELLED, Vocabulary
from ovseg_batch.methods.voting import (
    MaskCandidate,
    Segment,
    assemble,
    choose,
    count_pixels,
    distinct_by_class,
    low_resolution_coverage,
    mode_labels,
    soft_labels,
)
from ovseg_batch.methods.windows import window_boxes


def test_the_template_sets_have_the_published_sizes_and_one_place_for_the_word() -> None:
    assert {name: len(set(templates)) for name, templates in TEMPLATES.items()} == {
        "openai80": 80,
        "thesis7": 7,
        "simple4": 4,
    }
    assert all(template.count("{}") == 1 for templates in TEMPLATES.values() for template in templates)


def test_a_background_word_that_is_also_a_label_is_left_out() -> None:
    vocabulary = Vocabulary.build([("heaven", ("Sky",), 0.0), ("car", ("car", "auto"), 0.2)], ("sky", "wall"))
    assert vocabulary.names == ("background", "heaven", "car")
    assert vocabulary.queries == ("wall", "Sky", "car", "auto")
    assert vocabulary.query_class == (0, 1, 2, 2)


def test_softmax_runs_over_all_synonyms_and_a_class_takes_its_best() -> None:
    logits = torch.tensor([[0.2], [0.1], [0.3]])
    whole = torch.softmax(logits * 40, 0)
    result = class_probabilities(logits, (0, 0, 1), 2, 40.0)
    torch.testing.assert_close(result, torch.stack([whole[0], whole[2]]))


@pytest.mark.parametrize("words", [1, 3, 110])
def test_a_pooled_background_gives_the_probabilities_of_all_its_words(words: int) -> None:
    behind = tuple(f"word {k}" for k in range(words))
    labels = [("car", ("car", "auto"), 0.0), ("dog", ("dog",), 0.0)]
    plain, pooled = (Vocabulary.build(labels, behind, pooled) for pooled in (False, True))
    cosine = torch.randn(2, words + 3, 5, 7, generator=torch.Generator().manual_seed(words)) * 0.3
    channels = pool_background(cosine, pooled.background_queries, 40.0)
    assert channels.shape[1] == pooled.channels == 5 and plain.channels == words + 3
    for few, all_of_them in zip(channels, cosine, strict=True):
        torch.testing.assert_close(
            vocabulary_probabilities(pooled, few, 40.0), vocabulary_probabilities(plain, all_of_them, 40.0)
        )


def test_a_pooled_vocabulary_names_the_channels_that_a_row_leaves_out() -> None:
    labels = [("car", ("car", "auto"), 0.0), ("dog", ("dog",), 0.0)]
    pooled = Vocabulary.build(labels, ("sky", "wall", "road"), pooled=True)
    assert pooled.channel_class == (0, 1, 1, 2)
    assert pooled.left_out("dog") == [1, 2] and pooled.left_out(None) == []


def test_a_pixel_under_its_threshold_goes_to_the_background_or_to_nobody() -> None:
    for has_background, instead in ((True, 0), (False, UNLABELLED)):
        labels, best, second = decide(torch.tensor([[0.3, 0.1], [0.35, 0.9]]))
        torch.testing.assert_close(torch.stack([best, second]), torch.tensor([[0.35, 0.9], [0.3, 0.1]]))
        drop_unlikely(labels, best, torch.tensor([0.0, 0.5]), has_background)
        assert labels.tolist() == [instead, 1]


def test_a_class_at_or_under_its_share_of_the_foreground_is_scarce_and_the_background_never() -> None:
    counts = np.array([1, 90, 10])
    assert scarce_classes(counts, 0.1, True).tolist() == [False, False, True]
    assert scarce_classes(counts, 0.0, True).tolist() == [False, False, False]


@pytest.mark.parametrize("size", [(37, 53), (8, 11), (120, 64), (5, 7)])
def test_strips_equal_one_bilinear_resize(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "BLOCK_ELEMENTS", 900)
    monkeypatch.setattr(labelling, "STRIP_ELEMENTS", 200)
    logits = torch.randn(3, 8, 11)
    strips = list(upsampled_strips(logits, size))
    whole = interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(torch.cat([strip for _, strip in strips], 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(37, 53), (120, 64), (60, 80)])
def test_stitching_by_strips_equals_stitching_at_once(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = window_boxes(60, 80, 32, 12)
    stitched = Stitched(torch.randn(len(boxes), 3, 4, 4), boxes, (60, 80))
    torch.testing.assert_close(torch.cat([stitched.rows(k, k + 12) for k in range(0, 60, 12)], 1), stitched.whole())
    whole = torch.cat([strip for _, strip in upsampled_strips(stitched.whole(), size)], 1)
    monkeypatch.setattr(labelling, "BLOCK_ELEMENTS", 6000)
    monkeypatch.setattr(labelling, "STRIP_ELEMENTS", 2000)
    strips = torch.cat([strip for _, strip in upsampled_strips(stitched, size)], 1)
    torch.testing.assert_close(strips, whole, atol=1e-5, rtol=1e-5)


def test_a_part_of_a_map_at_another_resolution() -> None:
    logits = torch.randn(2, 12, 16)
    whole = resampled(logits, (0, 0, 160, 120), (120, 160), (30, 50))
    expected = interpolate(logits[None], (30, 50), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)
    full = resampled(logits, (0, 0, 160, 120), (120, 160), (120, 160))
    part = resampled(logits, (40, 20, 100, 80), (120, 160), (60, 60))
    torch.testing.assert_close(part, full[:, 20:80, 40:100], atol=1e-5, rtol=1e-5)


def test_the_area_rule_gives_a_scarce_class_to_the_next_best() -> None:
    vocabulary = Vocabulary.build([("a", ("a",), 0), ("b", ("b",), 0), ("c", ("c",), 0)])
    logits = torch.zeros(3, 10, 10)
    logits[0], logits[1, :, :2], logits[2] = 0.2, 0.3, 0.1
    labels = label_map(logits, (10, 10), vocabulary, 40.0, 0.0, 0.0).labels
    assert np.bincount(labels.ravel()).tolist() == [80, 20]
    labels = label_map(logits, (10, 10), vocabulary, 40.0, 0.0, 0.25).labels
    assert np.bincount(labels.ravel()).tolist() == [100]


def crescent() -> np.ndarray:
    ys, xs = np.mgrid[:60, :60]
    ring = (np.hypot(ys - 30, xs - 30) < 25) & (np.hypot(ys - 30, xs - 30) > 19)
    return np.where(ring, 1, 0).astype(np.int16)


@pytest.mark.parametrize("point", ["peak", "centroid"])
def test_a_point_lies_on_its_component_even_when_the_centroid_does_not(point: Literal["peak", "centroid"]) -> None:
    labels = crescent()
    [prompt] = component_points(labels, min_area=10, min_distance=20, point=point, ignore=(0,))
    assert labels[int(prompt.y), int(prompt.x)] == 1


def test_small_components_and_points_too_near_a_larger_one_are_left_out() -> None:
    labels = np.full((100, 100), UNLABELLED, np.int16)
    labels[10:30, 10:30] = 0  # the largest
    labels[10:20, 34:44] = 0  # its peak is 19 px away from the first
    labels[70:80, 70:80] = 0
    labels[50, 50] = 0
    points = component_points(labels, min_area=5, min_distance=20)
    assert len(points) == 2
    assert [p.area for p in points] == [400, 100]


def test_the_best_of_three_is_taken_among_the_masks_that_pass_the_vote() -> None:
    masks = torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    masks[0, 0], masks[0, 1, :2], masks[0, 2, 0] = True, True, True
    label_map = torch.zeros(4, 4, dtype=torch.int64)
    label_map[:2] = 7
    coverage = low_resolution_coverage(masks, label_map, torch.tensor([[7, 7, 7]]))
    assert coverage.tolist() == [[0.5, 1.0, 1.0]]
    best, kept = choose(coverage, torch.tensor([[0.99, 0.8, 0.7]]), vote=0.6)
    assert (best.item(), kept.item()) == (1, True)
    assert not choose(coverage * 0.5, torch.ones(1, 3), vote=0.6)[1].item()


@pytest.mark.parametrize("shape", [(4, 3, 37, 50), (2, 256, 256), (0, 3, 8, 8), (5, 9)])
def test_counted_pixels_are_the_sum_of_the_flags(shape: tuple[int, ...]) -> None:
    masks = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) > 0.3
    assert torch.equal(count_pixels(masks), masks.sum(dim=(-2, -1)))


def test_points_after_the_limit_are_those_of_smaller_components() -> None:
    labels = np.zeros((40, 400), np.int16)
    for k in range(10):
        labels[5 : 15 + k, 40 * k : 40 * k + 20] = 1 + k % 3
    points = component_points(labels, 5, 0.0, ignore=(0,))
    largest = sorted(points, key=lambda p: -p.area)[:4]
    assert component_points(labels, 5, 0.0, ignore=(0,), limit=4) == [p for p in points if p in largest]


def test_the_deepest_point_of_a_large_component_is_found_on_a_grid() -> None:
    labels = np.zeros((1500, 2300), np.int16)
    labels[200:1300, 300:2200] = 1
    labels[40, 100:1900] = 2  # thinner than the grid is wide
    points = {point.label: point for point in component_points(labels, 5, 0.0, ignore=(0,))}
    one = points[1]
    depth = min(one.y - 199, 1300 - one.y, one.x - 299, 2200 - one.x)
    assert depth >= 550 - 1900 / 256 - 1, "550 is the greatest depth; the grid has 256 pixels a side"
    assert points[2].y == 40 and 100 <= points[2].x < 1900


def test_with_no_floor_a_mask_takes_the_class_that_most_of_its_pixels_carry() -> None:
    masks = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    masks[0, 0, :3], masks[0, 1, 3] = True, True
    label_map = torch.tensor([[5] * 4, [5] * 4, [7] * 4, [UNLABELLED] * 4])
    assert mode_labels(masks, label_map, torch.tensor([7])).tolist() == [[5, 7]]


def candidate(label: int, mask: np.ndarray) -> MaskCandidate:
    return MaskCandidate(label, int(mask.sum()), 1.0, 1.0, 1.0, 1.0)


def box(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((20, 20), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def placed(masks: list[np.ndarray]) -> Callable[[int], PlacedMask]:
    return [PlacedMask.crop(mask) for mask in masks].__getitem__


def assembled(*args: Any, **kwargs: Any) -> tuple[np.ndarray, list[Segment]]:
    """The pixels and segments of `assemble`."""
    owner, segments, _ = assemble(*args, **kwargs)
    return owner.pixels(), segments


def test_what_is_small_lies_in_front_of_what_is_large() -> None:
    masks = [box(0, 10, 5, 12), box(0, 10, 0, 10)]
    dense = np.full((20, 20), UNLABELLED, np.int16)
    candidates = [candidate(1, masks[0]), candidate(0, masks[1])]
    owner, segments = assembled(dense, candidates, placed(masks), 1, dense_min_area=None)
    assert [s.label for s in segments] == [0, 1]
    assert (owner[0, :5] == 1).all() and (owner[0, 5:12] == 2).all()


def test_what_is_hidden_but_for_a_remnant_is_no_instance() -> None:
    masks = [box(0, 10, 0, 10), box(0, 10, 0, 9), box(15, 20, 0, 20)]
    dense = np.full((20, 20), UNLABELLED, np.int16)
    candidates = [candidate(k, mask) for k, mask in enumerate(masks)]
    owner, segments = assembled(dense, candidates, placed(masks), 11, dense_min_area=None)
    assert [(s.index, s.label) for s in segments] == [(1, 2), (2, 1)]
    assert sorted(np.unique(owner)) == [0, 1, 2]


def test_two_masks_of_one_object_become_one_instance_and_two_objects_two() -> None:
    masks = [box(0, 10, 0, 10), box(0, 9, 0, 10), box(12, 20, 12, 20)]
    dense = np.full((20, 20), UNLABELLED, np.int16)
    candidates = [candidate(0, mask) for mask in masks]
    _, segments, _ = assemble(dense, candidates, placed(masks), 1, dense_min_area=None)
    assert len(segments) == 2


def test_unclaimed_pixels_keep_their_dense_class_only_with_the_fallback() -> None:
    dense = np.zeros((20, 20), np.int16)
    dense[:, 12:] = 1
    mask = box(0, 20, 0, 10)
    owner, segments = assembled(dense, [candidate(0, mask)], placed([mask]), 4, dense_min_area=4)
    assert (owner > 0).all()
    assert (owner[:, 10:12] == 1).all(), "the sliver joins the instance of its class that it touches"
    assert segments[1].candidate is None and segments[1].label == 1
    owner, _ = assembled(dense, [candidate(0, mask)], placed([mask]), 4, dense_min_area=None)
    assert (owner[:, 10:] == 0).all()


def test_of_masks_that_repeat_each_other_the_better_rated_stays() -> None:
    masks = torch.from_numpy(np.stack([box(0, 10, 0, 10), box(0, 10, 0, 9), box(0, 10, 0, 9), box(12, 20, 0, 10)]))
    labels, rated = torch.tensor([0, 0, 1, 0]), torch.tensor([0.5, 0.9, 0.7, 0.1])
    assert distinct_by_class(masks, labels, rated, same=0.8) == [1, 2, 3]
    assert distinct_by_class(masks, labels, rated, same=0.95) == [1, 2, 0, 3]


def test_by_trust_the_better_rated_mask_keeps_the_pixels() -> None:
    masks = [box(0, 10, 0, 10), box(0, 10, 5, 8)]
    dense = np.full((20, 20), UNLABELLED, np.int16)
    candidates = [MaskCandidate(0, 100, 1.0, 0.9, 1.0, 0.9), MaskCandidate(1, 30, 1.0, 0.6, 1.0, 0.6)]
    for by_score, label in ((True, 0), (False, 1)):
        owner, segments = assembled(dense, candidates, placed(masks), 1, None, by_score=by_score)
        assert {s.index: s.label for s in segments}[int(owner[5, 6])] == label


def test_pixel_adaptive_refinement_stops_at_edges() -> None:
    image = torch.zeros(3, 12, 20)
    image[:, :, 10:] = 1
    scores = torch.zeros(2, 12, 20)
    scores[0, :, :7], scores[1, :, 7:] = 1, 1
    won = pamr(image, scores, 10, dilations=(1, 2)).argmax(dim=0)
    assert (won[:, 10:] == 1).all(), "nothing flows over the edge"
    assert torch.equal(pamr(image, scores, 0), scores)


def test_a_soft_vote_takes_the_highest_mean_probability() -> None:
    masks = torch.zeros(1, 2, 2, 4, dtype=torch.bool)
    masks[0, 0, :, :3] = True
    probabilities = torch.stack([torch.full((2, 4), 0.4), torch.tensor([[0.9, 0.0, 0.6, 0.0]] * 2)])
    labels, means = soft_labels(masks, probabilities)
    assert labels[0, 0] == 1 and means[0, 0] == pytest.approx(0.5)
    assert means[0, 1] == 0  # an empty mask


@pytest.mark.parametrize("tile", [None, 200, 400])
def test_every_object_is_looked_at_once_and_whole(tile: int | None) -> None:
    rng = np.random.default_rng(3)
    corner = rng.integers(0, 900, (60, 2))
    boxes = [tuple(box) for box in np.hstack([corner, corner + rng.integers(5, 90, (60, 2))]).tolist()]
    boxes.append((100, 100, 950, 700))
    views = place_views(boxes, (1000, 1000), tile)
    assert sorted(k for view in views for k in view.members) == list(range(len(boxes)))
    for view in views:
        for x0, y0, x1, y1 in (boxes[k] for k in view.members):
            assert view.box[0] <= x0 and view.box[1] <= y0 and view.box[2] >= x1 and view.box[3] >= y1
        sides = (view.box[2] - view.box[0], view.box[3] - view.box[1])
        assert sides == (1000, 1000) or sides == (tile, tile)
    assert (len(views) == 1) == (tile is None)


def test_a_closing_fills_gaps_of_classes_with_lower_numbers() -> None:
    labels = np.full((9, 9), 2, np.int16)
    labels[4, 1:8] = 0  # a line
    labels[2, 2] = 5
    labels[0, 8] = UNLABELLED
    found = closed(labels, 3)
    expected = np.full((9, 9), 2, np.int16)
    expected[2, 2] = 5
    assert found.dtype == np.int16 and np.array_equal(found, expected)
    wide = np.zeros((9, 9), np.int16)
    wide[:, :3] = wide[:, 6:] = 1
    assert np.array_equal(closed(wide, 3), wide) and (closed(wide, 5) == 1).all()
