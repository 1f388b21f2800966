"""`models check` loads a model of every kind, runs it once and describes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovseg_batch.cli.models import CHECKED
from ovseg_batch.models.check import CHECKS
from tests.conftest import Command
from tests.support.tiny_dino import save_tiny_dino
from tests.support.tiny_owl import save_tiny_owl
from tests.support.tiny_sam1 import save_tiny_sam1
from tests.support.tiny_sam3 import save_tiny_sam3
from tests.support.tiny_vitmatte import save_tiny_vitmatte

Save = Callable[[Path], Path]


def facts(printed: str) -> dict[str, str]:
    return {line.split()[1]: " ".join(line.split()[2:]) for line in printed.splitlines()}


def test_every_kind_has_a_check_and_options() -> None:
    assert list(CHECKED) == list(CHECKS)


@pytest.mark.parametrize(
    ("kind", "save", "fact", "value"),
    [
        ("dino", save_tiny_dino, "features", "14 × 14 × "),
        ("owl", save_tiny_owl, "boxes", "36"),
        ("sam3", save_tiny_sam3, "masks", "of 32 × 32 a word"),
        ("matte", save_tiny_vitmatte, "alpha", "64 × 64"),
        ("sam", save_tiny_sam1, "masks", "3 of 32 × 32 a point"),
    ],
)
def test_a_model_in_a_folder(kind: str, save: Save, fact: str, value: str, tmp_path: Path, command: Command) -> None:
    folder = save(tmp_path)
    done = command("models", "check", f"--{kind}", f"local-dir:{folder}", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    found = facts(done.stdout)
    assert value in found[fact] and found["architecture"] == f"local-dir:{folder}"
    assert int(found["parameters"].replace(",", "")) > 1000 and "cpu in fp32" in found["runs"]


def test_values_that_are_not_finite_are_an_error(tmp_path: Path, command: Command) -> None:
    folder = save_tiny_owl(tmp_path)
    file = folder / "model.safetensors"
    state = load_file(file)
    state["layer_norm.weight"] = torch.full_like(state["layer_norm.weight"], torch.nan)
    save_file(state, file)
    done = command("models", "check", "--owl", f"local-dir:{folder}", "--device", "cpu")
    assert done.returncode == 1 and "not finite; its weights are damaged" in done.stderr
    assert "Traceback" not in done.stderr
