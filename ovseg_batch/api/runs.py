"""Start runs from Python, and read their results."""

from __future__ import annotations

import bisect
import functools
import itertools
import operator
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ovseg_batch.api.calling import (
    Labels,
    Settings,
    fit_to_process,
    load_settings,
    may_start_processes,
    plain_settings,
    to_path,
    warn_of_embedded_models,
)
from ovseg_batch.api.records import Colours, Failure, SegmentedImage, label_colours
from ovseg_batch.config import load_config
from ovseg_batch.errors import OvsegError, UsageError, nearest
from ovseg_batch.export.exporting import Exported, Options
from ovseg_batch.export.exporting import export as write_export
from ovseg_batch.export.formats import WRITERS
from ovseg_batch.export.selection import Selection
from ovseg_batch.io.images import read_row
from ovseg_batch.io.records import parse_json
from ovseg_batch.report.build import LIMIT, build_report
from ovseg_batch.settings import RunConfig
from ovseg_batch.types import Commit, ImageRow
from ovseg_batch.types.arrays import Pixels
from ovseg_batch.units import counted
from ovseg_batch.wording import for_python
from ovseg_batch.workdir.findings import read_findings
from ovseg_batch.workdir.results import Results, failed_rows
from ovseg_batch.workdir.store import Workdir

if TYPE_CHECKING:
    import pandas

    from ovseg_batch.api.evaluation import Evaluation


class RunFiles:
    """Reads the image files of a run under the limits of its settings."""

    def __init__(self, config: Path) -> None:
        self._config = config

    @cached_property
    def _settings(self) -> RunConfig:
        return load_config(self._config, environment={}).run if self._config.is_file() else RunConfig()

    def read(self, row: ImageRow) -> Pixels:
        """Return the image, upright: (H, W, 3) uint8 RGB. Raises RowError."""
        from ovseg_batch.stages.base import read_limits

        return read_row(row, read_limits(self._settings))


