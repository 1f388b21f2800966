"""The toy world is a function of its seed, its truth is exact, and its data sets never meet; the measures are right."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg_batch import scenes
from ovseg_batch.evaluate.metrics import SemanticScore, boundary_f1
from ovseg_batch.evaluate.scenes import write_scenes


def test_a_seed_is_a_scene() -> None:
    one, two = scenes.render(11), scenes.render(11)
    assert np.array_equal(one.image, two.image) and np.array_equal(one.classes, two.classes)
    assert not np.array_equal(one.image[:192, :192], scenes.render(12).image[:192, :192])


@pytest.mark.parametrize("seed", range(20))
def test_truth_belongs_to_the_picture(seed: int) -> None:
    scene = scenes.render(seed)
    assert scene.image.shape == (*scene.classes.shape, 3)
    assert scene.image.dtype == scene.classes.dtype == scene.instances.dtype == np.uint8
    assert all(192 <= side <= 256 for side in scene.classes.shape)
    assert set(np.unique(scene.instances)) - {0} >= {thing.instance for thing in scene.things}
    for thing in scene.things:
        mask = scene.instances == thing.instance
        x, y, w, h = thing.bbox
        assert mask.sum() == thing.area and mask[y : y + h, x : x + w].sum() == thing.area
        assert (scene.classes[mask] == scenes.CLASSES.index(thing.name)).all()
    stuff = scene.classes[scene.instances == 0]
    assert (stuff < len(scenes.STUFF)).all()


def test_leaving_a_thing_out_changes_nothing_else() -> None:
    scene = next(s for s in map(scenes.render, range(50)) if len(s.things) >= 2)
    thing = scene.things[-1]
    without = scenes.render(scene.seed, without=[thing.instance])
    assert thing.instance not in without.instances
    far = scene.instances != thing.instance
    assert np.array_equal(scene.classes[far], without.classes[far])


def test_seeds_never_meet() -> None:
    assert scenes.TRAIN_SEEDS.stop <= scenes.DEMO_SEEDS.start
    assert scenes.DEMO_SEEDS.stop <= scenes.HELD_OUT_SEEDS.start


def test_place_does_not_give_the_class_away() -> None:
    """A class found on one kind of ground only could be guessed by place."""
    grounds: dict[str, set[int]] = {name: set() for name in scenes.THING_NAMES}
    for seed in range(150):
        scene = scenes.render(seed)
        for thing in scene.things:
            x, y, w, h = thing.bbox
            around = scene.classes[max(y - 3, 0) : y + h + 3, max(x - 3, 0) : x + w + 3]
            grounds[thing.name] |= set(np.unique(around[around < len(scenes.STUFF)]).tolist())
    assert min(len(found) for found in grounds.values()) >= 5


def test_caption_names_what_is_there() -> None:
    rng = np.random.default_rng(0)
    for seed in range(30):
        scene = scenes.render(seed)
        text = scenes.caption(scene, rng)
        words = set(re.findall(r"\w+", text))
        share = np.bincount(scene.classes.ravel(), minlength=len(scenes.CLASSES)) / scene.classes.size
        for index, name in enumerate(scenes.CLASSES):
            assert (name in words) == (share[index] >= 0.02), (text, name)


def test_written_scenes_have_their_truth_beside_them(tmp_path: Path) -> None:
    assert write_scenes(tmp_path, scenes.HELD_OUT_SEEDS[:3]) == 3
    names = sorted(p.name for p in (tmp_path / "images").iterdir())
    assert names == ["scene-00001.png", "scene-00002.jpg", "scene-00003.png"]
    truth = np.asarray(Image.open(tmp_path / "truth" / "scene-00003.png.classes.png"))
    assert np.array_equal(truth, scenes.render(scenes.HELD_OUT_SEEDS[2]).classes)


def test_scores_by_hand() -> None:
    score = SemanticScore(3)
    score.add(np.array([[0, 0, 1], [1, -1, 1]]), np.array([[0, 0, 0], [1, 1, -1]]))
    # class 0: 2 of 3 hit, none wrongly drawn; class 1: 1 of 2 hit, one wrongly drawn; class 2 nowhere
    assert np.allclose(score.class_iou(), [2 / 3, 1 / 3, np.nan], equal_nan=True)
    assert score.mean_iou() == pytest.approx(0.5)
    assert score.accuracy() == pytest.approx(3 / 5)


def test_boundary_f1_falls_with_distance() -> None:
    truth = np.zeros((100, 100), int)
    truth[30:70, 30:70] = 1
    found = [boundary_f1(np.roll(truth, shift, 0), truth) for shift in (0, 1, 6)]
    assert found[0] == found[1] == 1.0
    assert found[2] < 0.8
