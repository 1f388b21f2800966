"""What a run starts from: inputs that exist and are not its own output, and the labels of the run before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ovseg_batch.export.exporting import Options, export
from ovseg_batch.export.formats import WRITERS
from ovseg_batch.export.selection import Selection
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.report.build import build_report
from ovseg_batch.runs.manifests import check_inputs
from ovseg_batch.stages.plans import DensePlan
from ovseg_batch.workdir.store import Workdir
from tests.conftest import LABELS, Command, run_arguments

EDIT = ("--edit", "mask", "--keep", "sky")


@pytest.fixture
def photos(few_scenes: Path, tmp_path: Path) -> Path:
    """Two images in a folder of their own."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted((few_scenes / "images").iterdir())[:2]:
        shutil.copy(path, folder)
    return folder


def listed(workdir: Path) -> list[str]:
    return list(Manifest.open(workdir / "manifest.parquet").read_column("file_name"))


# --- inputs ---


@pytest.mark.parametrize("text", ["nowhere", "*.png"])
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_missing_input_is_reported_before_missing_weights(
    text: str, more: tuple[str, ...], tmp_path: Path, command: Command
) -> None:
    weights = ("--set", "clip.model=openai-b16")
    done = command("run", tmp_path / text, "-o", tmp_path / "run", "--labels", "sky", *weights, *more)
    assert done.returncode == 2
    assert "There is no file or folder" in done.stderr or "No file matches the pattern" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_workdir_in_its_input_is_left_out_of_the_list(photos: Path, command: Command) -> None:
    names = sorted(path.name for path in photos.iterdir())
    for place in (photos, photos / "**" / "*.*"):
        workdir = photos / f"out of {place.name}".replace("*", "-")
        for update in ((), ("--update",)):
            done = command(*run_arguments(place, workdir, *EDIT, *update))
            assert done.returncode == 0, done.stderr
            assert listed(workdir) == names
            assert len(list((workdir / "edited").iterdir())) == 2
    assert "2 folders are skipped: written by ovseg-batch" in done.stderr


def test_exports_and_reports_in_an_input_are_left_out(finished: Path, photos: Path) -> None:
    before = len(list(photos.iterdir()))
    export(Workdir(finished), WRITERS["yolo"], photos / "yolo", Selection(), Options(), workers=0)
    build_report(Workdir(finished), photos / "report", workers=0)
    summary = build_manifest([str(photos)], photos.parent / "m.parquet", 2)
    assert (summary.rows, summary.left_out) == (before, 2)
    assert f"2 folders are skipped: written by ovseg-batch ({photos / 'report'}, {photos / 'yolo'})" in summary.notes()
    assert build_manifest([str(photos / "yolo")], photos.parent / "m.parquet", 2).rows == 6


@pytest.mark.slow("what a run writes is never its input")
@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda photos, out: (photos, photos), "is INPUT and workdir at once"),
        (lambda photos, out: (photos / "*.*", photos), "is INPUT and workdir at once"),
        (lambda photos, out: (photos / ".." / "link", photos), "is INPUT and workdir at once"),
        (lambda photos, out: (out / "edited", out), "belongs to the workdir"),
        (lambda photos, out: (out / "edited" / "*.png", out), "belongs to the workdir"),
        (lambda photos, out: (out / "annotations.json", out), "belongs to the workdir"),
        (lambda photos, out: (photos / "edits.txt", out), "edits.txt line 1: "),
        (lambda photos, out: (photos / "linked", out), "belongs to the workdir"),
        (lambda photos, out: (out, photos / "second"), "is the workdir of a run"),
        (lambda photos, out: (out / "*" / "*.png", photos / "second"), "is the workdir of a run"),
    ],
)
def test_what_a_run_writes_is_not_its_input(
    place: Callable[[Path, Path], tuple[Path, Path]], message: str, photos: Path, command: Command
) -> None:
    out = photos / "out"
    assert command(*run_arguments(photos, out, *EDIT)).returncode == 0
    edited = sorted((out / "edited").iterdir())
    (photos / "edits.txt").write_text("".join(f"{path}\n" for path in edited))
    (photos / "linked").symlink_to(out / "edited")
    (photos.parent / "link").symlink_to(photos)
    source, workdir = place(photos, out)
    done = command(*run_arguments(source, workdir))
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert listed(out) == sorted(path.name for path in photos.iterdir() if path.suffix in (".png", ".jpg"))
    assert not (photos / "stages").exists()


def test_edited_images_are_the_input_of_another_run(photos: Path, command: Command) -> None:
    out, second = photos / "out", photos.parent / "second"
    assert command(*run_arguments(photos, out, *EDIT)).returncode == 0
    for source in (out / "edited", out / "edited" / "*.png"):
        done = command(*run_arguments(source, second))
        assert done.returncode == 0, done.stderr
        assert len(listed(second)) == 2
    check_inputs([str(out / "manifest.parquet"), "s3://bucket/folder"], Workdir(out), allow_remote=True)
    check_inputs([str(photos)], Workdir(photos.parent), allow_remote=False)


def test_a_url_is_refused_before_the_weights_are_searched(command: Command, tmp_path: Path) -> None:
    done = command("run", "s3://bucket/folder", "-o", str(tmp_path / "out"), "-c", "prompted", "--labels", "sky")
    assert done.returncode == 2 and "s3://bucket/folder is on a network. Give --allow-remote" in done.stderr
    assert not (tmp_path / "out").exists()


