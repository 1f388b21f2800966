"""Sequences of commands on one workdir: no image is lost, and no two configurations mix."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ovseg_batch import Run
from ovseg_batch.errors import RowError
from ovseg_batch.runs import pipeline
from ovseg_batch.runs.planning import PlannedStage
from ovseg_batch.workdir.store import Workdir
from tests.conftest import Command
from tests.harness.job import Running
from tests.harness.sequences import Scenes, run_sequence

pytestmark = pytest.mark.slow("any sequence of commands loses no image and mixes no two configurations")

X = ("--labels", "sky; tree; grass")
Y = ("--labels", "house; balloon; road")
FEW = ("--set", "manifest.shard_rows=2", "--workers", "0")
Start = Callable[..., Running]


@pytest.fixture
def images(few_scenes: Path, tmp_path: Path) -> Path:
    shutil.copytree(few_scenes / "images", tmp_path / "images")
    return tmp_path / "images"


def labels_of(workdir: Path) -> list[str]:
    return [category["name"] for category in json.loads((workdir / "annotations.json").read_text())["categories"]]


def nowhere(workdir: Path, images: Path) -> set[str]:
    """Return the images that are neither in the outputs nor in failures.csv."""
    found = {image["file_name"] for image in json.loads((workdir / "annotations.json").read_text())["images"]}
    with (workdir / "failures.csv").open(newline="") as file:
        found |= {line["key"] for line in csv.DictReader(file)}
    return {path.name for path in images.iterdir()} - found


def during(stage: str, monkeypatch: pytest.MonkeyPatch, happen: Callable[[], object], after: bool = False) -> None:
    """Let something happen once while a run is at a stage: before it computes, or after."""
    compute = pipeline._run_planned
    happened: list[bool] = []

    def computing(planned: PlannedStage, *rest: object) -> object:
        due = planned.name == stage and not happened
        if due:
            happened.append(True)
        if due and not after:
            happen()
        done = compute(planned, *rest)  # type: ignore[arg-type]
        if due and after:
            happen()
        return done

    monkeypatch.setattr(pipeline, "_run_planned", computing)


@pytest.mark.parametrize("point", ["dense.committed:1", "refine.data:1", "refine.committed:1"])
def test_an_image_that_a_killed_retry_has_mended_is_in_the_outputs(
    point: str, images: Path, tmp_path: Path, command: Command, start: Start
) -> None:
    broken = sorted(images.iterdir())[3]
    content, workdir = broken.read_bytes(), tmp_path / "run"
    broken.write_bytes(b"")
    assert command("run", images, "-o", workdir, *X, *FEW).returncode == 3
    broken.write_bytes(content)
    assert start("retry", workdir, OVSEG_FAILPOINTS=point).wait().code == -signal.SIGKILL
    done = command("run", images, "-o", workdir, *X, *FEW)
    assert done.returncode == 0, done.stderr
    assert nowhere(workdir, images) == set()
    assert command("verify", workdir).returncode == 0
    undisturbed = tmp_path / "undisturbed"
    command("run", images, "-o", undisturbed, *X, *FEW)
    found, wanted = (json.loads((folder / "annotations.json").read_text()) for folder in (workdir, undisturbed))
    assert (found["images"], found["annotations"]) == (wanted["images"], wanted["annotations"])


def test_rows_that_an_upstream_stage_has_kept_are_kept(
    images: Path, tmp_path: Path, command: Command, start: Start
) -> None:
    broken = sorted(images.iterdir())[3]
    content, workdir = broken.read_bytes(), tmp_path / "run"
    broken.write_bytes(b"")
    assert command("run", images, "-o", workdir, *X, *FEW).returncode == 3
    dense, refine = Workdir(workdir).stores()
    before, others = refine.read_commit(1), [refine.read_commit(0), refine.read_commit(2)]
    broken.write_bytes(content)
    assert start("retry", workdir, OVSEG_FAILPOINTS="dense.committed:1").wait().code == -signal.SIGKILL
    assert refine.missing(3) == [1]
    assert command("run", images, "-o", workdir, *X, *FEW).returncode == 0
    mended = refine.read_commit(1)
    assert before is not None and mended is not None and mended.keeps == before.digest != mended.digest
    assert [refine.read_commit(0), refine.read_commit(2)] == others
    assert dense.upstream == {} and list(refine.upstream) == ["dense"]


def test_a_run_that_another_has_overtaken_writes_no_outputs(
    images: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "run"
    assert command("run", images, "-o", workdir, *Y, *FEW).returncode == 0
    during("refine", monkeypatch, lambda: command("run", images, "-o", workdir, *Y, *FEW))
    overtaken = command("run", images, "-o", workdir, *X, *FEW)
    assert overtaken.returncode == 1 and "Another run with other settings or images has begun" in overtaken.stderr
    assert labels_of(workdir) == ["house", "balloon", "road"] == Workdir(workdir).read_plan()["labels"]
    assert command("verify", workdir).returncode == 0
    assert command("run", images, "-o", workdir, *X, *FEW).returncode == 0
    assert labels_of(workdir) == ["sky", "tree", "grass"] == Workdir(workdir).read_plan()["labels"]


def test_outputs_are_not_taken_for_those_of_another_configuration(
    images: Path, tmp_path: Path, command: Command, start: Start
) -> None:
    """Both files have one length, and the second is killed between its outputs and their seal."""
    first, second = ("--labels", "aaa: sky; bbb: tree"), ("--labels", "ccc: sky; ddd: tree")
    workdir = tmp_path / "run"
    for labels in (second, first):
        assert command("run", images, "-o", workdir, *labels, *FEW).returncode == 0
    killed = start("run", images, "-o", workdir, *second, *FEW, OVSEG_FAILPOINTS="export.renamed")
    assert killed.wait().code == -signal.SIGKILL
    assert command("run", images, "-o", workdir, *first, *FEW).returncode == 0
    assert labels_of(workdir) == ["aaa", "bbb"]
    assert command("verify", workdir).returncode == 0


@pytest.mark.parametrize(("stage", "message"), [("refine", "earlier stage has no commit of shard 1"), ("none", "lost")])
def test_a_commit_that_is_removed_during_a_run_ends_it(
    stage: str, message: str, images: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the next stage has read it, and after all stages."""
    workdir = tmp_path / "run"

    def remove() -> None:
        (dense,) = Workdir(workdir).root.glob("stages/dense-*/commits/000/000001.json")
        dense.unlink()

    during("refine", monkeypatch, remove, after=stage == "none")
    ended = command("run", images, "-o", workdir, *X, *FEW)
    assert ended.returncode == 1 and message in ended.stderr and "Run the same command again" in ended.stderr
    monkeypatch.undo()
    assert command("run", images, "-o", workdir, *X, *FEW).returncode == 0
    assert nowhere(workdir, images) == set()


