"""The faster imports of large libraries."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from ovseg_batch.engine.imports import deferred


def in_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_deferred_module_is_imported_by_the_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_parent").mkdir()
    (tmp_path / "slow_parent" / "__init__.py").write_text("")
    (tmp_path / "slow_parent" / "slow.py").write_text("def double(x, *, more=0):\n    return 2 * x + more\n")
    (tmp_path / "quick.py").write_text("from slow_parent.slow import double\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with deferred("slow_parent.slow", "double"):
        quick = importlib.import_module("quick")
    assert "slow_parent" not in sys.modules and "slow_parent.slow" not in sys.modules
    assert quick.double(3, more=1) == 7
    assert sys.modules["slow_parent.slow"].double(3) == 6
    with deferred("slow_parent.slow", "double"):  # nothing stands in for a module that is imported already
        assert importlib.import_module("slow_parent.slow").double(3) == 6
    for name in ("quick", "slow_parent.slow", "slow_parent"):
        del sys.modules[name]


def test_another_name_of_a_deferred_module_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow.py").write_text("other = 1\n")
    (tmp_path / "quick.py").write_text("from slow import other\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError), deferred("slow", "double"):
        importlib.import_module("quick")
    assert importlib.import_module("quick").other == 1
    for name in ("quick", "slow"):
        del sys.modules[name]


def test_workers_start_without_the_compiler_which_torchvision_still_finds() -> None:
    code = """
import sys
import ovseg_batch.engine.preloaded
import torch, torchvision.ops as ops
print("torch._dynamo" in sys.modules, "torch._dynamo.utils" in sys.modules)
torch.use_deterministic_algorithms(True)
print(tuple(ops.roi_align(torch.ones(1, 1, 8, 8), [torch.tensor([[0.0, 0, 4, 4]])], 2).shape))
from torchvision.ops.roi_align import is_compile_supported
print(is_compile_supported("cpu"), "torch._dynamo" in sys.modules)
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""
    assert in_new_process(code).splitlines() == ["False False", "(1, 1, 2, 2)", "True True", "2.0"]


def test_a_torchvision_that_imports_more_of_the_compiler_is_imported_whole() -> None:
    code = """
import sys
from ovseg_batch.engine import imports
before = imports.deferred
imports.deferred = lambda module, *names: before(module, "another_name")
import ovseg_batch.engine.preloaded
import torch, torchvision.ops as ops
print("torch._dynamo" in sys.modules)
print(ops.nms(torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4]]), torch.tensor([0.9, 0.8]), 0.5).tolist())
"""
    assert in_new_process(code).splitlines() == ["True", "[0]"]
