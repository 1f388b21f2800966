"""The emulated GPUs refuse what CUDA refuses, and break as the environment sets.

Each test's body runs in a process of its own: a fork of one that has imported PyTorch with the emulation and has not
queried CUDA. That process is `serve` below.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join(
    (str(ROOT / "tests" / "support" / "emulated_gpu"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")]))
)
ASSERT = "device-side assert triggered"

#: the bodies of the tests, by name
BODIES: dict[str, Callable[[], None]] = {}


def serve() -> None:
    """Run the test bodies named on stdin, each in a fork, and write what they raised to stdout."""
    for line in sys.stdin:
        name, environment = json.loads(line)
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.environ.update(environment)
            try:
                BODIES[name]()
                problem = ""
            except BaseException:
                problem = traceback.format_exc()
            os.write(writing, problem.encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            print(json.dumps(pipe.read()), flush=True)
        os.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": PATH, "EMULATED_GPUS": "2"}
    command = [sys.executable, "-c", f"import {__name__}; {__name__}.serve()"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process


def emulated(**environment: str) -> Callable[[Callable[[], None]], Any]:
    """Run a test's body in a process with two emulated GPUs. `{tmp}` in the environment is a temporary folder."""

    def decorate(body: Callable[[], None]) -> Any:
        def test(server: subprocess.Popen[str], tmp_path: Path) -> None:
            variables = {name: value.replace("{tmp}", str(tmp_path)) for name, value in environment.items()}
            assert server.stdin is not None and server.stdout is not None
            print(json.dumps([body.__name__, variables]), file=server.stdin, flush=True)
            problem = json.loads(server.stdout.readline())
            assert not problem, problem

        BODIES[body.__name__] = body
        test.__doc__ = body.__doc__
        return test

    return decorate


def attend_to_itself(x: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(x, x, x)


def ones(device: str = "cuda", *shape: int) -> torch.Tensor:
    return torch.ones(*(shape or (2, 2)), device=device)


def fails(error: type[Exception], text: str, operation: Callable[[], Any]) -> None:
    """Require the very class of an error, and a part of its message."""
    try:
        operation()
    except Exception as raised:
        assert type(raised) is error and text in str(raised), repr(raised)
    else:
        raise AssertionError(f"no {error.__name__}")


def blocked_signals(task: int) -> set[int]:
    """Return the signals that a thread of this process blocks."""
    status = Path(f"/proc/self/task/{task}/status").read_text()
    mask = int(status.split("SigBlk:")[1].split()[0], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


@emulated()
def test_a_device_tensor_is_no_host_tensor() -> None:
    x = torch.from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3)).to("cuda")
    assert x.is_cuda and x.device == torch.device("cuda:0") and x.tolist() == [[0, 1, 2], [3, 4, 5]]
    fails(TypeError, "can't convert cuda:0 device type tensor to numpy", x.numpy)
    fails(TypeError, "can't convert cuda:0 device type tensor to numpy", lambda: np.asarray(x))
    assert type(x.cpu()) is torch.Tensor and x.cpu().numpy().sum() == 15
    with torch.inference_mode():
        assert type(x.cpu()) is type(x.to("cpu", torch.float16)) is torch.Tensor


@emulated()
def test_devices_do_not_mix_except_by_copies() -> None:
    x, other, host = ones(), ones("cuda:1"), torch.ones(2, 2)
    mixed = "Expected all tensors to be on the same device"
    for operation in (lambda: x + host, lambda: host + x, lambda: x + other, lambda: torch.cat([x, host])):
        fails(RuntimeError, mixed, operation)
    fails(RuntimeError, mixed, lambda: F.scaled_dot_product_attention(x[None], x[None], host[None]))
    fails(RuntimeError, mixed, lambda: host[torch.zeros(1, dtype=torch.long, device="cuda")])
    assert (x + torch.tensor(2.0)).device == x.device and (x * 2).sum().item() == 8  # scalars may be on the host
    assert x[:, torch.tensor([0])].shape == x[:, [0]].shape == (2, 1)  # indices too
    assert (x + other.to(x.device)).device == x.device and host.copy_(x) is host
    fails(RuntimeError, "Expected a 'cuda' device", lambda: torch.randn(2, device="cuda", generator=torch.Generator()))
    fails(torch.AcceleratorError, "invalid device ordinal", lambda: ones("cuda:2"))


@emulated()
def test_factories_and_views() -> None:
    assert torch.arange(3, device="cuda").tolist() == [0, 1, 2] and torch.eye(2, device="cuda:1").device.index == 1
    assert sorted(torch.randperm(4, device="cuda").tolist()) == [0, 1, 2, 3]
    assert torch.tensor([1.5, 2], device="cuda").tolist() == [1.5, 2]
    with torch.device("cuda:1"):
        assert torch.zeros(2).device.index == 1
    x = torch.zeros(2, 3, device="cuda")
    x[1].fill_(7)
    x[:, 0] = torch.tensor([1.0, 2.0], device="cuda")
    assert x.tolist() == [[1, 0, 0], [2, 7, 7]] and x.t().contiguous().view(-1).tolist() == [1, 2, 0, 7, 0, 7]
    assert x[x > 1].tolist() == [2, 7, 7] and x.nonzero().shape == (4, 2)