def test_edited_images_of_an_earlier_configuration_are_removed(images: Path, tmp_path: Path, command: Command) -> None:
    workdir = tmp_path / "run"
    edits = ("--edit", "mask")  # writes a file for every image
    assert command("run", images, "-o", workdir, *X, *FEW, *edits).returncode == 0
    assert len(list((workdir / "edited").iterdir())) == 6
    assert command("run", images, "-o", workdir, *X, *FEW).returncode == 0
    assert not (workdir / "edited").exists()
    assert command("run", images, "-o", workdir, *X, *FEW, *edits).returncode == 0
    assert len(list((workdir / "edited").iterdir())) == 6


@pytest.mark.parametrize("point", ["export.linked", "export.rename:2", "export.rename:3"])
def test_edited_images_of_a_killed_run_are_removed(
    point: str, images: Path, tmp_path: Path, command: Command, start: Start
) -> None:
    workdir = tmp_path / "run"
    edits = ("--edit", "cutout", "--drop", "sky")
    assert start("run", images, "-o", workdir, *X, *edits, *FEW, OVSEG_FAILPOINTS=point).wait().code == -signal.SIGKILL
    assert command("run", images, "-o", workdir, *Y, *FEW).returncode == 0
    assert not (workdir / "edited").exists() and command("verify", workdir).returncode == 0
    assert command("run", images, "-o", workdir, *X, *edits, *FEW).returncode == 0
    assert len([*(workdir / "edited").iterdir()]) == len([*images.iterdir()])


def test_a_part_with_failed_images_says_so(images: Path, tmp_path: Path, command: Command) -> None:
    sorted(images.iterdir())[0].write_bytes(b"")
    workdir = tmp_path / "run"
    codes = [command("run", images, "-o", workdir, *X, *FEW, "--shards", part).returncode for part in ("1/3", "0/3")]
    assert codes == [0, 3]


