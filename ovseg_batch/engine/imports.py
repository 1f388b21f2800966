"""Faster imports of large libraries."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Disable garbage collection. Imports leave no garbage, and the search for it takes a fifth of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def without_modules(*names: str) -> Iterator[None]:
    """Let the import of optional modules fail, unless they are imported already."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextlib.contextmanager
def deferred(module: str, *functions: str) -> Iterator[None]:
    """Let other modules import functions of a module without importing it. The first call of a function imports it.

    Nothing changes if the module is imported already.

    Args:
        module: full name of the module.
        functions: the only names that other modules can import from it inside of the context.
    """
    parents = [module]
    while (parent := parents[-1].rpartition(".")[0]) and parent not in sys.modules:
        parents.append(parent)
    standing = {} if module in sys.modules else {name: types.ModuleType(name) for name in parents}
    for name in functions if standing else ():
        setattr(standing[module], name, functools.partial(_call, module, name))
    sys.modules.update(standing)
    try:
        yield
    finally:
        for name in standing:
            del sys.modules[name]


def _call(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(importlib.import_module(module), name)(*args, **kwargs)
