"""`method: detect`: boxes of OWLv2 with masks of SAM2, and words that are scored alone. OWLv2 is tiny and random."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sam2.sam2_image_predictor import SAM2ImagePredictor
from transformers import Owlv2ForObjectDetection

from ovseg_batch.config import load_config
from ovseg_batch.errors import UsageError
from ovseg_batch.io import rle
from ovseg_batch.io.images import read_image
from ovseg_batch.io.limits import Limits
from ovseg_batch.methods.detection import word_scores
from ovseg_batch.models.clip_tokens import token_ids
from ovseg_batch.models.owl import Owl
from ovseg_batch.models.sam import build
from ovseg_batch.settings import Config
from ovseg_batch.stages.detect.classify import box_words
from ovseg_batch.stages.detect.stage import DetectStage
from ovseg_batch.stages.registry import make_plan, resolve, stage_names
from ovseg_batch.types import ImageRow
from tests.conftest import Command
from tests.support.tiny_owl import save_tiny_owl

WORDS = ("car", "person", "traffic light")
LABELS = "; ".join(WORDS)
BOXES = 20


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_owl(tmp_path_factory.mktemp("owl"))


def config_of(owl: Path, **more: Any) -> Config:
    settings = {"labels": LABELS, "owl.model": f"local-dir:{owl}", "sam.model": "demo", "detect.boxes": BOXES}
    return load_config("detect", flags={**settings, **more}, environment={})


def arguments(owl: Path, images: Path, workdir: Path, labels: str, *settings: str) -> tuple[object, ...]:
    chosen = (f"owl.model=local-dir:{owl}", "sam.model=demo", f"detect.boxes={BOXES}", "manifest.shard_rows=2")
    flags = [flag for one in (*chosen, *settings) for flag in ("--set", one)]
    return ("run", images, "-o", workdir, "-c", "detect", "--labels", labels, "--workers", "0", *flags)


def written(workdir: Path) -> list[dict[str, Any]]:
    """Return the annotations of a run, with the names of their labels and without their numbers."""
    found = json.loads((workdir / "annotations.json").read_text())
    names = {one["id"]: one["name"] for one in found["categories"]}
    return [{**one, "id": 0, "category_id": names[one["category_id"]]} for one in found["annotations"]]


def test_masks_are_those_of_sam2_in_the_boxes_of_owlv2(owl: Path, few_scenes: Path) -> None:
    path = sorted((few_scenes / "images").iterdir())[0]
    stage = DetectStage(resolve(config_of(owl)))
    stage.setup("cpu")
    [result] = stage.process([ImageRow(0, "a", "a", str(path))], {})
    proposals, image = result.values["proposals"], read_image(path, Limits(10**8, 10**9))
    detected = stage._owl.detect(image)
    best = detected.objectness.argsort(descending=True, stable=True)[:BOXES]
    model, side = build("demo/sam2.yaml"), stage._sam.image_size
    model.load_state_dict(stage._sam.model.state_dict())
    predictor = SAM2ImagePredictor(model.eval())
    predictor._bb_feat_sizes = [(side // k, side // k) for k in (4, 8, 16)]
    predictor.set_image(image)
    assert len(proposals) == result.values["boxes"] == BOXES
    for proposal, box in zip(proposals, detected.boxes[best].numpy(), strict=True):
        [mask], [rated], _ = predictor.predict(box=box, multimask_output=False)
        mine = rle.decode(proposal.rle, *image.shape[:2])
        assert (mine != mask.astype(bool)).mean() < 1e-3 and proposal.predicted_iou == pytest.approx(rated, abs=1e-4)
        assert proposal.point == pytest.approx(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), abs=1e-3)


def test_scores_from_what_is_kept_are_those_of_transformers(owl: Path, few_scenes: Path) -> None:
    path = sorted((few_scenes / "images").iterdir())[0]
    run = resolve(config_of(owl))
    stage = DetectStage(run)
    stage.setup("cpu")
    [result] = stage.process([ImageRow(0, "a", "a", str(path))], {})
    words = box_words(run.owl, WORDS, ("a photo of a {}",))
    scores = word_scores(result.arrays["embeddings"], result.arrays["calibration"], words)
    assert result.arrays["embeddings"].dtype == np.float16
    image = read_image(path, Limits(10**8, 10**9))
    ids = [token_ids(f"a photo of a {word}") for word in WORDS]
    theirs: Any = Owlv2ForObjectDetection.from_pretrained(owl).eval()
    with torch.inference_mode():
        out = theirs(
            pixel_values=Owl.load(run.owl, torch.device("cpu"), "fp32").preprocess(image)[None],
            input_ids=torch.tensor([one + [0] * (16 - len(one)) for one in ids]),
            attention_mask=torch.tensor([[1] * len(one) + [0] * (16 - len(one)) for one in ids]),
        )
    best = out.objectness_logits[0].argsort(descending=True, stable=True)[:BOXES]
    expected = out.logits[0, best].sigmoid().numpy()
    assert np.abs(scores - expected).max() < 2e-3 and expected.std() > 0.1


def test_a_query_is_a_run_with_its_words(owl: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    images = Path(shutil.copytree(few_scenes / "images", tmp_path / "images"))
    done = command(*arguments(owl, images, tmp_path / "first", LABELS))
    assert done.returncode == 0 and "No words compete with the labels." in done.stderr
    other = "cat; house: house, building"
    assert command(*arguments(owl, images, tmp_path / "full", other)).returncode == 0
    shutil.rmtree(images)
    done = command("query", tmp_path / "first", "--labels", other, "-o", tmp_path / "answer")
    assert done.returncode == 0, done.stderr
    answered, full, first = ((tmp_path / name / "annotations.json") for name in ("answer", "full", "first"))
    assert answered.read_bytes() == full.read_bytes() != first.read_bytes()
    assert json.loads(full.read_text())["annotations"]


def test_a_label_has_the_same_masks_alone_and_beside_others(
    owl: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    assert command(*arguments(owl, few_scenes / "images", tmp_path / "all", LABELS)).returncode == 0
    together = written(tmp_path / "all")
    for word in WORDS:
        assert command("query", tmp_path / "all", "--labels", word, "-o", tmp_path / word).returncode == 0
        alone = written(tmp_path / word)
        assert alone and alone == [one for one in together if one["category_id"] == word]


def test_masks_overlap_unless_the_settings_exclude_it(
    owl: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    def shared(workdir: Path) -> int:
        """Return the pixels that several masks of an image have."""
        sums: dict[int, Any] = {}
        for one in written(workdir):
            mask = rle.decode(one["segmentation"]["counts"].encode(), *one["segmentation"]["size"])
            sums[one["image_id"]] = sums.get(one["image_id"], 0) + mask.astype(int)
        return sum(int((total > 1).sum()) for total in sums.values())

    assert command(*arguments(owl, few_scenes / "images", tmp_path / "run", LABELS)).returncode == 0
    assert shared(tmp_path / "run") > 0
    exclusive = ("--labels", LABELS, "--set", "paint=exclusive")
    assert command("query", tmp_path / "run", *exclusive, "-o", tmp_path / "exclusive").returncode == 0
    assert shared(tmp_path / "exclusive") == 0


def test_thresholds_nms_and_areas_drop_masks(owl: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    assert command(*arguments(owl, few_scenes / "images", tmp_path / "run", LABELS)).returncode == 0

    def masks_with(name: str, labels: str, *settings: str) -> list[dict[str, Any]]:
        flags = [flag for one in settings for flag in ("--set", one)]
        done = command("query", tmp_path / "run", "--labels", labels, "-o", tmp_path / name, *flags)
        assert done.returncode == 0, done.stderr
        return written(tmp_path / name)

    usual, every = written(tmp_path / "run"), masks_with("every", LABELS, "detect.nms=1", "detect.threshold=0")
    assert len(every) == 6 * BOXES * len(WORDS) > len(usual)
    assert min(one["score"] for one in usual) >= 0.15
    scores = Counter(one["category_id"] for one in every if one["score"] >= 0.4)
    high = masks_with("high", LABELS, "detect.nms=1", "detect.threshold=0.4")
    assert Counter(one["category_id"] for one in high) == scores
    [pixels] = {one["segmentation"]["size"][0] * one["segmentation"]["size"][1] for one in every[:1]}
    large = masks_with("large", LABELS, "detect.nms=1", "detect.threshold=0", "detect.min_area=0.2")
    assert 0 < len(large) < len(every) and min(one["area"] for one in large) > 0.1 * pixels
    for image in {one["image_id"] for one in usual}:
        for word in WORDS:
            mine = [one["segmentation"] for one in usual if (one["image_id"], one["category_id"]) == (image, word)]
            overlap, _ = rle.overlaps([one["counts"].encode() for one in mine], *mine[0]["size"])
            assert (overlap - np.eye(len(mine))).max() <= 0.5


def test_labels_of_a_row_restrict_its_masks(owl: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    first, second = sorted((few_scenes / "images").iterdir())[:2]
    lines = ["path,prompts", f"{first},car", f'{second},"car, person"']
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    assert command(*arguments(owl, tmp_path / "list.csv", tmp_path / "run", LABELS)).returncode == 0
    found = {(one["image_id"], one["category_id"]) for one in written(tmp_path / "run")}
    assert found == {(1, "car"), (2, "car"), (2, "person")}


def test_an_image_without_boxes_has_no_mask(owl: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    done = command(*arguments(owl, few_scenes / "images", tmp_path / "run", LABELS, "detect.objectness=1"))
    assert done.returncode == 0 and written(tmp_path / "run") == []
    assert json.loads(command("status", tmp_path / "run", "--json").stdout)["complete"]


def test_a_word_that_is_too_long_is_refused_before_anything_is_written(
    owl: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    long = "a very small red wooden chair with a tall back beside the table"
    done = command(*arguments(owl, few_scenes / "images", tmp_path / "run", long))
    assert done.returncode == 2 and "tokens, and OWLv2 takes 16. Name the label in fewer words" in done.stderr
    assert not (tmp_path / "run").exists()
    config = config_of(owl, labels=long, **{"detect.templates": ["{}"]})
    assert make_plan(resolve(config), "classify").needs == ("detect",)
    with pytest.raises(UsageError, match="exactly one"):
        config_of(owl, **{"detect.templates": ["a cat"]})


def test_stages_and_what_decides_them(owl: Path) -> None:
    config = config_of(owl)
    assert stage_names(config) == ("detect", "classify")
    assert stage_names(config_of(owl, **{"edit.mode": "cutout"})) == ("detect", "classify", "edit")

    def inputs(stage: str, **more: Any) -> dict[str, Any]:
        return make_plan(resolve(config_of(owl, **more)), stage).inputs()

    for key, value in {"detect.threshold": 0.3, "detect.nms": 0.9, "labels": "cat", "paint": "exclusive"}.items():
        assert inputs("detect", **{key: value}) == inputs("detect")
        assert inputs("classify", **{key: value}) != inputs("classify")
    for key, value in {"detect.boxes": 9, "detect.objectness": 0.5, "sam.precision": "bf16"}.items():
        assert inputs("detect", **{key: value}) != inputs("detect")
        assert inputs("classify", **{key: value}) == inputs("classify")


def test_several_phrases_are_averaged(owl: Path) -> None:
    spec = resolve(config_of(owl)).owl
    one, other, both = (box_words(spec, ["cat"], t) for t in (("{}",), ("a {}",), ("{}", "a {}")))
    assert np.allclose(both, (one + other) / 2, atol=1e-7)
