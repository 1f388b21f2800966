"""The interface of stages, and access to the results of earlier stages.

A stage computes one `RowResult` per row of a shard. It depends on no path, commit or other stage. It reads
the results of earlier stages through `Upstream`. `stages.shard` writes what it returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa

from ovseg_batch.errors import FailureCode, UsageError, nearest
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.remote import Remote
from ovseg_batch.settings import Config, RunConfig
from ovseg_batch.stages.resolved import Resolved
from ovseg_batch.types import ImageRow, RowResult
from ovseg_batch.types.arrays import AnyArray, Numbers, Pixels

if TYPE_CHECKING:
    from ovseg_batch.stages.earlier import EarlierShard

Shape = tuple[int | None, ...]
#: the section of the settings that names a model; `edit.alpha` names `matte`
ModelKind = Literal["clip", "sam", "dino", "owl", "sam3", "matte", "inpaint"]

ARRAYS = ".npz"
#: value of `method` → the stage that gives the masks
ANSWER_STAGES = {
    "dense": "refine",
    "proposals": "classify",
    "detect": "classify",
    "sam3": "settle",
    "hybrid": "merge",
}
WORDS_ALONE = ("detect", "sam3")  # methods that score each word alone, so that no word competes with the labels
STUFF = "dense"  # the method that gives the masks of stuff under `method: hybrid`


def answer_stage(config: Config) -> str:
    """Return the name of the stage that gives the masks.

    Raises:
        UsageError: `method` has a value that no stage answers.
    """
    if config.method not in ANSWER_STAGES:
        known = ", ".join(ANSWER_STAGES)
        raise UsageError(
            f"method: there is no {config.method!r}.{nearest(config.method, ANSWER_STAGES)} Methods: {known}."
        )
    return ANSWER_STAGES[config.method]


def methods_of(config: Config) -> tuple[str, ...]:
    """Return the methods whose stages a run computes: two under `method: hybrid`, that of the things first."""
    return (config.merge.things, STUFF) if config.method == "hybrid" else (config.method,)


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of a worker.

    Attributes:
        accelerator: False: it computes on the CPU and reserves no GPU.
        shared: several workers may share a GPU, because the models of the stage are small beside its memory.
    """

    accelerator: bool = True
    shared: bool = True


class Upstream(Protocol):
    """The results of an earlier stage for the rows of a shard."""

    def failure(self, row: int) -> str | None:
        """Return why the earlier stage has failed this row; None where it has not."""
        ...

    def values(self, row: int) -> dict[str, Any]:
        """Return the columns of the row."""
        ...

    def content(self, row: int) -> str | None:
        """Return the hash of the image file that the row comes from; None where it failed or has no hash."""
        ...

    def array(self, row: int, name: str, shape: Shape) -> Numbers:
        """Return an array of floating-point numbers that the stage has stored for the row.

        Args:
            name: of the array.
            shape: required shape. None: any length of at least 1.
        """
        ...

    def pixels(self, row: int, name: str, shape: Shape) -> Pixels:
        """Return an array of uint8 that the stage has stored for the row. Args: as `array`."""
        ...


class StagePlan:
    """The inputs, outputs and dependencies of a stage. It is built from the settings and imports no model library.

    A stage overrides what differs from these defaults: those of a stage that reads no other, keeps a table alone, and
    opens no image.

    Attributes:
        version: changes when the code changes what the stage computes.
        needs: names of the stages that it reads.
        columns: fields that it adds to the Parquet row. A stage that writes files names them in a column `files`.
        arrays: whether it writes an NPZ.
        reads_images: whether it opens the images. Otherwise it uses the results of earlier stages.
    """

    name: str
    version: int = 1
    needs: tuple[str, ...] = ()
    resources: Resources = Resources()
    columns: pa.Schema
    arrays: bool = False
    reads_images: bool = False

    def __init__(self, run: Resolved) -> None:
        """Take from a run what decides the result."""

    @staticmethod
    def needs_of(config: Config) -> tuple[str, ...]:
        """Return the names of the stages that it reads under these settings."""
        return ()

    @staticmethod
    def models_of(config: Config) -> tuple[ModelKind, ...]:
        """Return the models that it loads under these settings."""
        return ()

    @staticmethod
    def cost_of(config: Config) -> str:
        """Describe the computations of its models per image. Empty if they are small."""
        return ""

    @staticmethod
    def query_setting(config: Config) -> tuple[str, str] | None:
        """Return the key and value with which a run stores the results that queries need from this stage."""
        return None

    def inputs(self) -> dict[str, Any]:
        """Return all values that decide the result, except manifest and upstream, as JSON-able values."""
        raise NotImplementedError

    def work(self, height: int, width: int) -> float:
        """Return a measure of the work for an image of that size, to which the time is about proportional."""
        return 1.0

    def estimate_bytes(self, height: int, width: int) -> int | None:
        """Return the bytes of the arrays of an image of that size, or None if they depend on its content."""
        return 0


class Stage(StagePlan):
    """One step of the pipeline: a plan, and the code that computes it."""

    def setup(self, device: str) -> None:
        """Load the models onto the device. Called once per worker, before the first shard."""

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        """Yield exactly one result per row. Errors of one image are failed results, never exceptions."""
        raise NotImplementedError


class WordStage(Stage):
    """A stage that searches for each word alone, so that the other words of a run do not change what it finds.

    Attributes:
        words_in: keys of `inputs()` that hold the words, and what they belong to.
    """

    words_in: tuple[str, ...]

    def process(
        self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream], earlier: Sequence[EarlierShard] = ()
    ) -> Iterator[RowResult]:
        """Yield results as `Stage.process`. They do not depend on `earlier`, which saves the search for its words.

        Args:
            earlier: the same shard of other runs. Its rows may come from another content of their image.
        """
        raise NotImplementedError


def ready(
    rows: Sequence[ImageRow], upstream: Mapping[str, Upstream], needs: Sequence[str]
) -> tuple[list[ImageRow], list[RowResult]]:
    """The rows that every stage needed has done, and what to answer for the others."""
    todo, answers = [], []
    for row in rows:
        reasons = (f"{name} failed: {reason}" for name in needs if (reason := upstream[name].failure(row.row)))
        first = next(reasons, None)
        if first is None:
            todo.append(row)
        else:
            answers.append(failed(row, FailureCode.UPSTREAM, first))
    return todo, answers


def read_limits(run: RunConfig) -> Limits:
    """What the settings let an image be."""
    remote = Remote(run.remote_tries, run.remote_timeout, run.remote_private) if run.allow_remote else None
    return Limits(run.max_pixels, run.max_file_bytes, remote)


def done(
    row: ImageRow,
    values: dict[str, Any],
    arrays: Mapping[str, AnyArray] | None = None,
    files: dict[str, bytes] | None = None,
) -> RowResult:
    """The result of an image, from the content of its file that `row` states."""
    return RowResult(row.row, row.key, values, dict(arrays or {}), files or {}, row.content)


def failed(row: ImageRow | RowResult, code: FailureCode, message: str) -> RowResult:
    """The terminal row of an image that cannot be done."""
    return RowResult(row.row, row.key, code=code, message=message)
