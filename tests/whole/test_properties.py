"""What must hold for every input, tried on many drawn at random."""

from __future__ import annotations

import itertools
import unicodedata
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ovseg_batch.config import dump_config
from ovseg_batch.io import rle
from ovseg_batch.methods.components import connected_components
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.runs import RunMap, row_runs
from ovseg_batch.methods.tiles import OVERLAP, grid_views, is_cut
from ovseg_batch.methods.vocabulary import UNLABELLED
from ovseg_batch.methods.voting import MaskCandidate, Segment, assemble, low_resolution_coverage
from ovseg_batch.methods.windows import resized_size, window_boxes
from ovseg_batch.settings import Config
from ovseg_batch.settings.labels import parse_labels

Array = np.ndarray[Any, Any]

sides = st.integers(1, 300)


@given(height=sides, width=sides, window=st.integers(16, 224), data=st.data())
def test_windows_of_one_size_cover_every_pixel_and_stay_inside(
    height: int, width: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(8, window))
    boxes = window_boxes(height, width, window, stride)
    seen = np.zeros((height, width), bool)
    for y0, x0, y1, x1 in boxes:
        assert (y1 - y0, x1 - x0) == (min(window, height), min(window, width))
        assert y0 >= 0 and x0 >= 0 and y1 <= height and x1 <= width
        seen[y0:y1, x0:x1] = True
    assert seen.all()
    assert len({tuple(box) for box in boxes}) == len(boxes)


@given(height=st.integers(1, 20_000), width=st.integers(1, 20_000), short_side=st.integers(16, 1024))
def test_a_resize_hits_the_short_side_or_stops_at_the_long_one(height: int, width: int, short_side: int) -> None:
    resized = resized_size(height, width, short_side, 2048)
    assert min(resized) == short_side or max(resized) == 2048
    assert min(resized) >= 1 and max(resized) <= 2048
    assert (resized[0] > resized[1]) <= (height > width)


@given(mask=arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_a_mask_comes_back_from_its_run_lengths(mask: Array) -> None:
    counts = rle.encode(mask)
    assert (rle.decode(counts.decode("ascii"), *mask.shape) == mask).all()
    if mask.any():
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert rle.bounding_box(counts, *mask.shape) == box


@given(regions=arrays(np.int32, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 4)))
def test_the_run_lengths_of_a_map_are_those_of_its_masks(regions: Array) -> None:
    alone = {int(k): rle.encode(regions == k) for k in np.unique(regions) if k}
    assert rle.encode_regions(regions) == rle.encode_regions(np.asfortranarray(regions)) == alone


maps = arrays(np.int16, (12, 14), elements=st.integers(-1, 3))
masks = st.lists(st.tuples(st.integers(0, 3), arrays(bool, (12, 14))), max_size=6)


@given(dense=maps, drawn=masks, min_area=st.integers(1, 9), fallback=st.sampled_from([None, 1, 5]))
def test_an_assembled_map_names_every_instance_it_shows_and_shows_every_one_it_names(
    dense: Array, drawn: list[tuple[int, Array]], min_area: int, fallback: int | None
) -> None:
    candidates = [MaskCandidate(label, int(mask.sum()), 1.0, 1.0, 1.0, 1.0) for label, mask in drawn]
    owner, segments = assembled(dense, candidates, lambda k: PlacedMask.crop(drawn[k][1]), min_area, fallback)
    assert [s.index for s in segments] == sorted(set(owner[owner > 0].tolist())) == list(range(1, len(segments) + 1))
    for segment in segments:
        assert (owner == segment.index).sum() >= (min_area if segment.candidate else fallback)
    claimed = np.logical_or.reduce([mask for _, mask in drawn], axis=0) if drawn else np.zeros(dense.shape, bool)
    alone = ~claimed & (owner > 0)
    label_of = np.array([-1, *(s.label for s in segments)])
    assert (label_of[owner][alone] == dense[alone]).all(), "pixels outside of all masks keep their dense class"
    if fallback == 1:
        assert ((owner > 0) | (dense < 0))[~claimed].all(), "and nothing of it is lost"


def assembled(*args: Any) -> tuple[Array, list[Segment]]:
    """The pixels and segments of `assemble`."""
    owner, segments, _ = assemble(*args)
    return owner.pixels(), segments


def pieces_of(region: Array) -> list[Array]:
    """The 8-connected pieces of an (H, W) bool region, in the order in which rows of pixels meet them."""
    count, numbers = cv2.connectedComponents(region.astype(np.uint8), connectivity=8)
    return sorted((numbers == k for k in range(1, count)), key=np.argmax)


