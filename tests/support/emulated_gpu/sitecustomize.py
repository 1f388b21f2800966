"""Install the emulated GPUs in every Python process whose environment names them (README.md)."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def install_emulation(torch: Any) -> None:
    """Replace PyTorch's GPUs by emulated ones."""
    import emulated_cuda

    emulated_cuda.install()


def add_device_files(precision: Any) -> None:
    """Let the package find a file of a GPU's driver in /dev."""
    precision.GPU_FILES = ("null",)


#: module → what follows its import. To import torch in here would slow down every process.
AFTER: dict[str, Callable[[Any], None]] = {
    "torch": install_emulation,
    "ovseg_batch.models.precision": add_device_files,
}


class AfterImport(MetaPathFinder):
    """Call the functions of `AFTER` when the import of their modules ends."""

    def __init__(self) -> None:
        self._searching = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in AFTER or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_follow(module: Any) -> None:
            execute(module)
            AFTER[name](module)

        spec.loader.exec_module = execute_and_follow  # type: ignore[method-assign]
        return spec


def run_hidden_sitecustomize() -> None:
    """Run the sitecustomize of a later folder on sys.path, which this one hides."""
    others = [folder for folder in sys.path if Path(folder or ".").resolve() != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if int(os.environ.get("EMULATED_GPUS") or 0):
    sys.meta_path.insert(0, AfterImport())
run_hidden_sitecustomize()
