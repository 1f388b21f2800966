"""A folder that has changed since its run: only what is new or different is computed, the rest keeps its commits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from ovseg_batch import failpoints
from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.io.updating import update_manifest
from ovseg_batch.runs import pipeline
from ovseg_batch.workdir.store import Workdir
from tests.conftest import Command, run_arguments

QUICK = ("--set", "refine.method=none", "--workers", "0")


def masks_by_name(workdir: Path) -> dict[str, list[Any]]:
    coco = json.loads((workdir / "annotations.json").read_text())
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    found: dict[str, list[Any]] = {name: [] for name in names.values()}
    for one in coco["annotations"]:
        found[names[one["image_id"]]].append((one["category_id"], one["segmentation"]))
    return found


def identities(workdir: Path) -> dict[str, int]:
    return {i["file_name"]: i["id"] for i in json.loads((workdir / "annotations.json").read_text())["images"]}


def commits(workdir: Path) -> dict[str, int]:
    return {
        f"{p.parents[2].name}/{p.name}": p.stat().st_mtime_ns for p in (workdir / "stages").glob("*/commits/*/*.json")
    }


@pytest.fixture
def folder(few_scenes: Path, tmp_path: Path) -> Path:
    """Five of the six scenes."""
    images = tmp_path / "images"
    shutil.copytree(few_scenes / "images", images)
    sorted(images.iterdir())[3].unlink()
    return images


def test_only_what_has_changed_is_computed(
    folder: Path, few_scenes: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "run"
    assert command(*run_arguments(folder, workdir, *QUICK)).returncode == 0
    before, ids, stood = masks_by_name(workdir), identities(workdir), commits(workdir)
    names = sorted(path.name for path in (few_scenes / "images").iterdir())
    shutil.copy(few_scenes / "images" / names[3], folder)  # new
    (folder / names[4]).unlink()  # gone
    Image.open(few_scenes / "images" / names[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / names[5])

    decoded: list[str] = []
    monkeypatch.setattr(failpoints, "reach", lambda name: decoded.append(name) if "decode-" in name else None)
    done = command(*run_arguments(folder, workdir, *QUICK, "--update"))
    assert done.returncode == 0, done.stderr
    assert "1 image new, 1 changed, 1 gone" in done.stderr
    assert sorted(decoded) == ["decode-4", "decode-6"]  # row 5 does not exist: the last shard was not full

    now, after = masks_by_name(workdir), commits(workdir)
    assert set(now) == {path.name for path in folder.iterdir()}
    unchanged = [names[0], names[1], names[2]]
    assert all(now[name] == before[name] and identities(workdir)[name] == ids[name] for name in unchanged)
    assert now[names[5]] != before[names[5]]
    assert {name for name in stood if after[name] != stood[name]} == {
        name for name in stood if name.endswith(("000001.json", "000002.json"))
    }
    fresh = tmp_path / "fresh"
    assert command(*run_arguments(folder, fresh, *QUICK)).returncode == 0
    assert masks_by_name(fresh) == now

    decoded.clear()
    assert command(*run_arguments(folder, workdir, *QUICK, "--update")).returncode == 0
    assert not decoded and commits(workdir) == after
    assert command("verify", workdir).returncode == 0


def test_the_status_of_a_changed_folder_waits_for_the_run(folder: Path, tmp_path: Path, command: Command) -> None:
    """Between listing and computing, the shards that have changed count as not done, for every command."""
    workdir = tmp_path / "run"
    assert command(*run_arguments(folder, workdir, *QUICK)).returncode == 0
    sorted(folder.iterdir())[0].unlink()
    full = command(*run_arguments(folder, workdir, *QUICK, "--update"), OVSEG_FAILPOINTS="dense.data+=ENOSPC")
    assert full.returncode == 1
    state = json.loads(command("status", workdir, "--json").stdout)
    assert not state["complete"]
    assert [stage["shards_done"] for stage in state["stages"]] == [2, 2]  # of three
    assert command(*run_arguments(folder, workdir, *QUICK)).returncode == 0  # the same command goes on
    assert len(masks_by_name(workdir)) == 4


def test_a_list_of_other_columns_is_another_list(tmp_path: Path, few_scenes: Path) -> None:
    [name, *_] = sorted(path.name for path in (few_scenes / "images").iterdir())
    lists = []
    for number, header in enumerate(("file_name", "file_name,prompts")):
        path = few_scenes / "images" / f"list{number}.csv"
        path.write_text(f"{header}\n{name}{',sky' if number else ''}\n")
        build_manifest([str(path)], tmp_path / f"{number}.parquet", 2)
        path.unlink()
        lists.append(tmp_path / f"{number}.parquet")
    with pytest.raises(UsageError, match="other columns"):
        update_manifest(lists[0], lists[1])


def test_rows_keep_their_numbers_through_many_changes(tmp_path: Path) -> None:
    """Names come and go over several revisions; a row's number is never another image's."""
    files = tmp_path / "files"
    files.mkdir()
    ours = tmp_path / "ours.parquet"
    known: dict[int, str] = {}
    for step, present in enumerate(("abcdef", "abdefgh", "bdgz", "abcdefgh")):
        for path in files.iterdir():
            if path.stem not in present:
                path.unlink()
        for stem in present:
            (files / f"{stem}.png").write_bytes(stem.encode()) if not (files / f"{stem}.png").exists() else None
        fresh = tmp_path / "fresh.parquet"
        build_manifest([str(files)], fresh, 3)
        if step == 0:
            shutil.copy(fresh, ours)
        else:
            assert update_manifest(ours, fresh)
            assert not update_manifest(ours, fresh)
        manifest = Manifest.open(ours)
        assert manifest.revision == step
        rows = [row for shard in range(manifest.shards) for row in manifest.read_shard(shard)]
        assert {row.file_name[0] for row in rows} == set(present)
        assert manifest.rows == len(rows) and all(manifest.shard_of(row.row) < manifest.shards for row in rows)
        for row in rows:
            assert known.setdefault(row.row, row.file_name) == row.file_name
            assert row.revision <= manifest.revisions.get(manifest.shard_of(row.row), 0)
    assert pq.ParquetFile(ours).num_row_groups == manifest.shards


def test_a_finished_run_that_stops_after_listing_changed_images_has_no_damage(
    folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "run"
    assert command(*run_arguments(folder, workdir, *QUICK)).returncode == 0
    next(folder.iterdir()).unlink()
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "check_manifest", stop)
        assert command(*run_arguments(folder, workdir, *QUICK, "--update")).returncode == 1
    assert Workdir(workdir).verify() == []
    assert command(*run_arguments(folder, workdir, *QUICK)).returncode == 0
    assert set(masks_by_name(workdir)) == {path.name for path in folder.iterdir()}


def test_a_run_that_stops_after_its_settings_are_written_has_no_damage(
    folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, none = tmp_path / "run", ("--set", "refine.fallback=none")
    assert command(*run_arguments(folder, workdir, *QUICK)).returncode == 0
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "_execute", stop)
        assert command(*run_arguments(folder, workdir, *QUICK, *none)).returncode == 1
    assert Workdir(workdir).verify() == []


def stop(*_: object) -> None:
    raise OvsegError("the test stops the run here")