@given(dense=maps)
def test_components_of_all_classes_at_once_are_those_of_each_class_alone(dense: Array) -> None:
    found = connected_components(RunMap.of(dense))
    numbers = found.numbers.pixels()
    pieces = [(piece, label) for label in range(4) for piece in pieces_of(dense == label)]
    pieces.sort(key=lambda one: np.argmax(one[0]))
    assert numbers.max() == len(pieces) == len(found.areas) - 1
    assert not numbers[dense == UNLABELLED].any() and found.areas[0] == 0 and found.labels[0] == UNLABELLED
    for k, (piece, label) in enumerate(pieces, start=1):
        ys, xs = np.nonzero(piece)
        assert np.array_equal(numbers == k, piece)
        assert (found.labels[k], found.areas[k]) == (label, piece.sum())
        box = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
        for step in (1, 2, 3):
            on_grid = piece[box][step // 2 :: step, step // 2 :: step]
            assert np.array_equal(found.within_box(k, step), on_grid)
        assert found.boxes[k].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@given(one=maps, other=maps)
def test_what_is_counted_by_runs_is_what_is_counted_by_pixels(one: Array, other: Array) -> None:
    runs = row_runs(one, other)
    values = np.random.default_rng(0).random((12, 14)).astype(np.float16)
    pixels = np.repeat(np.arange(len(runs.starts)), runs.lengths)
    assert len(pixels) == one.size and np.array_equal(pixels[runs.starts], np.arange(len(runs.starts)))
    for whole in (one.ravel(), other.ravel()):
        assert np.array_equal(whole[runs.starts][pixels], whole)
    assert (np.diff(runs.starts // one.shape[1]) <= 1).all() and (runs.lengths <= one.shape[1]).all()
    np.testing.assert_allclose(runs.sums(values), np.bincount(pixels, weights=values.ravel()))


@given(dense=maps, drawn=masks, least=st.sampled_from([1, 5]))
def test_a_piece_that_nobody_claims_joins_the_instance_of_its_class_that_it_touches_most(
    dense: Array, drawn: list[tuple[int, Array]], least: int
) -> None:
    candidates = [MaskCandidate(label, int(mask.sum()), 1.0, 1.0, 1.0, 1.0) for label, mask in drawn]
    owner, segments = assembled(dense, candidates, lambda k: PlacedMask.crop(drawn[k][1]), 1, None)
    label_of = np.array([UNLABELLED, *(segment.label for segment in segments)])
    expected, number = owner.copy(), len(segments)
    for label in range(4):
        for piece in pieces_of((owner == 0) & (dense == label)):
            rim = cv2.dilate(piece.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~piece
            votes = np.bincount([one for one in owner[rim] if label_of[one] == label], minlength=1)
            if votes.any():
                expected[piece] = votes.argmax()
            elif piece.sum() >= least:
                number += 1
                expected[piece] = number
    assert (assembled(dense, candidates, lambda k: PlacedMask.crop(drawn[k][1]), 1, least)[0] == expected).all()


@given(side=st.integers(1, 40), seed=st.integers(0, 99))
def test_the_share_of_a_mask_that_carries_its_class_is_counted_exactly(side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn, seen = rng.random((3, 2, side, side)) < rng.random((3, 2, 1, 1)), rng.integers(-1, 3, (side, side))
    labels = rng.integers(0, 3, (3, 2))
    counted = (drawn & (seen == labels[..., None, None])).sum((2, 3)) / np.maximum(drawn.sum((2, 3)), 1)
    coverage = low_resolution_coverage(*(torch.from_numpy(part) for part in (drawn, seen, labels)))
    assert np.array_equal(coverage.numpy(), counted.astype(np.float32))


words = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=12)
labels = st.lists(
    st.fixed_dictionaries(
        {"name": words, "synonyms": st.lists(words, max_size=3).map(tuple), "threshold": st.floats(0, 1)}
    ),
    unique_by=lambda label: unicodedata.normalize("NFKC", str(label["name"])).strip().casefold(),
    max_size=5,
)


@given(labels=labels, scale=st.floats(0.1, 1000), rows=st.integers(1, 100_000))
def test_settings_written_as_yaml_read_back_equal(labels: list[dict[str, object]], scale: float, rows: int) -> None:
    config = Config.model_validate(
        {"labels": labels, "dense": {"logit_scale": scale}, "manifest": {"shard_rows": rows}}
    )
    assert Config.model_validate(yaml.safe_load(dump_config(config))) == config


@given(
    names=st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1, max_size=5), blanks=st.text(" ", max_size=3)
)
def test_every_way_to_write_a_list_of_labels_says_the_same(names: list[str], blanks: str) -> None:
    written = [f",{blanks}".join(names), f"{blanks};".join(names), "\n".join(names), names]
    assert len({tuple(label["name"] for label in parse_labels(text)) for text in written}) == 1


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), tile=st.integers(336, 1200))
def test_views_on_a_grid_cover_the_image_and_overlap(height: int, width: int, tile: int) -> None:
    whole, *tiles = grid_views((height, width), tile)
    assert whole == (0, 0, width, height) and (not tiles) == (max(height, width) <= tile)
    for low, high, side in ((0, 2, width), (1, 3, height)):
        spans = sorted({(view[low], view[high]) for view in tiles})
        if not spans:
            continue
        assert spans[0][0] == 0 and spans[-1][1] == side
        assert all(end - begin == min(tile, side) for begin, end in spans)
        for (_, end), (begin, _) in itertools.pairwise(spans):
            assert end - begin >= OVERLAP * tile - 1  # rounded
    for view in tiles:
        assert is_cut(view, view, (height, width))
        assert not is_cut((view[0] + 1, view[1] + 1, view[2] - 1, view[3] - 1), view, (height, width))
