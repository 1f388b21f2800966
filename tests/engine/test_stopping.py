"""Ctrl-C at any moment of a run: exit code 130, a sentence, no traceback, and the same bytes after the resume."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Command, data_files, run_arguments
from tests.harness.job import with_embedded_models

pytestmark = pytest.mark.slow(
    "Ctrl-C ends with exit code 130 and without a traceback, and the resumed run has the same bytes"
)

SECONDS = 300  # after which a wait is a hang


@dataclass(frozen=True)
class Started:
    """A command in a process group of its own, as a shell starts it."""

    process: subprocess.Popen[bytes]
    workdir: Path
    log: Path

    def wait_for(self, found: Callable[[Started], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not found(self):
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()
            time.sleep(0.005)

    def interrupt(self) -> None:
        """Send what Ctrl-C sends: SIGINT to every process of the group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> tuple[int, str]:
        code = self.process.wait(SECONDS)
        return code, self.log.read_text()


Start = Callable[..., Started]


@pytest.fixture
def start_group(few_scenes: Path, cache: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a run over the six scenes; keyword arguments go into its environment."""
    started: list[Started] = []

    def start(*more: str, options: tuple[str, ...] = (), **environment: str) -> Started:
        workdir, log = tmp_path / "run", tmp_path / "log"
        arguments = [*options, *with_embedded_models(run_arguments(few_scenes / "images", workdir, *more))]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "ovseg_batch", *arguments],
                env={**os.environ, "OVSEG_CACHE": str(cache), **environment},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        started.append(Started(process, workdir, log))
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def fork_server(started: Started) -> int | None:
    for child in children(started.process.pid):
        with contextlib.suppress(OSError):
            if b"multiprocessing.forkserver" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    return None


def has_loaded(library: str) -> Callable[[Started], bool]:
    return lambda started: library in Path(f"/proc/{started.process.pid}/maps").read_text()


def has_draft(pattern: str) -> Callable[[Started], bool]:
    return lambda started: any(started.workdir.glob(pattern))


def has_written(text: str) -> Callable[[Started], bool]:
    return lambda started: text in started.log.read_text()


#: moment → what is seen then, the failpoints that make it last, and further arguments
MOMENTS: dict[str, tuple[Callable[[Started], object], str, tuple[str, ...]]] = {
    "imports": (has_loaded("libarrow"), "", ()),
    "listing": (has_draft(".manifest*"), "manifest.write+=delay", ()),
    "start of a worker": (fork_server, "", ()),
    "models load": (lambda started: children(fork_server(started) or 0), "", ()),
    "models load in this process": (has_written("loading models"), "", ("--workers", "0")),
    "a shard": (has_draft("stages/dense-*/data/*/.*"), "dense.row+=delay", ()),
    "a shard in this process": (has_draft("stages/dense-*/data/*/.*"), "dense.row+=delay", ("--workers", "0")),
    "outputs": (has_draft(".annotations*"), "export.write+=delay", ()),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment(
    moment: str, finished: Path, few_scenes: Path, start_group: Start, command: Command
) -> None:
    seen, points, more = MOMENTS[moment]
    started = start_group(*more, OVSEG_FAILPOINTS=points)
    started.wait_for(seen)
    started.interrupt()
    code, message = started.end()
    assert code == 130, message
    assert "Traceback" not in message and "the same command resumes" in message
    assert not list(started.workdir.rglob("*.tmp"))
    if moment.startswith("a shard"):
        assert "Stopping after the images in flight (at most " in message
        assert len(list(started.workdir.glob("stages/dense-*/commits/*/*.json"))) == 1
    assert command(*run_arguments(few_scenes / "images", started.workdir)).returncode == 0
    assert data_files(started.workdir) == data_files(finished)


def test_a_fork_server_that_is_killed_ends_the_run_in_words(
    finished: Path, few_scenes: Path, start_group: Start, command: Command
) -> None:
    started = start_group()
    started.wait_for(fork_server)
    server = fork_server(started)
    assert server is not None
    os.kill(server, signal.SIGSTOP)  # it starts no worker, so the run comes to wait for it
    time.sleep(1)  # one that died before the run waits would be replaced
    os.kill(server, signal.SIGKILL)
    code, message = started.end()
    assert code == 1 and "The process that starts the workers has died" in message, message
    assert "Traceback" not in message and "Aborted" not in message
    assert command(*run_arguments(few_scenes / "images", started.workdir)).returncode == 0
    assert data_files(started.workdir) == data_files(finished)


def test_a_second_ctrl_c_stops_at_once(start_group: Start) -> None:
    started = start_group(OVSEG_FAILPOINTS="dense.row+=delay")
    started.wait_for(has_draft("stages/dense-*/data/*/.*"))
    started.interrupt()
    started.wait_for(has_written("press Ctrl-C again"))
    started.interrupt()
    code, message = started.end()
    assert code == 130, message
    assert "Traceback" not in message
    assert not list(started.workdir.glob("stages/dense-*/commits/*/*")), "it waited for the shard"
    assert not list(started.workdir.rglob("*.tmp"))


def test_many_ctrl_c_end_the_command_without_a_traceback(
    start_group: Start, few_scenes: Path, command: Command
) -> None:
    started = start_group(OVSEG_FAILPOINTS="dense.row+=delay")
    started.wait_for(has_draft("stages/dense-*/data/*/.*"))
    for _ in range(20):
        with contextlib.suppress(ProcessLookupError):
            started.interrupt()
        time.sleep(0.01)
    code, message = started.end()
    assert code == 130, message
    assert "Traceback" not in message
    assert command(*run_arguments(few_scenes / "images", started.workdir)).returncode == 0


IMPORTING = """
import time
from ovseg_batch.engine.stopping import interruptible
with interruptible():
    try:
        import optional
        print("imported", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("stopped")
"""

#: a module that tries an optional import, as many do, while Ctrl-C is pressed
OPTIONAL = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
except:
    pass
"""


def test_an_import_does_not_swallow_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "optional.py").write_text(OPTIONAL)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.split()[-1] == "stopped"
