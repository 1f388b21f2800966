"""A small job to break: rendered scenes, the command that segments them, and what an undisturbed run leaves."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from ovseg_batch import scenes
from ovseg_batch.cli import main
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.workdir.store import Workdir

SEEDS = scenes.HELD_OUT_SEEDS[6000:]
#: With the stages come the model libraries, which take seconds to import.
PRELOADED = ["ovseg_batch.cli", "ovseg_batch.runs.pipeline", "ovseg_batch.stages.implementations"]
COMPUTING = ("run", "try", "doctor")  # commands that take `-c`
OUTPUTS = ("annotations.json", "failures.csv", "manifest.parquet", "config.yaml")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code (negative: the signal that killed it) and what it printed."""

    code: int
    stderr: str


@dataclass(frozen=True, slots=True)
class Running:
    """A command at work."""

    process: BaseProcess
    log: Path

    def wait(self, seconds: float = 600) -> Ended:
        """Wait for its end.

        Raises:
            TimeoutError: it hangs; it has been killed.
        """
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            raise TimeoutError(f"still at work after {seconds} s:\n{self.log.read_text()}")
        return Ended(code, self.log.read_text())


class Job:
    """Scenes in `root/images` and commands over them.

    Args:
        root: an empty folder.
        images: how many scenes.
        shard_rows: images a shard.
    """

    def __init__(self, root: Path, images: int = 6, shard_rows: int = 2) -> None:
        self.root = root
        self._shard_rows = shard_rows
        self._commands = 0
        write_scenes(root, SEEDS[:images])

    def start(self, workdir: Path, *more: str, file_bytes: int | None = None, **environment: str) -> Running:
        """Start `ovseg-batch run`; no file that it writes may exceed `file_bytes`."""
        self._commands += 1
        log = self.root / f"command-{self._commands}.log"
        labels = ", ".join(scenes.CLASSES)
        command = ["run", str(self.root / "images"), "-o", str(workdir), "--labels", labels]
        command += ["--edit", "cutout", "--keep", ", ".join(scenes.THING_NAMES)]
        command += ["--set", f"manifest.shard_rows={self._shard_rows}", *more]
        settings = {"OVSEG_CACHE": str(self.root / "cache"), **environment}
        return start_command(command, settings, log, file_bytes)

    def run(self, workdir: Path, *more: str, points: str = "") -> Ended:
        """Run it to its end; `points` are failpoints."""
        return self.start(workdir, *more, OVSEG_FAILPOINTS=points).wait()


def with_embedded_models(arguments: Iterable[object]) -> list[str]:
    """Return the arguments of `ovseg-batch`; commands that compute get `-c demo` where they name no settings."""
    words = [str(argument) for argument in arguments]
    place = 2 if words[:1] == ["--log-format"] else 0  # an option of all commands, and its value
    if words[place : place + 1] == [] or words[place] not in COMPUTING or {"-c", "--config", "--for"} & set(words):
        return words
    return [*words[: place + 1], "-c", "demo", *words[place + 1 :]]


def start_command(
    arguments: list[str], environment: Mapping[str, str], log: Path, file_bytes: int | None = None
) -> Running:
    """Start `ovseg-batch` in a process of its own, as `start_function` does."""
    return start_function(_command, (with_embedded_models(arguments),), environment, log, file_bytes)


def start_function(
    function: Callable[..., object],
    arguments: tuple[object, ...],
    environment: Mapping[str, str],
    log: Path,
    file_bytes: int | None = None,
) -> Running:
    """Start a function in a process of its own, forked from one that has imported everything and run nothing.

    Args:
        log: file that receives stdout and stderr.
        file_bytes: size that no file may exceed that the process writes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    log.touch()  # it may be killed before it can
    process = context.Process(target=_logged, args=(function, arguments, environment, log, file_bytes))
    process.start()
    return Running(process, log)


def _logged(
    function: Callable[..., object],
    arguments: tuple[object, ...],
    environment: Mapping[str, str],
    log: Path,
    file_bytes: int | None,
) -> None:
    os.environ.update(environment)
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                function(*arguments)
            except Exception:  # multiprocessing would write it when the file is closed
                traceback.print_exc()
                sys.exit(1)


def _command(arguments: list[str]) -> None:
    main(arguments, prog_name="ovseg-batch")


def contents(workdir: Path) -> dict[str, str]:
    """Digest of every file that must not depend on what happened on the way; commit records may."""
    files = [p for p in (workdir / "stages").glob("*/data/*/*") if p.is_file()]
    files += [p for p in (workdir / "edited").rglob("*") if p.is_file()]
    files += [workdir / name for name in OUTPUTS if (workdir / name).exists()]
    return {p.relative_to(workdir).as_posix(): hashlib.blake2b(p.read_bytes()).hexdigest() for p in files}


def leftovers(workdir: Path) -> list[str]:
    """Drafts that a run should have taken away."""
    return sorted(p.relative_to(workdir).as_posix() for p in workdir.rglob("*.tmp"))


def torn(workdir: Path) -> list[str]:
    """What is visible and not whole: committed shards, outputs, records. A file that no commit names is not visible."""
    if not Workdir(workdir).plan.exists():
        return []
    problems = Workdir(workdir).verify()
    found = [f"{problem.path}: {problem.what}" for problem in problems if "no commit" not in problem.what]
    annotations = workdir / "annotations.json"
    if annotations.exists():
        json.loads(annotations.read_bytes())
    return found


def difference(workdir: Path, undisturbed: Mapping[str, str]) -> list[str]:
    """What is missing, foreign or other than in an undisturbed run, and drafts left lying."""
    found = contents(workdir)
    lines = [f"{name}: {_how(found.get(name), undisturbed.get(name))}" for name in _either(found, undisturbed)]
    return [line for line in lines if not line.endswith("same")] + [f"{name}: left over" for name in leftovers(workdir)]


def _either(one: Iterable[str], other: Iterable[str]) -> list[str]:
    return sorted({*one, *other})


def _how(found: str | None, wanted: str | None) -> str:
    if found is None:
        return "missing"
    if wanted is None:
        return "foreign"
    return "same" if found == wanted else "other bytes"
