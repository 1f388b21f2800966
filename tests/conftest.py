"""What many tests share: a few rendered scenes, and the command line as a user meets it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import settings
from PIL import Image
from skimage import data as photographs

from ovseg_batch import scenes
from ovseg_batch.cli import main
from ovseg_batch.evaluate.scenes import write_scenes
from tests.harness.image_variants import write_variants
from tests.harness.job import Running, start_command, with_embedded_models

settings.register_profile("ovseg_batch", deadline=None)  # the load of the machine decides how long an example takes
settings.load_profile("ovseg_batch")

LABELS = ", ".join(scenes.CLASSES)
THINGS = ", ".join(scenes.THING_NAMES)
REMOVE = ("--edit", "remove", "--drop", THINGS, "--set", "inpaint.steps=2")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Require that every slow test names the promise that it holds."""
    for item in items:
        for mark in item.iter_markers("slow"):
            if len(mark.args) != 1:
                raise pytest.UsageError(f"{item.nodeid}: write @pytest.mark.slow(promise), with the promise as text.")


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
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One picture in every variant of image file."""
    return write_variants(
        tmp_path_factory.mktemp("variants"), Image.fromarray(photographs.astronaut()).resize((320, 240))
    )


@pytest.fixture(scope="session")
def start(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Running]:
    """Start `ovseg-batch` in a process of its own; keyword arguments go into its environment."""

    def begin(*arguments: object, **environment: str) -> Running:
        log = tmp_path_factory.mktemp("process") / "log"
        return start_command([*map(str, arguments)], {"OVSEG_CACHE": str(cache), **environment}, log)

    return begin


@pytest.fixture(scope="session")
def command(cache: Path) -> Command:
    """Run `ovseg-batch` as `process` does, but in this process, where everything is imported already."""

    def run(*arguments: object, **environment: str) -> Done:
        done = CliRunner().invoke(main, with_embedded_models(arguments), env={"OVSEG_CACHE": str(cache), **environment})
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Done(done.exit_code, done.stdout, done.stderr)

    return run


SMALL = ("--set", "manifest.shard_rows=2")


def run_arguments(images: Path, workdir: Path, *more: str) -> tuple[object, ...]:
    return ("run", images, "-o", workdir, "--labels", LABELS, *SMALL, *more)


@pytest.fixture(scope="session")
def finished(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """An undisturbed run over the six scenes, three shards."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    done = command(*run_arguments(few_scenes / "images", workdir))
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run, which a test can change."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def data_files(workdir: Path) -> dict[str, str]:
    """Digests of all that must not depend on what happened on the way: data files and outputs, no commit records."""
    files = [p for p in (workdir / "stages").rglob("data/**/*") if p.is_file()]
    files += [workdir / name for name in ("annotations.json", "failures.csv", "manifest.parquet", "config.yaml")]
    return {p.relative_to(workdir).as_posix(): hashlib.blake2b(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="session")
def run_of_six(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """Six scenes in three shards, one mask a label: several parts, and holes."""
    workdir = tmp_path_factory.mktemp("exported") / "run"
    assert command(*run_arguments(few_scenes / "images", workdir, "--set", "refine.output=semantic")).returncode == 0
    return workdir


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """images/: b.png, a/c.jpg, a/b.png, and things that are no images."""
    root = tmp_path / "images"
    for name in ("b.png", "a/c.jpg", "a/b.png", ".hidden.png", ".cache/x.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(root / name)
    (root / "notes.txt").write_text("no image")
    return root
