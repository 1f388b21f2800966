"""scripts/gpu_check.py on an emulated GPU: it passes there, and every kind of check can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_checks import comparison, models, resume, speed, throughput
from gpu_checks.records import Check, Record, Report, Setting
from gpu_checks.sections import SECTIONS
from gpu_checks.summary import Summary
from PIL import Image
from pycocotools import mask as coco

ROOT = Path(__file__).parents[2]
SECONDS = 1500  # far more than it takes: the time is no part of these tests
TRIGGER = "assert@faults.py:device_side_assert"  # the emulation has no kernels whose asserts could fail


def gpu_check(*options: object, **environment: str) -> tuple[int, list[str]]:
    """Run the script on an emulated GPU; exit code and lines of its output."""
    emulated = {"EMULATED_GPUS": "1", "EMULATED_MEMORY": str(4 << 30), "EMULATED_FAULTS": TRIGGER, **environment}
    emulated |= {"PYTHONPATH": str(ROOT / "tests" / "support" / "emulated_gpu"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "scripts" / "gpu_check.py", "--quick", "--budget", SECONDS, *options]
    ended = subprocess.run(
        [*map(str, command)], env={**os.environ, **emulated}, capture_output=True, text=True, timeout=SECONDS
    )
    return ended.returncode, ended.stdout.splitlines()


@pytest.mark.slow("a GPU is checked against the CPU before it is trusted")
def test_every_section_passes_on_an_emulated_gpu_and_recommends_settings(tmp_path: Path) -> None:
    code, lines = gpu_check("--json", tmp_path / "checks.json", "--out", tmp_path / "out")
    assert lines[-1].startswith("OK; recommended: "), "\n".join(lines)
    assert code == 0
    found = json.loads((tmp_path / "checks.json").read_text())
    assert found["passed"] and set(found["settings"]) == {"run.batch_size", "run.point_chunk", "run.precision"}
    with_limits = {check["section"] for check in found["checks"] if check["limit"]}
    assert with_limits == set(SECTIONS)


def test_a_gpu_that_fails_is_named_in_the_last_line() -> None:
    code, lines = gpu_check("--only", "environment", EMULATED_FAULTS="unusable")
    assert code == 1
    assert lines[-1].startswith("FAILED: ") and "environment: product in fp32" in lines[-1]
    assert lines[-1].endswith("only environment")


def test_a_section_without_time_left_is_not_passed_over_in_silence() -> None:
    code, lines = gpu_check("--only", "environment", "--budget", 0)
    assert code == 1
    assert lines[-1] == "FAILED: environment; time budget: environment not completed; only environment"


def test_without_a_gpu_one_sentence_and_exit_2() -> None:
    code, lines = gpu_check(EMULATED_GPUS="0", CUDA_VISIBLE_DEVICES="")
    assert code == 2
    assert len(lines) == 1 and "PyTorch sees no GPU" in lines[0]


@pytest.fixture
def records() -> list[Record]:
    return []


@pytest.fixture
def report(records: list[Record]) -> Report:
    return Report("models", records.append)


def failed(records: list[Record]) -> list[str]:
    return [record.name for record in records if isinstance(record, Check) and not record.passed]


def outputs() -> models.Outputs:
    generator = torch.Generator().manual_seed(0)
    features, text, logits = (torch.randn(shape, generator=generator) for shape in ((2, 3, 3, 8), (4, 8), (5, 3, 9, 9)))
    return models.Outputs(features, text, logits, torch.rand((5, 3), generator=generator))


def test_equal_outputs_pass_and_noise_in_each_output_fails_its_own_checks(
    report: Report, records: list[Record]
) -> None:
    wanted = outputs()
    models.compare(report, "fp32", models.FP32, wanted, wanted)
    assert records and not failed(records)
    names = {
        "features": ["CLIP features, fp32: mean cosine"],
        "text": ["CLIP text, fp32: smallest cosine"],
        "logits": ["SAM2 mask logits, fp32: correlation", "SAM2 mask logits, fp32: same sign"],
        "predicted_iou": ["SAM2 predicted IoU, fp32: largest difference"],
    }
    for part, expected in names.items():
        records.clear()
        arrays = {name: getattr(wanted, name) for name in names}
        arrays[part] = arrays[part] + 0.3 * torch.randn(arrays[part].shape, generator=torch.Generator().manual_seed(1))
        models.compare(report, "fp32", models.FP32, wanted, models.Outputs(**arrays))
        assert failed(records) == expected


def test_outputs_that_are_not_numbers_fail(report: Report, records: list[Record]) -> None:
    wanted = outputs()
    broken = models.Outputs(*(torch.full_like(getattr(wanted, name), torch.nan) for name in models.Outputs.__slots__))
    models.compare(report, "fp32", models.FP32, wanted, broken)
    assert len(failed(records)) == 5


def box(x: int, width: int = 10, margin: float = 1.0) -> comparison.Mask:
    mask = np.zeros((20, 40), np.uint8)
    mask[:, x : x + width] = 1
    return comparison.Mask(coco.encode(np.asfortranarray(mask)), margin)


def test_a_missing_mask_counts_zero_in_the_mean_and_by_its_area_in_the_weighted_mean() -> None:
    reference: comparison.Masks = {("a", "cat"): [box(0), box(20)], ("a", "sky"): [box(30, 1)]}
    same = comparison.agreement(reference, reference)
    assert same.mean == same.weighted == 1
    without = comparison.agreement(reference, {("a", "cat"): [box(20), box(0)]})
    assert without.mean == pytest.approx(2 / 3) and without.weighted == pytest.approx(20 / 21)
    moved = comparison.agreement(reference, {("a", "cat"): [box(5)], ("b", "cat"): [box(0), box(20)]})
    assert moved.overlaps == pytest.approx([1 / 3, 0, 0])
    assert np.isnan(comparison.agreement({}, reference).mean)


def test_masks_whose_label_rounding_decides_are_left_out_and_counted() -> None:
    reference: comparison.Masks = {("a", "cat"): [box(0), box(20, margin=0.02)], ("a", "sky"): [box(30, margin=0.02)]}
    found = comparison.agreement(reference, {("a", "cat"): [box(0)]}, margin=0.05)
    assert (found.mean, found.weighted) == (1, 1) and found.undecided == pytest.approx(2 / 3)
    assert comparison.agreement(reference, {("a", "cat"): [box(0)]}).mean == pytest.approx(1 / 3)


def test_pictures_differ_where_they_differ(tmp_path: Path) -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    edited = grey.copy()
    edited[:4] = 200
    spilt = edited.copy()
    spilt[4, :4] = 0
    for name, pixels in {"original": grey, "reference": edited, "other": spilt}.items():
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "one.png")
    folders = tmp_path / "original", tmp_path / "reference"
    same = comparison.picture_difference(*folders, tmp_path / "reference")
    assert (same.mean, same.kept) == (0, 1)
    found = comparison.picture_difference(*folders, tmp_path / "other")
    assert found.kept == 28 / 32
    assert found.mean == pytest.approx(4 * 100 / 64 * 3 / 4)  # three of four channels
    (tmp_path / "other" / "two.png").write_bytes(b"")
    with pytest.raises(ValueError, match="1 edited pictures in one run, 2 in the other"):
        comparison.picture_difference(*folders, tmp_path / "other")


def test_settings_are_the_smallest_and_most_exact_within_5_percent_of_the_best() -> None:
    assert speed.smallest_near_best({8: 2.0, 16: 1.04, 32: 1.0, 64: 1.0}) == 16
    assert speed.first_near_best({"fp32": 1.06, "bf16": 1.0, "fp16": 0.99}) == "bf16"


def test_overlapping_spans_count_once() -> None:
    assert throughput.union_length([(0, 2), (5, 6), (1, 3), (1.5, 1.7)]) == 4


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sh", "-c", "sh -c 'sleep 60 & wait' & wait"])
    yield process
    process.kill()
    process.wait()


def test_processes_that_outlive_their_parent_are_found(parent: subprocess.Popen[bytes]) -> None:
    while len(family := resume.descendants(parent.pid)) < 2:
        assert parent.poll() is None
    parent.kill()
    parent.wait()
    left = resume.living(family)
    assert left == family
    for one in left:
        os.kill(one.pid, 9)
    while resume.living(family):
        pass


def test_the_last_line_names_failed_checks_and_settings() -> None:
    summary = Summary(lambda line: None)
    for section in SECTIONS:
        summary.begin(section)
    summary.add(Check("masks", "prompted, auto", "0.99", "≥ 0.98"))
    summary.add(Setting("run.batch_size", "64"))
    assert summary.passed and summary.last_line() == "OK; recommended: run.batch_size=64"
    summary.add(Check("masks", "trident, auto", "0.5", "≥ 0.98", False))
    summary.add(Check("faults", "faults", "hangs after 120.0 s", "completed", False))
    assert summary.last_line() == "FAILED: masks: trident, auto | faults; recommended: run.batch_size=64"
