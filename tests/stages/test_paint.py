"""Masks that overlap: each stays whole, and where a pixel needs one owner, the mask of the highest score has it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ovseg_batch.io import rle
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.vocabulary import Vocabulary
from ovseg_batch.methods.voting import MaskCandidate
from ovseg_batch.stages.answer import Answer, DenseMap, Painting, annotate
from ovseg_batch.stages.edit.source import disjoint
from ovseg_batch.types import Annotation
from tests.conftest import LABELS, SMALL, Command

SIZE = (20, 30)
CAR, WHEEL, SKY = 0, 1, 2
VOCABULARY = Vocabulary.build([(name, [name], 0.0) for name in ("car", "wheel", "sky")])


def box(x: int, y: int, width: int, height: int) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


CAR_BOX, WHEEL_BOX = box(4, 4, 20, 10), box(6, 10, 4, 4)


def no_probabilities(box: object, size: tuple[int, int]) -> Tensor:
    pytest.fail(f"the probabilities of {box} are computed at {size}")


def answer(*, dense: bool) -> Answer:
    """Return a car with a wheel inside, on a sky that the dense map alone shows."""
    labels = np.full(SIZE, SKY, np.int16)
    labels[CAR_BOX], labels[WHEEL_BOX] = CAR, WHEEL
    masks = [CAR_BOX, WHEEL_BOX]
    candidates = [
        MaskCandidate(label, int(mask.sum()), None, 0.9, 0.9, score, margin=0.5)
        for label, mask, score in ((CAR, CAR_BOX, 0.6), (WHEEL, WHEEL_BOX, 0.8))
    ]
    half = np.full(SIZE, 0.5, np.float32)
    shown = DenseMap(labels, half, half, no_probabilities, (), None)
    return Answer(SIZE, candidates, [PlacedMask.crop(mask) for mask in masks].__getitem__, shown if dense else None)


def test_masks_that_are_encoded_already_give_the_same_without_being_painted() -> None:
    painted = answer(dense=False)
    counts = [rle.encode(mask) for mask in (CAR_BOX, WHEEL_BOX)]
    encoded = replace(painted, mask_of=lambda _: pytest.fail("a mask was painted"), counts_of=counts.__getitem__)
    painting = Painting(1, by_score=True, paint="overlapping")
    found = annotate(encoded, VOCABULARY, painting)
    assert found == annotate(painted, VOCABULARY, painting) and len(found) == 2
    assert annotate(encoded, VOCABULARY, replace(painting, min_area=50)) == found[:1]


def masks_of(annotations: list[Annotation]) -> dict[str, NDArray[np.bool_]]:
    return {one.category: rle.decode(one.rle, *SIZE) for one in annotations}


@pytest.mark.parametrize("by_score", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_a_wheel_cuts_a_hole_into_its_car_only_where_a_pixel_has_one_owner(dense: bool, by_score: bool) -> None:
    cut = masks_of(annotate(answer(dense=dense), VOCABULARY, Painting(1, 1 if dense else None, by_score)))
    whole_paint = Painting(1, 1 if dense else None, by_score, paint="overlapping")
    whole = masks_of(annotate(answer(dense=dense), VOCABULARY, whole_paint))
    assert np.array_equal(cut["car"], CAR_BOX & ~WHEEL_BOX) and np.array_equal(whole["car"], CAR_BOX)
    assert np.array_equal(cut["wheel"], WHEEL_BOX) and np.array_equal(whole["wheel"], WHEEL_BOX)
    assert ("sky" in cut) == ("sky" in whole) == dense
    if dense:
        assert np.array_equal(whole["sky"], ~CAR_BOX)


def test_a_covered_mask_stays_where_masks_overlap() -> None:
    masks = [WHEEL_BOX, CAR_BOX]
    candidates = [
        MaskCandidate(WHEEL, int(WHEEL_BOX.sum()), None, 0.9, 0.9, 0.5),
        MaskCandidate(CAR, int(CAR_BOX.sum()), None, 0.9, 0.9, 0.8),
    ]
    found = Answer(SIZE, candidates, [PlacedMask.crop(mask) for mask in masks].__getitem__)
    assert set(masks_of(annotate(found, VOCABULARY, Painting(1, by_score=True)))) == {"car"}
    whole = annotate(found, VOCABULARY, Painting(1, by_score=True, paint="overlapping"))
    assert np.array_equal(masks_of(whole)["wheel"], WHEEL_BOX)


def test_the_coverage_of_a_whole_mask_counts_the_pixels_of_other_classes() -> None:
    painting = Painting(1, 1, True, paint="overlapping")
    coverage = {one.category: one.coverage for one in annotate(answer(dense=True), VOCABULARY, painting)}
    assert coverage["car"] == pytest.approx(1 - WHEEL_BOX.sum() / CAR_BOX.sum())
    assert coverage["wheel"] == coverage["sky"] == 1


def test_two_masks_of_one_object_become_one_whole_mask() -> None:
    front, inside = box(4, 4, 12, 10), box(4, 4, 10, 9)
    masks = [front, inside]
    candidates = [MaskCandidate(CAR, int(mask.sum()), None, 0.9, 0.9, 0.5) for mask in masks]
    found = annotate(
        Answer(SIZE, candidates, [PlacedMask.crop(mask) for mask in masks].__getitem__),
        VOCABULARY,
        Painting(1, paint="overlapping"),
    )
    assert [one.area for one in found] == [front.sum()]


def test_a_generator_changes_each_pixel_once() -> None:
    painting = Painting(1, by_score=True, paint="overlapping")
    whole = annotate(answer(dense=False), VOCABULARY, painting)
    apart = masks_of(disjoint(whole, *SIZE))
    assert np.array_equal(apart["car"], CAR_BOX & ~WHEEL_BOX) and np.array_equal(apart["wheel"], WHEEL_BOX)
    exclusive = annotate(answer(dense=False), VOCABULARY, Painting(1, by_score=True))
    assert disjoint(exclusive, *SIZE) is exclusive


@pytest.fixture(scope="module")
def overlapping(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A run of the six scenes whose masks overlap; `sky` and `grass` are stuff."""
    folder = tmp_path_factory.mktemp("overlapping")
    kinds = {"sky": "stuff", "grass": "stuff"}
    names = [{"name": name, **({"kind": kinds[name]} if name in kinds else {})} for name in LABELS.split(", ")]
    config = {"extends": "demo", "labels": names, "paint": "overlapping", "refine": {"method": "guided"}}
    (folder / "config.yaml").write_text(json.dumps(config))
    arguments = ("-c", folder / "config.yaml", "--workers", "0", *SMALL)
    done = command("run", few_scenes / "images", "-o", folder / "run", *arguments)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def overlaps(workdir: Path) -> dict[str, NDArray[np.int64]]:
    """Return how many masks each pixel has, by file name."""
    content = json.loads((workdir / "annotations.json").read_bytes())
    shapes = {one["id"]: (one["file_name"], (one["height"], one["width"])) for one in content["images"]}
    counts = {name: np.zeros(size, np.int64) for name, size in shapes.values()}
    for one in content["annotations"]:
        name, size = shapes[one["image_id"]]
        counts[name] += rle.decode(one["segmentation"]["counts"], *size)
    return counts


