"""The class of every pixel of an image that is much larger than its map equals that of a softmax for every pixel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovseg_batch.methods import enlarging, labelling
from ovseg_batch.methods.labelling import LabelMap, label_map
from ovseg_batch.methods.stitching import Stitched
from ovseg_batch.methods.vocabulary import Vocabulary
from ovseg_batch.methods.windows import window_boxes

WORDS = [
    ("car", ("car", "auto", "van"), 0.0),
    ("dog", ("dog",), 0.3),
    ("cat", ("cat",), 0.0),
    ("mouse", ("mouse",), 0.0),
]
VOCABULARIES = {
    "a word each": Vocabulary.build([(name, words[:1], limit) for name, words, limit in WORDS]),
    "synonyms": Vocabulary.build(WORDS),
    "background": Vocabulary.build(WORDS, ("sky", "wall")),
    "pooled background": Vocabulary.build(WORDS, ("sky", "wall"), pooled=True),
    "one class": Vocabulary.build(WORDS[:1]),
}


def similarities(vocabulary: Vocabulary, h: int, w: int, seed: int) -> torch.Tensor:
    """Return a random map of all channels: (Q, h, w)."""
    logits = torch.randn(vocabulary.channels, h, w, generator=torch.Generator().manual_seed(seed)) * 0.03
    if vocabulary.pooled:
        logits[0] = torch.maximum(logits[0], logits[-1]) + 0.01  # a sum over words is above its largest term
    return logits


def both(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> tuple[LabelMap, LabelMap]:
    """Return the map by cells, and by a softmax for every pixel."""
    maps = []
    for least in (0.0, np.inf):
        monkeypatch.setattr(labelling, "MUCH_LARGER", least)
        maps.append(label_map(*arguments, **options))
    return maps[0], maps[1]


@pytest.mark.parametrize("name", VOCABULARIES)
@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    factors=st.tuples(st.floats(0.6, 9.0), st.floats(0.6, 9.0)),
    seed=st.integers(0, 2**20),
    area=st.sampled_from([0.0, 0.2]),
    values=st.sampled_from([40, 2_000_000]),
    shared=st.sampled_from([0.0, 0.5]),
)
def test_classes_by_cells_equal_classes_by_pixels(
    name: str, shape: tuple[int, int], factors: tuple[float, float], seed: int, area: float, values: int, shared: float
) -> None:
    vocabulary = replace(VOCABULARIES[name], thresholds=(0.0,) * len(VOCABULARIES[name].names))
    h, w = (max(1, round(side * factor)) for side, factor in zip(shape, factors, strict=True))
    logits = similarities(vocabulary, *shape, seed)
    logits += shared * torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1))
    with pytest.MonkeyPatch.context() as patch:
        for constant in ("STRIP_VALUES", "PATCH_VALUES"):
            patch.setattr(enlarging, constant, values)
        cells, pixels = both(patch, logits, (h, w), vocabulary, 40.0, 0.0, area)
    if area and not np.array_equal(np.unique(cells.labels), np.unique(pixels.labels)):
        return  # one pixel of equal probabilities decides whether a class is scarce
    assert (cells.labels == pixels.labels)[pixels.lead > 0.001].all()


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("size", [(120, 333), (480, 640)])
def test_probabilities_by_cells_are_near_those_by_pixels(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = VOCABULARIES[name]
    boxes = window_boxes(80, 112, 64, 32)
    windows = torch.stack([similarities(vocabulary, 4, 4, seed) for seed in range(len(boxes))])
    stitched = Stitched(windows.mean(dim=0) + 0.1 * windows, boxes, (80, 112))
    cells, pixels = both(monkeypatch, stitched, size, vocabulary, 40.0, 0.35, 0.0, margin=0.02)
    confidence = np.abs(cells.confidence.astype(float) - pixels.confidence)
    assert confidence.max() < 0.02 and confidence.mean() < 0.0005
    lead = cells.lead.astype(float) - pixels.lead  # too small where the second class changes within a cell
    assert lead.min() > -0.05 and lead.max() < 0.02 and np.abs(lead).mean() < 0.0005
    limits = [max(limit, 0.35) for limit in vocabulary.thresholds]
    near = np.min([np.abs(pixels.confidence - np.float16(limit)) for limit in limits], axis=0) < 0.02
    assert (cells.labels == pixels.labels)[(pixels.lead > 0.001) & ~near].all()
    assert cells.sure is not None and pixels.sure is not None
    assert (cells.sure != pixels.sure).mean() < 0.005


def test_classes_of_cells_with_equal_corners_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(enlarging, "_compare", lambda rivals, shared, y, x, *rest: compared.append(len(y)))
    vocabulary = VOCABULARIES["a word each"]
    logits = torch.zeros(4, 10, 10)
    logits[0, :, :5], logits[1, :, 5:] = 0.2, 0.2
    label_map(logits, (100, 100), vocabulary, 40.0, 0.0, 0.0)
    assert compared == [11]  # of 121 cells, those between the two halves


def test_words_that_are_below_two_classes_everywhere_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    candidates = enlarging._candidates

    def counted(*arguments: Any) -> Any:
        found = candidates(*arguments)
        counts.append(found[1])
        return found

    monkeypatch.setattr(enlarging, "_candidates", counted)
    vocabulary = Vocabulary.build([(f"word {k}", [f"word {k}"], 0.0) for k in range(40)])
    logits = 0.01 * torch.rand(40, 10, 10, generator=torch.Generator().manual_seed(0))
    logits[:2] = 0.1
    logits[0, :, :5], logits[1, :, 5:], logits[2, :, 3:7] = 0.2, 0.2, 0.15
    logits += torch.linspace(0, 5, 10)  # a step of all words from column to column, as at the edge of a window
    label_map(logits, (100, 100), vocabulary, 40.0, 0.0, 0.0)
    assert torch.cat(counts).tolist() == [3] * 11  # of 40 words
