"""Errors that the environment injects: EMULATED_FAULTS and EMULATED_OOM (README.md has their syntax)."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from emulated_cuda import log

FAULT = re.compile(
    r"(?P<kind>[a-z-]+)(=(?P<colour>\d+\.\d+\.\d+))?(@(?P<where>[^#!]+?))?(:(?P<nth>\d+))?(#(?P<device>\d+))?(!(?P<mark>.+))?"
)
OOM = re.compile(r"(?P<bytes>\d+)(@(?P<where>[^#]+))?(#(?P<device>\d+))?")
KINDS = ("assert", "cublas", "cublas-once", "unusable", "hang", "colour")

ASSERT = (
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at some other API "
    "call, so the stacktrace below might be incorrect.\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side "
    "assertions."
)
CUBLAS = (
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k, &falpha, a, "
    "CUDA_R_16F, lda, b, CUDA_R_16F, ldb, &fbeta, c, CUDA_R_16F, ldc, compute_type, CUBLAS_GEMM_DEFAULT_TENSOR_OP)`"
)
UNUSABLE = "CUDA error: CUDA-capable device(s) is/are busy or unavailable"


@dataclass(slots=True)
class Fault:
    """One entry of EMULATED_FAULTS, and how many operations have matched it in this process."""

    kind: str
    where: str | None
    nth: int
    device: int | None
    mark: Path | None
    colour: tuple[int, ...] = ()
    matched: int = 0
    claimed: bool | None = None

    def due(self, physical: int, source: torch.Tensor | None) -> bool:
        """Count an operation, and return whether this fault strikes it."""
        if self.device not in (None, physical) or (self.colour and not _contains(source, self.colour)):
            return False
        if self.where is not None and not any(self.where in frame for frame in log.frames()):
            return False
        self.matched += 1
        if self.matched < self.nth or (self.kind == "cublas-once" and self.matched > self.nth):
            return False
        return self._claim()

    def _claim(self) -> bool:
        """Return whether this process may suffer the fault: always, or only the first process of a run."""
        if self.claimed is None:
            self.claimed = True
            if self.mark is not None:
                try:
                    os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    self.claimed = False
        return self.claimed


@functools.cache
def _faults() -> tuple[Fault, ...]:
    return tuple(parse(text) for text in os.environ.get("EMULATED_FAULTS", "").split(",") if text)


def parse(text: str) -> Fault:
    """Parse an entry of EMULATED_FAULTS. Raises ValueError: a wrong syntax or an unknown kind."""
    match = FAULT.fullmatch(text)
    if match is None or match["kind"] not in KINDS or (match["kind"] == "colour") != (match["colour"] is not None):
        raise ValueError(f"EMULATED_FAULTS: {text!r} is not kind[=colour][@where][:n][#device][!file], {KINDS}")
    return Fault(
        match["kind"],
        match["where"],
        int(match["nth"] or 1),
        None if match["device"] is None else int(match["device"]),
        None if match["mark"] is None else Path(match["mark"]),
        tuple(int(value) for value in (match["colour"] or "").split(".") if value),
    )


_sticky = ""  # the kind of fault that broke this process, empty while it is healthy


def strike(physical: int, source: torch.Tensor | None = None) -> None:
    """Raise the error that an operation on a device is due.

    Args:
        physical: the device's physical index.
        source: the tensor on the host that the operation copies to the device, if it does.

    Raises:
        torch.AcceleratorError, RuntimeError: an injected error, or what an earlier one left behind.
    """
    if _sticky:
        _raise(_sticky)
    for fault in _faults():
        if fault.due(physical, source):
            _raise("assert" if fault.colour else fault.kind)


def strike_synchronisation(physical: int) -> None:
    """Raise the error that a synchronisation of a device reports: that of a sticky fault or an unusable device."""
    if _sticky:
        raise torch.AcceleratorError(ASSERT)
    if any(fault.kind == "unusable" and fault.where is None and fault.due(physical, None) for fault in _faults()):
        raise torch.AcceleratorError(UNUSABLE)


def _raise(kind: str) -> NoReturn:
    global _sticky
    if kind in ("assert", "cublas"):
        _sticky = kind
    if kind == "hang":
        _hang()
    if kind == "unusable":
        raise torch.AcceleratorError(UNUSABLE)
    if kind == "assert":
        raise torch.AcceleratorError(ASSERT)
    raise RuntimeError(CUBLAS)


def _hang() -> NoReturn:
    """Wait for ever. As in a call of the driver, no signal handler of Python runs on this thread meanwhile."""
    handled = {number for number in signal.valid_signals() if callable(signal.getsignal(number))}
    signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    while True:
        ctypes.CDLL(None).pause()


def _contains(source: torch.Tensor | None, colour: tuple[int, ...]) -> bool:
    """Return whether a uint8 tensor (…, 3) contains a pixel of a colour."""
    if source is None or source.dtype != torch.uint8 or source.dim() == 0 or source.shape[-1] != 3:
        return False
    return bool((source == torch.tensor(colour, dtype=torch.uint8)).all(dim=-1).any())


def refuse_size(size: int, physical: int) -> None:
    """Raise torch.OutOfMemoryError for an allocation of `size` bytes that EMULATED_OOM forbids."""
    limit = _oom()
    if limit is None or size <= int(limit["bytes"]) or limit["device"] not in (None, str(physical)):
        return
    if limit["where"] is None or any(limit["where"] in frame for frame in log.frames()):
        raise torch.OutOfMemoryError(out_of_memory(size))


@functools.cache
def _oom() -> re.Match[str] | None:
    text = os.environ.get("EMULATED_OOM", "")
    match = OOM.fullmatch(text)
    if text and match is None:
        raise ValueError(f"EMULATED_OOM: {text!r} is not BYTES[@where][#device]")
    return match


def out_of_memory(size: int) -> str:
    """Return the message of an allocation of `size` bytes that does not fit."""
    return f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. (emulated)"
