"""The settings in words: complete, up to date in the docs, and true of who reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel
from write_settings_docs import PAGE, page

import ovseg_batch
from ovseg_batch.config import load_config
from ovseg_batch.settings import Config, EditConfig, RefineConfig
from ovseg_batch.settings.listing import choices, section_meanings, setting_lines
from ovseg_batch.settings.readers import READERS, readers
from ovseg_batch.settings.section import Section
from tests.conftest import LABELS, Command
from tests.support.tiny_sam1 import save_tiny_sam1

KEYS = {line.key: line for line in setting_lines()}


def leaves(tree: dict[str, Any], model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(tree[name], kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_key_has_a_line() -> None:
    assert {key for key in KEYS if "[" not in key} == set(leaves(Config().model_dump(), Config))
    for line in KEYS.values():
        assert line.meaning.endswith(".") and len(line.meaning) > 10, line.key
        assert line.type and line.read_by
    assert all(section_meanings().values())


def test_defaults_are_those_of_the_settings() -> None:
    given = [f"{line.key}={line.default}" for line in KEYS.values() if "[" not in line.key and line.key[:6] != "about."]
    close = {"classify.scales"}  # 16/7 is shown rounded
    overrides = [one for one in given if one.partition("=")[0] not in close]
    assert load_config(None, overrides, environment={}) == load_config(environment={})


def test_every_reader_is_of_a_key_and_every_choice_exists() -> None:
    sections = {key.rpartition(".")[0] for key in KEYS}
    assert set(READERS) <= set(KEYS) | sections
    for one in READERS.values():
        assert set(one.values) <= set(choices(one.choice)), one
    assert choices("refine.method") == (
        *("prompted", "guided", "trident", "trident-map"),
        *("automatic", "regions", "none"),
    )
    assert choices("run.allow_remote") == ("true", "false") and choices("refine.vote") == ("soft",)
    assert choices("dense.window") == choices("no.such") == ()


@contextmanager
def recorded(model: type[Section], patch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Collect the fields of a section that the code reads."""
    read: set[str] = set()
    own = model.__getattribute__

    def reading(self: Section, name: str) -> Any:
        if name in model.model_fields:
            read.add(name)
        return own(self, name)

    with patch.context() as patched:
        patched.setattr(model, "__getattribute__", reading)
        yield read


def test_each_refine_method_reads_the_keys_of_its_line(
    few_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.array(Image.open(sorted((few_scenes / "images").iterdir())[0]).convert("RGB"))
    restricted = {name for name in RefineConfig.model_fields if readers(f"refine.{name}").choice == "refine.method"}
    assert len(restricted) >= 9
    for method in choices("refine.method"):
        settings: dict[str, object] = {"refine.method": method, "propose.points_per_side": 4}
        if method == "trident-map":
            settings["sam.model"] = f"local-dir:{save_tiny_sam1(tmp_path)}"
        segmenter = ovseg_batch.Segmenter(LABELS, config="demo", settings=settings)
        with recorded(RefineConfig, monkeypatch) as read:
            segmenter(pixels)
        expected = {name for name in restricted if method in readers(f"refine.{name}").values}
        assert read & restricted - {"tile"} == expected - {"tile"}, method
        assert ("tile" in expected) <= ("tile" in read), method  # a check of the settings reads it too


@pytest.mark.parametrize("chosen", ["keep", "drop"])
def test_each_edit_reads_the_keys_of_its_line(
    chosen: str, few_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    first = sorted((few_scenes / "images").iterdir())[0]
    (tmp_path / "images" / first.name).write_bytes(first.read_bytes())
    [label, *_] = [mask.label for mask in ovseg_batch.segment(Image.open(first), LABELS, config="demo").masks]
    restricted = {name for name in EditConfig.model_fields if readers(f"edit.{name}").choice == "edit.mode"}
    for mode in choices("edit.mode")[1:]:
        settings = {"edit.mode": mode, f"edit.{chosen}": [label], "edit.prompt": "grass", "inpaint.steps": 1}
        with recorded(EditConfig, monkeypatch) as read:
            ovseg_batch.run(
                tmp_path / "images",
                LABELS,
                tmp_path / "run",
                config="demo",
                settings={**settings, "run.workers": 0},
                progress=False,
            )
        allowed = {name for name in restricted if mode in readers(f"edit.{name}").values}
        checked = {"apart", "fill", "prompt", "prompts"}  # a check of the settings reads these in every mode
        assert (read - checked) & restricted <= allowed, mode


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "scripts/docs/write_settings_docs.py brings it up to date"


def test_the_command_finds_keys_and_meanings(command: Command) -> None:
    everything = command("settings").stdout
    assert all(f"\n{key}  [" in f"\n{everything}" for key in KEYS)
    one = command("settings", "REFINE.VOTE").stdout
    assert one.startswith("refine.vote  [number, ≥ 0, ≤ 1; or soft]  [default: 0.6]\n")
    assert one.endswith("Read by: refine (refine.method: prompted, automatic)\n") and one.count("Read by") == 1
    assert "dense.stride" in command("settings", "neighbouring windows").stdout
    lines = json.loads(command("settings", "--json").stdout)
    assert [line["key"] for line in lines] == list(KEYS)
    assert lines[0].keys() == {"key", "type", "default", "meaning", "read_by"}
    wrong = command("settings", "refine.votee")
    assert wrong.returncode == 2 and "Did you mean 'refine.vote'?" in wrong.stderr


def test_the_command_imports_no_torch() -> None:
    code = """
import sys
from ovseg_batch.cli import main
main(["settings"], standalone_mode=False)
"""
    code = f"import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)){code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def completed(folder: Path, *words: str) -> list[str]:
    """What the shell is given for the last of the words."""
    done = subprocess.run(
        [Path(sys.executable).parent / "ovseg-batch"],
        cwd=folder,
        env={
            "_OVSEG_BATCH_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["ovseg-batch", *words]),
            "COMP_CWORD": str(len(words)),
            "PYTHONPATH": str(Path(ovseg_batch.__file__).parent.parent),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_completion_behind_options(tmp_path: Path) -> None:
    for name in ("sc.yaml", "scenes.txt", "scenes.jpg", "more.txt"):
        (tmp_path / name).touch()
    (tmp_path / "scraps").mkdir()
    (tmp_path / "scraps" / "own.yml").touch()
    assert completed(tmp_path, "run", "x", "-c", "sc") == ["plain,sclip", "plain,sc.yaml", "plain,scraps/"]
    assert completed(tmp_path, "run", "x", "-c", "scraps/") == ["plain,scraps/own.yml"]
    assert completed(tmp_path, "run", "x", "-c", "nothing") == ["file,nothing"]
    assert completed(tmp_path, "run", "x", "--set", "refine.vo") == ["plain,refine.vote="]
    assert completed(tmp_path, "query", "x", "--set", "refine.method=pro") == ["plain,refine.method=prompted"]
    assert completed(tmp_path, "run", "x", "--labels", "@sce") == ["plain,@scenes.txt"]
    assert completed(tmp_path, "query", "x", "--labels", "dataset:voc") == [
        "plain,dataset:voc21",
        "plain,dataset:voc20",
    ]
    assert completed(tmp_path, "run", "sce") == ["file,sce"]