@emulated()
def test_autocast_and_attention() -> None:
    layer = torch.nn.Linear(4, 4).to("cuda")
    x = torch.rand(2, 3, 5, 4)
    with torch.inference_mode():
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cuda", dtype=dtype):
                y = layer(x.to("cuda"))
                assert y.dtype == dtype and y.softmax(-1).dtype == F.layer_norm(y, (4,)).dtype == torch.float32
                assert attend_to_itself(x.to("cuda")).dtype == dtype
        attended = attend_to_itself(x.to("cuda"))
        assert attended.is_cuda and torch.equal(attended.cpu(), attend_to_itself(x))
    assert torch.cuda.max_memory_allocated() < 2000  # nothing was kept at the size of the attention's weights
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16 and isinstance(layer.weight, torch.nn.Parameter)


@emulated()
def test_the_current_device_belongs_to_a_thread() -> None:
    torch.cuda.set_device(1)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend([torch.cuda.current_device(), ones().device.index]))
    thread.start()
    thread.join()
    assert found == [0, 0] and torch.cuda.current_device() == ones().device.index == 1
    with torch.cuda.device(0):
        assert ones().device.index == 0
    assert torch.cuda.current_device() == 1


@emulated(EMULATED_CAPABILITY="8.0,7.5", EMULATED_MEMORY="4096")
def test_properties_and_memory() -> None:
    assert torch.cuda.get_device_capability(0) == (8, 0) and torch.cuda.get_device_capability(1) == (7, 5)
    assert torch.cuda.get_device_properties(1).total_memory == 4096 and torch.cuda.get_device_name() == "Emulated GPU"
    assert torch.cuda.is_bf16_supported(including_emulation=False)
    torch.cuda.set_device(1)
    assert torch.cuda.is_bf16_supported() and not torch.cuda.is_bf16_supported(including_emulation=False)
    torch.cuda.set_device(0)
    kept = ones("cuda", 256)
    views = [kept[1:], kept.view(16, 16)]
    assert torch.cuda.memory_allocated() == 1024 and torch.cuda.mem_get_info() == (3072, 4096)
    assert torch.cuda.memory_allocated(1) == 0
    fails(torch.OutOfMemoryError, "CUDA out of memory", lambda: ones("cuda", 1024))
    twice = kept * 2
    del kept, views, twice
    assert torch.cuda.memory_allocated() == 0 and torch.cuda.max_memory_allocated() == 2048
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == 0


@emulated()
def test_events_measure_time_and_seeds_are_set() -> None:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    end.record()
    torch.cuda.synchronize()
    assert begin.elapsed_time(end) >= 0
    torch.manual_seed(3)
    first = torch.rand(3, device="cuda").tolist()
    torch.manual_seed(3)
    assert torch.rand(3, device="cuda").tolist() == first


@emulated(CUDA_VISIBLE_DEVICES="GPU-1", EMULATED_LOG="{tmp}")
def test_visible_devices_are_read_at_the_first_query_and_used_devices_are_recorded() -> None:
    from emulated_cuda import runtime

    assert not torch.cuda.is_initialized() and not runtime.devices.cache_info().currsize  # importing queries nothing
    folder = Path(os.environ["EMULATED_LOG"])
    assert torch.cuda.is_available() and torch.cuda.device_count() == 1
    os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"
    assert torch.cuda.device_count() == 1 and not list(folder.iterdir())
    ones()
    assert [path.name for path in folder.iterdir()] == [f"{os.getpid()}-1"]
    ones().sum().item()
    util._exit_function()  # type: ignore[attr-defined]  # as at the end of a process
    counts = json.loads((folder / f"{os.getpid()}.json").read_text())
    file = "tests/support/test_emulated_gpu.py"
    line = f"{file}:test_visible_devices_are_read_at_the_first_query_and_used_devices_are_recorded"
    assert any(where.startswith(f"{line}:") and count == 1 for where, count in counts["synchronisations"].items())
    assert counts["operations"] and not sum(counts["to_device"].values())


@emulated(CUDA_VISIBLE_DEVICES="")
def test_no_visible_device() -> None:
    assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
    fails(RuntimeError, "No CUDA GPUs are available", ones)


@emulated()
def test_how_visible_devices_are_listed() -> None:
    from emulated_cuda.runtime import visible

    assert visible(2, None) == (0, 1) and visible(2, "") == () and visible(2, "1,0") == (1, 0)
    assert visible(2, "MIG-1, GPU-0") == (1, 0) and visible(2, "-1,0") == () and visible(2, "0,2,1") == (0,)
    assert visible(2, "1,GPU-1") == ()


