"""Runs from Python: masks, tables, exports and errors."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import multiprocessing
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

import ovseg_batch
from ovseg_batch.errors import OvsegError, RowError, UsageError
from ovseg_batch.workdir.results import Results
from tests.conftest import LABELS, Command

NAMES = LABELS.split(", ")
QUICK = {"manifest.shard_rows": 3, "refine.method": "none", "run.workers": 0}


@pytest.fixture(scope="module")
def run(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> ovseg_batch.Run:
    workdir = tmp_path_factory.mktemp("api") / "run"
    return ovseg_batch.run(
        few_scenes / "images", NAMES, workdir, config="demo", settings={"manifest.shard_rows": 2}, progress=False
    )


def test_a_run_gives_masks_as_arrays(run: ovseg_batch.Run) -> None:
    assert run.complete and len(run) == 6 and run.labels == tuple(NAMES) and run.failures == []
    images = list(run)
    coco = run.to_coco()
    assert [image.name for image in images] == [entry["file_name"] for entry in coco["images"]]
    masks = [mask for image in images for mask in image.masks]
    assert len(masks) == len(coco["annotations"])
    for mask, entry in zip(masks, coco["annotations"], strict=True):
        assert mask.array.dtype == bool and mask.array.sum() == mask.area == entry["area"]
        assert np.array_equal(mask.array, coco_mask.decode(entry["segmentation"]).astype(bool))
        assert (mask.score, mask.confidence) == pytest.approx((entry["score"], entry["confidence"]), abs=1e-6)
        assert mask.label == NAMES[entry["category_id"] - 1]
    for image in images:
        own = [mask.confidence for mask in image.masks]
        assert image.confidence == min(own) and image.unsure == sum(value < 0.5 for value in own)


def test_a_run_says_how_many_images_have_each_label(run: ovseg_batch.Run) -> None:
    counted = dict.fromkeys(NAMES, 0)
    for image in run:
        for label in {mask.label for mask in image.masks}:
            counted[label] += 1
    assert run.label_images == counted and list(run.label_images) == NAMES
    assert 0 in counted.values() and max(counted.values()) > 1


def test_an_image_can_be_looked_at(run: ovseg_batch.Run) -> None:
    image = run[next(iter(run)).name]
    assert image.read().shape == (image.height, image.width, 3)
    shown = Image.open(io.BytesIO(image._repr_png_()))
    assert shown.size == (image.width, image.height)
    labels = image.label_map(NAMES)
    for mask in image.masks:
        assert (labels[mask.array] == NAMES.index(mask.label)).all()
        inside = np.asarray(shown)[mask.array].astype(int)
        assert np.abs(inside - image.read()[mask.array]).mean() > 5
    with pytest.raises(KeyError):
        run["nowhere.png"]


def test_finished_images_by_place(run: ovseg_batch.Run) -> None:
    images = list(run)
    assert [run[k] for k in range(6)] == images == [run[k - 6] for k in range(6)]
    assert run[1:5] == images[1:5] and run[::-2] == images[::-2] and run[4:100] == images[4:] and run[9:] == []
    assert run[np.int64(2)] == images[2] == run[images[2].name]  # type: ignore[call-overload]
    for place in (6, -7):
        with pytest.raises(IndexError, match="6 finished images"):
            run[place]


def test_only_the_shards_of_a_place_are_read(run: ovseg_batch.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    reading = Results.shard

    def shard(self: Results, number: int) -> object:
        read.append(number)
        return reading(self, number)

    monkeypatch.setattr(Results, "shard", shard)
    again = ovseg_batch.Run(run.workdir)
    assert again[-1] == run[5] and again[4].name == run[4].name
    del read[:]
    assert again[2].name and again[3].name and again[1:3]
    assert read == [1, 0, 1]


def test_places_count_finished_images_alone(few_scenes: Path, tmp_path: Path) -> None:
    """Among six images one is broken, and one shard is not committed."""
    images = tmp_path / "images"
    shutil.copytree(few_scenes / "images", images)
    names = sorted(path.name for path in images.iterdir())
    (images / names[2]).write_bytes(b"")
    run = ovseg_batch.run(images, "sky; tree", tmp_path / "run", config="demo", settings=QUICK, progress=False)
    assert [image.name for image in run[:]] == [*names[:2], *names[3:]] and run[2].name == names[3]
    assert run.failures[0].key == names[2]
    next((run.workdir / "stages").glob("refine-*/commits/000/000000.json")).unlink()
    assert [image.name for image in run[:]] == names[3:] and run[0] == run[-3] == run[names[3]]
    for name in names[:3]:
        with pytest.raises(KeyError):
            run[name]


def test_masks_have_the_figures_of_their_measures(run: ovseg_batch.Run) -> None:
    masks = [mask for image in run for mask in image.masks]
    assert {mask.source for mask in masks} == {"sam", "dense"}
    for mask in masks:
        assert mask.margin is not None and 0 <= mask.margin <= 1
        assert mask.coverage is not None and 0 <= mask.coverage <= 1
        drawn = mask.source == "sam"
        assert (mask.predicted_iou is not None) == drawn == (mask.stability is not None)


def test_masks_as_polygons(run: ovseg_batch.Run) -> None:
    for mask in run[0].masks:
        rings = [ring.ravel().tolist() for ring in mask.polygons()]
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rings, *mask.size)))
        assert np.array_equal(drawn.astype(bool), mask.array)
        assert sum(map(len, mask.polygons(tolerance=2.0))) < sum(map(len, mask.polygons()))


def test_masks_as_a_data_frame(run: ovseg_batch.Run, tmp_path: Path) -> None:
    frame = run.to_pandas()
    csv = pandas.read_csv(run.export("csv", tmp_path / "masks.csv").paths[0])
    assert len(frame) == len(csv) == sum(len(image.masks) for image in run)
    assert set(csv.columns) - set(frame.columns) == {"key", "split", "rle"} and set(frame.columns) < set(csv.columns)
    for name in frame.columns:
        if csv[name].dtype.kind == "f":
            assert np.allclose(frame[name].astype(float), csv[name], rtol=1e-5, equal_nan=True), name
        else:
            assert frame[name].tolist() == csv[name].tolist(), name
    assert run[0].to_pandas()["label"].tolist() == [mask.label for mask in run[0].masks]


def test_masks_as_detections(run: ovseg_batch.Run) -> None:
    image = run[0]
    found = image.to_supervision()
    assert found.class_id is not None and found.mask is not None and found.confidence is not None
    assert found.area.tolist() == [mask.area for mask in image.masks]
    alike = found[found.class_id == found.class_id[0]]
    assert isinstance(alike, type(found))
    assert len(alike) == sum(mask.label == image.masks[0].label for mask in image.masks)
    for k, mask in enumerate(image.masks):
        assert np.array_equal(found.mask[k], mask.array)
        rows, columns = np.nonzero(mask.array)
        assert found.xyxy[k].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert NAMES[found.class_id[k]] == mask.label == found.data["class_name"][k]
        assert found.confidence[k] == pytest.approx(mask.confidence)
    nothing = dataclasses.replace(image, masks=()).to_supervision()
    assert nothing.mask is not None
    assert nothing.mask.shape == (0, image.height, image.width)


def test_a_library_that_is_missing_is_named(run: ovseg_batch.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, convert in (("pandas", run.to_pandas), ("supervision", run[0].to_supervision)):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UsageError, match=f"{name} is not installed. Run `pip install {name}`"):
            convert()


def test_images_are_read_under_the_limits_of_their_run(few_scenes: Path, tmp_path: Path) -> None:
    run = ovseg_batch.run(
        few_scenes / "images", "sky; tree", tmp_path / "run", config="demo", settings=QUICK, progress=False
    )
    assert run[0].read().shape == (run[0].height, run[0].width, 3)
    config = run.workdir / "config.yaml"
    tree = yaml.safe_load(config.read_text())
    tree["run"]["max_pixels"] = 100
    config.write_text(yaml.safe_dump(tree))
    with pytest.raises(RowError, match=r"more than run\.max_pixels=100"):
        ovseg_batch.Run(run.workdir)[0].read()


def test_a_daemonic_process_computes_by_itself(few_scenes: Path, tmp_path: Path) -> None:
    """Workers of Celery and Airflow are daemonic: `multiprocessing` refuses to start children there."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=in_a_daemon, args=(few_scenes / "images", tmp_path), daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 0
    run = ovseg_batch.Run(tmp_path / "run")
    assert run.complete and len(run) == 6
    assert "This process is daemonic" in (tmp_path / "log").read_text()
    assert len(ovseg_batch.Run(tmp_path / "other")) == 6