class Run:
    """The results of a run: a sequence of its finished images, in the order of the list."""

    @for_python()
    def __init__(self, workdir: str | Path) -> None:
        """Open the latest run of a workdir, finished or not.

        Raises:
            UsageError: there is no run in that folder.
        """
        self.workdir = to_path(workdir)
        self._results = Results.open(Workdir(self.workdir))
        self._files = RunFiles(Workdir(self.workdir).config)
        self._last: tuple[Commit, list[SegmentedImage]] | None = None  # the shard that was read last by index

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels of the run, in order."""
        return self._results.labels

    @property
    def complete(self) -> bool:
        """Return whether every stage has finished every image."""
        return all(not store.missing(self._results.manifest.shards) for store in self._results.stores)

    @property
    def label_images(self) -> dict[str, int] | None:
        """Label → number of images with a mask of it. A label that was never found has 0.

        None while the run is not finished, and for outputs of older versions.
        """
        found = read_findings(Workdir(self.workdir)) if self.complete else None
        return None if found is None else found.label_images

    @property
    def failures(self) -> list[Failure]:
        """Return the images that have failed so far."""
        return [Failure(*found) for found in failed_rows(self._results.manifest, self._results.stores)]

    def __len__(self) -> int:
        """Return the number of finished images."""
        return sum(commit.ok for commit in self._results.masks.commits())

    def __iter__(self) -> Iterator[SegmentedImage]:
        for commit in self._results.masks.commits():
            yield from self._read_shard(commit.shard)

    @overload
    def __getitem__(self, which: int | str) -> SegmentedImage: ...

    @overload
    def __getitem__(self, which: slice) -> list[SegmentedImage]: ...

    def __getitem__(self, which: int | slice | str) -> SegmentedImage | list[SegmentedImage]:
        """Return finished images by index, or one by its name. Only shards that hold them are read.

        Raises:
            IndexError: there is no finished image with that index.
            KeyError: no finished image has that name.
        """
        if isinstance(which, str):
            return self._named(which)
        commits = self._commits
        ends = list(itertools.accumulate(commit.ok for commit in commits))
        count = ends[-1] if ends else 0
        if isinstance(which, slice):
            return [self._at(commits, ends, place) for place in range(*which.indices(count))]
        place = operator.index(which)
        if not -count <= place < count:
            raise IndexError(f"The run has {counted(count, 'finished image')}; there is none at {place}.")
        return self._at(commits, ends, place % count)

    @property
    def _commits(self) -> list[Commit]:
        return self._all_commits if self.complete else list(self._results.masks.commits())

    @cached_property
    def _all_commits(self) -> list[Commit]:
        """The commits of a complete run, which do not change any more."""
        return list(self._results.masks.commits())

    def _at(self, commits: Sequence[Commit], ends: Sequence[int], place: int) -> SegmentedImage:
        """Return the finished image at an index. `ends` are the exclusive end indices of the commits."""
        number = bisect.bisect_right(ends, place)
        commit = commits[number]
        if self._last is None or self._last[0] != commit:
            self._last = commit, list(self._read_shard(commit.shard))
        return self._last[1][place - ends[number]]  # a negative index, from the end of the shard

    def _named(self, name: str) -> SegmentedImage:
        manifest = self._results.manifest
        for row, found in zip(manifest.read_column("row"), manifest.read_column("file_name"), strict=True):
            shard = manifest.shard_of(row)
            if found == name and self._results.masks.read_commit(shard) is not None:
                for image in self._read_shard(shard):
                    if image.name == name:
                        return image
        raise KeyError(name)

    def _read_shard(self, shard: int) -> Iterator[SegmentedImage]:
        for image in self._results.shard(shard):
            source = functools.partial(self._files.read, image.row)
            yield SegmentedImage.from_finished(image.row.file_name, image.row.path, image, self._colours, source)

    @cached_property
    def _colours(self) -> Colours:
        return label_colours(self.labels)

    def to_coco(self) -> dict[str, Any]:
        """Return the content of `annotations.json`: images, annotations with RLE counts as text, categories.

        Raises:
            OvsegError: the run is not finished, or the file is damaged.
        """
        path = Workdir(self.workdir).annotations
        if not self.complete or not path.is_file():
            raise OvsegError(
                f"The run in {self.workdir} is not finished, so it has no {path.name} yet. "
                "Call ovseg_batch.run again with the same arguments; it resumes."
            )
        try:
            content: dict[str, Any] = parse_json(path.read_bytes())
        except ValueError as error:
            repair = f"`ovseg-batch verify --repair {self.workdir}`"
            raise OvsegError(f"{path} is damaged ({error}). {repair} lets the next run write it again.") from None
        return content

    def to_pandas(self) -> pandas.DataFrame:
        """Return one row per mask of the finished images, all in memory.

        The columns are those of `export("csv", …)` without `key`, `split` and `rle`.

        Raises:
            UsageError: pandas is not installed.
        """
        from ovseg_batch.api.conversions import data_frame

        return data_frame(self)

    @for_python()
    def export(
        self, format: str, path: str | Path, selection: Selection | None = None, options: Options | None = None
    ) -> Exported:
        """Write the masks in another tool's format, as `ovseg-batch export` does.

        Raises:
            UsageError: there is no such format, or the selection or the options do not fit the run.
        """
        if format not in WRITERS:
            raise UsageError(f"There is no format {format!r}.{nearest(format, WRITERS)} Formats: {', '.join(WRITERS)}.")
        chosen, workers = selection or Selection(), None if may_start_processes() else 0
        return write_export(
            Workdir(self.workdir), WRITERS[format], to_path(path), chosen, options or Options(), workers=workers
        )

    @for_python()
    def query(self, labels: Labels, workdir: str | Path, *, settings: Settings | None = None) -> Run:
        """Compute the masks of other labels from the stored features of the run, without reading an image again.

        Args:
            labels: as in `ovseg_batch.run`.
            workdir: the workdir of the new run.
            settings: settings that differ from those of the run.

        Raises:
            UsageError: the run has not stored the features that the query needs.
        """
        from ovseg_batch.runs import pipeline

        chosen = {"labels": labels, **plain_settings(settings)}
        if not may_start_processes():
            chosen["run.workers"] = 0
        pipeline.query(Workdir(self.workdir), Workdir(to_path(workdir)), None, settings=chosen)
        return Run(workdir)

    @for_python()
    def evaluate(
        self,
        truth: str | Path | None = None,
        *,
        classes: str | Path | None = None,
        dataset: str | None = None,
        root: str | Path | None = None,
    ) -> Evaluation:
        """Evaluate the finished run against ground truth, as `ovseg-batch eval` does.

        Args:
            truth: COCO file of instances or of panoptic segments, or a folder of class maps.
            classes: list of the classes of a folder of maps. None: `classes.txt` or `classes.json` in it.
            dataset: name of a data set, or the YAML file that describes one, in place of `truth`.
            root: the folder of the data set, or a folder above it.

        Raises:
            UsageError: the run is not finished, or the truth is wrong or has no image or label of the run.
        """
        from ovseg_batch.api.evaluation import evaluation

        return evaluation(Workdir(self.workdir), truth, classes, dataset, root)

    @for_python()
    def report(self, path: str | Path, limit: int = LIMIT) -> Path:
        """Write the report into a folder, and return the path of its page.

        Args:
            limit: images in the gallery.
        """
        workers = None if may_start_processes() else 0
        return build_report(Workdir(self.workdir), to_path(path), limit, workers).page

    def __repr__(self) -> str:
        state = "complete" if self.complete else "not finished"
        return f"<Run {self.workdir}: {counted(len(self), 'image')} of {counted(len(self.labels), 'label')}, {state}>"


@for_python()
def run(
    images: str | Path | Sequence[str | Path],
    labels: Labels,
    workdir: str | Path = "ovseg-out",
    *,
    config: str | Path | None = None,
    settings: Settings | None = None,
    progress: bool = True,
    update: bool = False,
) -> Run:
    """Segment image files, as `ovseg-batch run` does. The same call again resumes, or returns the finished run.

    A daemonic process, such as a task of Celery, cannot start workers. It then computes the images itself.

    Args:
        images: folders, globs, lists or COCO files, as the command accepts as INPUT.
        labels: "car; person: person, people; sky", or a sequence of such labels.
        workdir: the output folder of the run.
        config: a YAML file, or a preset by name.
        settings: single keys, as in {"refine.vote": 0.5, "clip.model": "openai-b16"}.
        progress: show a bar for every stage.
        update: list the images again, and compute new and changed images.

    Raises:
        UsageError: settings or input are not valid. Nothing has been written.
        OvsegError, OSError: the run cannot continue. Committed shards are kept, and the same call resumes.
        Interrupted: a signal stopped the run, after the shard in flight was committed.
    """
    from ovseg_batch.runs import pipeline

    inputs = [images] if isinstance(images, str | Path) else list(images)
    loaded = fit_to_process(load_settings(config, labels, settings))
    warn_of_embedded_models(loaded)
    pipeline.run([str(one) for one in inputs], Workdir(to_path(workdir)), loaded, progress=progress, update=update)
    return Run(workdir)