def test_a_run_keeps_whole_masks_and_its_maps_have_one_owner_a_pixel(
    overlapping: Path, tmp_path: Path, command: Command
) -> None:
    counts = overlaps(overlapping)
    assert any((count > 1).any() for count in counts.values()), "no masks overlap, so nothing is shown"
    assert command("export", overlapping, "-f", "panoptic", "-o", tmp_path / "panoptic").returncode == 0
    content = json.loads(next((tmp_path / "panoptic").glob("*.json")).read_bytes())
    for entry in content["annotations"]:
        pixels = np.asarray(Image.open(tmp_path / "panoptic" / "panoptic" / entry["file_name"])).astype(np.int64)
        numbers = pixels @ [1, 256, 65536]
        for segment in entry["segments_info"]:
            assert segment["area"] == (numbers == segment["id"]).sum()
    assert command("verify", overlapping).returncode == 0


def test_stuff_labels_have_one_panoptic_segment_an_image(overlapping: Path, tmp_path: Path, command: Command) -> None:
    assert command("export", overlapping, "-f", "panoptic", "-o", tmp_path / "panoptic").returncode == 0
    content = json.loads(next((tmp_path / "panoptic").glob("*.json")).read_bytes())
    is_thing = {one["name"]: one["isthing"] for one in content["categories"]}
    assert {name for name, thing in is_thing.items() if not thing} == {"sky", "grass"}
    stuff = {one["id"] for one in content["categories"] if not one["isthing"]}
    found = [[s["category_id"] for s in entry["segments_info"]] for entry in content["annotations"]]
    assert any(stuff & {*ids} for ids in found), "no image shows sky or grass"
    assert all(ids.count(number) <= 1 for ids in found for number in stuff)


def test_one_mask_of_each_class_does_not_go_with_masks_that_overlap(
    few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    settings = ("--set", "paint=overlapping", "--set", "refine.output=semantic")
    done = command("run", few_scenes / "images", "-o", tmp_path / "run", "--labels", LABELS, *settings)
    assert done.returncode == 2 and "so it needs paint: exclusive" in done.stderr
