"""The figures of a run for other programs: the metrics file, and log lines in JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ovseg_batch.engine.flight import InFlight
from ovseg_batch.runs.meter import METRICS, Meter
from ovseg_batch.types import Commit
from tests.conftest import Command, run_arguments


def commit(shard: int, rows: int, failed: dict[str, int], seconds: float) -> Commit:
    return Commit("dense", "f", shard, rows, rows - sum(failed.values()), failed, (), 1, seconds, "here")


def test_the_metrics_file_is_what_prometheus_reads(tmp_path: Path) -> None:
    now = [100.0]
    path = tmp_path / "ovseg.prom"
    before = [commit(0, 10, {"empty": 1}, 99.0)]
    meter = Meter("dense", "stage 1 of 2", 40, 40, before, {}, 2, False, metrics=path, clock=lambda: now[0])
    now[0] += 60.0  # the models load
    with meter:
        meter.follow(InFlight(1, 10))
        now[0] += 5.0
        meter.add(commit(1, 10, {"empty": 1, "truncated": 2}, 4.0))
        now[0] += 5.0
        meter.add(commit(2, 10, {}, 6.0))
    lines = path.read_text().splitlines()
    for name in METRICS:
        assert f"# TYPE {name} gauge" in lines and any(line.startswith(f"# HELP {name} ") for line in lines)
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['ovseg_images{stage="dense"}'] == "40" and values['ovseg_images_done{stage="dense"}'] == "30"
    assert values['ovseg_images_failed{stage="dense",code="empty"}'] == "2"
    assert values['ovseg_images_failed{stage="dense",code="truncated"}'] == "2"
    assert values['ovseg_images_per_second{stage="dense"}'] == "2.0"  # what was there before is not counted
    assert values['ovseg_busy_ratio{stage="dense"}'] == "0.5"
    assert all(re.fullmatch(r'[a-z_]+\{([a-z]+="[^"]*",?)+\} \d+(\.\d+)?', line) for line in lines if line[0] != "#")


def test_a_metrics_file_that_cannot_be_written_ends_no_run(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "file").write_text("no folder")
    metrics = tmp_path / "file" / "m.prom"
    arguments = run_arguments(few_scenes / "images", tmp_path / "run", "--set", f"run.metrics_file={metrics}")
    done = command(*arguments)
    assert done.returncode == 0
    assert done.stderr.count("cannot be written any more") == 2  # once a stage


def test_the_metrics_file_replaces_no_other_file(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    mine = tmp_path / "photograph.png"
    mine.write_bytes(b"mine")
    for place in (mine, tmp_path):
        arguments = run_arguments(few_scenes / "images", tmp_path / "run", "--set", f"run.metrics_file={place}")
        refused = command(*arguments)
        assert refused.returncode == 2 and f"{place} exists, and this command did not write it" in refused.stderr
    assert mine.read_bytes() == b"mine"


def test_the_log_has_a_json_line_for_every_shard(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    metrics = tmp_path / "m.prom"
    arguments = run_arguments(few_scenes / "images", tmp_path / "run", "--set", f"run.metrics_file={metrics}")
    done = command("--log-format", "json", *arguments)
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    shards = [line for line in lines if line.get("event") == "shard"]
    assert [(line["stage"], line["done"]) for line in shards if line["stage"] == "refine"] == [
        ("refine", 2),
        ("refine", 4),
        ("refine", 6),
    ]
    assert all(
        line["images_per_second"] > 0 and line["eta_seconds"] >= 0 and line["time"][10] == "T" for line in shards
    )
    assert 'ovseg_images_done{stage="refine"} 6' in metrics.read_text()
    plain = command(*run_arguments(few_scenes / "images", tmp_path / "plain"))
    assert "shard 0" not in plain.stderr
