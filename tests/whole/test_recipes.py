"""CONTRIBUTING.md is true: its code works where it belongs, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import ovseg_batch
from ovseg_batch.cli import main
from ovseg_batch.export import FORMATS
from ovseg_batch.export.exporting import Format
from ovseg_batch.export.formats import WRITERS
from ovseg_batch.methods.attention import VARIANTS, Variant
from ovseg_batch.settings import ATTENTIONS
from ovseg_batch.stages.implementations import STAGES
from ovseg_batch.stages.registry import PLANS
from tests.conftest import LABELS
from tests.whole.test_layers import TOWER

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def code(title: str) -> str:
    """Return the Python code below a title of the page."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    [block] = re.findall(r"```python\n(.*?)```", section, re.S)
    return str(block)


def test_an_attention_variant_is_a_row_and_a_name(
    few_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of the table decides the result: `csa` under another name gives the same masks, `kk` others."""
    [(name, variant)] = eval(f"{{{code('Add an attention variant')}}}", {"Variant": Variant}).items()
    assert name not in VARIANTS and set(VARIANTS) < set(ATTENTIONS)
    monkeypatch.setitem(VARIANTS, "v2", variant)
    monkeypatch.setitem(VARIANTS, "maskclip", VARIANTS["csa"])

    def masks(attention: str) -> list[bytes]:
        chosen = {"dense.attention": attention, "refine.method": "none", "run.workers": 0}
        images = sorted((few_scenes / "images").iterdir())[:1]
        run = ovseg_batch.run(images, LABELS, tmp_path / attention, config="demo", settings=chosen, progress=False)
        return [mask.rle for image in run for mask in image.masks]

    assert masks("csa") == masks("maskclip") != masks("v2")


def test_an_export_format_is_a_class_and_two_lines(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = ModuleType("boxes")
    exec(code("Add an export format"), boxes.__dict__)
    monkeypatch.setitem(WRITERS, "boxes", Format("boxes", boxes.BoxesWriter, boxes.HEAD))
    run, path = ovseg_batch.Run(finished), tmp_path / "boxes.tsv"
    for _ in range(2):  # the second replaces the first
        exported = run.export("boxes", path)
    head, *lines = path.read_text().splitlines()
    wanted = [[image.name, mask.label, *map(str, mask.bbox)] for image in run for mask in image.masks]
    assert exported.complete and exported.tally == {"images": 6, "masks": len(wanted)}
    assert head == boxes.HEAD.strip() and [line.split("\t") for line in lines] == wanted


def test_both_tables_of_formats_and_of_stages_name_the_same_entries() -> None:
    [option] = [one for one in main.commands["export"].params if one.name == "kind"]
    assert list(WRITERS) == list(FORMATS) == list(option.type.choices)  # type: ignore[attr-defined]
    listed = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "formats.md").read_text(), re.M)
    assert set(FORMATS) <= set(listed)
    assert list(PLANS) == list(STAGES)


def test_the_version_is_the_same_everywhere() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    latest = re.search(r"^## (\d\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert latest is not None
    assert (cited["version"], str(cited["date-released"])) == latest.groups()
    assert cited["version"] == ovseg_batch.__version__


def test_the_page_shows_the_tower() -> None:
    [shown] = re.findall(r"```text\n(__main__\n.*?)```", PAGE, re.S)
    assert [set(line.split(", ")) for line in shown.splitlines()] == TOWER[::-1]


def test_every_file_and_name_of_the_page_exists() -> None:
    folders = [ROOT / name for name in ("ovseg_batch", "tests", "scripts", "docs")]
    paths = [ROOT / "CHANGELOG.md", *(path for folder in folders for path in folder.rglob("*") if path.is_file())]
    sources = "\n".join(path.read_text() for path in paths if path.suffix == ".py")
    for word in re.findall(r"`([\w/.]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.S)):
        if word.endswith((".py", ".md")):
            assert any(f"/{path.as_posix()}".endswith(f"/{word}") for path in paths), word
        elif "/" in word:
            assert (ROOT / word).exists() or (ROOT / "ovseg_batch" / word).exists(), word
        elif word[0].isupper():
            assert re.search(rf"\b{word.rpartition('.')[2]}\b", sources), word