def in_a_daemon(images: Path, folder: Path) -> None:
    logging.basicConfig(filename=folder / "log")
    settings = {**QUICK, "run.workers": 2, "dense.cache": "features"}
    run = ovseg_batch.run(images, "sky; tree", folder / "run", config="demo", settings=settings, progress=False)
    run.query("ball", folder / "other", settings={"run.workers": 2})
    run.export("csv", folder / "masks.csv")
    run.report(folder / "report")


def test_the_same_call_gives_back_what_is_there(run: ovseg_batch.Run, few_scenes: Path) -> None:
    commits = sorted((run.workdir / "stages").glob("*/commits/*/*.json"))
    before = [path.stat().st_mtime_ns for path in commits]
    again = ovseg_batch.run(
        str(few_scenes / "images"),
        LABELS,
        run.workdir,
        config="demo",
        settings={"manifest.shard_rows": 2},
        progress=False,
    )
    assert [path.stat().st_mtime_ns for path in commits] == before and len(again) == 6
    assert "6 images of 20 labels, complete" in repr(again)


def test_a_run_in_this_process_restores_the_number_of_threads(few_scenes: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    settings = {"run.threads": before + 1, "run.workers": 0, "refine.method": "none"}
    ovseg_batch.run(few_scenes / "images", NAMES, tmp_path / "run", config="demo", settings=settings, progress=False)
    assert torch.get_num_threads() == before


def test_exports_and_reports_from_python(run: ovseg_batch.Run, tmp_path: Path) -> None:
    done = run.export("csv", tmp_path / "masks.csv")
    assert done.complete and done.paths == [tmp_path / "masks.csv"]
    with pytest.raises(UsageError, match="Did you mean 'panoptic'"):
        run.export("panoptics", tmp_path / "x")
    assert run.report(tmp_path / "report").is_file()


def test_what_cannot_be_done_is_refused(run: ovseg_batch.Run, few_scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a workdir"):
        ovseg_batch.Run(tmp_path)
    with pytest.raises(UsageError, match=r"Did you mean 'refine\.vote'"):
        ovseg_batch.run(few_scenes / "images", "sky", tmp_path / "run", config="demo", settings={"refine.votee": 1})
    assert not (tmp_path / "run").exists()
    commit = next((run.workdir / "stages").glob("refine-*/commits/000/000001.json"))
    content = commit.read_bytes()
    commit.unlink()
    try:
        half = ovseg_batch.Run(run.workdir)
        assert not half.complete and len(half) == len(list(half)) == 4
        assert half.label_images is None
        with pytest.raises(OvsegError, match="not finished"):
            half.to_coco()
    finally:
        commit.write_bytes(content)
    written = (run.workdir / "annotations.json").read_bytes()
    (run.workdir / "annotations.json").write_bytes(b"\x8a" + written[1:])
    try:
        with pytest.raises(OvsegError, match=r"annotations\.json is damaged .* `ovseg-batch verify --repair"):
            ovseg_batch.Run(run.workdir).to_coco()
    finally:
        (run.workdir / "annotations.json").write_bytes(written)


def test_a_notebook_gets_a_bar(few_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ovseg_batch.run(few_scenes / "images", "sky; tree", tmp_path / "run", config="demo")
    printed = capsys.readouterr().err
    assert re.search(r"dense, stage 1 of 2: 100%.*6/6 images, [\d.]+ images/s, 0 failed", printed)


def test_reading_a_run_imports_no_torch(run: ovseg_batch.Run) -> None:
    code = f"""
import sys, ovseg_batch
run = ovseg_batch.Run({str(run.workdir)!r})
print(len(run), run[0].name, len(list(run)), run.labels, run.to_coco().keys(), ovseg_batch.Selection, ovseg_batch.run)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    for name in ovseg_batch.__all__:
        assert getattr(ovseg_batch, name) is not None
    assert ovseg_batch.UsageError is UsageError
    with pytest.raises(AttributeError, match="nothing"):
        ovseg_batch.nothing  # noqa: B018


def test_the_wheel_says_that_the_package_is_typed() -> None:
    """PEP 561: type checkers read annotations of a package with a file `py.typed`."""
    from hatchling.builders.wheel import WheelBuilder

    root = Path(__file__).parents[2]
    files = {file.distribution_path for file in WheelBuilder(str(root)).recurse_included_files()}
    assert {"ovseg_batch/py.typed", "ovseg_batch/api/runs.py"} <= files


def test_embedded_models_are_named_wherever_their_masks_are(
    run: ovseg_batch.Run, command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.warns(UserWarning, match="clip.model and sam.model: embedded demo weights, trained on rendered scenes"):
        ovseg_batch.Segmenter("sky", config="demo")
    assert "embedded" not in caplog.text, "the same note twice"
    assert run.to_coco()["info"]["embedded_models"] == ["clip.model", "sam.model"]
    done = command("status", run.workdir)
    assert "note: clip.model and sam.model: embedded demo weights" in done.stdout
    assert json.loads(command("status", run.workdir, "--json").stdout)["embedded_models"] == ["clip.model", "sam.model"]


@pytest.mark.parametrize("bad", ["a\0b", "a\ud800b", "x" * 5000])
def test_texts_that_no_file_can_have_as_its_path_are_refused(bad: str, few_scenes: Path, tmp_path: Path) -> None:
    def run(
        images: str | Path = few_scenes / "images",
        labels: str = "cat",
        workdir: Path = tmp_path / "out",
        config: str = "demo",
        settings: dict[str, object] | None = None,
    ) -> None:
        ovseg_batch.run(images, labels, workdir, config=config, settings=settings, progress=False)

    filled: dict[str, object] = {"edit.mode": "fill", "edit.fill.kind": "image", "edit.fill.image": bad}
    for call in (
        lambda: run(images=bad),
        lambda: run(labels=f"@{bad}"),
        lambda: run(workdir=tmp_path / bad),
        lambda: run(config=f"{bad}.yaml"),
        lambda: run(settings=filled),
        lambda: run(settings={"clip.weights": bad}),
        lambda: run(settings={"run.metrics_file": bad}),
        lambda: ovseg_batch.Run(tmp_path / bad),
    ):
        with pytest.raises(UsageError):
            call()
    assert not (tmp_path / "out").exists()
