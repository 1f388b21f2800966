"""A few labels: what else competes for the pixels, and labels that are not in an image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ablations.open_world import RULES, OpenWorld, auc
from PIL import Image

from ovseg_batch import scenes
from ovseg_batch.config import load_config
from ovseg_batch.errors import UsageError
from ovseg_batch.io import rle
from ovseg_batch.methods.confidence import ImageConfidence
from ovseg_batch.methods.labelling import label_map
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.presence import CLEAR, SURE, Presence
from ovseg_batch.methods.vocabulary import UNLABELLED, Vocabulary
from ovseg_batch.methods.voting import assemble
from ovseg_batch.runs import planning
from ovseg_batch.runs.cautions import cautions
from ovseg_batch.settings import Config
from ovseg_batch.stages.registry import competition, make_vocabulary
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir
from tests.conftest import Command
from tests.settings.test_presets import PHOTOGRAPHS

RULE = "background and presence"
FEW = ("balloon", "flower", "house")
ALONE = ("--workers", "0", "--set", "run.threads=1")


def found(workdir: Path, truth: Path) -> list[tuple[str, str, float]]:
    """File name, label and the share of right pixels of every mask."""
    results = Results.open(Workdir(workdir))
    masks = []
    for shard in range(results.manifest.shards):
        for image in results.shard(shard):
            name = image.row.file_name
            classes = np.array(Image.open(truth / f"{name}.classes.png"))
            for one in image.annotations:
                inside = classes[rle.decode(one.rle, *classes.shape)]
                right = float((inside == scenes.CLASSES.index(one.category)).mean())
                masks.append((name, one.category, right))
    return masks


def share_right(masks: list[tuple[str, str, float]]) -> float:
    return sum(right > 0.5 for _, _, right in masks) / len(masks)


def run(command: Command, few_scenes: Path, workdir: Path, labels: str, *more: str) -> str:
    done = command("run", few_scenes / "images", "-o", workdir, "--labels", labels, *ALONE, *more)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_few_labels_are_found_where_they_are(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    printed = run(command, few_scenes, tmp_path / "run", ", ".join(FEW))
    assert "17 words compete with the labels" in printed and "no background" not in printed
    masks = found(tmp_path / "run", few_scenes / "truth")
    assert masks and share_right(masks) > 0.9
    wanted = {
        (path.name.removesuffix(".classes.png"), label)
        for path in (few_scenes / "truth").glob("*.classes.png")
        for label in FEW
        if (np.array(Image.open(path)) == scenes.CLASSES.index(label)).mean() > 0.01
    }
    assert wanted and wanted <= {(name, label) for name, label, _ in masks}


def test_without_a_background_every_pixel_gets_a_label(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    printed = run(command, few_scenes, tmp_path / "run", ", ".join(FEW), "--set", "background=none")
    assert "3 labels and no background: every pixel gets one of them." in printed
    assert share_right(found(tmp_path / "run", few_scenes / "truth")) < 0.5


def test_presence_keeps_unknown_things_from_becoming_labels(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    """Ten of the words that are in the scenes compete no more, as if the lexicon had not known them."""
    unknown = ["sky", "grass", "water", "sand", "road", "tree", "car", "boat", "cat", "person"]
    labels = [{"name": label, "allow": unknown} for label in FEW]
    config = tmp_path / "few.yaml"
    config.write_text(json.dumps({"extends": "demo", "labels": labels}))
    right = {}
    for margin in (0, 3):
        arguments = ("run", few_scenes / "images", "-o", tmp_path / f"{margin}", "-c", config, *ALONE)
        done = command(*arguments, "--set", f"presence.margin={margin}")
        assert done.returncode == 0 and "7 words compete" in done.stderr, done.stderr
        right[margin] = found(tmp_path / f"{margin}", few_scenes / "truth")
    assert share_right(right[0]) < 0.5 < 0.8 < share_right(right[3])
    good = {(name, label) for name, label, share in right[0] if share > 0.5}
    assert good <= {(name, label) for name, label, _ in right[3]}


@pytest.mark.parametrize("method", ["guided", "automatic", "none"])
def test_other_methods_leave_the_rest_alone(few_scenes: Path, tmp_path: Path, command: Command, method: str) -> None:
    chosen = ("--set", f"refine.method={method}", "--set", "propose.points_per_side=8")
    run(command, few_scenes, tmp_path / "run", ", ".join(FEW), *chosen)
    masks = found(tmp_path / "run", few_scenes / "truth")
    assert masks and share_right(masks) > 0.8


def test_a_query_finds_what_a_run_finds(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    keep = ("--set", "dense.cache=features", "--set", "sam.cache=embeddings")
    run(command, few_scenes, tmp_path / "other", "car, boat", *keep)
    run(command, few_scenes, tmp_path / "run", ", ".join(FEW), *keep)
    arguments = ("query", tmp_path / "other", "-o", tmp_path / "answer", "--labels", ", ".join(FEW))
    done = command(*arguments, "--set", "run.threads=1")
    assert done.returncode == 0 and "17 words compete with the labels" in done.stderr, done.stderr
    answer, full = ((tmp_path / name / "annotations.json").read_bytes() for name in ("answer", "run"))
    assert answer == full


def test_what_competes_is_listed(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    options = [f"--set={key}={value}" for key, value in PHOTOGRAPHS.items()]
    arguments = ("run", few_scenes / "images", "-o", tmp_path / "run", "-c", "prompted", *options)
    done = command(*arguments, "--labels", "golden retriever; sofa: sofa, couch", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "left out because of golden retriever: face, hair, animal, dog" in done.stderr
    assert "left out because of sofa: furniture, sofa" in done.stderr
    assert ", sky, " in f", {done.stderr.partition('labels: ')[2]}"


def test_the_config_of_a_run_lists_what_competes(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    run(command, few_scenes, tmp_path / "run", "car, boat", "--set", "refine.method=none")
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert text.startswith("# 18 words compete with the labels: sky, grass, ")
    assert load_config(tmp_path / "run" / "config.yaml", environment={}).background == "auto"


def test_a_label_with_a_line_break_stays_within_its_comment() -> None:
    labels = [{"name": "dog\nsam: {model: other}", "synonyms": ["dog"]}]
    config = load_config("demo", flags={"labels": labels, "clip.model": "openai-b16"}, environment={})
    lines = planning.competition_lines(config, listed=True)
    assert len(lines) == 2 and all("\n" not in line for line in lines)


def test_data_sets_keep_their_own_background() -> None:
    for name, background in (("voc20", "none"), ("scenes", "none")):
        config = load_config("demo", flags={"labels": f"dataset:{name}"}, environment={})
        assert config.background == background and not make_vocabulary_of(config).has_background
    voc = load_config("demo", flags={"labels": "dataset:voc21"}, environment={})
    assert len(voc.background) == 26 and not make_vocabulary_of(voc).pooled


def make_vocabulary_of(config: Config) -> Vocabulary:
    """The vocabulary, for a CLIP that knows any word."""
    clip = config.clip.model_copy(update={"model": "ViT-B-32"})
    return make_vocabulary(config.model_copy(update={"clip": clip}))


def test_per_label_words_overrule_the_lexicon() -> None:
    def words(**more: list[str]) -> tuple[str, ...]:
        flags = {"labels": [{"name": "dog", **more}], "clip.model": "openai-b16"}
        return competition(load_config("demo", flags=flags, environment={})).words

    assert "cat" in words() and "animal" not in words()
    assert "cat" not in words(allow=["cat"])
    assert {"animal", "wolf"} <= set(words(compete=["animal", "wolf"]))


@pytest.mark.parametrize(
    ("labels", "background", "message"),
    [
        ([{"name": "cat", "allow": ["sky"]}], "none", "act under background: auto alone"),
        ([{"name": "cat", "compete": ["sky"]}], ["wood"], "act under background: auto alone"),
        ([{"name": "cat", "compete": ["wolf"]}], "auto", "does not know the label 'wolf'"),
        ([{"name": "cat", "allow": ["wolf"]}], "auto", "does not know the label 'wolf'"),
    ],
)
def test_words_without_an_effect_are_errors(labels: list[object], background: object, message: str) -> None:
    config = load_config("demo", flags={"labels": labels, "background": background}, environment={})
    with pytest.raises(UsageError, match=message):
        make_vocabulary(config)


def test_a_full_vocabulary_has_no_background() -> None:
    config = load_config("demo", flags={"labels": list(scenes.CLASSES)}, environment={})
    assert not make_vocabulary(config).has_background
    assert not any("no background" in caution for caution in cautions(config))


def test_sure_pixels_exceed_the_background_by_the_margin() -> None:
    vocabulary = Vocabulary.build([("a", ("a",), 0.0), ("b", ("b",), 0.0)], ("c", "d"), pooled=True)
    cosine = torch.rand(4, 6, 7, generator=torch.Generator().manual_seed(1))
    background = torch.logsumexp(cosine[:2] * 40, 0) / 40
    channels = torch.stack([background, cosine[2], cosine[3], cosine[:2].amax(0)])
    found = label_map(channels, (6, 7), vocabulary, 40.0, 0.0, 0.0, margin=0.1)
    best = torch.stack([cosine[:2].amax(0), cosine[2], cosine[3]])
    lead = best.amax(0) - best[0]
    assert found.sure is not None and set(np.unique(found.sure)) == {0, SURE, CLEAR}
    assert (found.sure == ((lead >= 0.1).byte() + (lead >= 0.15).byte()).numpy()).all()
    assert (found.labels == best.argmax(0).numpy()).all()


def test_a_piece_of_the_map_needs_its_share_of_sure_pixels() -> None:
    dense = np.full((4, 10), UNLABELLED, np.int16)
    dense[:, :4], dense[:, 5:9] = 1, 2
    sure = np.where(np.arange(10) % 2 == 0, dense, np.int16(UNLABELLED))  # half of each
    clear = np.zeros(dense.shape, bool)
    for alone, least, kept in ((0.4, 1, [1, 2]), (0.6, 1, []), (0.4, 16, [1, 2]), (0.4, 17, [])):
        presence = Presence(sure, clear, 0.0, alone, least)
        _, segments, _ = assemble(dense, [], [].__getitem__, 1, 1, presence=presence)
        assert [segment.label for segment in segments] == kept
    everything = PlacedMask(np.ones(dense.shape, bool), 0, 0)
    assert Presence(sure, clear, 0.5, 1.0, 1).shows(dense, everything, 1)  # half of its pixels, a fifth of the mask's
    assert not Presence(sure, clear, 0.6, 1.0, 1).shows(dense, everything, 1)


def test_the_open_world_is_measured(few_scenes: Path, tmp_path: Path) -> None:
    """On six scenes and two draws."""
    for name in ("images", "truth"):
        (tmp_path / name).symlink_to(few_scenes / name)
    world = OpenWorld(tmp_path, ["run.threads=1"])
    alone, both = (world.measure("prompted", 3, 10, RULES[rule], 2) for rule in ("background alone", RULE))
    assert both["precision"] > alone["precision"] and both["absent found"] < alone["absent found"]
    assert both["recall"] > 0.5 and both["covered"] < alone["covered"]
    *_, whole = world.by_size({}).splitlines()
    _, things, without, iou, *_ = (cell.strip() for cell in whole.strip("|").split("|"))
    assert 0 <= int(without) < int(things) and 0 < float(iou) < 1


def test_masks_of_absent_labels_are_at_the_bottom(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    """Ten words do not compete, and presence keeps nearly every mask, so that the confidence alone must order them."""
    config = tmp_path / "few.yaml"
    unknown = ["sky", "grass", "water", "sand", "road", "tree", "car", "boat", "cat", "person"]
    config.write_text(json.dumps({"extends": "demo", "labels": [{"name": label, "allow": unknown} for label in FEW]}))
    low = {"margin": 2, "share": 0.05, "alone": 0.05, "alone_area": 0}
    rules = [f"--set=presence.{key}={value}" for key, value in low.items()]
    done = command("run", few_scenes / "images", "-o", tmp_path / "run", "-c", config, *ALONE, *rules)
    assert done.returncode == 0, done.stderr
    right = [share > 0.5 for _, _, share in found(tmp_path / "run", few_scenes / "truth")]
    results = Results.open(Workdir(tmp_path / "run"))
    sure = [
        one.confidence
        for shard in range(results.manifest.shards)
        for image in results.shard(shard)
        for one in image.annotations
    ]
    assert 3 <= sum(right) < len(right) - 3 and auc(sure, right) > 0.9


def test_an_image_is_reviewed_by_its_unsure_masks() -> None:
    one, three, sure, none = (ImageConfidence.from_masks(c) for c in ((0.4, 0.9), (0.45,) * 3, (0.5,) * 12, ()))
    assert (str(one), str(three), str(sure)) == (
        "1 of 2 masks unsure",
        "3 of 3 masks unsure",
        "0 of 12 masks unsure",
    )
    assert [image.doubt for image in (one, three, sure, none)] == pytest.approx([0.7, 1.65, 6.0, 0.0])
    assert (one.least, none.least) == (0.4, 1.0)


def test_auc_counts_pairs_in_the_right_order() -> None:
    assert auc([0.9, 0.8, 0.3], [True, True, False]) == 1.0
    assert auc([0.5, 0.5], [True, False]) == 0.5
    assert auc([0.1, 0.9, 0.2], [True, False, True]) == 0.0
    assert np.isnan(auc([0.1], [True]))
