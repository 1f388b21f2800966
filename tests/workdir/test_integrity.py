"""`verify` finds what has changed, `gc` what nobody uses."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ovseg_batch import Run
from ovseg_batch.errors import OvsegError
from ovseg_batch.io.atomic import file_record
from ovseg_batch.io.sealed import seal, unseal
from ovseg_batch.io.tables import TABLE
from ovseg_batch.stages.base import ARRAYS
from ovseg_batch.stages.shard import run_shard
from ovseg_batch.stages.upstream import CommittedShard
from ovseg_batch.workdir.store import LOCK, StageStore, Workdir, fingerprint
from tests.conftest import Command, data_files, run_arguments
from tests.workdir.test_store import ROWS, Echo

SHARDS = 3


@pytest.fixture
def workdir(tmp_path: Path) -> Workdir:
    """Three committed shards of a trivial stage."""
    workdir = Workdir(tmp_path)
    store = workdir.stage("echo", fingerprint({"stage": "echo"}))
    store.create({"stage": "echo"})
    for shard in range(SHARDS):
        run_shard(Echo(), store, shard, ROWS)
    stage = {"name": "echo", "folder": store.folder.name, "fingerprint": store.fingerprint}
    rows = SHARDS * len(ROWS)
    workdir.write_plan({"manifest": "", "rows": rows, "shards": SHARDS, "labels": ["sky"], "stages": [stage]})
    return workdir


def committed(workdir: Workdir) -> list[Path]:
    return sorted(p for kind in ("data", "commits") for p in workdir.root.glob(f"stages/*/{kind}/*/*"))


def test_every_one_of_a_thousand_flips_and_truncations_is_found(workdir: Workdir) -> None:
    draw = random.Random(0)
    files = committed(workdir)
    assert len(files) == 9 and workdir.verify() == []
    for number in range(1000):
        path = draw.choice(files)
        whole = path.read_bytes()
        if number % 4 == 0:
            hurt = whole[: draw.randrange(len(whole))]
        else:
            place = draw.randrange(len(whole))
            hurt = whole[:place] + bytes([whole[place] ^ draw.randrange(1, 256)]) + whole[place + 1 :]
        path.write_bytes(hurt)
        shard = int(path.stem)
        assert {problem.shard for problem in workdir.verify()} >= {shard}, (path, number)
        path.write_bytes(whole)
    assert workdir.verify() == []


def test_what_is_missing_and_what_is_foreign_is_named(workdir: Workdir) -> None:
    commit, data = (next(p for p in committed(workdir) if p.suffix == s) for s in (".json", ".npz"))
    data.unlink()
    assert [p.what for p in workdir.verify()] == ["missing"]
    foreign = data.with_name("000077.npz")
    foreign.write_bytes(b"mine")
    assert [(p.path, p.what) for p in workdir.verify()][1:] == [(foreign, "it is in no commit")]
    foreign.unlink()
    commit.unlink()
    assert {p.what for p in workdir.verify()} == {"it is in no commit"}


def test_a_seal_holds_every_byte() -> None:
    content = seal({"a": [1, "ü"], "b": None})
    assert unseal(content) == {"a": [1, "ü"], "b": None}
    for place in range(len(content)):
        for other in (content[place] ^ 1, 0x20, 0x09):
            if other != content[place]:
                with pytest.raises(ValueError, match=r"."):
                    unseal(content[:place] + bytes([other]) + content[place + 1 :])


def test_verify_and_repair_by_command(finished: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    assert command("verify", copy).returncode == 0
    hurt = next(copy.glob("stages/refine-*/data/*/000001.parquet"))
    content = bytearray(hurt.read_bytes())
    content[len(content) // 2] ^= 1
    hurt.write_bytes(content)
    output = copy / "annotations.json"
    output.write_text(output.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))
    done = command("verify", copy, "--json")
    assert done.returncode == 1
    problems = json.loads(done.stdout)["problems"]
    assert [(p["path"], p["shard"]) for p in problems] == [(str(hurt), 1), (str(output), None)]
    assert command("verify", copy, "--repair").returncode == 1
    done = command(*run_arguments(few_scenes / "images", copy))
    assert "refine: computing shards 1" in done.stderr
    assert data_files(copy) == data_files(finished)
    assert command("verify", copy).returncode == 0


def test_gc_names_and_deletes_what_the_latest_run_does_not_use(
    finished: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    assert "no unused stage folders" in command("gc", copy).stdout
    command(*run_arguments(few_scenes / "images", copy, "--set", "refine.vote=0.9"))
    folders = sorted(p.name for p in (copy / "stages").glob("refine-*"))
    [old] = [p.name for p in (finished / "stages").glob("refine-*")]
    assert old in folders and len(folders) == 2
    named = command("gc", copy)
    assert old in named.stdout and (copy / "stages" / old).exists()
    with (copy / "stages" / old / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert "no unused stage folders" in command("gc", copy, "--yes").stdout, "another process is using it"
    assert "deleted" in command("gc", copy, "--yes").stdout
    assert not (copy / "stages" / old).exists()
    assert command("status", copy).returncode == 0 and command("verify", copy).returncode == 0


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "null", "[" * 20_000, '{"stages": 3}', '{"manifest": "", "rows": -1, "shards": 0, "labels": []}'],
    ids=["empty", "list", "object", "null", "deep", "no stages", "negative"],
)
def test_a_damaged_plan_is_named_and_written_anew(
    content: str, finished: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "stages" / "plan.json").write_text(content)
    (copy / "stages" / "dense-00000000" / "commits" / "000").mkdir(parents=True)
    (next(copy.glob("stages/dense-*/commits/000/000000.json")).parent / "\xb2.json").write_text("{}")
    export = ("export", copy, "-f", "coco", "-o", tmp_path / "masks.json")
    for arguments in (("status", copy), ("verify", copy), ("gc", copy), export, ("report", copy), ("retry", copy)):
        done = command(*arguments)
        assert done.returncode == 1 and "plan.json is damaged" in done.stderr, arguments
    assert command(*run_arguments(few_scenes / "images", copy)).returncode == 0
    assert data_files(copy) == data_files(finished)
    assert command("verify", copy).returncode == 0


CUTOUT = ("--edit", "cutout", "--drop", "sky")


@pytest.fixture(scope="module")
def with_edits(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    workdir = tmp_path_factory.mktemp("edits") / "run"
    assert command(*run_arguments(few_scenes / "images", workdir, *CUTOUT)).returncode == 0
    return workdir


def flip(path: Path) -> None:
    """Change one bit in place, which leaves the size as it is."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def damaged_copy(workdir: Path, tmp_path: Path, pattern: str) -> Path:
    """Copy a workdir and change a byte of the first file that fits the pattern."""
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    flip(next(copy.glob(pattern)))
    return copy


