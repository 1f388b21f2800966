"""Run random sequences of commands on one workdir, and check after each that nothing is lost and nothing is mixed.

python -m tests.harness sequences --seeds 100 --steps 20
python -m tests.harness sequences --seeds 1 --first 17      # one of them again

A machine of Hypothesis draws images that come, change, break and go, runs with several configurations, kills,
interruptions, two commands at once, and every command that reads or cleans. Results are compared with those that an
undisturbed run has for the same image and configuration.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.failpoints import SHARD_POINTS
from ovseg_batch.io.manifest import Manifest
from tests.harness.configurations import options, save_models
from tests.harness.job import SEEDS, Ended, Running, leftovers, start_command, torn

LABELS = {
    **{"x": "sky; tree; grass", "y": "house; balloon; road", "cut": "sky; tree; grass", "matte": "sky; tree; grass"},
    # two runs of SAM 3, and a hybrid run with it, that share words
    **{"words": "car; sky; dog", "more": "dog; water; car", "hybrid": "sky; car; house"},
}
CUT = ("--edit", "cutout", "--drop", "sky")
EDITS = {"cut": CUT, "matte": CUT}
METHODS = {"matte": "matte", "words": "sam3", "more": "sam3", "hybrid": "hybrid"}  # name → its configuration
NAMES = tuple(f"{letter}.jpg" for letter in "abcdef")
CONTENTS = 6  # scenes that an image can show
POINTS = (
    *(f"{stage}.{point}" for stage in ("dense", "refine", "edit", "sam3", "merge") for point in SHARD_POINTS),
    *("manifest.rename", "export.rename", "export.renamed", "export.linked", "export.between"),
)
FINISHED = (0, 3)  # exit codes of a run that has written its outputs: all images well, or some failed
INTERRUPTED = 130

Masks = list[tuple[str, str]]  # label and RLE of each mask, in order

runs = st.sampled_from(sorted(LABELS))
names = st.sampled_from(NAMES)
points = st.tuples(st.sampled_from(POINTS), st.integers(1, 3))


class Scenes:
    """Pictures for the images, and the masks that each configuration finds in them without a disturbance."""

    def __init__(self, root: Path) -> None:
        self.root, self.cache = root, root / "cache"
        write_scenes(root, SEEDS[:CONTENTS])
        save_models(root / "models")
        self.files = [*sorted((root / "images").iterdir())]
        self.masks: dict[str, list[Masks]] = {}
        for name in LABELS:
            workdir = root / f"undisturbed-{name}"
            ended = start(self.cache, root / "log", *self.arguments(name, root / "images", workdir)).wait()
            if ended.code != 0:
                raise RuntimeError(f"an undisturbed run ended with {ended.code}:\n{ended.stderr}")
            found = read_masks(workdir)
            self.masks[name] = [found[file.name] for file in self.files]

    def arguments(self, name: str, images: Path, workdir: Path) -> list[object]:
        """Return the arguments of a run with a configuration."""
        small = ("--workers", "0", "--set", "manifest.shard_rows=2", "--set", "run.threads=1")
        own = options(METHODS[name], self.root / "models") if name in METHODS else ()
        return ["run", images, "-o", workdir, "--labels", LABELS[name], *EDITS.get(name, ()), *small, *own]


def start(cache: Path, log: Path, *arguments: object, failpoints: str = "") -> Running:
    environment = {"OVSEG_CACHE": str(cache), "OVSEG_FAILPOINTS": failpoints}
    return start_command([*map(str, arguments)], environment, log)


def read_masks(workdir: Path) -> dict[str, Masks]:
    """Return the masks of every image in annotations.json, by file name."""
    content = json.loads((workdir / "annotations.json").read_bytes())
    labels = {category["id"]: category["name"] for category in content["categories"]}
    images = {image["id"]: image["file_name"] for image in content["images"]}
    found: dict[str, Masks] = {name: [] for name in images.values()}
    for one in content["annotations"]:
        found[images[one["image_id"]]].append((labels[one["category_id"]], one["segmentation"]["counts"]))
    return found


def read_failures(workdir: Path) -> tuple[set[str], set[str]]:
    """Return the images that have no masks, and those of which only the edit failed."""
    with (workdir / "failures.csv").open(newline="") as file:
        lines = [(line["key"], line["stage"] == "edit") for line in csv.DictReader(file)]
    return {key for key, edit in lines if not edit}, {key for key, edit in lines if edit}


def machine(scenes: Scenes, counts: Counter[str]) -> type[RuleBasedStateMachine]:
    """Return the machine over these pictures; `counts` gets the number of steps of each kind."""

    class Sequences(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.root = Path(tempfile.mkdtemp(prefix="sequence-", dir=scenes.root))
            self.images, self.workdir = self.root / "images", self.root / "run"
            self.images.mkdir()
            self.shown: dict[str, int | None] = {}  # picture of each file; None: broken
            self.listed: dict[str, set[int | None]] = {}  # what each listed image has shown since it was listed
            self.last: str | None = None  # configuration of the latest run that has begun
            self.whole = False  # whether the latest run has ended

        def teardown(self) -> None:
            shutil.rmtree(self.root, ignore_errors=True)

        @invariant()
        def step(self) -> None:
            counts["steps"] += 1

        # --- the images ---

        @initialize(pictures=st.lists(st.integers(0, CONTENTS - 1), min_size=3, max_size=5))
        def photographs(self, pictures: list[int]) -> None:
            for name, picture in zip(NAMES, pictures, strict=False):
                self.show(name, picture)

        @rule(name=names, picture=st.integers(0, CONTENTS - 1))
        def image_comes_or_changes(self, name: str, picture: int) -> None:
            self.show(name, picture)

        @rule(name=names)
        def image_breaks(self, name: str) -> None:
            self.show(name, None)

        @precondition(lambda self: len(self.shown) > 1)
        @rule(name=names)
        def image_goes(self, name: str) -> None:
            (self.images / name).unlink(missing_ok=True)
            self.shown.pop(name, None)
            if name in self.listed:
                self.listed[name].add(None)

        def show(self, name: str, picture: int | None) -> None:
            counts["images"] += 1
            (self.images / name).write_bytes(b"" if picture is None else scenes.files[picture].read_bytes())
            self.shown[name] = picture
            if name in self.listed:
                self.listed[name].add(picture)

        # --- runs ---

        @rule(name=runs, update=st.booleans())
        def run(self, name: str, update: bool) -> None:
            ended = self.command(*self.arguments(name, update))
            if not self.refused(update, ended):
                self.finish(name, update, ended)

        @rule(name=runs, update=st.booleans(), point=points)
        def run_is_killed(self, name: str, update: bool, point: tuple[str, int]) -> None:
            ended = self.command(*self.arguments(name, update), failpoints=f"{point[0]}:{point[1]}")
            if self.refused(update, ended):
                return
            assert ended.code in (*FINISHED, -signal.SIGKILL), ended
            if ended.code in FINISHED:
                self.finish(name, update, ended)
            else:
                self.disturb(name, update)

        @rule(name=runs, update=st.booleans(), seconds=st.floats(0, 1.5))
        def run_is_interrupted(self, name: str, update: bool, seconds: float) -> None:
            running = self.begin(*self.arguments(name, update))
            time.sleep(seconds)
            if running.process.pid is not None and running.process.is_alive():
                os.kill(running.process.pid, signal.SIGINT)
            ended = running.wait(120)
            if self.refused(update, ended):
                return
            begun = "ovseg_batch/cli" in ended.stderr or "ovseg-batch:" in ended.stderr
            early = ended.code == 1 and not begun  # the signal came before the process had come to the command
            assert early or ended.code in (*FINISHED, INTERRUPTED), ended
            if ended.code in FINISHED:
                self.finish(name, update, ended)
            else:
                self.disturb(name, update)

        @precondition(lambda self: self.whole)
        @rule(point=st.none() | points)
        def retry(self, point: tuple[str, int] | None) -> None:
            ended = self.command("retry", self.workdir, failpoints=f"{point[0]}:{point[1]}" if point else "")
            assert ended.code in FINISHED or (point and ended.code == -signal.SIGKILL), ended
            if ended.code in FINISHED:
                assert self.last is not None
                self.finish(self.last, False, ended, retried=True)
            else:
                self.whole = False

        @precondition(lambda self: self.listed)
        @rule(one=runs, other=runs)
        def two_runs_at_once(self, one: str, other: str) -> None:
            first = self.begin(*self.arguments(one, False))
            second = self.command(*self.arguments(other, False))
            ended = first.wait(120)
            assert ended.code in (*FINISHED, 1) and second.code in (*FINISHED, 1), (ended, second)
            assert "Traceback" not in ended.stderr + second.stderr
            self.whole = False
            self.run(one, False)

        @precondition(lambda self: self.whole)
        @rule(name=runs, arguments=st.sampled_from([("gc", "--yes"), ("verify",), ("retry",)]))
        def a_run_and_another_command_at_once(self, name: str, arguments: tuple[str, ...]) -> None:
            first = self.begin(*self.arguments(name, False))
            second = self.command(arguments[0], self.workdir, *arguments[1:])
            ended = first.wait(120)
            assert ended.code in (*FINISHED, 1), ended
            assert "Traceback" not in ended.stderr + second.stderr
            self.whole = False
            self.run(name, False)

        # --- other commands ---

        @precondition(lambda self: self.whole)
        @rule()
        def collect(self) -> None:
            assert self.command("gc", self.workdir, "--yes").code == 0
            self.check(self.last)

        @precondition(lambda self: self.last)
        @rule()
        def verify_and_repair(self) -> None:
            ended = self.command("verify", self.workdir, "--repair")
            begun = (self.workdir / "stages" / "plan.json").exists()
            assert ended.code in ((0, 1) if begun else (2,)), ended

        @precondition(lambda self: self.whole)
        @rule(form=st.sampled_from(["coco", "yolo", "masks"]))
        def export(self, form: str) -> None:
            target = self.root / ("export.json" if form == "coco" else f"export-{form}")
            ended = self.command("export", self.workdir, "-f", form, "-o", target, "--overwrite")
            masks_of = read_masks(self.workdir)
            if form == "yolo" and ended.code == 1:  # it links the images, and refuses one that is not what the run read
                gone = set(masks_of) - set(self.shown)
                changed = {file for file in masks_of if self.listed.get(file) != {self.shown.get(file)}} - gone
                refused = (gone, "is not there any more"), (changed, "has changed since an earlier stage read it")
                assert any(f"/{file} {what}" in ended.stderr for files, what in refused for file in files), ended
                return
            assert ended.code == 0, ended
            assert form != "yolo" or set(masks_of) <= set(self.shown), "an image that is gone was linked"
            well = {Path(name).stem for name in masks_of}
            if form == "coco":
                found = {Path(image["file_name"]).stem for image in json.loads(target.read_bytes())["images"]}
            elif form == "yolo":
                found = {path.stem for path in (target / "labels").rglob("*.txt")}
            else:
                found = {path.name for path in target.iterdir() if path.is_dir() and not path.name.startswith(".")}
                well = {Path(name).stem for name, masks in masks_of.items() if masks}
            assert found == well, (form, found, well)

        @precondition(lambda self: self.whole)
        @rule()
        def report(self) -> None:
            ended = self.command("report", self.workdir, "-o", self.root / "report")
            assert ended.code == 0, ended

        # --- what holds ---

        def arguments(self, name: str, update: bool) -> list[object]:
            return [*scenes.arguments(name, self.images, self.workdir), *(("--update",) if update else ())]

        def begin(self, *arguments: object, failpoints: str = "") -> Running:
            counts[str(arguments[0])] += 1
            log = self.root / f"{sum(counts.values())}.log"
            return start(scenes.cache, log, *arguments, failpoints=failpoints)

        def command(self, *arguments: object, failpoints: str = "") -> Ended:
            ended = self.begin(*arguments, failpoints=failpoints).wait(120)
            assert "Traceback" not in ended.stderr, ended.stderr
            return ended

        def refused(self, update: bool, ended: Ended) -> bool:
            """Return whether a run was refused because the list of images is there, and other than they are now.

            That is right as long as no run has begun: the list may be that of another folder.
            """
            begun = (self.workdir / "stages" / "plan.json").exists()
            return not update and not begun and ended.code == 2 and "belongs to another manifest" in ended.stderr

        def disturb(self, name: str, update: bool) -> None:
            """Take note of a run that did not end: which images it has listed is not known."""
            self.whole, self.last = False, name
            if update or not self.listed:
                for file in NAMES:
                    self.listed.setdefault(file, {None}).add(self.shown.get(file))
            self.check(None)

        def finish(self, name: str, update: bool, ended: Ended, retried: bool = False) -> None:
            """Hold a run that has ended to what it promises."""
            assert ended.code in FINISHED, ended
            if update or not self.listed:
                self.listed = {file: {picture} for file, picture in self.shown.items()}
            self.last, self.whole = name, True
            self.check(name)
            (failed, not_edited), well = read_failures(self.workdir), read_masks(self.workdir)
            assert (ended.code == 3) == bool(failed | not_edited), (ended, failed, not_edited)
            assert failed | set(well) == set(self.manifest()), "an image is nowhere"
            assert not failed & set(well)
            certain = {file for file, pictures in self.listed.items() if len(pictures) == 1}
            for file in certain & set(self.manifest()):
                [picture] = self.listed[file]
                assert (file in failed) == (picture is None), (file, picture, ended)
            if retried:
                assert all(self.shown.get(file) is None for file in failed | not_edited), "a mended image failed"
            assert not leftovers(self.workdir)

        def manifest(self) -> list[str]:
            return list(Manifest.open(self.workdir / "manifest.parquet").read_column("file_name"))

        def check(self, name: str | None) -> None:
            """Hold what is visible to one configuration: the one named, or any that has run."""
            problems = torn(self.workdir)
            assert not problems, problems
            if not (self.workdir / "annotations.json").exists():
                assert name is None
                return
            content = json.loads((self.workdir / "annotations.json").read_bytes())
            labels = "; ".join(category["name"] for category in content["categories"])
            assert labels in LABELS.values() if name is None else labels == LABELS[name]
            which = name or next(known for known, words in LABELS.items() if words == labels)
            for file, masks in read_masks(self.workdir).items():
                pictures = self.listed.get(file, set())
                if name is not None:
                    assert masks in [scenes.masks[which][one] for one in pictures if one is not None], file
            if name is not None:
                self.check_top(name)

        def check_top(self, name: str) -> None:
            plan: dict[str, Any] = json.loads((self.workdir / "stages" / "plan.json").read_bytes())
            assert "; ".join(plan["labels"]) == LABELS[name]
            edited = {path.name.removesuffix(".png") for path in (self.workdir / "edited").rglob("*.png")}
            _, not_edited = read_failures(self.workdir)
            assert edited == (set(read_masks(self.workdir)) - not_edited if name in EDITS else set())
            ended = self.command("verify", self.workdir)
            assert ended.code == 0, ended

    return Sequences


def run_sequence(scenes: Scenes, seed: int, steps: int, counts: Counter[str]) -> None:
    """Run the sequence of a seed.

    Args:
        steps: of the sequence, at most.
        counts: gets the number of steps, of commands of each kind, and of images written (`images`).

    Raises:
        AssertionError: something did not hold. Hypothesis prints the sequence as it runs, because a second run may
            end otherwise: kills and interruptions depend on time.
    """
    chosen = settings(
        max_examples=2,  # the first is the simplest that there is
        stateful_step_count=steps,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        verbosity=Verbosity.verbose,
        suppress_health_check=[*HealthCheck],
    )
    run_state_machine_as_test(seeded(seed)(machine(scenes, counts)), settings=chosen)


@click.command()
@click.option("--seeds", default=100, show_default=True, help="Number of sequences. Each has its own seed.")
@click.option("--first", default=0, show_default=True, help="The first seed.")
@click.option("--steps", default=20, show_default=True, help="Steps of a sequence, at most.")
def main(seeds: int, first: int, steps: int) -> None:
    """Run random sequences of commands on one workdir. The first that breaks a promise ends the command."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="ovseg-sequences-") as folder:
        scenes = Scenes(Path(folder))
        for seed in range(first, first + seeds):
            run_sequence(scenes, seed, steps, counts)
            done = ", ".join(f"{kind} {number}" for kind, number in sorted(counts.items()) if kind != "steps")
            click.echo(f"seed {seed}: {counts['steps']} steps so far ({done})")
