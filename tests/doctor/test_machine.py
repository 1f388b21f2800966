"""`doctor` finds what is wrong with the workdir's file system, the cores, the memory and the packages."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ovseg_batch.doctor import disk, machine, packages
from ovseg_batch.settings import RunConfig
from tests.conftest import Command
from tests.harness.disk import CannotMount, SmallDisk, small_disk
from tests.support.diagnosis import failures, report


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of 8 MB."""
    try:
        with small_disk(tmp_path / "disk", kib=8192) as small:
            yield small
    except CannotMount as error:
        pytest.skip(f"cannot mount here: {error}")


# ---- the workdir's file system


def test_a_small_disk_then_a_full_one(mounted: SmallDisk, tmp_path: Path, command: Command) -> None:
    checks, _ = report(command, "-o", mounted.path / "run", code=1)
    assert failures(checks) == {"space"} and "MB free" in checks["space"]["found"]
    assert checks["workdir"]["status"] == "ok" and "tmpfs" in checks["workdir"]["found"]
    with pytest.raises(OSError, match="No space"), (mounted.path / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    full = disk.check_disk(mounted.path)
    assert [check.status for check in full] == ["failed"] and os.strerror(errno.ENOSPC) in full[0].found
    assert disk.check_space(mounted.path, None).status == "failed"
    assert [path.name for path in mounted.path.iterdir()] == ["ballast"]


def test_a_read_only_disk(mounted: SmallDisk) -> None:
    mounted.turn_read_only()
    [check] = disk.check_disk(mounted.path / "run")
    assert check.status == "failed" and os.strerror(errno.EROFS) in check.found and "-o" in check.next


def test_a_workdir_below_a_file(tmp_path: Path, command: Command) -> None:
    (tmp_path / "file").write_text("mine")
    checks, _ = report(command, "-o", tmp_path / "file" / "run", code=1)
    assert failures(checks) == {"workdir"} and str(tmp_path / "file") in checks["workdir"]["found"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_nobody_can_write() -> None:
    [check] = disk.check_disk(Path("/proc/run"))
    assert check.status == "failed" and "/proc cannot be written" in check.found


def test_more_than_the_disk_holds(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check = disk.check_space(tmp_path, free * 2)
    assert check.status == "failed" and "dense.cache" in check.next


def test_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with disk.scratch_folder(tmp_path) as mine:
        dead = tmp_path / mine.name.replace(f"@{os.getpid()}.", f"@{ended.pid}.")
        dead.mkdir()
        (dead / "file").write_text("left over")
        with disk.scratch_folder(tmp_path):
            assert mine.is_dir() and not dead.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links(tmp_path: Path) -> None:
    def refused(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    (tmp_path / "block").write_text("")
    assert disk._check_links(tmp_path).status == "ok"
    (tmp_path / "linked").unlink()
    check = disk._check_links(tmp_path, refused)
    assert check.status == "warning" and "copies" in check.next


# ---- cores, memory, packages


def test_limits_of_control_groups(tmp_path: Path) -> None:
    """Version 2: the tightest of the group and those above it. Version 1: its own folders and names."""
    files = {
        "job/cpu.max": "max 100000\n",
        "job/memory.max": "max\n",
        "cpu.max": "150000 100000\n",
        "memory.max": "4000000000\n",
        "memory.current": "1500000000\n",
        "memory.stat": "anon 1\ninactive_file 500000000\n",
        "cpu/old/cpu.cfs_quota_us": "400000\n",
        "cpu/old/cpu.cfs_period_us": "100000\n",
        "memory/old/memory.limit_in_bytes": "9223372036854771712\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "v2").write_text("0::/job\n")
    assert machine.control_group(tmp_path / "v2", tmp_path) == machine.Limits(1.5, 4_000_000_000, 1_000_000_000)
    for name in ("cpu.max", "memory.max"):
        (tmp_path / name).unlink()
    (tmp_path / "v1").write_text("3:cpu:/old\n2:memory:/old\n")
    assert machine.control_group(tmp_path / "v1", tmp_path) == machine.Limits(4.0, None, 0)
    assert machine.control_group(tmp_path / "none", tmp_path) == machine.Limits()


def test_a_control_group_with_less_than_the_threads_take() -> None:
    limits = machine.Limits(cores=1.0, memory=1_000_000_000, used=100_000_000)
    [check] = machine.check_cores(RunConfig(threads=4), limits, 1, on_cpu=True)
    assert check.status == "warning" and "--set run.threads=1" in check.next
    [fitting] = machine.check_cores(RunConfig(threads=1), limits, 1, on_cpu=True)
    assert fitting.status == "ok"
    [two_workers] = machine.check_cores(RunConfig(threads=1), limits, 2, on_cpu=True)
    assert two_workers.status == "warning"
    memory = machine.check_memory(limits)
    assert memory.status == "warning" and "of 1.0 GB (limit of the control group)" in memory.found


def test_packages_that_are_missing_or_too_old() -> None:
    wanted = ["numpy>=2.0", "pillow>=999", "ovseg-no-such-package>=1.0"]
    checks = packages.check_requirements([Requirement(text) for text in wanted])
    assert [(check.name, check.status) for check in checks] == [
        ("package pillow", "failed"),
        ("package ovseg-no-such-package", "failed"),
    ]
    assert "does not satisfy >=999" in checks[0].found and checks[0].next == "Run `pip install 'pillow>=999'`."
    assert "is not installed" in checks[1].found
    assert packages.check_python(">=99").status == "failed"


def test_an_old_package_cuts_the_report_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    (tmp_path / "diffusers-0.1.dist-info").mkdir()
    (tmp_path / "diffusers-0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: diffusers\nVersion: 0.1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    checks, _ = report(command, code=1)
    assert failures(checks) == {"package diffusers"} and "device" not in checks
    assert checks["package diffusers"]["next"].startswith("Run `pip install 'diffusers>=")


def test_a_package_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ovseg_broken.py").write_text("raise OSError('libGL.so.1: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    [check] = packages.check_imports(["numpy", "ovseg_broken"])
    assert check.status == "failed" and "libGL.so.1" in check.found
