"""Words that earlier runs of `method: sam3` have searched for are not searched for again, and no byte differs."""

from __future__ import annotations

import functools
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ovseg_batch.errors import OvsegError
from ovseg_batch.models.sam3 import Sam3
from ovseg_batch.stages.earlier import EarlierShard, earlier_shards
from ovseg_batch.stages.sam3 import reuse
from ovseg_batch.stages.sam3.stage import Sam3Stage
from ovseg_batch.workdir.committed import read_lines
from ovseg_batch.workdir.store import StageStore, Workdir, fingerprint
from tests.conftest import Command, Done
from tests.harness.job import Running
from tests.support.tiny_sam3 import save_tiny_sam3

BEFORE = "car; sky; a red house; dog"
IMAGES = 6
LOOSE = ("--set", "sam3.nms=1", "--set", "sam3.contained=1")
KEEP = ("--set", "sam3.cache=embeddings")

Arguments = Callable[..., tuple[object, ...]]


@pytest.fixture(scope="module")
def arguments(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Arguments:
    """Return the arguments of a run in three shards, in this process, without kept tokens."""
    model = save_tiny_sam3(tmp_path_factory.mktemp("sam3"))

    def given(workdir: Path, labels: str, *more: object, images: Path | None = None) -> tuple[object, ...]:
        small = ("--set", "manifest.shard_rows=2", "--workers", "0", "--set", f"sam3.model=local-dir:{model}")
        own = ("--set", "sam3.cache=none", *small, *LOOSE)
        return ("run", images or few_scenes / "images", "-o", workdir, "-c", "sam3", "--labels", labels, *own, *more)

    return given


@pytest.fixture
def run(arguments: Arguments, command: Command) -> Callable[..., Done]:
    def given(*args: Any, **more: Any) -> Done:
        done = command(*arguments(*args, **more))
        assert done.returncode == 0, done.stderr
        return done

    return given


@pytest.fixture(scope="module")
def before(
    arguments: Arguments, tmp_path_factory: pytest.TempPathFactory, command: Command
) -> Callable[[tuple[str, ...]], Path]:
    """Return a run for the words `BEFORE` with some settings. It is computed once."""

    @functools.cache
    def finished(more: tuple[str, ...]) -> Path:
        workdir = tmp_path_factory.mktemp("before") / "run"
        done = command(*arguments(workdir, BEFORE, *more))
        assert done.returncode == 0, done.stderr
        return workdir

    return finished


@pytest.fixture
def copied(before: Callable[[tuple[str, ...]], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(before(()), tmp_path / "copied", symlinks=True))


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """The forwards of this process: images encoded, and the number of words of each search of an image."""
    counts: dict[str, list[int]] = {"images": [], "words": []}
    see, answer = Sam3.see, Sam3.answer

    def seeing(self: Sam3, image: Any) -> Any:
        counts["images"].append(1)
        return see(self, image)

    def answering(self: Sam3, tokens: Any, words: Any, floor: float, keep: Any, chosen: Any, every: bool) -> Any:
        counts["words"].append(len(chosen))
        return answer(self, tokens, words, floor, keep, chosen, every)

    monkeypatch.setattr(Sam3, "see", seeing)
    monkeypatch.setattr(Sam3, "answer", answering)
    return counts


def files(workdir: Path, *stages: str) -> dict[str, bytes]:
    """Return the data of the latest run's stages, by path."""
    folders = [one["folder"] for one in Workdir(workdir).read_plan()["stages"] if one["name"] in stages]
    paths = [path for folder in folders for path in (workdir / "stages" / folder / "data").rglob("*") if path.is_file()]
    assert len(folders) == len(stages) and paths
    return {path.relative_to(workdir).as_posix(): path.read_bytes() for path in paths}


def reused(workdir: Path) -> int:
    return sum(commit.reused for commit in latest(workdir).commits())


def latest(workdir: Path) -> StageStore:
    return next(one for one in Workdir(workdir).stores() if one.stage == "sam3")


def queries(workdir: Path) -> list[str]:
    found: list[str] = json.loads((latest(workdir).folder / "stage.json").read_text())["inputs"]["settings"]["queries"]
    return found


LISTS = {
    "added": ("car; sky; a red house; dog; water", 1),
    "removed": ("sky; dog", 0),
    "reordered": ("dog; a red house; car; sky", 0),
    "regrouped": ("vehicle: car, van; nature: sky, dog", 1),
    "renamed": ("a: car; b: sky; c: a red house; d: dog", 0),
    "others": ("water; van", 2),
    "first": ("water; car", 1),
}


ALL_MAPS, HIGH_FLOOR = ("--set", "sam3.maps=all"), ("--set", "sam3.floor=0.3")


@pytest.mark.parametrize(
    ("name", "more"),
    [
        *((name, more) for name in LISTS for more in ((), KEEP)),
        *((name, more) for name in ("added", "regrouped") for more in (ALL_MAPS, HIGH_FLOOR)),
    ],
)
def test_a_run_with_other_words_has_the_bytes_of_a_new_run(
    name: str,
    more: tuple[str, ...],
    before: Callable[[tuple[str, ...]], Path],
    run: Callable[..., Done],
    tmp_path: Path,
    searched: dict[str, list[int]],
) -> None:
    labels, missing = LISTS[name]
    shutil.copytree(before(more), tmp_path / "run", symlinks=True)
    run(tmp_path / "fresh", labels, *more)
    for counts in searched.values():
        counts.clear()
    done = run(tmp_path / "run", labels, *more, "--json")
    assert searched["words"] == [missing] * IMAGES * (missing > 0)
    assert len(searched["images"]) == (IMAGES if missing and more != KEEP else 0)
    known = IMAGES * (len(queries(tmp_path / "run")) - missing)
    assert json.loads(done.stdout)["reused_words"] == known == reused(tmp_path / "run")
    noted = f"sam3: took the results of {known} words from earlier runs, counted per image"
    assert (noted in done.stderr) == (known > 0)
    assert files(tmp_path / "run", "sam3", "settle") == files(tmp_path / "fresh", "sam3", "settle")
    masks = [json.loads((tmp_path / one / "annotations.json").read_text()) for one in ("run", "fresh")]
    assert masks[0]["annotations"] == masks[1]["annotations"] != []
    assert not Workdir(tmp_path / "run").verify()


def test_some_words_have_scores_and_no_mask(before: Callable[[tuple[str, ...]], Path]) -> None:
    """So the tests above show that such a word is not searched for again."""
    words = [word for line in lines(before(())) for word in line["words"]]
    assert any(not word["found"] and word["best"] > 0 for word in words)


def lines(workdir: Path) -> list[dict[str, Any]]:
    store = latest(workdir)
    return [line for commit in store.commits() for line in read_lines(store, commit.shard)]


def test_words_of_several_runs_are_joined(
    copied: Path, run: Callable[..., Done], tmp_path: Path, searched: dict[str, list[int]], monkeypatch: Any
) -> None:
    """A run whose words are all among those of another is not read."""
    run(copied, "water; tree")
    run(copied, "sky; water")
    searched["words"].clear()
    read: list[str] = []
    known = reuse.KnownWords.add

    def adding(self: Any, shard: EarlierShard, *rest: Any) -> None:
        read.append(shard.store.folder.name)
        known(self, shard, *rest)

    monkeypatch.setattr(reuse.KnownWords, "add", adding)
    run(copied, "tree; car; lamp; water; sky; dog")
    assert searched["words"] == [1] * IMAGES and len(read) == 3 * 2 and len({*read}) == 2
    run(tmp_path / "fresh", "tree; car; lamp; water; sky; dog")
    assert files(copied, "sam3", "settle") == files(tmp_path / "fresh", "sam3", "settle")


def test_a_query_with_other_words_searches_only_for_them(
    run: Callable[..., Done], tmp_path: Path, command: Command, searched: dict[str, list[int]]
) -> None:
    original, answer, full = (tmp_path / name for name in ("original", "answer", "full"))
    run(original, BEFORE, *KEEP)
    run(full, "water; car", *KEEP)
    for counts in searched.values():
        counts.clear()
    done = command("query", original, "--labels", "water; car", "-o", answer, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["reused_words"] == IMAGES
    assert searched == {"images": [], "words": [1] * IMAGES}
    assert (answer / "annotations.json").read_bytes() == (full / "annotations.json").read_bytes()
    assert files(answer, "sam3", "settle") == files(full, "sam3", "settle")


@pytest.mark.parametrize("setting", ["sam3.floor=0.2", "sam3.mask=0.4", "sam3.maps=all", "sam3.tile=400"])
def test_a_run_with_other_settings_is_not_used(setting: str, copied: Path, run: Callable[..., Done]) -> None:
    run(copied, BEFORE, "--set", setting)
    assert reused(copied) == 0


def test_a_changed_image_is_searched_for_every_word(
    run: Callable[..., Done], few_scenes: Path, tmp_path: Path, searched: dict[str, list[int]]
) -> None:
    images = Path(shutil.copytree(few_scenes / "images", tmp_path / "images"))
    names = sorted(images.iterdir())
    for more in ((), KEEP):
        workdir, fresh = tmp_path / f"run{len(more)}", tmp_path / f"fresh{len(more)}"
        run(workdir, BEFORE, *more, images=images)
        names[3].write_bytes(names[0].read_bytes() + bytes(1 + len(more)))
        searched["words"].clear()
        run(workdir, "car; water", "--update", *more, images=images)
        assert searched["words"] == [1, 1, 1, 2, 1, 1]
        run(fresh, "car; water", *more, images=images)
        found, wanted = (json.loads((one / "annotations.json").read_text())["annotations"] for one in (workdir, fresh))
        assert found == wanted != []


def test_a_failed_row_is_searched_again(
    arguments: Arguments, run: Callable[..., Done], few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    images = Path(shutil.copytree(few_scenes / "images", tmp_path / "images"))
    victim = sorted(images.iterdir())[2]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    assert command(*arguments(tmp_path / "run", BEFORE, images=images)).returncode == 3
    victim.write_bytes(whole)
    run(tmp_path / "run", "car; water", "--update", images=images)
    assert reused(tmp_path / "run") == IMAGES - 1
    run(tmp_path / "fresh", "car; water", images=images)
    found, wanted = (
        json.loads((tmp_path / one / "annotations.json").read_text())["annotations"] for one in ("run", "fresh")
    )
    assert found == wanted


def test_prompts_of_a_row_have_the_words_that_are_known(
    run: Callable[..., Done], few_scenes: Path, tmp_path: Path, searched: dict[str, list[int]]
) -> None:
    paths = sorted((few_scenes / "images").iterdir())
    rows = [{"path": str(path), "prompts": ["car"] if k % 2 else ["car", "sky"]} for k, path in enumerate(paths)]
    listed = tmp_path / "list.jsonl"
    listed.write_text("\n".join(map(json.dumps, rows)))
    run(tmp_path / "run", "car; sky", images=listed)
    searched["words"].clear()
    run(tmp_path / "run", "sky; car; dog", images=listed)
    assert searched["words"] == [] and reused(tmp_path / "run") == 9
    run(tmp_path / "fresh", "sky; car; dog", images=listed)
    assert files(tmp_path / "run", "sam3", "settle") == files(tmp_path / "fresh", "sam3", "settle")


def damage(store: StageStore, what: str) -> None:
    table, arrays, record = store.data_path(1, ".parquet"), store.data_path(1, ".npz"), store.commit_path(1)
    if what in ("table", "arrays"):
        path = table if what == "table" else arrays
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    elif what == "cut":
        arrays.write_bytes(arrays.read_bytes()[:-1])
    elif what == "gone":
        table.unlink()
    elif what == "uncommitted":
        record.unlink()
    elif what == "record":
        record.write_bytes(record.read_bytes().replace(b'"ok": 2', b'"ok": 1').replace(b'"ok":2', b'"ok":1'))
    elif what == "stage.json":
        path = store.folder / "stage.json"
        content = json.loads(path.read_text())
        content["inputs"]["settings"]["queries"][0] = "water"
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("what", ["table", "arrays", "cut", "gone", "uncommitted", "record", "stage.json"])
def test_damaged_and_uncommitted_shards_are_not_used(
    what: str, copied: Path, run: Callable[..., Done], tmp_path: Path
) -> None:
    damage(latest(copied), what)
    done = run(copied, "car; water; dog")
    assert reused(copied) == (0 if what == "stage.json" else 2 * 4)
    assert ("shard 1 differs from its commit" in done.stderr) == (what in ("table", "arrays"))
    run(tmp_path / "fresh", "car; water; dog")
    assert files(copied, "sam3", "settle") == files(tmp_path / "fresh", "sam3", "settle")


def test_memory_that_runs_out_halves_the_words_of_a_chunk(
    copied: Path, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    load, sizes = Sam3.load, []

    def loading(*args: Any) -> Sam3:
        sam3 = load(*args)
        sam3.alone, encode = False, sam3.model.detr_encoder.forward  # as on a GPU

        def limited(*args: Any, text_features: torch.Tensor, **more: Any) -> Any:
            sizes.append(len(text_features))
            if len(text_features) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return encode(*args, text_features=text_features, **more)

        sam3.model.detr_encoder.forward = limited
        return sam3

    monkeypatch.setattr(Sam3, "load", loading)
    done = run(copied, "car; water; tree; van; dog", "--set", "sam3.words_chunk=4")
    assert sizes == [4, *[1] * 3 * IMAGES]
    assert "1 words at once instead of 4" in done.stderr and reused(copied) == 2 * IMAGES


@pytest.mark.slow("kill -9 while words of an earlier run are taken loses at most the shard in flight")
@pytest.mark.parametrize("kept", ["none", "embeddings"])
def test_a_killed_run_resumes_to_the_same_bytes(
    kept: str, arguments: Arguments, run: Callable[..., Done], tmp_path: Path, start: Callable[..., Running]
) -> None:
    cache = ("--set", f"sam3.cache={kept}")
    run(tmp_path / "first", BEFORE, *cache)
    run(tmp_path / "fresh", "car; water; dog", *cache)
    for point in ("sam3.row:3", "sam3.data:2", "sam3.rename:3", "sam3.commit:2"):
        workdir = Path(shutil.copytree(tmp_path / "first", tmp_path / point, symlinks=True))
        killed = start(*arguments(workdir, "car; water; dog", *cache), OVSEG_FAILPOINTS=point).wait()
        assert killed.code == -signal.SIGKILL
        run(workdir, "car; water; dog", *cache)
        assert reused(workdir) == 2 * IMAGES
        assert files(workdir, "sam3", "settle") == files(tmp_path / "fresh", "sam3", "settle")
        assert not Workdir(workdir).verify()


@pytest.mark.slow("the words of a killed run are those that it has committed")
def test_the_words_of_a_killed_run_are_those_of_its_commits(
    arguments: Arguments, run: Callable[..., Done], tmp_path: Path, start: Callable[..., Running]
) -> None:
    killed = start(*arguments(tmp_path / "run", BEFORE), OVSEG_FAILPOINTS="sam3.commit:2").wait()
    assert killed.code == -signal.SIGKILL
    run(tmp_path / "run", "car; water; dog")
    assert reused(tmp_path / "run") == 2 * 2
    run(tmp_path / "fresh", "car; water; dog")
    assert files(tmp_path / "run", "sam3", "settle") == files(tmp_path / "fresh", "sam3", "settle")


def neighbour(workdir: Path) -> StageStore:
    """Return the empty folder of a run with other words."""
    inputs = json.loads((latest(workdir).folder / "stage.json").read_text())["inputs"]
    inputs["settings"] |= {"queries": ["water"], "query_class": [0], "classes": ["water"]}
    store = Workdir(workdir).stage("sam3", fingerprint(inputs))
    store.create(inputs)
    return store


def test_gc_deletes_no_folder_whose_words_are_being_read(copied: Path) -> None:
    old, store = latest(copied), neighbour(copied)
    stage: Any = type("Words", (), {"words_in": Sam3Stage.words_in})
    with earlier_shards(stage, store, 0, {}) as [found]:
        Workdir(copied).remove(old.folder)
        assert found.lines() and found.store.folder == old.folder
    Workdir(copied).remove(old.folder)
    assert not old.folder.exists()
    with earlier_shards(stage, store, 0, {}) as found_none:
        assert found_none == []


def test_a_shard_that_another_command_replaces_is_not_read(copied: Path) -> None:
    store = neighbour(copied)
    stage: Any = type("Words", (), {"words_in": Sam3Stage.words_in})
    with earlier_shards(stage, store, 0, {}) as [found]:
        found.store.uncommit(0)
        with pytest.raises(OvsegError, match="replaced"):
            found.lines()
        with pytest.raises(OvsegError, match="replaced"), found.open():
            pass
