"""Imports point downwards only; and the files stay of a size that can be read."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ovseg_batch.methods.attention import VARIANTS
from ovseg_batch.settings import ATTENTIONS, REGION_LIMITED, SPLICED

PACKAGE = Path(__file__).parents[2] / "ovseg_batch"

# From the bottom to the top. A module imports from its own room and from rooms of the levels below.
TOWER = [
    {"errors", "failpoints", "units", "version", "wording"},
    {"datasets", "lexicon", "types"},
    {"settings"},
    {"methods", "scenes"},
    {"config", "io"},
    {"models"},
    {"workdir"},
    {"stages"},
    {"engine", "evaluate", "export"},
    {"report"},
    {"runs"},
    {"api", "doctor"},
    {"cli"},
    {"__main__"},
]
DEPTH = {name: depth for depth, level in enumerate(TOWER) for name in level}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(module: str) -> str:
    """`ovseg_batch.io.atomic` → `io`."""
    return module.removeprefix("ovseg_batch").strip(".").split(".")[0]


def imports(path: Path) -> list[str]:
    """Every module of ours that the file imports, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ovseg_batch"):
            assert node.module is not None and node.level == 0
            inside = [f"{node.module}.{a.name}" for a in node.names]
            found += [
                m if (PACKAGE.parent / m.replace(".", "/")).is_dir() or module_file(m) else node.module for m in inside
            ]
        elif isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith("ovseg_batch")]
    return found


def module_file(module: str) -> bool:
    return (PACKAGE.parent / f"{module.replace('.', '/')}.py").is_file()


@pytest.mark.parametrize("path", FILES, ids=[p.relative_to(PACKAGE).as_posix() for p in FILES])
def test_imports_point_downwards(path: Path) -> None:
    own = part(".".join(("ovseg_batch", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"))
    for module in imports(path) if own else []:  # the package itself hands out the API, one name at a time
        room = part(module)
        assert room == own or DEPTH[room] < DEPTH[own], f"{own} imports {module}"


def test_the_tower_holds_every_room() -> None:
    rooms = {
        path.stem for path in PACKAGE.iterdir() if (path.is_dir() and list(path.glob("*.py"))) or path.suffix == ".py"
    }
    assert set(DEPTH) == rooms - {"__init__"}


def test_methods_are_pure() -> None:
    """No file, no configuration, no logger in array code."""
    for path in (PACKAGE / "methods").glob("*.py"):
        names = {
            n.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import) for n in node.names
        }
        froms = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert not {"os", "pathlib", "logging", "io"} & {n.split(".")[0] for n in names | froms if n}, path
        assert "ovseg_batch.config" not in froms, path


def test_only_run_shard_commits() -> None:
    writers = [p for p in FILES if ".write_commit(" in p.read_text()]
    assert [p.relative_to(PACKAGE).as_posix() for p in writers] == ["stages/shard.py"]


MODEL_LIBRARIES = {"torch", "torchvision", "open_clip", "sam2", "timm", "diffusers", "transformers"}


def test_planning_imports_no_model_library() -> None:
    """All commands but those that compute start in a fraction of a second."""
    code = f"""
import sys, ovseg_batch.cli, ovseg_batch.runs.pipeline, ovseg_batch.doctor.machine
from ovseg_batch.config import load_config, presets
from ovseg_batch.stages.registry import make_plan, resolve, stage_names

for file in presets().values():
    labels = {{"labels": "person; sky; number plate"}}
    overrides = {{**labels, "edit.mode": "cutout", "inpaint.model": "demo", "classify.tuned": {__file__!r}}}
    kinds = ("clip", "sam", "dino", "owl", "sam3")
    weights = {{"clip.model": "openai-b16", **{{f"{{kind}}.weights": "random:0" for kind in kinds}}}}
    config = load_config(file, (), {{**overrides, **weights}}, environment={{}})
    resolved = resolve(config)
    for name in stage_names(config):
        make_plan(resolved, name).inputs()
print(*sys.modules)
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not MODEL_LIBRARIES & set(loaded)


def test_attentions_of_the_settings_are_the_variants() -> None:
    assert (*VARIANTS, *REGION_LIMITED, SPLICED) == ATTENTIONS


def test_files_can_be_read_in_one_sitting() -> None:
    assert {p.name: n for p in FILES if (n := len(p.read_text().splitlines())) > 420} == {}
