"""Settings of the list of images and of the machine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ovseg_batch.settings.section import Execution, PathText, Precision, Section, Share


class ManifestConfig(Section):
    """The list of images of a run."""

    shard_rows: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Images in a shard. A shard is what one worker computes and commits at a time."""
    exclude: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Patterns of files and folders that are not listed, such as `raw` or `*/drafts/*.png`. They do not change a
    manifest that is given as INPUT."""
    dataset: str | None = None
    """A data set, by its name. If INPUT is its folder, the images of its split are listed. `labels: dataset:NAME` sets
    it."""


class RunExecution(Execution):
    """The machine of a run, its speed, what it may read, and when it stops."""

    engine: Literal["local", "ray"] = "local"
    """Where the stages are computed: this machine, or a Ray cluster."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`. `auto` is every visible GPU, or the CPU where there is none."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Number of worker processes. 0 computes in this process. null: one on a CPU, and up to four
    on each GPU, one for every 3 cores and 16 GiB of its memory (docs/gpus.md)."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of PyTorch on a CPU, in every worker. null: as many as there are cores. Workers of a shared GPU divide
    them."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPUs that Ray reserves for a worker."""
    gpus_per_worker: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)
    """Stage → share of a GPU that Ray reserves for a worker. A stage that is not named takes a whole GPU."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Windows or crops that CLIP computes together. It is halved when memory runs out."""
    point_chunk: Annotated[int, Field(ge=1)] | None = None
    """Prompts that SAM2 computes together. null: 8 on a CPU, 64 on a GPU."""
    stall_minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes without a finished image after which a worker is killed and replaced. null: never."""
    decode_threads: Annotated[int, Field(ge=1)] = 2
    """Threads that decode images, in every worker."""
    decode_bytes: Annotated[int, Field(ge=1 << 20)] = 512 << 20
    """Bytes of decoded images that a worker holds ahead of the models."""
    allow_remote: bool = False
    """Fetch images behind `s3://`, `gs://` and `https://` URLs."""
    remote_tries: Annotated[int, Field(ge=1)] = 4
    """Tries for an image behind a URL."""
    remote_timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds for each try."""
    remote_private: bool = False
    """Allow URLs that lead into private networks."""
    max_failure_rate: Share = 1.0
    """Stop the run when a larger share of its images has failed."""
    metrics_file: PathText | None = None
    """A file that is updated for the textfile collector of Prometheus. null: none."""


class RunConfig(RunExecution):
    """The machine of a run, its speed, and what it may read.

    Of these settings `precision`, `max_pixels` and `max_file_bytes` decide results. `device`, `threads`, `batch_size`
    and `point_chunk` can change their last bits.
    """

    precision: Precision = "auto"
    """Precision of the models. `auto` is bf16 on a GPU (fp16 before Ampere) and fp32 on a CPU, but bf16 for full-size
    models on a CPU with AMX."""
    max_pixels: Annotated[int, Field(ge=1)] = 200_000_000
    """An image with more pixels fails."""
    max_file_bytes: Annotated[int, Field(ge=1)] = 1 << 30
    """An image file with more bytes fails."""

    def limits(self) -> dict[str, int]:
        """Return the limits of images, which decide the images that fail, for fingerprints."""
        return {"max_pixels": self.max_pixels, "max_file_bytes": self.max_file_bytes}
