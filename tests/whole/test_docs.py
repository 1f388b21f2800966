"""Checks the pages: commands run, links lead somewhere, messages are printed, the help is that of the program."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from write_cli_docs import PAGE, pages

from ovseg_batch import datasets, scenes
from ovseg_batch.config import load_config
from ovseg_batch.errors import FailureCode
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.models.tipsv2_layout import is_tipsv2
from ovseg_batch.settings import WITH_DINO
from ovseg_batch.stages.base import WORDS_ALONE
from tests.support import full_size, layouts
from tests.support.fake_hub import FakeHub
from tests.support.tiny_tipsv2 import save_tiny_tipsv2

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("checkpoints/**/*.md")])
#: What a test of its own, or a person, runs.
ELSEWHERE = ("./scripts/demo", "./scripts/test", "pip install")


def commands(page: Path) -> list[str]:
    """The lines of a page's plain code blocks that are commands; of transcripts those behind a `$`."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.S | re.M):
        if language:
            continue
        lines = block.replace("\\\n", "").splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found += prompted or [line for line in lines if line.startswith(("ovseg-batch ", *ELSEWHERE))]
    return found


@dataclass(frozen=True)
class Reader:
    """Runs commands in an environment of its own, whose hub is a local one with full-size random weights."""

    environment: dict[str, str]

    def run(self, line: str, folder: Path, **own: str) -> None:
        """Run a command exactly as the page prints it, in a shell."""
        if re.search("-c (remove-people|replace-sky)", line):
            own["OVSEG_INPAINT__MODEL"] = "demo"
        environment = {**self.environment, **own}
        done = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode in (0, 3), f"{line}\n{done.stderr}"
        assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Fetches the models of the default preset by the README's command, and a smaller SAM2, into an empty folder."""
    home = tmp_path_factory.mktemp("home")
    program = str(Path(sys.executable).parent)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "OVSEG_"))}
    with FakeHub(full_size.repositories()).serve() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hub"), "OVSEG_CACHE": str(home / "cache")}
        path = os.pathsep.join([program, clean["PATH"]])
        reader = Reader({**clean, **environment, "PATH": path, "NO_PROXY": "127.0.0.1"})
        reader.run("ovseg-batch models fetch -c prompted", home)
        reader.run(f"ovseg-batch models fetch {full_size.SMALL_SAM}", home)
    reader.environment["HF_HUB_OFFLINE"] = "1"
    yield reader
    shutil.rmtree(home)


#: pages with commands, and whether a reader of the page has a run in `out`
TRIED = {
    "README.md": False,
    "docs/benchmarks.md": False,
    "docs/compare.md": False,
    "docs/confidence.md": True,
    "docs/doctor.md": False,
    "docs/formats.md": True,
    "docs/methods.md": False,
    "docs/query.md": False,
    "docs/report.md": True,
    "docs/settings.md": False,
    "docs/try.md": False,
    "docs/watching.md": True,
}


#: For the pages beside the README. Random weights draw no mask where a hundred words compete with the labels.
MASKS = {"OVSEG_BACKGROUND": "none", "OVSEG_SAM__MODEL": full_size.SMALL_SAM}


#: For published rows: one CLIP for all, a DINO of full size, and fewer windows for ITACLIP.
ROWS = {"OVSEG_CLIP__MODEL": full_size.CLIP, "OVSEG_DINO__WEIGHTS": "random:0", "OVSEG_DENSE__STRIDE": "112"}


def test_every_page_with_commands_is_tried() -> None:
    """The commands of the page about edits are all in the README."""
    assert set(runnable(ROOT / "docs/editing.md")) <= set(runnable(ROOT / "README.md"))
    found = {page.relative_to(ROOT).as_posix() for page in PAGES if runnable(page)}
    assert found == {*TRIED, "docs/editing.md"}


def runnable(page: Path) -> list[str]:
    """Return the commands of a page that work in a fresh folder. Those with URLs are in test_remote.py."""
    lines = [line.partition("  #")[0].rstrip() for line in commands(page)]
    return [line for line in lines if line.startswith("ovseg-batch ") and "--allow-remote" not in line]


