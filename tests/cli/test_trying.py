"""`try`: a sample of a list, its page and sheet, and the command of the run."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ovseg_batch.config import load_config
from ovseg_batch.errors import UsageError
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.runs.trying.confusions import Confusions, confusions_of
from ovseg_batch.runs.trying.trial import keeping, try_images
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir
from tests.conftest import LABELS, Command, data_files
from tests.harness.job import Running

FEW = ("-n", "4", "--workers", "0")


@pytest.fixture(scope="module")
def tried(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> tuple[Path, dict[str, Any]]:
    """A trial of four of six scenes, and its JSON."""
    folder = tmp_path_factory.mktemp("tried") / "try"
    done = command("try", few_scenes / "images", "-o", folder, "--labels", LABELS, *FEW, "--json", "--price", "3")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_a_trial_is_a_workdir_with_a_page_and_a_forecast(tried: tuple[Path, dict[str, Any]]) -> None:
    folder, record = tried
    assert (record["images"], record["sampled"], record["failures"]) == (6, 4, 0)
    assert record["seconds_low"] <= record["seconds"] <= record["seconds_high"]
    assert record["cost"] == pytest.approx(3 * record["seconds"] / 3600)
    assert sum(stage["share"] for stage in record["stages"]) == pytest.approx(1, abs=0.2)
    assert record["computed_shards"] == {"encode": 4, "dense": 4, "refine": 4}
    assert 0 < record["disk_bytes"] < record["free_bytes"]
    assert "arrays of dense" in record["disk"] and "arrays of encode" not in record["disk"], "as the run will keep them"
    page = Path(record["page"]).read_text(encoding="utf-8")
    assert "6 images:" in page and "Start the run" in page
    assert Results.open(Workdir(folder)).manifest.rows == 4


def test_other_labels_compute_only_the_last_stage(
    tried: tuple[Path, dict[str, Any]], few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(tried[0], tmp_path / "try")
    arguments = ("try", few_scenes / "images", "-o", tmp_path / "try", "-n", "4", "--labels", "car; sky", "--json")
    done = command(*arguments)  # without --workers: nothing opens an image, so this process computes it
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["computed_shards"] == {"encode": 0, "dense": 0, "refine": 4}
    assert "these labels replace" not in done.stderr
    assert json.loads(command(*arguments).stdout)["computed_shards"] == {"encode": 0, "dense": 0, "refine": 0}


def test_competing_labels_come_from_kept_features(tried: tuple[Path, dict[str, Any]], finished: Path) -> None:
    def confusions(folder: Path) -> Confusions | None:
        workdir = Workdir(folder)
        stores = {store.stage: store for store in workdir.stores()}
        return confusions_of(load_config(workdir.config, environment={}), stores, Manifest.open(workdir.manifest))

    found = confusions(tried[0])
    assert found is not None and set(found.names) == set(LABELS.split(", "))
    assert found.first.sum() > 0 and (found.seconds.sum(axis=1) <= found.first).all()
    assert not found.seconds.diagonal().any() and found.cosines.diagonal() == pytest.approx(1)
    assert confusions(finished) is None, "a run without features"


def test_other_images_need_another_folder(
    tried: tuple[Path, dict[str, Any]], few_scenes: Path, finished: Path, command: Command
) -> None:
    for more in (("-n", "5"), ("-n", "4", "--seed", "1")):
        done = command("try", few_scenes / "images", "-o", tried[0], "--labels", LABELS, *more)
        assert done.returncode == 2 and "holds another sample: 4 images of" in done.stderr
    done = command("try", few_scenes / "images", "-o", finished, "--labels", LABELS)
    assert done.returncode == 2 and "is the workdir of a run" in done.stderr
    assert command("try", "-o", tried[0], "--labels", LABELS).returncode == 2


def test_the_command_at_the_end_starts_the_run(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    images = tmp_path / "it's here"
    shutil.copytree(few_scenes / "images", images)
    sheet = tmp_path / "sheet.png"
    labels = "car; sky"
    done = command(
        "try", images, "-o", tmp_path / "try", "--labels", labels, "--set", "refine.vote=0.5", *FEW, "--sheet", sheet
    )
    assert done.returncode == 0, done.stderr
    with Image.open(sheet) as picture:
        assert picture.format == "PNG" and picture.width > picture.height / 2
    last = done.stdout.splitlines()[-1]
    assert last.startswith("start the run: ovseg-batch run ")
    name, *arguments = shlex.split(last.removeprefix("start the run: "))
    assert name == "ovseg-batch" and str(images) in arguments and "-n" not in arguments
    run = command(*arguments)
    assert run.returncode == 0, run.stderr
    other = tmp_path / "holiday.png"
    Image.new("RGB", (4, 4)).save(other)
    refused = command("try", images, "-o", tmp_path / "try", "--labels", labels, *FEW, "--sheet", other)
    assert refused.returncode == 2 and "did not write it" in refused.stderr


def test_for_a_workdir_samples_its_images_with_its_settings(finished: Path, tmp_path: Path, command: Command) -> None:
    done = command("try", "--for", finished, "-o", tmp_path / "try", *FEW, "--set", "refine.vote=0.4", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["images"] == 6 and set(record["label_images"]) == set(LABELS.split(", "))
    arguments = shlex.split(record["command"])
    assert arguments[arguments.index("-o") + 1] == str(finished)
    assert arguments[arguments.index("-c") + 1] == str(finished / "config.yaml")


def test_a_failed_image_is_a_warning_and_exit_code_3(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    images = tmp_path / "images"
    shutil.copytree(few_scenes / "images", images)
    (images / "broken.png").write_bytes(b"no image")
    done = command("try", images, "-o", tmp_path / "try", "--labels", "car; sky", "-n", "7", "--workers", "0", "--json")
    assert done.returncode == 3, done.stderr
    record = json.loads(done.stdout)
    assert record["failures"] == 1 and "failures" in {one["kind"] for one in record["warnings"]}


def test_a_killed_trial_resumes(
    few_scenes: Path,
    tmp_path: Path,
    tried: tuple[Path, dict[str, Any]],
    start: Callable[..., Running],
    command: Command,
) -> None:
    arguments = ("try", few_scenes / "images", "-o", tmp_path / "try", "--labels", LABELS, *FEW, "--json")
    running = start(*arguments)
    deadline = time.monotonic() + 120
    while not [*(tmp_path / "try").glob("stages/dense-*/commits/*/*.json")] and time.monotonic() < deadline:
        time.sleep(0.05)
    running.process.kill()
    running.process.join()
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert data_files(tmp_path / "try") == data_files(tried[0])


def test_a_file_of_a_person_is_not_replaced(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "try").mkdir()
    (tmp_path / "try" / "try-list.parquet").write_text("mine")
    done = command("try", few_scenes / "images", "-o", tmp_path / "try", "--labels", LABELS, *FEW)
    assert done.returncode == 2 and "did not write it" in done.stderr
    assert (tmp_path / "try" / "try-list.parquet").read_text() == "mine"


def test_everything_is_kept_that_the_settings_allow() -> None:
    kept = keeping(load_config("demo", flags={"labels": "car; sky"}, environment={}))
    assert (kept.dense.cache, kept.sam.cache) == ("features", "embeddings")
    smoothed = load_config("demo", ["dense.key_smoothing=1", "refine.tile=512"], {"labels": "car; sky"}, environment={})
    kept = keeping(smoothed)
    assert (kept.dense.cache, kept.sam.cache) == (smoothed.dense.cache, smoothed.sam.cache)


def test_an_unreadable_record_is_refused(few_scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "try").mkdir()
    (tmp_path / "try" / "try.json").write_text("{}")
    config = load_config("demo", flags={"labels": "car; sky"}, environment={})
    with pytest.raises(UsageError, match="cannot be read"):
        try_images([str(few_scenes / "images")], Workdir(tmp_path / "try"), config, 4, 0)
