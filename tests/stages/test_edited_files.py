"""Edited files: the same whatever the shard, of one configuration, and one for each row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ovseg_batch.workdir.findings import EditCounts, edit_note, edit_warning
from tests.conftest import REMOVE, THINGS, Command, run_arguments


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def cut_out(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    workdir = tmp_path_factory.mktemp("cut") / "run"
    done = command(*run_arguments(few_scenes / "images", workdir, "--edit", "cutout", "--keep", THINGS))
    assert done.returncode == 0, done.stderr
    assert f"6 edited images: {workdir / 'edited'}" in done.stdout
    return workdir


@pytest.mark.slow("one worker or many, and any size of a shard, give the same bytes")
def test_the_same_files_whatever_the_shard(cut_out: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    for name, edit in (("cutout", ("--edit", "cutout", "--keep", THINGS)), ("remove", REMOVE)):
        runs = []
        for rows in (2, 6):
            arguments = run_arguments(few_scenes / "images", tmp_path / f"{name}{rows}", *edit)
            done = command(*arguments, "--set", f"manifest.shard_rows={rows}")
            assert done.returncode == 0, done.stderr
            runs.append(tree(tmp_path / f"{name}{rows}" / "edited"))
        assert len(runs[0]) == 6
        assert runs[0] == runs[1], name
        if name == "cutout":
            assert runs[0] == tree(cut_out / "edited")


def test_edited_is_of_one_configuration(cut_out: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(cut_out, workdir)
    before = tree(workdir / "edited")
    arguments = run_arguments(few_scenes / "images", workdir, "--edit", "mask", "--keep", THINGS)
    assert command(*arguments).returncode == 0
    masks = tree(workdir / "edited")
    assert masks.keys() == before.keys() and masks != before
    assert command(*run_arguments(few_scenes / "images", workdir, "--edit", "cutout", "--keep", THINGS)).returncode == 0
    assert tree(workdir / "edited") == before
    assert not list(workdir.glob(".edited*"))


def test_edits_without_effect_are_counted(cut_out: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    """No scene has a tree, and three have a balloon. More than half unchanged is a warning, half is not."""
    workdir = tmp_path / "run"
    shutil.copytree(cut_out, workdir)
    edit = run_arguments(few_scenes / "images", workdir, "--edit", "cutout", "--keep")
    for _ in range(2):  # the second time nothing is computed
        done = command(*edit, "tree")
        assert done.returncode == 0
        assert "6 of 6 images without an edited file: no mask of the chosen labels\n" in done.stdout
        assert "warning: 6 of 6 images have no edited file. No image has a mask of the chosen labels." in done.stderr
        assert all(name in done.stderr for name in ("the labels", "edit.min_score", "edit.on_empty", "report"))
    shown = command("status", workdir)
    assert "6 of 6 images without" in shown.stdout and "6 of 6 images have no edited file" in shown.stderr
    counts = {"mode": "cutout", "images": 0, "no_mask": 0, "whole_image": 0, "skipped": 6, "unchanged": 0}
    assert json.loads(command("status", workdir, "--json").stdout)["edits"] == counts
    half = command(*edit, "tree, balloon")
    assert "3 edited images" in half.stdout and "3 of 6 images without an edited file" in half.stdout
    assert "no edited file" not in half.stderr
    copied = command(*edit, "tree, balloon", "--set", "edit.on_empty=copy")
    assert "6 edited images" in copied.stdout and "3 of 6 images unchanged" in copied.stdout
    assert "unchanged" not in copied.stderr


def test_notes_and_warnings_of_edits_without_effect() -> None:
    assert edit_note(EditCounts("fill", 6000, 0, 0)) is None and edit_note(None) is None
    covered = EditCounts("fill", 6000, 7, 3030)
    assert (edit_note(covered) or "").startswith("3,037 of 6,000 images unchanged or filled completely: 7")
    assert "The masks cover whole images." in (edit_warning(covered) or "")
    assert edit_warning(EditCounts("fill", 6000, 0, 3000)) is None and edit_warning(None) is None
    both = EditCounts("cutout", 4, 0, 3, 2)
    assert (edit_note(both) or "").startswith("2 of 6 images without an edited file: no mask")
    assert "; 3 of 4 images unchanged" in (edit_note(both) or "")
    assert (edit_warning(both) or "").startswith("5 of 6 images have no edited file or are unchanged. The masks cover")
    blank = EditCounts("mask", 4, 3, 0)
    assert (edit_note(blank) or "").startswith("3 of 4 masks blank") and "4 images have a blank mask" in (
        edit_warning(blank) or ""
    )


def test_verify_finds_a_changed_edited_image(cut_out: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(cut_out, workdir)
    assert command("verify", workdir).returncode == 0
    [victim] = (workdir / "stages").glob("edit-*/files/scene-00003.png")
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    done = command("verify", workdir)
    assert done.returncode == 1 and "scene-00003.png: its bytes have changed" in done.stdout
    command("verify", workdir, "--repair")
    assert command(*run_arguments(few_scenes / "images", workdir, "--edit", "cutout", "--keep", THINGS)).returncode == 0
    assert tree(workdir / "edited") == tree(cut_out / "edited")


def test_a_run_without_edits_removes_edited_after_a_repair(
    cut_out: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(cut_out, workdir)
    [victim] = (workdir / "stages").glob("dense-*/data/000/000000.parquet")
    victim.write_bytes(victim.read_bytes()[:-1])
    assert command("verify", workdir, "--repair").returncode == 1
    assert command(*run_arguments(few_scenes / "images", workdir)).returncode == 0
    assert not (workdir / "edited").exists()


def test_names_that_cannot_be_cost_one_row(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    images = tmp_path / "images"
    images.mkdir()
    source = few_scenes / "images" / "scene-00002.jpg"
    shutil.copy(source, images / "fine.jpg")
    shutil.copy(source, images / f"{'x' * 250}.jpg")  # its PNG would have 258 bytes
    workdir = tmp_path / "run"
    done = command(*run_arguments(images, workdir, "--edit", "cutout"))
    assert done.returncode == 3, done.stderr
    assert list(tree(workdir / "edited")) == ["fine.jpg.png"]
    assert "unwritable" in (workdir / "failures.csv").read_text()
    assert (
        len(json.loads((workdir / "annotations.json").read_text())["images"]) == 2
    )  # its masks are there all the same


def test_scenes_are_judged_by_eval(cut_out: Path, few_scenes: Path, command: Command) -> None:
    done = command("eval", cut_out, "--dataset", "scenes", "--root", few_scenes, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["edits"]
    assert set(found) == {"SAD", "MSE", "gradient", "composite"}
    assert 0 < found["SAD"] < 3


def test_labels_are_taken_apart_at_commas(command: Command, few_scenes: Path, tmp_path: Path) -> None:
    done = command(*run_arguments(few_scenes / "images", tmp_path / "run", "--edit", "cutout", "--keep", "cat, dogg"))
    assert done.returncode == 2
    assert "'dogg' is not among the labels" in done.stderr


@pytest.mark.slow("no two images share an edited file")
@pytest.mark.parametrize("shard_rows", [1, 2, 64])
def test_rows_that_share_a_picture_have_edited_files_of_their_own(
    shard_rows: int, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    one, other = sorted((few_scenes / "images").iterdir())[:2]
    listing, out = tmp_path / "list.csv", tmp_path / "run"
    arguments: tuple[object, ...] = ("run", listing, "-o", out, "--labels", "sky; grass", "--edit", "cutout")
    arguments += ("--set", f"manifest.shard_rows={shard_rows}", "--workers", "0")

    def edited(*rows: str, more: tuple[str, ...] = ()) -> list[str]:
        listing.write_text("\n".join(["key,path", *rows, ""]))
        done = command(*arguments, *more)
        assert done.returncode == 0, done.stderr
        assert command("verify", out).returncode == 0
        return sorted(path.name.partition(".")[0] for path in (out / "edited").rglob("*.*"))

    assert edited(f"a,{one}", f"c,{other}") == [one.stem, other.stem]
    three = edited(f"a,{one}", f"b,{one}", f"c,{other}", more=("--update",))
    assert len(three) == 3 and three[-1] == other.stem
    assert all(name.startswith(f"{one.stem}-") for name in three[:2])
    assert edited(f"b,{one}", f"c,{other}", more=("--update",)) == [one.stem, other.stem]


def test_a_manifest_from_elsewhere_with_one_name_twice_costs_the_second_row(
    few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    """Manifests of earlier versions do not record which rows share a file name."""
    image = sorted((few_scenes / "images").iterdir())[0]
    listing, manifest = tmp_path / "list.csv", tmp_path / "list.parquet"
    listing.write_text(f"key,path\na,{image}\nb,{image}\n")
    assert command("manifest", listing, "-o", manifest).returncode == 0
    with pq.ParquetFile(manifest) as file:
        table, metadata = file.read().drop_columns(["ovseg_shared"]), file.metadata.metadata
    with pq.ParquetWriter(manifest, table.schema.remove_metadata()) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({k: v for k, v in metadata.items() if k.startswith(b"ovseg")})
    done = command("run", manifest, "-o", tmp_path / "run", "--labels", "sky", "--edit", "mask", "--workers", "0")
    assert done.returncode == 3, done.stderr
    assert ",edit,unwritable," in (tmp_path / "run" / "failures.csv").read_text()
    assert len(list((tmp_path / "run" / "edited").iterdir())) == 1
