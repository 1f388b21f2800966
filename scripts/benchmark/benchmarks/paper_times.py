"""The time of a forward on a GPU that this machine does not have, from counted operators and published figures.

Every operator of a forward is counted with its floating-point operations and the bytes that it reads and writes. On a
GPU it takes at least the larger one of operations / peak rate and bytes / bandwidth (Williams et al., Roofline, 2009).
The sum over a forward is its least time. Published times of one GPU are scaled to another one by the ratio of the two
least times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ovseg_batch.methods import enlarging, labelling
from ovseg_batch.methods.attention import VARIANTS
from ovseg_batch.models import mask_decoder, zoo
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.sam import POINTS_GPU, Embedding, Sam

CPU = torch.device("cpu")
WINDOWS = 32  # of a counted batch of CLIP, as in run.batch_size
POINTS = POINTS_GPU  # of a counted call of SAM2's decoder
UNLIMITED = 1 << 40  # bytes: nothing is cut into pieces for the cache of a CPU


@dataclass(frozen=True, slots=True)
class Gpu:
    """Peak rates of a GPU.

    Attributes:
        flops: bf16 or fp16 tensor operations a second with fp32 accumulation, without sparsity.
        bandwidth: bytes of its memory a second.
        source: title of the document.
    """

    name: str
    flops: float
    bandwidth: float
    source: str


H100 = Gpu("H100 SXM", 989.4e12, 3.35e12, "NVIDIA H100 Tensor Core GPU datasheet")
A100 = Gpu("A100 SXM 80 GB", 312e12, 2.039e12, "NVIDIA A100 80GB datasheet")
RTX_4090 = Gpu("RTX 4090", 165.2e12, 1.008e12, "NVIDIA Ada GPU Architecture, appendix A")


@dataclass(frozen=True, slots=True)
class Published:
    """A measured time of a model.

    Attributes:
        seconds: of a batch of 32 windows (CLIP), or of a video frame with memory and decoder (SAM2), which is an upper
            bound for the image encoder.
        source: title of the document.
    """

    seconds: float
    gpu: Gpu
    source: str


TIMM = "pytorch-image-models, results/benchmark-infer-amp-nchw-pt240-cu124-rtx4090.csv (2,269.68 images/s)"
README = "SAM 2, README, SAM 2.1 checkpoints (A100, torch 2.5.1, all components compiled; {} frames/s)"
#: model → measured time. A model that is not listed takes the least time.
PUBLISHED = {
    "ViT-B-16-quickgelu": Published(WINDOWS / 2269.68, RTX_4090, TIMM),
    "sam2.1-tiny": Published(1 / 91.2, A100, README.format(91.2)),
    "sam2.1-large": Published(1 / 39.5, A100, README.format(39.5)),
}


@dataclass(frozen=True, slots=True)
class Work:
    """The counted operators of a forward: (floating-point operations, bytes) of each."""

    operators: tuple[tuple[float, float], ...]

    def least_seconds(self, gpu: Gpu) -> float:
        """Return the least time on a GPU."""
        return sum(max(flops / gpu.flops, moved / gpu.bandwidth) for flops, moved in self.operators)

    def flops(self) -> float:
        return sum(flops for flops, _ in self.operators)

    def bytes(self) -> float:
        return sum(moved for _, moved in self.operators)


@dataclass(frozen=True, slots=True)
class Forward:
    """What a call takes on the paper GPU.

    Attributes:
        seconds: on the device.
        operators: number of operators that the CPU launches.
    """

    seconds: float
    operators: int

    def times(self, factor: float) -> Forward:
        """Return a call that takes `factor` times as long."""
        return dataclasses.replace(self, seconds=self.seconds * factor)

    def part(self, share: float) -> Forward:
        """Return a call with fewer items. It has as many operators."""
        return self.times(share)


@dataclass(frozen=True, slots=True)
class Forwards:
    """The calls of both models.

    Attributes:
        windows: `WINDOWS` windows of CLIP.
        encoder: SAM2's encoder on an image.
        decoder: SAM2's decoder on `POINTS` points.
        slower: factor on the least times of calls without a published time.
    """

    windows: Forward
    encoder: Forward
    decoder: Forward
    slower: float


class Counting(TorchDispatchMode):
    """Counts operators, except those that only change the view of a tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found: list[tuple[float, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        space, _, name = func._schema.name.partition("::")
        if space == "aten" and not (func.is_view or name in ("_unsafe_view", "detach")):
            tensors = [one for one in tree_leaves((args, kwargs, out)) if isinstance(one, Tensor)]
            moved = sum(one.numel() * one.element_size() for one in tensors)
            self._found.append((_operations(name, args, out), float(moved)))
        return out

    def work(self) -> Work:
        """Return what has been counted."""
        return Work(tuple(self._found))


def _operations(name: str, args: Any, out: Any) -> float:
    """Return the floating-point operations of the products; those of other operators do not decide their time."""
    match name:
        case "linear":
            found = 2.0 * args[0].numel() * args[1].shape[0]
        case "matmul" | "mm" | "bmm":
            found = 2.0 * out.numel() * args[0].shape[-1]
        case "addmm" | "baddbmm":
            found = 2.0 * out.numel() * args[1].shape[-1]
        case "conv2d" | "convolution":
            found = 2.0 * out.numel() * args[1][0].numel()
        case "scaled_dot_product_attention":
            found = 4.0 * args[0].numel() * args[1].shape[-2]
        case _:
            found = 0.0
    return float(found)


@contextmanager
def without_pieces() -> Iterator[None]:
    """Compute in the pieces of a GPU, not in those that fit the cache of a CPU."""
    factor = enlarging.CUDA_FACTOR
    with (
        mock.patch.object(enlarging, "STRIP_VALUES", factor * enlarging.STRIP_VALUES),
        mock.patch.object(enlarging, "STRIP_PIXELS", factor * enlarging.STRIP_PIXELS),
        mock.patch.object(labelling, "STRIP_ELEMENTS", labelling.BLOCK_ELEMENTS),
        mock.patch.object(mask_decoder, "UPSCALED_BYTES", UNLIMITED),
    ):
        yield


def counted(compute: Callable[[], object]) -> Work:
    """Return the operators of a computation."""
    counting = Counting()
    with without_pieces(), torch.inference_mode(), counting:
        compute()
    return counting.work()


def forwards(clip: zoo.ModelSpec, sam: zoo.ModelSpec, size: tuple[int, int], published: bool) -> tuple[Forwards, str]:
    """Return the calls of both models on an H100 in bf16, and a text that states where the times come from.

    Nothing is computed: the tensors have shapes and no values.

    Args:
        clip, sam: the models.
        size: (H, W) of the images, which SAM2's encoder resizes.
        published: use published times where there are some. Other calls then take their least time multiplied by the
            published time / least time of CLIP. Otherwise all calls take their least times.
    """
    works = {**_clip_work(clip), **_sam_work(sam, size)}
    least = {name: work.least_seconds(H100) for name, work in works.items()}
    ratios = dict.fromkeys(works, 1.0)
    lines = []
    for name, spec in (("windows", clip), ("encoder", sam)):
        known = PUBLISHED.get(spec.name)
        if known is not None and published:
            ratios[name] = max(1.0, known.seconds / works[name].least_seconds(known.gpu))
            lines.append(f"{spec.name}: {known.source}, {1000 * known.seconds:.2f} ms on {known.gpu.name}")
    ratios["decoder"] = ratios["windows"]
    found = {name: Forward(ratios[name] * least[name], len(works[name].operators)) for name in works}
    for name, work in works.items():
        lines.append(
            f"{name:8} {1000 * found[name].seconds:7.2f} ms (least {1000 * least[name]:.2f} ms: "
            f"{work.flops() / 1e9:.0f} GFLOP, {work.bytes() / 1e9:.2f} GB), {len(work.operators)} operators"
        )
    return Forwards(**found, slower=ratios["windows"]), "\n".join(lines)


def _clip_work(spec: zoo.ModelSpec) -> dict[str, Work]:
    clip = DenseClip.load(spec, CPU, "bf16")
    side = clip.image_size
    with FakeTensorMode(allow_non_fake_inputs=True):
        windows = torch.zeros(WINDOWS, side, side, 3, dtype=torch.uint8)
        return {"windows": counted(lambda: clip.patch_features(clip.normalise(windows), VARIANTS["csa"]))}


def _sam_work(spec: zoo.ModelSpec, size: tuple[int, int]) -> dict[str, Work]:
    sam = Sam.load(spec, CPU, "bf16", POINTS)
    points = np.zeros((POINTS, 2), np.float32)
    seen: list[Embedding] = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        encoder = counted(lambda: seen.extend(sam.embed([np.zeros((*size, 3), np.uint8)])))
        return {"encoder": encoder, "decoder": counted(lambda: sam.predict(seen[0], points))}


def work_of(parts: Iterable[Work]) -> Work:
    """Return all operators of several computations."""
    return Work(tuple(one for part in parts for one in part.operators))
