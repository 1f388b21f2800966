"""Install the emulated GPUs in every Python process whose environment names them (README.md)."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class AfterTorch(MetaPathFinder):
    """Install the emulation when the import of torch ends: to import torch here would slow down every process."""

    def __init__(self) -> None:
        self._searching = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "torch" or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec("torch")
        finally:
            self._searching = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_install(module: Any) -> None:
            execute(module)
            sys.meta_path.remove(self)
            import emulated_cuda

            emulated_cuda.install()

        spec.loader.exec_module = execute_and_install  # type: ignore[method-assign]
        return spec


def run_hidden_sitecustomize() -> None:
    """Run the sitecustomize of a later folder on sys.path, which this one hides."""
    others = [folder for folder in sys.path if Path(folder or ".").resolve() != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if int(os.environ.get("EMULATED_GPUS") or 0):
    sys.meta_path.insert(0, AfterTorch())
run_hidden_sitecustomize()
