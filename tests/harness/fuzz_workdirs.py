"""Finished workdirs in which files are damaged, given to a command and then to the command of the run."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

from ovseg_batch import Run
from ovseg_batch.errors import OvsegError, RowError
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.export.formats import WRITERS
from ovseg_batch.io.manifest import Manifest
from tests.harness.configurations import options, save_models
from tests.harness.fuzzing import Input, Violation
from tests.harness.job import SEEDS, Ended, leftovers, start_command, start_function
from tests.harness.mutations import mutate_bytes, mutate_json, to_json
from tests.harness.sequences import Masks, read_failures, read_masks

LABELS = "sky; tree; grass; house"
OTHER_LABELS = "sky; water; balloon"
IMAGES = 6
SECONDS = 180.0  # that one command may take
FINISHED = (0, 3)  # a run that has written its outputs: all images well, or some failed
ENDED = (0, 1, 2, 3)  # documented exit codes of a command that nobody has interrupted
COMMANDS: tuple[tuple[str, ...], ...] = (
    *(("status",), ("status", "--json"), ("verify",), ("verify", "--json"), ("verify", "--repair")),
    *(("gc", "--yes"), ("gc",), ("retry",), ("report",), ("query",), ("python",), ("run",), ("update",)),
    *(("export", name) for name in WRITERS),
)
SUFFIXES = {"coco": ".json", "coco-polygon": ".json", "cvat": ".xml", "csv": ".csv"}  # of exports that are one file
CLEARED = "manifest.parquet"  # the list of images, which a run cannot restore


class Workdirs:
    """A small finished run, copied for each case."""

    name = "workdirs"

    def __init__(self, root: Path, configuration: str = "prompted") -> None:
        """Render the images and run them undisturbed.

        Args:
            root: an empty folder.
            configuration: key of `CONFIGURATIONS`.
        """
        self._root = root
        self._commands = 0
        write_scenes(root, SEEDS[:IMAGES])
        save_models(root / "models")
        self._options = options(configuration, root / "models")
        self._images = root / "images"
        self._whole = root / "whole"
        self._run = root / "run"
        _expect(self._start(self._run_arguments()), (0,), "an undisturbed run")
        _expect(self._start(["report", str(self._run)]), (0,), "a report")
        _expect(self._start(["export", str(self._run), "-f", "yolo", "-o", str(self._run / "yolo")]), (0,), "an export")
        shutil.copytree(self._run, self._whole, symlinks=True)
        self._names = sorted(p.relative_to(self._whole).as_posix() for p in self._whole.rglob("*") if p.is_file())
        self._names = [name for name in self._names if not name.endswith(".lock")]
        self._masks = read_masks(self._whole)
        self._edited = _digests(self._whole / "edited")

    def draw(self, seed: int) -> Input:
        """Return the names of damaged files and of a command, with the contents that the files get."""
        random = Random(f"workdirs:{seed}")
        groups: dict[str, list[str]] = {}
        for name in self._names:
            groups.setdefault(_form(name), []).append(name)
        forms = sorted(groups)
        form = forms[seed % len(forms)]
        names = [random.choice(groups[form])]
        if random.random() < 0.5:
            names.append(random.choice(groups[random.choice(forms)]))
        damage = {}
        for name in names:
            content, what = _damaged((self._whole / name).read_bytes(), name, random)
            damage[name] = {"what": what, "content": None if content is None else content.hex()}
        case = {"damage": damage, "command": list(random.choice(COMMANDS))}
        what = "; ".join(f"{name}: {one['what']}" for name, one in damage.items())
        return Input(form, f"{what}; then {' '.join(case['command'])}", "case.json", json.dumps(case).encode())

    def check(self, given: Input) -> bool:
        """Damage a copy of the run, give the command, and then the command of the run until all is well."""
        case = json.loads(given.content)
        shutil.rmtree(self._run)
        shutil.copytree(self._whole, self._run, symlinks=True)
        for name, one in case["damage"].items():
            path = self._run / name
            path.unlink(missing_ok=True)
            if one["content"] is not None:
                path.write_bytes(bytes.fromhex(one["content"]))
        shutil.rmtree(self._root / "out", ignore_errors=True)
        (self._root / "out").mkdir()
        before = _digests(self._images)
        first = self._command(case["command"])
        again = self._finish(CLEARED in case["damage"])
        if _digests(self._images) != before:
            raise Violation("an image of the user has changed")
        return first.code in FINISHED and again

    # --- commands ---

    def _run_arguments(self, *more: str) -> list[str]:
        small = ["--workers", "0", "--set", "manifest.shard_rows=2", "--set", "run.threads=1"]
        kept = ["--set", "dense.cache=features", "--set", "refine.method=none"]
        command = ["run", str(self._images), "-o", str(self._run), "--labels", LABELS]
        return [*command, "--edit", "cutout", "--drop", "sky", *small, *kept, *self._options, *more]

    def _start(self, arguments: list[str]) -> Ended:
        self._commands += 1
        log = self._root / f"command-{self._commands % 8}.log"
        environment = {"OVSEG_CACHE": str(self._root / "cache")}
        if arguments == ["python"]:
            return start_function(read_in_python, (self._run,), environment, log).wait(SECONDS)
        return start_command(arguments, environment, log).wait(SECONDS)

    def _command(self, words: Sequence[str]) -> Ended:
        run, out = str(self._run), str(self._root / "out" / "out")
        kind, *rest = words
        commands = {
            "run": self._run_arguments(),
            "update": self._run_arguments("--update"),
            "query": ["query", run, "-o", out, "--labels", OTHER_LABELS],
            "report": ["report", run, "-o", out],
            "python": ["python"],
            "export": ["export", run, "-f", *rest[:1], "-o", f"{out}{SUFFIXES.get(rest[0], '')}" if rest else out],
        }
        ended = self._try(commands.get(kind, [kind, run, *rest]))
        return ended

    def _try(self, arguments: list[str]) -> Ended:
        """Give a command, which must end as documented.

        Raises:
            Violation: it hangs, dies, or ends with a traceback, another exit code or no sentence.
        """
        shown = " ".join(arguments[:4])
        try:
            ended = self._start(arguments)
        except TimeoutError as error:
            raise Violation(f"{shown}: {error}") from None
        if "Traceback" in ended.stderr or ended.code not in ENDED:
            how = signal.Signals(-ended.code).name if ended.code < 0 else f"exit code {ended.code}"
            raise Violation(f"{shown} ended with {how}:\n{ended.stderr[-3000:]}")
        if ended.code in (1, 2) and arguments[0] != "verify" and "ovseg-batch: " not in ended.stderr:
            raise Violation(f"{shown} ended with {ended.code} and no sentence:\n{ended.stderr[-3000:]}")
        return ended

    def _finish(self, cleared: bool) -> bool:
        """Run to the end as the docs say: run, verify and repair, and run again.

        Args:
            cleared: the list of images is damaged, and is deleted with the repair.
        """
        ended = self._try(self._run_arguments())
        refused = ended.code not in FINISHED
        if not refused and not self._try(["verify", str(self._run)]).code:
            self._all_there(ended)
        if cleared:
            (self._run / CLEARED).unlink(missing_ok=True)
        self._try(["verify", str(self._run), "--repair"])
        ended = self._try(self._run_arguments())
        _expect(ended, FINISHED, "the run after `verify --repair`")
        self._all_there(ended)
        _expect(self._try(["verify", str(self._run)]), (0,), "verify after the repair")
        if found := leftovers(self._run):
            raise Violation(f"left over: {found}")
        self._same(read_masks(self._run))
        _expect(ended, (0,), "the run after `verify --repair`, of good images,")
        if _digests(self._run / "edited") != self._edited:
            raise Violation("the edited images are not those of the undisturbed run")
        return not refused

    def _all_there(self, ended: Ended) -> None:
        """Check that every image of the list has masks or a line in failures.csv."""
        (failed, not_edited), well = read_failures(self._run), read_masks(self._run)
        try:
            manifest = Manifest.open(self._run / CLEARED)
            keys, names = ([*manifest.read_column(column)] for column in ("key", "file_name"))
        except OvsegError:
            return  # a damaged list of images, which `verify` names
        lost = [key for key, name in zip(keys, names, strict=True) if key not in failed and name not in well]
        if lost or (ended.code == 3) != bool(failed | not_edited):
            raise Violation(f"exit code {ended.code}, failed {failed | not_edited}, nowhere: {lost}")

    def _same(self, masks: dict[str, Masks]) -> None:
        differ = sorted(name for name in {*masks, *self._masks} if masks.get(name) != self._masks.get(name))
        if differ:
            raise Violation(f"after verify --repair and the run, the masks of {differ} are not the undisturbed run's")


def read_in_python(workdir: Path) -> None:
    """Read everything of a run in Python. Only errors of the package and of the system may be raised."""
    try:
        run = Run(workdir)
        for image in run:
            image.label_map(run.labels)
            image.overlay()
        for _ in (run.label_images, run.failures, run.complete, len(run), run[:2], repr(run)):
            pass
        run.to_pandas()
        run.to_coco()
    except (OvsegError, OSError, RowError) as error:
        print(f"ovseg-batch: {error}", file=sys.stderr)
        sys.exit(1)


def _expect(ended: Ended, codes: Sequence[int], what: str) -> None:
    if ended.code not in codes:
        raise Violation(f"{what} ended with {ended.code}:\n{ended.stderr[-3000:]}")


def _form(name: str) -> str:
    """Return the kind of a workdir's file: its name, its stage's part, or the folder that it is in."""
    parts = name.split("/")
    if parts[0] == "stages" and len(parts) > 2:
        stage, rest = parts[1].rpartition("-")[0], parts[2:]
        return f"{stage}: {rest[0]}{Path(name).suffix if rest[0] == 'data' else ''}"
    return name if len(parts) == 1 or parts[0] == "stages" else f"{parts[0]}/"


def _damaged(content: bytes, name: str, random: Random) -> tuple[bytes | None, str]:
    """Return another content of a file, None where it is deleted, and what was done."""
    kind = random.choice(("bytes", "bytes", "same-size", "same-size", "delete", "empty", "values", "values"))
    if kind == "delete":
        return None, kind
    if kind == "empty":
        return b"", kind
    if kind == "values" and name.endswith(".json"):
        return to_json(mutate_json(json.loads(content), random)).encode(), kind
    if kind == "same-size":
        changed = bytearray(content or b"x")
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
        return bytes(changed), kind
    return mutate_bytes(content, content, random)


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {p.relative_to(folder).as_posix(): hashlib.blake2b(p.read_bytes()).hexdigest() for p in files}
