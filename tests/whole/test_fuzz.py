"""The fuzz harness: a few seeded cases of each family hold, and a fault that is planted is found."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.harness import fuzz_images, fuzz_lists
from tests.harness.fuzz_images import Images
from tests.harness.fuzz_lists import Lists
from tests.harness.fuzz_workdirs import Workdirs
from tests.harness.fuzzing import MEBIBYTE, Input, Tally, Target, Violation, measured, save, table, watched

MEMORY = 1 << 30
FEW = 64  # cases


class Broken:
    """A target of which seed 1 ends its process, and seed 2 hangs."""

    name = "broken"

    def draw(self, seed: int) -> Input:
        return Input("form", "none", "file", bytes([seed]))

    def check(self, given: Input) -> bool:
        seed = given.content[0]
        if seed == 1:
            sys.exit(3)
        if seed == 2:
            time.sleep(60)
        if seed == 3:
            print("a complaint", file=sys.stderr)
        return True


class Hoarding:
    """A target that needs 200 MiB."""

    name = "hoarding"

    def draw(self, seed: int) -> Input:
        return Input("form", "none", "file", b"x")

    def check(self, given: Input) -> bool:
        return bool(given.content * (200 * MEBIBYTE))


def violations(target: Target, seeds: range) -> list[str]:
    outcomes = [(seed, measured(target, seed, MEMORY)) for seed in seeds]
    return [f"{seed} {one.input.form}: {one.violation}" for seed, one in outcomes if one.violation]


def test_mutated_images_are_read_alike_or_refused() -> None:
    assert violations(Images(), range(FEW)) == []


def test_mutated_lists_are_accounted_for_or_refused() -> None:
    assert violations(Lists(), range(FEW)) == []


def test_damaged_workdirs_are_refused_or_repaired(tmp_path: Path) -> None:
    assert violations(Workdirs(tmp_path), range(3)) == []


@pytest.mark.slow("a damaged workdir of a hybrid run with SAM 3 is refused or repaired")
def test_damaged_workdirs_of_a_hybrid_run_are_refused_or_repaired(tmp_path: Path) -> None:
    """Its files include those of `tokens`, `sam3`, `settle` and `merge`, and edits with a ViTMatte."""
    assert violations(Workdirs(tmp_path, "hybrid"), range(2)) == []


def test_whole_files_are_accepted() -> None:
    refused = [
        name
        for name, content in fuzz_images.pool().items()
        if not Images().check(Input(fuzz_images.form_of(name), "none", name, content))
    ]
    without_white = {"float.tif", "mode-F.tif", "mode-I.tif", "plain.pfm", "plain.spider", "signed.tif"}
    assert set(refused) == without_white


def test_a_seed_alone_decides_a_case() -> None:
    for target in (Images(), Lists()):
        assert [target.draw(seed) for seed in range(FEW)] == [target.draw(seed) for seed in range(FEW)]
        assert len({target.draw(seed).form for seed in range(200)}) > 10


def test_an_exception_without_a_type_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(fuzz_images, "decode", fail)
    monkeypatch.setattr(fuzz_lists, "build_manifest", fail)
    assert any("KeyError" in text for text in violations(Images(), range(8)))
    assert any("KeyError" in text for text in violations(Lists(), range(8)))


def test_a_way_to_read_images_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_images, "upright_size", lambda image, path: (1, 1))
    assert any("upright_size" in text for text in violations(Images(), range(16)))


def test_memory_above_the_limit_is_found() -> None:
    (_, outcome), *_ = watched(Hoarding(), iter([0]), time.monotonic() + 120, 60, 100 * MEBIBYTE)
    assert "memory grew" in outcome.violation


def test_processes_that_die_hang_or_complain_are_found_and_the_next_case_goes_on(tmp_path: Path) -> None:
    found = dict(watched(Broken(), iter(range(5)), time.monotonic() + 120, 2, MEMORY))
    assert [seed for seed, outcome in found.items() if outcome.violation] == [1, 2, 3]
    assert "died" in found[1].violation and "hangs" in found[2].violation and "complaint" in found[3].violation
    tally = Tally("broken")
    for seed, outcome in found.items():
        tally.add(seed, outcome)
    assert table([tally]).splitlines()[-1] == "| broken | form | 5 | 2 | 0 | 3 |"
    path = save(tmp_path, "broken", 1, found[1])
    assert "died" in path.read_text() and (tmp_path / "broken-1-file").read_bytes() == b"\x01"


def test_no_case_begins_after_the_time() -> None:
    assert list(watched(Broken(), iter(range(5)), time.monotonic() - 1, 2, MEMORY)) == []


def test_a_refusal_is_a_text_that_can_be_printed() -> None:
    for text in ("", "\x1b[31m", "half \ud800", "x" * 5000):
        with pytest.raises(Violation):
            fuzz_lists.check_message(text)
