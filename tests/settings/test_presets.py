"""The configs that come with the package: each means something, is listed, and is found by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ovseg_batch.config import load_config, presets
from ovseg_batch.models.tipsv2_layout import is_tipsv2
from ovseg_batch.stages.registry import stage_names
from tests.conftest import Command
from tests.support.tiny_tipsv2 import write_tokenizer

KINDS = ("clip", "sam", "dino", "owl", "sam3")
PHOTOGRAPHS = {**{f"{kind}.weights": "random:0" for kind in KINDS}, "inpaint.model": "demo"}


@pytest.mark.parametrize("name", presets())
def test_every_preset_says_what_it_is_and_can_be_planned(name: str, tmp_path: Path, command: Command) -> None:
    """With random weights in place of those for photographs, down to the fingerprints of its stages."""
    config = load_config(Path(name), environment={})
    about = config.about
    assert about.what and about.source and about.good_at
    assert presets()[name].read_text().startswith("# ")
    if config.classify.tuned:
        (tmp_path / config.classify.tuned).write_bytes(b"any")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(b"any")
    options = [f"--set={key}={value}" for key, value in PHOTOGRAPHS.items() if name != "demo"]
    if config.classify.tuned:
        options.append(f"--set=classify.tuned={tmp_path / config.classify.tuned}")
    labels = [] if config.labels else ["--labels", "cat"]
    own = {}
    if is_tipsv2(config.clip.model):
        write_tokenizer(tmp_path / f"{config.clip.model}.tokenizer.model")
        own["OVSEG_CHECKPOINTS"] = str(tmp_path)
    run = ("run", tmp_path / "photos", "-o", tmp_path / "run", "-c", name, *labels, "--dry-run", *options)
    done = command(*run, **own)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[3:-1]] == list(stage_names(config))


def test_methods_lists_every_preset_with_its_cost(command: Command) -> None:
    text = command("methods").stdout
    for name in presets():
        assert f"\n{name}\n" in f"\n{text}"
    assert text.count("CLIP") + text.count("OWLv2") >= len(presets()) and "1024 prompts" in text


def test_a_file_wins_over_a_preset_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("guided"), environment={}).refine.method == "guided"
    (tmp_path / "guided").write_text("refine: {method: none}\n")
    assert load_config(Path("guided"), environment={}).refine.method == "none"


def test_a_misspelt_preset_names_the_nearest(command: Command, tmp_path: Path) -> None:
    done = command("run", tmp_path, "-o", tmp_path / "run", "-c", "gided", "--labels", "sky")
    assert done.returncode == 2 and "Did you mean 'guided'?" in done.stderr


def test_one_preset_alone_names_models_that_are_not_for_photographs() -> None:
    assert load_config("demo", environment={}).clip.model == "demo"
    for name, file in presets().items():
        tree = yaml.safe_load(file.read_text())
        if name == "demo":
            continue
        assert "demo" not in tree.get("clip", {}).get("model", "") and "demo" not in tree.get("sam", {}).get(
            "model", ""
        ), name