def test_gc_deletes_a_link_and_not_what_it_leads_to(images: Path, tmp_path: Path, command: Command) -> None:
    workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    assert command("run", images, "-o", workdir, *X, *FEW).returncode == 0
    (elsewhere / "kept").mkdir(parents=True)
    (elsewhere / "stage.json").write_text("{}")
    (workdir / "stages" / "old-12345678").symlink_to(elsewhere)
    (inside,) = workdir.glob("stages/dense-*")
    assert command("run", images, "-o", workdir, *Y, *FEW).returncode == 0
    (inside / "linked").symlink_to(elsewhere)
    assert command("gc", workdir, "--yes").returncode == 0
    assert not (workdir / "stages" / "old-12345678").is_symlink() and not inside.exists()
    assert sorted(path.name for path in elsewhere.iterdir()) == ["kept", "stage.json"], (
        "nothing is written there either"
    )


def test_a_run_whose_folders_gc_deletes_while_it_begins(
    images: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "run"
    for labels in (X, Y):
        assert command("run", images, "-o", workdir, *labels, *FEW).returncode == 0
    begin = pipeline._begin

    def beginning(*arguments: object) -> None:
        monkeypatch.undo()
        assert command("gc", workdir, "--yes").returncode == 0
        begin(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "_begin", beginning)
    assert command("run", images, "-o", workdir, *X, *FEW).returncode == 0
    assert labels_of(workdir) == ["sky", "tree", "grass"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return Scenes(tmp_path_factory.mktemp("sequences"))


@pytest.mark.parametrize("seed", range(2))
def test_random_sequences_of_commands_lose_and_mix_nothing(seed: int, pictures: Scenes) -> None:
    """As `python -m tests.harness sequences`, which runs many more."""
    counts = Counter[str]()
    run_sequence(pictures, seed, 10, counts)
    assert counts["run"] and counts["steps"] > 5


def swap(one: Path, other: Path) -> None:
    """Exchange the names of two files."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("refine.method=none",), ("edit.mode=cutout", "edit.drop=sky")),
        (("refine.method=none", "sam.cache=none"), ("sam.cache=embeddings",)),  # `encode` runs after the change
        (("refine.method=none",), ("refine.method=none", "edit.mode=fill", "edit.keep=sky")),
    ],
)
def test_images_that_change_between_two_stages_are_computed_again_by_retry(
    first: tuple[str, ...], second: tuple[str, ...], images: Path, tmp_path: Path, command: Command
) -> None:
    """They have one size in pixels, and one time in the list."""

    def run(workdir: Path, chosen: tuple[str, ...]) -> int:
        return command(
            "run", images, "-o", workdir, *X, *FEW, *(part for one in chosen for part in ("--set", one))
        ).returncode

    workdir, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    assert run(workdir, first) == 0
    names = sorted(images.iterdir())
    swap(names[0], names[4])
    assert run(workdir, second) == 3
    with (workdir / "failures.csv").open(newline="") as file:
        failed = [(line["key"], line["code"]) for line in csv.DictReader(file)]
    assert failed == [(names[0].name, "changed"), (names[4].name, "changed")]
    assert nowhere(workdir, images) == set()
    edited = {path.stem for path in (workdir / "edited").rglob("*.*")}
    assert not edited & {names[0].stem, names[4].stem}
    assert command("retry", workdir).returncode == 0
    assert run(undisturbed, second) == 0
    found, wanted = (json.loads((folder / "annotations.json").read_text()) for folder in (workdir, undisturbed))
    assert (found["images"], found["annotations"]) == (wanted["images"], wanted["annotations"])
    for path in (undisturbed / "edited").rglob("*.*"):
        assert path.read_bytes() == (workdir / "edited" / path.relative_to(undisturbed / "edited")).read_bytes()


def test_nothing_shows_the_masks_of_a_file_on_another(images: Path, tmp_path: Path, command: Command) -> None:
    workdir = tmp_path / "run"
    assert command("run", images, "-o", workdir, *X, *FEW).returncode == 0
    names = sorted(images.iterdir())
    names[1].write_bytes(names[1].read_bytes())  # written again, with another time and the same content
    for form in ("yolo", "hf-imagefolder"):
        assert command("export", workdir, "-f", form, "-o", tmp_path / form, "--images", "copy").returncode == 0
    swap(names[0], names[4])
    for form in ("yolo", "hf-imagefolder", "hf"):
        refused = command("export", workdir, "-f", form, "-o", tmp_path / f"{form}-2", "--images", "copy")
        assert refused.returncode == 1 and f"{names[0]} has changed" in refused.stderr
    run = Run(workdir)
    with pytest.raises(RowError, match="has changed"):
        run[0].read()
    assert run[1].read().shape[2] == 3
    assert command("report", workdir, "-o", tmp_path / "report").returncode == 0
    assert [path.stem.split("-")[0] for path in sorted((tmp_path / "report").rglob("images/*/*.webp"))] == [
        "00000001",
        "00000002",
        "00000003",
        "00000005",
    ]