@pytest.fixture(scope="module")
def segmented(reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs, and a run over `photos` in `out`."""
    folder = tmp_path_factory.mktemp("segmented")
    write_inputs(folder)
    reader.run('ovseg-batch run photos -o out --labels "dog; cat"', folder, **MASKS)
    return folder


@pytest.mark.slow("every command of the pages works as printed")
@pytest.mark.parametrize("page", TRIED)
def test_every_command_works_as_printed(
    page: str, reader: Reader, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The first run of the README computes with the models of the default preset, all others with a smaller SAM2."""
    if TRIED[page]:
        shutil.copytree(request.getfixturevalue("segmented"), tmp_path, symlinks=True, dirs_exist_ok=True)
    else:
        write_inputs(tmp_path)
    own = {"README.md": {}, "docs/benchmarks.md": {**MASKS, **ROWS}}.get(page, MASKS)
    for line in runnable(ROOT / page):
        reader.run(line, tmp_path, **({} if "-c demo" in line else own))
        if line.startswith("ovseg-batch run "):
            own = {**own, "OVSEG_SAM__MODEL": full_size.SMALL_SAM}


@pytest.mark.slow("every command of the pages works as printed")
def test_every_command_of_the_presets_can_be_planned(reader: Reader, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    planned = 0
    for preset in sorted((ROOT / "configs").glob("*.yaml")):
        config = load_config(preset, environment={})
        others = config.dense.attention in WITH_DINO or config.method in (*WORDS_ALONE, "hybrid")
        kinds = ("CLIP", "SAM", "DINO", "OWL", "SAM3")
        weights = {f"OVSEG_{kind}__WEIGHTS": "random:0" for kind in kinds} if others else {}
        if is_tipsv2(config.clip.model):  # a named one needs the tokenizer of the hub
            tiny = save_tiny_tipsv2(tmp_path / "tipsv2")
            weights = {"OVSEG_CLIP__MODEL": f"local-dir:{tiny}", "OVSEG_SAM__WEIGHTS": "random:0"}
        for line in re.findall(r"^# +(ovseg-batch .*?)(?: +#.*)?$", preset.read_text(), re.M):
            if " run " in line:
                reader.run(f"{line} --dry-run", tmp_path, **weights)
                planned += 1
            elif " manifest " in line or " fetch " in line:
                reader.run(line, tmp_path)
    assert planned >= 9


def write_inputs(folder: Path) -> None:
    """Write what the pages name: two photographs, scenes, a data set, and files of the authors of its protocols."""
    seeds = scenes.HELD_OUT_SEEDS[1000:1002]
    write_scenes(folder / "ovseg-demo", seeds, jpeg_every=0)
    for name in ("photos", "scenes"):
        shutil.copytree(folder / "ovseg-demo" / "images", folder / name)
    dataset, regions = datasets.load("voc21"), folder / "region_masks" / "voc"
    layouts.write(dataset, folder / "VOCdevkit", seeds)
    (folder / "voc21_definitions.txt").write_text("".join(f"{name} >= a {name}\n" for name in dataset.classes))
    regions.mkdir(parents=True)
    for image in (folder / "VOCdevkit").rglob("JPEGImages/*"):
        width, height = Image.open(image).size
        np.savez(regions / f"{image.stem}.npz", instance_mask=np.tile(np.arange(width) // 50, (height, 1)))


@pytest.mark.slow("every command of the pages works as printed")
def test_the_demo_script_ends_with_a_report(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "demo", "-o", tmp_path / "demo", "--images", "2"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.splitlines()[-1].split(maxsplit=1)[1])
    assert page == tmp_path / "demo" / "report" / "index.html" and page.is_file()


def test_the_command_lines_page_is_the_programs_help() -> None:
    assert PAGE.read_text() == pages(), "scripts/docs/write_cli_docs.py brings it up to date"


def test_completion(tmp_path: Path) -> None:
    """Completions of the shell, for `ovseg-batch exp` and for `export out -f se`."""
    program = Path(sys.executable).parent / "ovseg-batch"
    for words, wanted in (("ovseg-batch exp", "export"), ("ovseg-batch export out -f se", "semantic")):
        done = subprocess.run(
            [program],
            env={"_OVSEG_BATCH_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))},
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == [f"plain,{wanted}"]


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_site_is_built_without_a_word_of_complaint(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    built = [str(Path(sys.executable).parent / "zensical"), "build", "--strict"]
    done = subprocess.run(built, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "No issues found" in done.stdout + done.stderr
    for page in (ROOT / "docs").glob("*.md"):
        there = tmp_path / "site" / ("" if page.stem == "index" else page.stem) / "index.html"
        assert there.is_file()
    named = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(named) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_messages_of_the_troubleshooting_page_are_printed() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    source = "\n".join(path.read_text() for path in (ROOT / "ovseg_batch").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    quoted = re.findall(r"\*\*`([^`]+)`\*\*", text)
    assert len(quoted) > 15
    for message in quoted:
        assert message in source, message
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.M)) == {str(code) for code in FailureCode} - {"upstream"}


def test_nothing_tells_to_install_a_name_that_is_not_ours() -> None:
    """A stranger could publish a package under our name, which is not in the index."""
    sources = [*PAGES, *(ROOT / "ovseg_batch").rglob("*.py"), *(ROOT / "configs").glob("*.yaml")]
    for path in sources:
        assert not re.search(r"pip install[^`\n]*ovseg", path.read_text()), path