@emulated()
def test_cuda_is_unusable_in_a_fork_of_a_process_that_queried_it() -> None:
    torch.cuda.is_available()
    pid = os.fork()
    if pid == 0:
        try:
            fails(RuntimeError, "Cannot re-initialize CUDA in forked subprocess", ones)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


@emulated(EMULATED_FAULTS="assert:3")
def test_an_assert_breaks_the_process() -> None:
    x = ones()  # allocates, then fills
    fails(torch.AcceleratorError, ASSERT, lambda: x + 1)
    for later in (ones, x.cpu, torch.cuda.empty_cache, torch.cuda.synchronize, lambda: ones("cuda:1")):
        fails(torch.AcceleratorError, ASSERT, later)


@emulated(EMULATED_FAULTS="cublas@tests/support/test_emulated_gpu.py:matrix_product")
def test_cublas_breaks_the_process_from_a_line_of_the_project() -> None:
    def matrix_product() -> None:
        torch.mm(x, x)

    x = ones()
    for operation in (matrix_product, lambda: x + 1):
        fails(RuntimeError, "CUBLAS_STATUS_EXECUTION_FAILED", operation)
    fails(torch.AcceleratorError, "CUDA error", torch.cuda.synchronize)


@emulated(EMULATED_FAULTS="cublas-once:3")
def test_cublas_fails_once() -> None:
    x = ones()
    fails(RuntimeError, "CUBLAS_STATUS_EXECUTION_FAILED", lambda: x + 1)
    torch.cuda.synchronize()
    assert (x + 1).sum().item() == 8


@emulated(EMULATED_FAULTS="unusable#1", EMULATED_LOG="{tmp}/log")
def test_one_device_is_unusable() -> None:
    for operation in (lambda: ones("cuda:1"), lambda: torch.cuda.synchronize(1), lambda: ones("cuda:1")):
        fails(torch.AcceleratorError, "busy or unavailable", operation)
    ones("cuda:0")
    assert [path.name for path in Path(os.environ["EMULATED_LOG"]).iterdir()] == [f"{os.getpid()}-0"]


@emulated(EMULATED_FAULTS="colour=1.2.3")
def test_one_colour_breaks_the_process() -> None:
    image = torch.zeros(2, 2, 3, dtype=torch.uint8)
    image[0, 0] = torch.tensor([3, 2, 1])
    image.to("cuda")
    image[1, 1] = torch.tensor([1, 2, 3])
    image.float().to("cuda")
    fails(torch.AcceleratorError, ASSERT, lambda: image.to("cuda"))
    fails(torch.AcceleratorError, ASSERT, torch.cuda.synchronize)


@emulated(EMULATED_FAULTS="assert!{tmp}/mark")
def test_a_mark_lets_one_process_suffer() -> None:
    endings = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            try:
                ones()
            except torch.AcceleratorError:
                os._exit(1)
            os._exit(0)
        endings.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert endings == [1, 0] and Path(os.environ["EMULATED_FAULTS"].partition("!")[2]).exists()


@emulated(EMULATED_FAULTS="hang:3")
def test_a_hanging_operation_stops_its_thread_alone_and_no_handler_interrupts_it() -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(1))

        def announce() -> None:
            while signal.SIGTERM not in blocked_signals(os.getpid()):
                time.sleep(0.01)
            os.write(writing, b"hangs")

        threading.Thread(target=announce, daemon=True).start()
        ones() + 1
        os._exit(2)
    assert os.read(reading, 5) == b"hangs"
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.1)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


@emulated(EMULATED_OOM="1000@test_emulated_gpu.py:large#1")
def test_large_results_do_not_fit() -> None:
    def large(device: str) -> torch.Tensor:
        return ones(device, 16).expand(100, 16).contiguous()

    fails(torch.OutOfMemoryError, "CUDA out of memory", lambda: large("cuda:1"))
    assert large("cuda:0").shape == ones("cuda:1", 100, 16).shape
    assert torch.cuda.is_available() and ones("cuda:1", 16).expand(100, 16).shape == (100, 16)


def test_a_wrong_fault_is_refused_and_another_sitecustomize_still_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('the other one')")
    environment = {**os.environ, "EMULATED_GPUS": "1", "EMULATED_FAULTS": "asert"}
    environment["PYTHONPATH"] = os.pathsep.join((PATH, str(tmp_path)))
    command = [sys.executable, "-c", "import torch; torch.ones(1, device='cuda')"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "the other one\n" and "EMULATED_FAULTS: 'asert' is not kind" in done.stderr


def test_without_the_variable_nothing_changes() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "EMULATED_GPUS"}
    command = [sys.executable, "-c", "import sys, torch; print('emulated_cuda' in sys.modules)"]
    done = subprocess.run(command, env={**environment, "PYTHONPATH": PATH}, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
