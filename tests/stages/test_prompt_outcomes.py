"""What becomes of SAM2's prompts: an outcome for each, in the table of `refine` and for readers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ovseg_batch.io import tables
from ovseg_batch.io.tables import TABLE
from ovseg_batch.methods.presence import Presence
from ovseg_batch.methods.prompts import PointPrompt
from ovseg_batch.methods.vocabulary import UNLABELLED, Vocabulary
from ovseg_batch.settings import RefineConfig
from ovseg_batch.stages.answer import Answer, DenseMap, Painting, annotate, annotate_with_outcomes
from ovseg_batch.stages.refine.methods import Found, guided, prompted, trident
from ovseg_batch.types import MaskSummary, PromptOutcome
from ovseg_batch.workdir import committed
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir
from tests.conftest import LABELS, Command, run_arguments

SIZE = (64, 64)
VOCABULARY = Vocabulary.build([("car", ["car"], 0.0), ("sky", ["sky"], 0.0)])
CAR, SKY = 0, 1
Box = tuple[int, int, int, int]


class Drawing:
    """Takes SAM2's place: draws the given boxes, one a prompt, with given ratings."""

    image_size = 64

    def __init__(self, boxes: list[Box | None], ratings: list[float]) -> None:
        self._boxes, self._ratings = boxes, ratings

    def predict(self, embedding: object, points: object, *others: object, multimask: bool = True) -> Any:
        logits = torch.full((len(self._boxes), 3 if multimask else 1, *SIZE), -5.0)
        for k, box in enumerate(self._boxes):
            if box is not None:
                logits[k, :, box[1] : box[3], box[0] : box[2]] = 5.0
        return logits, torch.tensor(self._ratings)[:, None].expand(logits.shape[:2])


def dense_map(**values: Any) -> DenseMap:
    """The left half is of cars, the right half sky."""
    labels = np.full(SIZE, SKY, np.int16)
    labels[:, :32] = CAR
    ones = np.ones(SIZE, np.float32)
    probabilities = torch.from_numpy(np.stack([labels == CAR, labels == SKY]).astype(np.float32))
    return replace(DenseMap(labels, ones, ones, lambda box, at: probabilities, (), None), **values)


def outcomes(
    draw: Any, boxes: list[Box | None], dense: DenseMap | None = None, min_area: int = 4, **settings: Any
) -> list[str]:
    """Prompt one car per box, and return what becomes of each prompt."""
    ratings = [0.9 - 0.1 * k for k in range(len(boxes))]
    points = [PointPrompt(CAR, 8.0, 8.0 + k, 100, (0, 0, 32, 32)) for k in range(len(boxes))]
    seen = dense or dense_map()
    found: Found = draw(Drawing(boxes, ratings), lambda box: None, seen, points, RefineConfig(**settings))
    answer = Answer(SIZE, found.candidates, found.mask_of, seen)
    painting = Painting(min_area, by_score=draw is not prompted)
    annotations, of_candidates = annotate_with_outcomes(answer, VOCABULARY, painting)
    assert annotations == annotate(answer, VOCABULARY, painting)
    assert [(p.x, p.y, p.label) for p in found.prompts] == [(p.x, p.y, p.label) for p in points]
    return [str(of_candidates[p.result] if isinstance(p.result, int) else p.result) for p in found.prompts]


def test_each_prompt_of_the_vote_has_its_outcome() -> None:
    boxes: list[Box | None] = [(0, 0, 30, 30), (40, 0, 60, 30), None, (1, 40, 2, 41), (2, 2, 28, 28)]
    assert outcomes(prompted, boxes) == ["kept", "outvoted", "empty", "small", "merged"]


def test_an_empty_mask_is_empty_for_every_method_and_vote() -> None:
    for draw in (prompted, guided, trident):
        for vote in (0.6, 0.0, "soft"):
            assert outcomes(draw, [(0, 0, 30, 30), None], vote=vote) == ["kept", "empty"]


def test_a_mask_that_others_cover_is_covered_and_one_of_the_background_is_background() -> None:
    painted = outcomes(guided, [(0, 0, 30, 30), (1, 1, 29, 29)], same_object=0.99)
    assert painted == ["kept", "covered"]
    background = dense_map(ignore=(SKY,))
    assert outcomes(prompted, [(40, 0, 60, 30)], background, vote=0.0) == ["background"]


def test_guided_and_trident_name_their_own_reasons() -> None:
    assert outcomes(guided, [(0, 0, 30, 30), (0, 0, 30, 29)]) == ["kept", "duplicate"]
    assert outcomes(trident, [(0, 0, 30, 30), (0, 40, 30, 60)], predicted_iou=0.85) == ["kept", "doubtful"]


def test_a_mask_without_sure_pixels_is_absent() -> None:
    nothing = np.full(SIZE, UNLABELLED, np.int16)
    presence = Presence(nothing, np.zeros(SIZE, bool), 0.1, 0.1, 1)
    assert outcomes(prompted, [(0, 0, 30, 30)], dense_map(presence=presence)) == ["absent"]


@pytest.mark.parametrize("method", ["prompted", "guided", "trident", "automatic"])
def test_the_table_of_refine_has_every_prompt(few_scenes: Path, tmp_path: Path, command: Command, method: str) -> None:
    done = command(*run_arguments(few_scenes / "images", tmp_path / "run", "--set", f"refine.method={method}"))
    assert done.returncode == 0, done.stderr
    results = Results.open(Workdir(tmp_path / "run"))
    for shard in range(results.manifest.shards):
        found = results.prompts(shard)
        table = pq.read_table(results.masks.data_path(shard, TABLE)).to_pylist()
        assert {line["row"]: line["points"] for line in table} == {row: len(points) for row, points in found.items()}
        assert any(found.values()) == (method != "automatic")
        for one in results.shard(shard):
            points = found[one.row.row]
            assert all(0 <= p.x < one.width and 0 <= p.y < one.height and p.label in LABELS for p in points)
            kept = sum(p.outcome == PromptOutcome.KEPT for p in points)
            assert kept == sum(mask.source == "sam" for mask in one.annotations) or method == "automatic"


def test_a_run_without_the_stage_has_no_prompts(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    assert command(*run_arguments(few_scenes / "images", tmp_path / "run", "--set", "method=proposals")).returncode == 0
    assert Results.open(Workdir(tmp_path / "run")).prompts(0) == {}


def test_readers_of_masks_do_not_read_prompts(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[Any] = []
    read = tables.read_results

    def noted(path: Path, columns: Any = None, masks: Any = None) -> Any:
        requested.append(columns)
        return read(path, columns, masks)

    monkeypatch.setattr(committed, "read_results", noted)
    assert list(Results.open(Workdir(finished)).shard(0, MaskSummary))
    assert requested and all(columns is not None and "prompts" not in columns for columns in requested)
