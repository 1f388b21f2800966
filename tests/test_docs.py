"""What the pages say is so: commands run, links lead somewhere, messages are printed, the help is the program's."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Command
from write_cli_docs import PAGE, pages

from ovseg_batch import scenes
from ovseg_batch.errors import FailureCode
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.models import fetching, inventory

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("checkpoints/**/*.md")])
#: What a test of its own, or a person, runs.
ELSEWHERE = ("./scripts/demo", "./scripts/test", "pip install")


def commands(page: Path) -> list[str]:
    """The lines of a page's plain code blocks that are commands; of transcripts those behind a `$`."""
    found = []
    for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.S | re.M):
        lines = block.replace("\\\n", "").splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found += prompted or [line for line in lines if line.startswith(("ovseg-batch ", *ELSEWHERE))]
    return found


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a reader has it: photographs, a CLIP that knows every word (its weights are random), no network."""
    write_scenes(tmp_path, scenes.HELD_OUT_SEEDS[1000:1002], jpeg_every=0)
    shutil.copytree(tmp_path / "images", tmp_path / "photos")
    (tmp_path / "images").rename(tmp_path / "scenes")
    monkeypatch.chdir(tmp_path)
    for key, value in {
        "CLIP__MODEL": "ViT-S-32-alt",
        "CLIP__WEIGHTS": "random:0",
        "SAM__MODEL": "demo",
        "BACKGROUND": "none",  # random weights find one word everywhere, and it competes
        "INPAINT__MODEL": "demo",
        "INPAINT__STEPS": "1",
    }.items():
        monkeypatch.setenv(f"OVSEG_{key}", value)
    monkeypatch.setattr(fetching, "fetch", lambda name, report: report(f"fetching {name}") or known(name))
    return tmp_path


def known(name: str) -> str:
    """Check that a name can be fetched, without fetching it."""
    assert name in {line.name for line in inventory.list_models()}
    return f"/there/{name}"


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{n}.md" for n in ("formats", "watching", "confidence", "query"))]
)
def test_every_command_works_as_printed(page: str, desk: Path, command: Command) -> None:
    if page != "README.md":
        done = command("run", "photos", "-o", "out", "--labels", "road; car; sky")
        assert done.returncode == 0, done.stderr
        shutil.rmtree(desk / "labels", ignore_errors=True)
    ran = 0
    for line in commands(ROOT / page):
        if line.startswith(ELSEWHERE):
            continue
        words = shlex.split(line.partition("  #")[0])
        assert words[0] == "ovseg-batch", line
        if "…" in line or "DIR" in words or ("scenes" in words and "--root" in words):
            continue
        for target in ("labels", "review", "yolo", "masks.json"):  # a second example may write to the first one's place
            if target in words and (desk / target).is_dir():
                shutil.rmtree(desk / target)
        done = command(*words[1:])
        assert done.returncode in (0, 3), f"{line}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        ran += 1
    assert ran >= 2


def test_the_demo_script_ends_with_a_report(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "demo", "-o", tmp_path / "demo", "--images", "2"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.splitlines()[-1].split(maxsplit=1)[1])
    assert page == tmp_path / "demo" / "report" / "index.html" and page.is_file()


def test_the_command_lines_page_is_the_programs_help() -> None:
    assert PAGE.read_text() == pages(), "scripts/write_cli_docs.py brings it up to date"


def test_completion(tmp_path: Path) -> None:
    """What the shell is told, for `ovseg-batch exp` and for `export out -f se`."""
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
    built = [Path(sys.executable).parent / "zensical", "build", "--strict"]
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