def test_annotations_of_a_run_are_the_input_of_another(photos: Path, tmp_path: Path, command: Command) -> None:
    assert command(*run_arguments(photos, tmp_path / "first")).returncode == 0
    names, paths = listed(tmp_path / "first"), dict(Manifest.open(tmp_path / "first" / "manifest.parquet").read_paths())
    (tmp_path / "first").rename(tmp_path / "moved")
    done = command(*run_arguments(tmp_path / "moved" / "annotations.json", tmp_path / "second"))
    assert done.returncode == 0, done.stderr
    assert listed(tmp_path / "second") == names
    assert dict(Manifest.open(tmp_path / "second" / "manifest.parquet").read_paths()) == paths
    masks = [(tmp_path / run / "failures.csv").read_bytes() for run in ("moved", "second")]
    assert masks[0] == masks[1]


def test_annotations_of_a_run_without_its_manifest(photos: Path, tmp_path: Path, command: Command) -> None:
    assert command(*run_arguments(photos, tmp_path / "first")).returncode == 0
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "first" / "annotations.json", tmp_path / "alone")
    done = command(*run_arguments(tmp_path / "alone" / "annotations.json", tmp_path / "second"))
    assert done.returncode == 2
    assert "Give annotations.json in the workdir of the run, beside its manifest.parquet" in done.stderr
    shutil.copy(tmp_path / "first" / "annotations.json", photos)
    build_manifest([str(photos / "annotations.json")], tmp_path / "m.parquet", 2)
    assert dict(Manifest.open(tmp_path / "m.parquet").read_paths()) == {
        row: str(path) for row, path in enumerate(sorted(photos.glob("scene*")))
    }


def test_excluded_images_stay_out_of_a_run(photos: Path, tmp_path: Path, command: Command) -> None:
    out, names = tmp_path / "out", sorted(path.name for path in photos.iterdir())
    quick = ("--set", "refine.method=none")
    given = run_arguments(photos, out, *quick, "--exclude", names[0], "--dry-run")
    assert command(*given).returncode == 0
    given = given[:-1]
    for more, line in (((), "skipped by manifest.exclude"), ((), "resuming"), (("--update",), "nothing has changed")):
        done = command(*given, *more)
        assert done.returncode == 0 and listed(out) == names[1:] and line in done.stderr, done.stderr
    refused = command(*run_arguments(photos, out, *quick))
    assert refused.returncode == 2 and "belongs to another manifest" in refused.stderr
    assert command(*run_arguments(photos, out, *quick, "--update")).returncode == 0 and sorted(listed(out)) == names


# --- the labels of the run before ---


@pytest.fixture
def warn(photos: Path, tmp_path: Path, command: Command) -> Callable[..., list[str]]:
    """Run in one workdir; return the warnings about replaced labels."""

    def again(*labels: str, more: tuple[Any, ...] = ()) -> list[str]:
        given = [part for text in labels for part in ("--labels", text)]
        done = command("run", photos, "-o", tmp_path / "run", *given, *more)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stderr.splitlines() if "replace those of" in line]

    return again


def test_labels_that_replace_others_are_announced(
    warn: Callable[..., list[str]], tmp_path: Path, command: Command
) -> None:
    assert warn("grass: grass, sand; sky") == []
    assert warn("grass: grass, sand; sky", more=("--set", "refine.vote=0.5")) == []
    dry = warn("tree", more=("--dry-run",))
    warnings = warn("tree")
    assert warnings == dry and len(warnings) == 1
    assert 'which were "grass: grass, sand; sky".' in warnings[0]
    assert '--labels "grass: grass, sand; sky; tree"' in warnings[0]
    assert "another workdir" in warnings[0] and "query" in warnings[0]
    assert warn("grass", "tree") == []
    assert len(warn("grass: sand", "tree")) == 1
    everything = warn(LABELS)
    assert len(everything) == 1 and "sand" in everything[0]
    many = warn("sky")
    assert '; …" (20 labels)' in many[0]


def test_an_answer_that_replaces_another_is_announced(photos: Path, tmp_path: Path, command: Command) -> None:
    keep = ("--set", "dense.cache=features", "--set", "sam.cache=embeddings")
    assert command("run", photos, "-o", tmp_path / "run", "--labels", "sky", *keep).returncode == 0
    named = []
    for labels in ("tree", "tree", "grass"):
        done = command("query", tmp_path / "run", "-o", tmp_path / "answer", "--labels", labels)
        assert done.returncode == 0, done.stderr
        named.append('which were "tree".' in done.stderr)
    assert named == [False, False, True]


def test_a_stage_that_other_code_computed_says_why_it_is_computed_again(
    few_scenes: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = run_arguments(few_scenes / "images", tmp_path / "run", "--workers", "0")
    now = DensePlan.version
    monkeypatch.setattr(DensePlan, "version", now - 1)
    assert "code version" not in command(*arguments).stderr
    monkeypatch.undo()
    again = command(*arguments).stderr
    assert f"dense: its code version was {now - 1} in the run before and is {now} now: computed again" in again
    assert "refine: its code" not in again
    assert "code version" not in command(*arguments).stderr


# --- parts of a job array ---


def test_shards_of_other_parts_do_not_count_as_committed(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    first = command(*run_arguments(few_scenes / "images", tmp_path / "run", "--shards", "0/2"))
    assert first.stderr.count("0 of 2 shards of part 0/2 already committed (0 of 3 shards in all)") == 2, first.stderr
    assert "dense: computing shards 0, 2" in first.stderr
    second = command(*run_arguments(few_scenes / "images", tmp_path / "run", "--shards", "1/2"))
    assert second.stderr.count("0 of 1 shards of part 1/2 already committed (2 of 3 shards in all)") == 2, second.stderr
