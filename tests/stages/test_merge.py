"""The merge stage alone, on annotations that the tests make; and the plan of `method: hybrid`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from ovseg_batch.config import load_config
from ovseg_batch.errors import FailureCode, UsageError
from ovseg_batch.io import rle
from ovseg_batch.runs.planning import kind_lines
from ovseg_batch.settings import Config, Label
from ovseg_batch.stages.base import Upstream
from ovseg_batch.stages.merge.plan import kind_of
from ovseg_batch.stages.merge.stage import MergeStage
from ovseg_batch.stages.registry import competition, make_plan, make_stage, resolve, stage_names
from ovseg_batch.stages.upstream import InMemoryShard
from ovseg_batch.types import Annotation, ImageRow, RowResult

SIZE = (20, 30)
ROW = ImageRow(0, "one.png", "one.png", "/nowhere/one.png", content="a")
LABELS = [{"name": "car", "kind": "thing"}, {"name": "sky", "kind": "stuff"}]


def config_of(**settings: Any) -> Config:
    own = {"method": "hybrid", "merge.things": "proposals", "labels": LABELS, "background": "none", **settings}
    return load_config("demo", flags=own, environment={})


def box(x: int, y: int, width: int, height: int) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def found(label: str, mask: NDArray[np.bool_], confidence: float, score: float = 0.5) -> Annotation:
    counts = rle.encode(mask)
    shown = tuple(rle.bounding_box(counts, *SIZE)), int(mask.sum()), counts
    return Annotation(label, score, *shown, "sam", confidence, 0.5)


def shard(annotations: Sequence[Annotation], size: tuple[int, int] = SIZE) -> InMemoryShard:
    values = {"height": size[0], "width": size[1], "annotations": list(annotations)}
    return InMemoryShard([RowResult(0, ROW.key, values, content="a")])


def merged(
    objects: Sequence[Annotation], dense: Sequence[Annotation], **settings: Any
) -> list[tuple[str, float, NDArray[np.bool_]]]:
    """Return label, confidence and mask of the merged annotations, in the order of painting."""
    stage = make_stage(resolve(config_of(**settings)), "merge")
    [result] = stage.process([ROW], {"classify": shard(objects), "refine": shard(dense)})
    assert result.ok and result.content == "a"
    for one in result.values["annotations"]:
        mask = rle.decode(one.rle, *SIZE)
        assert one.area == mask.sum() and one.bbox == tuple(rle.bounding_box(one.rle, *SIZE)) and one.reason
    return [(one.category, one.confidence, rle.decode(one.rle, *SIZE)) for one in result.values["annotations"]]


CAR, NEAR, FAR, SKY = box(4, 4, 10, 10), box(5, 4, 10, 10), box(20, 10, 6, 6), box(0, 0, 30, 8)


def test_things_come_from_one_method_and_stuff_from_the_other() -> None:
    objects = [found("car", CAR, 0.6), found("sky", FAR, 0.9)]
    dense = [found("sky", SKY, 0.8, score=0.99), found("car", NEAR, 0.95)]
    assert [(label, confidence) for label, confidence, _ in merged(objects, dense)] == [("sky", 0.8), ("car", 0.6)]


@pytest.mark.parametrize("paint", ["exclusive", "overlapping"])
def test_a_thing_keeps_its_pixels_against_stuff_with_a_higher_score(paint: str) -> None:
    objects = [found("car", CAR, 0.6, score=0.2), found("car", NEAR, 0.6, score=0.3)]
    dense = [found("sky", SKY, 0.8, score=0.9)]
    sky, first, second = (mask for _, _, mask in merged(objects, dense, paint=paint))
    assert np.array_equal(sky, SKY & ~CAR & ~NEAR)
    assert np.array_equal(second, NEAR)
    assert np.array_equal(first, CAR if paint == "overlapping" else CAR & ~NEAR)


def test_a_mask_that_is_covered_is_dropped() -> None:
    hidden = found("car", box(5, 5, 3, 3), 0.6, score=0.1)
    objects = [found("car", CAR, 0.6), hidden, found("car", box(3, 4, 2, 1), 0.6, score=0.1)]
    assert len(merged(objects, [])) == 2
    assert len(merged(objects, [], **{"merge.min_area": 0.01})) == 1
    small = found("car", box(28, 18, 1, 1), 0.6)
    assert len(merged([small], [], **{"merge.min_area": 0.01})) == 1, "it is whole"
    assert len(merged(objects, [], paint="overlapping")) == 3


def test_the_surer_mask_of_a_pair_stays() -> None:
    objects, dense = [found("car", CAR, 0.6)], [found("car", NEAR, 0.7), found("car", FAR, 0.1), found("sky", CAR, 0.9)]
    best = merged(objects, dense, **{"merge.rule": "best", "paint": "overlapping"})
    assert [(label, one) for label, one, _ in best] == [("car", 0.1), ("car", 0.7), ("sky", 0.9)]
    assert np.array_equal(best[1][2], NEAR)
    [equal] = merged(objects, [found("car", NEAR, 0.6)], **{"merge.rule": "best"})
    assert np.array_equal(equal[2], CAR)
    apart = merged(objects, dense[:1], **{"merge.rule": "best", "merge.iou": 0.9, "paint": "overlapping"})
    assert len(apart) == 2


def test_an_average_halves_the_confidence_of_masks_of_one_method() -> None:
    objects, dense = [found("car", CAR, 0.6)], [found("car", NEAR, 0.8), found("sky", FAR, 0.5)]
    average = merged(objects, dense, **{"merge.rule": "average"})
    assert [label for label, _, _ in average] == ["sky", "car"]
    assert [one for _, one, _ in average] == pytest.approx([0.25, 0.7])
    assert np.array_equal(average[1][2], CAR)


def test_the_score_of_masks_of_both_methods_is_their_confidence() -> None:
    stage = make_stage(resolve(config_of(**{"merge.rule": "best"})), "merge")
    upstream = {"classify": shard([found("car", CAR, 0.2, 0.1)]), "refine": shard([found("car", FAR, 0.1, 0.9)])}
    [result] = stage.process([ROW], cast(dict[str, Upstream], upstream))
    assert [one.score for one in result.values["annotations"]] == [0.1, 0.2]


def test_a_contradicted_mask_is_less_sure() -> None:
    objects = [found("car", CAR, 0.6), found("car", FAR, 0.6)]
    dense = [found("car", box(4, 4, 5, 10), 0.9), found("car", box(9, 4, 5, 10), 0.9), found("sky", SKY, 0.8)]
    confirmed, contradicted = merged(objects, dense[:2], **{"merge.agreement": True})
    assert confirmed[1] == pytest.approx(0.6), "masks of the same class cover it together"
    assert contradicted[1] == pytest.approx(0.3)
    half = merged(objects[:1], dense[:1], **{"merge.agreement": True})
    assert half[0][1] == pytest.approx(0.45)
    sky = merged([], dense[2:], **{"merge.agreement": True})
    assert sky[0][1] == pytest.approx(0.4)


def test_a_detector_of_objects_says_nothing_about_stuff() -> None:
    run = resolve(config_of(**{"merge.things": "detect", "owl.weights": "random:0", "merge.agreement": True}))
    upstream = {"classify": shard([]), "refine": shard([found("sky", SKY, 0.8)])}
    [result] = make_stage(run, "merge").process([ROW], cast(dict[str, Upstream], upstream))
    assert result.values["annotations"][0].confidence == 0.8


class Failed(InMemoryShard):
    def failure(self, row: int) -> str | None:
        return "truncated: it ends early"


@pytest.mark.parametrize("which", ["classify", "refine"])
def test_an_image_that_failed_in_one_method_fails_with_that_reason(which: str) -> None:
    stage = make_stage(resolve(config_of()), "merge")
    upstream = {"classify": shard([]), "refine": shard([]), which: Failed([])}
    [result] = stage.process([ROW], cast(dict[str, Upstream], upstream))
    assert (result.code, result.message) == (FailureCode.UPSTREAM, f"{which} failed: truncated: it ends early")


def test_methods_that_read_images_of_other_sizes_are_not_merged() -> None:
    stage = make_stage(resolve(config_of()), "merge")
    [result] = stage.process([ROW], {"classify": shard([]), "refine": shard([], (20, 31))})
    assert (
        result.code == FailureCode.CHANGED and result.message == "classify and refine have read images of other sizes"
    )


def test_the_stages_are_those_of_both_methods_with_the_same_fingerprints() -> None:
    hybrid = config_of(labels="car; sky", background="auto", **{"merge.things": "sam3", "sam3.weights": "random:0"})
    assert stage_names(hybrid) == ("dense", "refine", "sam3", "settle", "merge")
    assert stage_names(config_of()) == ("propose", "dense", "refine", "embed", "classify", "merge")
    assert stage_names(config_of(**{"merge.things": "detect", "edit.mode": "cutout"})) == (
        *("dense", "refine", "detect", "classify", "merge", "edit"),
    )
    run = resolve(hybrid)
    assert isinstance(make_stage(run, "merge"), MergeStage)
    for method, names in {"dense": ("dense", "refine"), "sam3": ("sam3", "settle")}.items():
        alone = resolve(hybrid.model_copy(update={"method": method}))
        for name in names:
            assert make_plan(run, name).inputs() == make_plan(alone, name).inputs()
    assert competition(hybrid).words and not competition(hybrid.model_copy(update={"method": "sam3"})).words


def test_words_that_may_compete_act_on_the_dense_map_alone() -> None:
    labels = [{"name": "car", "allow": ["ball"]}, {"name": "sky"}]
    settings: dict[str, Any] = {"labels": labels, "background": "auto", "merge.things": "detect"}
    hybrid = config_of(**settings, **{"owl.weights": "random:0"})
    assert "ball" in competition(config_of(**{**settings, "labels": "car; sky"})).words
    assert "ball" not in competition(hybrid).words
    assert "ball" not in str(make_plan(resolve(hybrid), "refine").inputs())
    with pytest.raises(UsageError, match="no word competes"):
        resolve(hybrid.model_copy(update={"method": "detect"}))


def test_masks_overlap_where_those_of_the_things_do() -> None:
    assert config_of().painting == "exclusive"
    assert config_of(**{"merge.things": "sam3"}).painting == "overlapping"
    assert config_of(**{"merge.things": "sam3", "sam3.output": "semantic"}).painting == "exclusive"
    assert config_of(**{"merge.things": "detect", "paint": "exclusive"}).painting == "exclusive"


def test_kinds_that_a_label_lacks_are_those_of_coco_stuff() -> None:
    kinds = {name: kind_of(Label(name=name)) for name in ("Sky", "cloud", "wall", "person", "unicorn", "tree")}
    assert kinds == {
        **{"Sky": "stuff", "cloud": "stuff", "wall": "stuff", "tree": "stuff"},
        **{"person": "thing", "unicorn": "thing"},
    }
    assert kind_of(Label(name="up", synonyms=("sky",))) == "stuff"
    assert kind_of(Label(name="tree", kind="thing")) == "thing"
    assert kind_lines(config_of(labels="cat; sky; road")) == [
        "thing, from proposals: cat",
        "stuff, from dense: sky, road",
    ]
    assert kind_lines(config_of(**{"merge.rule": "best"})) == kind_lines(config_of(method="dense")) == []
