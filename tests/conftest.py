"""What many tests share: a few rendered scenes, and the command line as a user meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from ovseg_batch import scenes
from ovseg_batch.cli import main
from ovseg_batch.evaluate.scenes import write_scenes

LABELS = ", ".join(scenes.CLASSES)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests never read or write the user's text cache."""
    monkeypatch.setenv("OVSEG_CACHE", str(cache))


@pytest.fixture(scope="session")
def few_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes with their truth: images/ and truth/."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, scenes.HELD_OUT_SEEDS[1000:1006])
    return folder


@pytest.fixture(scope="session")
def process(cache: Path) -> Command:
    """Run `ovseg-batch` in a process of its own; keyword arguments go into its environment."""

    def run(*arguments: object, **environment: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "ovseg_batch", *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "OVSEG_CACHE": str(cache), **environment},
            timeout=600,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def command(cache: Path) -> Command:
    """Run `ovseg-batch` as `process` does, but in this process, where everything is imported already."""

    def run(*arguments: object, **environment: str) -> Done:
        done = CliRunner().invoke(main, [*map(str, arguments)], env={"OVSEG_CACHE": str(cache), **environment})
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Done(done.exit_code, done.stdout, done.stderr)

    return run
