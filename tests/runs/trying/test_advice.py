"""Each warning of a trial: when it is given, when not, and what it says to do."""

from __future__ import annotations

import numpy as np

from ovseg_batch.config import load_config
from ovseg_batch.runs.trying.advice import (
    PAIRS,
    Advice,
    of_disk,
    of_failures,
    of_labels,
    of_pairs,
    of_prompts,
    of_sizes,
)
from ovseg_batch.runs.trying.confusions import Confusions
from ovseg_batch.runs.trying.disk import Disk
from ovseg_batch.runs.trying.forecast import Measured
from ovseg_batch.settings.labels import parse_labels
from ovseg_batch.types import PromptOutcome


def kinds(advice: list[Advice]) -> list[str]:
    assert all(one.text and one.action for one in advice)
    return [one.kind for one in advice]


def test_labels_that_are_in_no_image_or_in_nearly_every_one() -> None:
    assert kinds(of_labels(24, {"car": 10, "sky": 21})) == []
    assert kinds(of_labels(24, {"person": 24})) == [], "one label alone may be in every image"
    absent, common = of_labels(24, {"car": 0, "sky": 22, "sea": 1})
    assert (absent.kind, common.kind) == ("absent", "common")
    assert (
        "never found: car, in 24 images" in absent.text and "--labels 'car: car, another word for it'" in absent.action
    )
    assert common.text.startswith("found in 91 % of the images: sky")


def confusions(close: float, cosine: float) -> Confusions:
    seconds = np.array([[0, close * 100, 0], [0, 0, 0], [0, 0, 0]], float)
    cosines = np.array([[1, cosine, 0], [cosine, 1, 0], [0, 0, 1]], float)
    return Confusions(("sofa", "couch", "sky"), np.array([100.0, 50, 900]), seconds, cosines)


def test_two_labels_that_compete_or_mean_the_same_are_to_be_synonyms() -> None:
    config = load_config("demo", flags={"labels": "sofa; couch: couch, settee; sky"}, environment={})
    assert of_pairs(config, confusions(0.2, 0.95)) == []
    [close] = of_pairs(config, confusions(0.25, 0.5))
    assert "sofa and couch: the other is a close second in 25% of the pixels" in close.text
    [alike] = of_pairs(config, confusions(0.0, 0.97))
    assert "cosine 0.97" in alike.text
    text = alike.action.partition("--labels '")[2].rstrip("'")
    parsed = {one["name"]: one["synonyms"] for one in parse_labels(text)}
    assert parsed == {"sofa": ("sofa", "couch", "settee"), "sky": ()}


def test_of_many_pairs_the_strongest_are_named() -> None:
    names = tuple(f"label {k}" for k in range(9))
    config = load_config(None, flags={"labels": list(names)}, environment={})
    seconds = np.zeros((9, 9))
    seconds[7, 8] = 90
    advice = of_pairs(config, Confusions(names, np.full(9, 100.0), seconds, np.full((9, 9), 0.99)))
    assert len(advice) == PAIRS and advice[0].text.startswith("label 7 and label 8: the other is a close second in 90%")


def test_failures_count_from_two_percent() -> None:
    assert of_failures({"missing": 2}, 100) == []
    [warning] = of_failures({"missing": 2, "decode": 1}, 100)
    assert warning.text == "3 of 100 images failed: 2 missing, 1 decode"


def test_sizes_that_take_twice_the_usual_time() -> None:
    usual = [Measured("dense", 0, (1.0,), (10.0,), (10.0,) * 99 + (15.0,))]
    assert of_sizes(usual, 1000) == []
    [warning] = of_sizes([Measured("dense", 0, (1.0,), (10.0,), (10.0,) * 98 + (30.0, 40.0))], 1000)
    assert warning.text.startswith("about 20 images (2.0%) take at least twice the usual time")
    assert "--set dense.long_side=1024" in warning.action


def test_prompts_for_which_sam_drew_nothing() -> None:
    assert of_prompts({PromptOutcome.EMPTY: 2, PromptOutcome.KEPT: 98}) == []
    assert of_prompts({}) == []
    [warning] = of_prompts({PromptOutcome.EMPTY: 3, PromptOutcome.KEPT: 97})
    assert warning.text == "SAM2 drew nothing for 3 of 100 prompts"


def test_too_little_disk() -> None:
    assert of_disk(Disk({"arrays of dense": 10**9}, 10**9)) == []
    [warning] = of_disk(Disk({"arrays of dense": 10**9, "annotations.json": 10**6}, 10**9))
    assert "1.0 GB are free" in warning.text and "arrays of dense" in warning.text