def repaired(copy: Path, images: Path, command: Command) -> None:
    """Verify and repair, run again, and check that all is well."""
    assert command("verify", copy, "--repair").returncode == 1
    done = command(*run_arguments(images, copy, *CUTOUT))
    assert done.returncode == 0, done.stderr
    assert command("verify", copy).returncode == 0


@pytest.mark.parametrize("how", ["deleted", "flipped", "stage flipped"])
def test_a_damaged_edited_image_is_found_and_made_again(
    how: str, with_edits: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(with_edits, copy)
    hurt = next((copy / "edited").iterdir())
    content = hurt.read_bytes()
    flip(hurt)
    if how == "deleted":
        hurt.unlink()
    elif how == "stage flipped":
        flip(next(copy.glob(f"stages/edit-*/files/{hurt.name}")))
    assert str(hurt) in command("verify", copy).stdout
    repaired(copy, few_scenes / "images", command)
    assert hurt.read_bytes() == content


def test_a_flip_in_the_outputs_alone_is_repaired(
    with_edits: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(with_edits, copy)
    flip(copy / "annotations.json")
    repaired(copy, few_scenes / "images", command)
    assert (copy / "annotations.json").read_bytes() == (with_edits / "annotations.json").read_bytes()


def test_a_damaged_manifest_stays_named_after_a_repair(with_edits: Path, tmp_path: Path, command: Command) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(with_edits, copy)
    flip(copy / "manifest.parquet")
    for _ in range(2):
        done = command("verify", copy, "--repair")
        assert (done.returncode, "lists the images again" in done.stdout) == (1, True)


def test_a_mark_of_the_edited_images_that_is_no_text_is_written_again(
    with_edits: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(with_edits, copy)
    mark = copy / "stages" / "edited.txt"
    mark.write_bytes(b"\xff\xfe")
    assert command(*run_arguments(few_scenes / "images", copy, *CUTOUT)).returncode == 0
    assert mark.read_bytes() == (with_edits / "stages" / "edited.txt").read_bytes()


def test_commands_that_read_a_damaged_table_name_it_and_the_repair(
    with_edits: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    copy = damaged_copy(with_edits, tmp_path, "stages/refine-*/data/*/000001.parquet")
    for arguments in (("export", copy, "-f", "coco", "-o", tmp_path / "x.json"), ("report", copy)):
        done = command(*arguments)
        assert done.returncode == 1 and "000001.parquet is damaged" in done.stderr and "--repair" in done.stderr
    with pytest.raises(OvsegError, match="is damaged: its bytes have changed"):
        list(Run(copy))
    repaired(copy, few_scenes / "images", command)


def test_nothing_is_computed_from_damaged_arrays(
    with_edits: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    copy = damaged_copy(with_edits, tmp_path, "stages/dense-*/data/*/000001.npz")
    next(copy.glob("stages/refine-*/commits/*/000001.json")).unlink()
    done = command(*run_arguments(few_scenes / "images", copy, *CUTOUT))
    assert done.returncode == 1 and "000001.npz is damaged" in done.stderr
    repaired(copy, few_scenes / "images", command)
    assert data_files(copy) == data_files(with_edits)


Lines = list[dict[str, Any]]


def negative(lines: Lines) -> Lines:
    return [{**line, "height": -1} for line in lines]


def commit_again(store: StageStore) -> None:
    """Write the commit of shard 0 with the hashes of its files as they are now."""
    commit = store.read_sealed(0)
    assert commit is not None
    files = tuple(file_record(store.folder / file.path, store.folder) for file in commit.files)
    store.write_commit(dataclasses.replace(commit, files=files))


def masks_with(lines: Lines, **fields: object) -> Lines:
    """Return the lines with these fields of every mask replaced."""
    return [{**line, "annotations": [{**one, **fields} for one in line["annotations"]]} for line in lines]


def garbage(lines: Lines) -> Lines:
    return masks_with(lines, rle=b"\xff\x00~~~~" * 20)


def not_a_number(lines: Lines) -> Lines:
    return masks_with(lines, confidence=float("nan"))


def other_label(lines: Lines) -> Lines:
    return masks_with(lines, category="../../x")


def without_a_row(lines: Lines) -> Lines:
    return lines[1:]


def a_row_twice(lines: Lines) -> Lines:
    return [*lines, lines[0]]


def a_row_instead_of_another(lines: Lines) -> Lines:
    return [*lines[1:], lines[1]]


@pytest.mark.parametrize(
    "change",
    [negative, garbage, not_a_number, other_label, without_a_row, a_row_twice, a_row_instead_of_another, None],
)
def test_a_table_that_no_stage_wrote_ends_commands_with_a_sentence(
    change: Callable[[Lines], Lines] | None, finished: Path, tmp_path: Path, command: Command
) -> None:
    """Its commit is made anew for it, so that its hash is right."""
    shutil.copytree(finished, copy := tmp_path / "run")
    store = Workdir(copy).stores()[-1]
    path = store.data_path(0, TABLE)
    table = pq.read_table(path)
    if change is None:
        pq.write_table(pa.table({"x": [1]}), path)
    else:
        lines = table.to_pylist()
        assert any(line["annotations"] for line in lines)
        pq.write_table(pa.Table.from_pylist(change(lines), table.schema), path)
    commit_again(store)
    Workdir(copy).unseal_outputs()
    for arguments in (("export", copy, "-f", "semantic", "-o", tmp_path / "s"), ("report", copy, "-o", tmp_path / "r")):
        done = command(*arguments)
        assert done.returncode == 1 and "was not written by this run" in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr


#: kind of array → what is stored instead of the float16 of shape (2, 3) that the stage wrote, and how it is compressed
FORGED: dict[str, tuple[np.ndarray[Any, Any] | None, int]] = {
    "more dimensions": (np.zeros((2, 3, 1), np.float16), zipfile.ZIP_STORED),
    "fewer dimensions": (np.zeros(6, np.float16), zipfile.ZIP_STORED),
    "another length": (np.zeros((2, 4), np.float16), zipfile.ZIP_STORED),
    "empty": (np.zeros((0, 3), np.float16), zipfile.ZIP_STORED),
    "integers": (np.zeros((2, 3), np.int32), zipfile.ZIP_STORED),
    "texts": (np.full((2, 3), "a"), zipfile.ZIP_STORED),
    "objects": (np.full((2, 3), None), zipfile.ZIP_STORED),
    "compressed": (np.zeros((2, 3), np.float16), zipfile.ZIP_DEFLATED),
    "missing": (None, zipfile.ZIP_STORED),
    "a header without its numbers": (np.broadcast_to(np.float16(0), (2**40, 3)), zipfile.ZIP_STORED),
}


def write_array(path: Path, name: str, array: np.ndarray[Any, Any] | None, compression: int) -> None:
    """Write an NPZ with one array; None: under another name. Of a huge array the header alone is written."""
    with zipfile.ZipFile(path, "w", compression) as file, file.open(name if array is not None else "x", "w") as member:
        if array is None or array.nbytes < 1 << 20:
            np.lib.format.write_array(member, np.zeros(1) if array is None else array, allow_pickle=True)
        else:
            header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
            np.lib.format.write_array_header_1_0(member, header)


@pytest.mark.parametrize("kind", FORGED)
def test_an_array_that_no_stage_wrote_is_refused(kind: str, workdir: Workdir) -> None:
    """The commit holds the right hash of it."""
    [store] = workdir.stores()
    path = store.data_path(0, ARRAYS)
    with CommittedShard(store, 0) as shard:
        assert shard.array(0, "x", (2, 3)).shape == shard.array(0, "x", (None, 3)).shape == (2, 3)
    write_array(path, "0/x.npy", *FORGED[kind])
    commit_again(store)
    with CommittedShard(store, 0) as shard, pytest.raises(OvsegError, match="is damaged: row 0 has no array 'x'"):
        shard.array(0, "x", (None, 3))


def test_scores_of_another_shape_end_a_run_with_a_sentence(
    finished: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(finished, copy := tmp_path / "run")
    dense, refine = Workdir(copy).stores()
    path = dense.data_path(0, ARRAYS)
    with zipfile.ZipFile(path) as file:
        name = file.namelist()[0]
    write_array(path, name, np.zeros(10_000, np.float16), zipfile.ZIP_STORED)
    commit_again(dense)
    refine.uncommit(0)
    done = command(*run_arguments(few_scenes / "images", copy))
    assert done.returncode == 1 and f"{path} is damaged: row 0 has no array 'logits'" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    path.unlink()
    done = command(*run_arguments(few_scenes / "images", copy))
    assert done.returncode == 0, done.stderr
    assert data_files(copy) == data_files(finished)
