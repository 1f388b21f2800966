"""What the tests of `doctor` share: how they run it, and how they read its checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ovseg_batch.doctor.records import Check
from tests.conftest import Command

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "checkpoints"
#: One torch thread and little memory: the tests share the machine.
THREADS = ("--set", "run.threads=1")


def everything(root: Path) -> dict[str, bytes | None]:
    """Return the content of every file in a folder, and None for every folder in it."""
    return {p.relative_to(root).as_posix(): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


def report(command: Command, *arguments: object, code: int, **environment: str) -> tuple[dict[str, Any], Any]:
    """Run `doctor --json`, and return its checks by name and its trial."""
    done = command("doctor", "--json", *THREADS, *arguments, **environment)
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is (code == 0)
    return {check["name"]: check for check in found["checks"]}, found["trial"]


def failures(checks: dict[str, Any]) -> set[str]:
    """Return the names of the failed checks."""
    return {name for name, check in checks.items() if check["status"] == "failed"}


def one(checks: list[Check], name: str) -> Check:
    """Return the check of a name."""
    return next(check for check in checks if check.name == name)
