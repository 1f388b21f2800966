"""`bench.py paper-gpu`: its times follow from what is counted, and its figures are consistent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks import paper_times
from benchmarks.paper_gpu import paper_gpu
from benchmarks.paper_scenes import Scene, store_scene
from benchmarks.paper_stages import PaperDense, PaperRefine
from click.testing import CliRunner

from ovseg_batch import scenes
from ovseg_batch.config import load_config
from ovseg_batch.models import zoo
from ovseg_batch.stages import registry

SIZE = (96, 128)
IMAGES = 6
DEMO = ("--clip", "demo", "--sam", "demo", "--words", "4", "--megapixels", "0.02", "--images", str(IMAGES))


def test_operations_and_bytes_are_those_of_the_products() -> None:
    first, second = torch.zeros(6, 4), torch.zeros(5, 4)
    work = paper_times.counted(lambda: torch.nn.functional.linear(first, second).view(30) + 1)
    assert [*map(list, work.operators)] == [[2 * 6 * 4 * 5, 4 * (24 + 20 + 30)], [0, 4 * (30 + 30)]]
    gpu = paper_times.Gpu("slow at products, then slow at copying", 1000.0, 1e9, "")
    assert work.least_seconds(gpu) == pytest.approx(0.24 + 240e-9)


def test_published_times_are_scaled_by_the_least_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, sam = zoo.resolve("clip", "demo"), zoo.resolve("sam", "demo")
    least, _ = paper_times.forwards(clip, sam, SIZE, published=True)
    assert least.slower == 1
    known = paper_times.Published(1.0, paper_times.H100, "a test")
    monkeypatch.setitem(paper_times.PUBLISHED, "demo", known)
    found, sources = paper_times.forwards(clip, sam, SIZE, published=True)
    assert (found.windows.seconds, found.encoder.seconds) == pytest.approx((1, 1))
    assert found.slower == pytest.approx(1 / least.windows.seconds)
    assert found.decoder.seconds == pytest.approx(found.slower * least.decoder.seconds)
    assert sources.count("a test") == 2
    assert paper_times.forwards(clip, sam, SIZE, published=False)[0] == least


def test_stored_outputs_are_those_of_the_stages(tmp_path: Path) -> None:
    labels = "; ".join(scenes.CLASSES[:4])
    settings = {"labels": labels, "background": "none", "clip.model": "demo", "sam.model": "demo", "run.device": "cpu"}
    run = registry.resolve(load_config("prompted", flags=settings, environment={}))
    points = store_scene(tmp_path / "0", PaperDense(run), PaperRefine(run), SIZE, seed=1, slower=2.0)
    scene = Scene.open(tmp_path / "0")
    assert scene.labels.shape == scene.confidence.shape == scene.lead.shape == SIZE
    assert len(scene.masks) == len(scene.coverage) == points > 0
    assert 0 < len(scene.areas) == len(scene.stability) <= points
    assert scene.windows.shape[1] == 4
    assert min(scene.label_map.seconds, scene.vote.seconds, scene.label_map.operators, scene.vote.operators) > 0


@pytest.mark.slow("the figures of a GPU on paper come from runs of the pipeline")
def test_figures_of_a_run_are_consistent(few_scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    options = ["--folder", str(few_scenes / "images"), *DEMO, "--workers", "1,2", "--json", str(out)]
    done = CliRunner().invoke(paper_gpu, [*options, "--cores-per-gpu", "8"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    figures = json.loads(out.read_text())
    slower = 8 / figures["cores"]
    assert figures["slower"] == slower
    assert [found["workers"] for found in figures["runs"]] == [1, 2]
    for found in figures["runs"]:
        stages = found["stages"].values()
        assert set(found["stages"]) == {"dense", "refine"}
        for part in (found, *stages):
            assert 0 < part["busy_share"] <= 1
            assert part["core_ms"] > 0
            assert part["images_per_second"] == pytest.approx(slower * IMAGES / part["wall"])
            assert part["cores_per_busy_gpu"] == pytest.approx(part["core_ms"] / part["device_ms"])
        assert all(sum(stage["parts"].values()) == pytest.approx(stage["cpu"]) for stage in stages)
        for stage in stages:
            assert stage["workers_per_busy_gpu"] == pytest.approx(stage["slowest_step_ms"] / stage["device_ms"])
            assert stage["slowest_step"] in stage["parts"]
        assert found["device_ms"] == pytest.approx(sum(stage["device_ms"] for stage in stages))
    first, second = (found["device_ms"] for found in figures["runs"])
    assert first == pytest.approx(second)


def test_numbers_of_words_that_no_data_set_has_are_an_error() -> None:
    done = CliRunner().invoke(paper_gpu, [*DEMO, "--words", "1000"])
    assert done.exit_code == 2
    assert "--words: 1000 is not between 1 and" in done.output
