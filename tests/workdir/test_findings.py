"""Labels that are in no image, or in nearly every one: runs and `status` name them."""

from __future__ import annotations

import json
from pathlib import Path

from ovseg_batch.workdir.findings import label_notes, read_findings
from ovseg_batch.workdir.store import Workdir
from tests.conftest import Command, run_arguments


def images_of_labels(workdir: Path) -> dict[str, int]:
    """How many images have a mask of each label, counted from annotations.json."""
    coco = json.loads((workdir / "annotations.json").read_text())
    pairs = {(a["category_id"], a["image_id"]) for a in coco["annotations"]}
    return {c["name"]: sum(c["id"] == found for found, _ in pairs) for c in coco["categories"]}


def test_labels_that_are_in_no_image_are_named(finished: Path, few_scenes: Path, command: Command) -> None:
    counted = images_of_labels(finished)
    absent = ", ".join(label for label, count in counted.items() if count == 0)
    assert absent and sum(counted.values()) > 6
    for arguments in (run_arguments(few_scenes / "images", finished), ("retry", finished), ("status", finished)):
        done = command(*arguments)
        assert done.returncode == 0 and f"\nnever found: {absent}\n" in done.stdout
        assert "of the images" not in done.stdout  # six images are too few for that
    assert json.loads(command("status", finished, "--json").stdout)["label_images"] == counted


def test_labels_that_are_in_nearly_every_image_are_named() -> None:
    one = {"person": 99, "sky": 94, "car": 0}
    absent, common = label_notes(100, one)
    assert absent == "never found: car"
    assert common.startswith("found in 99 % of the images: person. ") and "sky" not in common
    assert label_notes(100, one, among=["sky"]) == []
    assert label_notes(1000, {"person": 999, "sky": 950})[0].startswith(
        "found in at least 95 % of the images: person, "
    )
    assert label_notes(1000, {"person": 999, "sky": 1})[0].startswith("found in 99 % ")  # 100 % means every image
    assert label_notes(19, {"person": 19, "sky": 1}) == []  # too few images
    assert label_notes(100, {"person": 100}) == []  # the only label
    assert label_notes(0, {"person": 0, "sky": 0}) == [] and label_notes(100, None) == []


def test_long_lists_of_labels_are_cut_and_labels_control_no_terminal() -> None:
    [note] = label_notes(5, {f"label {k}": 0 for k in range(58)})
    assert note.startswith("never found: label 0, label 1, ") and note.endswith(", label 9 and 48 more")
    [note] = label_notes(5, {"\x1b[2J\n\u202ecat": 0, "x" * 500: 0, "bébé 猫 👩\u200d🚀": 0})
    assert note == f"never found: \\x1b[2J\\n\\u202ecat, {'x' * 59}…, bébé 猫 👩\u200d🚀"


def test_outputs_of_an_older_version_are_read(copy: Path, few_scenes: Path, command: Command) -> None:
    """Records of older versions have no counts of labels: no finding is printed, and no output is written again."""
    workdir = Workdir(copy)
    sealed = workdir.sealed_outputs()
    assert sealed is not None
    counts = {name: sealed["counts"][name] for name in ("images", "annotations", "failures")}
    facts = {"made_of": sealed["made_of"], "counts": counts}
    workdir.seal_outputs([workdir.annotations, workdir.failures, workdir.manifest], facts)
    before = workdir.annotations.stat().st_mtime_ns
    for arguments in (run_arguments(few_scenes / "images", copy), ("status", copy), ("retry", copy)):
        done = command(*arguments)
        assert done.returncode == 0 and "annotations.json" in done.stdout and "never found" not in done.stdout
    assert json.loads(command("status", copy, "--json").stdout)["label_images"] is None
    assert workdir.annotations.stat().st_mtime_ns == before


def test_counts_of_other_settings_are_not_taken_for_the_run_s(copy: Path, few_scenes: Path, command: Command) -> None:
    """A run that died between its plan and its first shard: the outputs at the top are another plan's."""
    done = command(*run_arguments(few_scenes / "images", copy, "--set", "refine.vote=0.9"))
    assert "never found" in done.stdout
    other, plan = Workdir(copy), Workdir(copy).read_plan()
    plan["stages"][1] = {**plan["stages"][1], "fingerprint": "0" * 32}
    assert read_findings(other) is not None
    other.write_plan(plan)
    assert read_findings(other) is None
