"""What many tests share: a few rendered scenes, and the command line as a user meets it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
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


def _main(arguments: list[str], environment: Mapping[str, str], folder: Path) -> None:
    """What a child does: the command line, with its output in files."""
    os.environ.update(environment)
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = out, err
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(arguments, prog_name="ovseg-batch")


@pytest.fixture(scope="session")
def start(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[BaseProcess, Path]]:
    """Start `ovseg-batch` in a process of its own, forked from one that has imported everything and run nothing.

    Keyword arguments go into its environment. Gives the process and the folder with its stdout and stderr.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ovseg_batch.pipeline", "ovseg_batch.cli"])

    def begin(*arguments: object, **environment: str) -> tuple[BaseProcess, Path]:
        folder = tmp_path_factory.mktemp("process")
        target = context.Process(
            target=_main, args=([*map(str, arguments)], {"OVSEG_CACHE": str(cache), **environment}, folder)
        )
        target.start()
        return target, folder

    return begin


@pytest.fixture(scope="session")
def process(start: Callable[..., tuple[BaseProcess, Path]]) -> Command:
    """Run `ovseg-batch` in a process of its own to its end."""

    def run(*arguments: object, **environment: str) -> Done:
        child, folder = start(*arguments, **environment)
        child.join(600)
        assert child.exitcode is not None, "it hangs"
        return Done(child.exitcode, (folder / "stdout").read_text(), (folder / "stderr").read_text())

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
