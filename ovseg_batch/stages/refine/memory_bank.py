"""Relabel every segment by its nearest neighbours in a memory bank. Regions of the same image are excluded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.io.bank_file import read_bank
from ovseg_batch.io.hashing import key_hash
from ovseg_batch.methods.banking import mixed_scores, nearest_others, region_features
from ovseg_batch.methods.class_scores import class_probabilities
from ovseg_batch.methods.vocabulary import Vocabulary
from ovseg_batch.methods.voting import Segment
from ovseg_batch.settings import RefineConfig
from ovseg_batch.types.arrays import Floats, Indices, Narrow, Numbers

EXTRA_NEIGHBOURS = 32  # additional neighbours to retrieve, because regions of the same image are dropped
DECIDES = ("clip", "attention", "layers", "window", "stride", "short_side", "long_side")


def made_of(dense_inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of the dense stage that two runs must share for their features to be comparable."""
    return {name: dense_inputs[name] for name in DECIDES}


class Relabeller:
    """A loaded memory bank and the scores of its regions.

    Args:
        settings: those of the refine stage, which name a bank.
        logit_scale: factor of the cosine similarities before the softmax.
        vocabulary: the classes.
        text: (Q, D) features of the queries, on the CPU.
        dense_inputs: what decides the dense stage's result.

    Raises:
        UsageError: there is no bank, or it holds other features.
        OvsegError: FAISS is not installed.
    """

    def __init__(
        self,
        settings: RefineConfig,
        logit_scale: float,
        vocabulary: Vocabulary,
        text: Tensor,
        dense_inputs: Mapping[str, Any],
    ) -> None:
        try:
            import faiss
        except ImportError:
            raise OvsegError("refine.bank needs FAISS. Run `pip install faiss-cpu`.") from None
        assert settings.bank is not None
        self._settings, self._logit_scale = settings, logit_scale
        self._vocabulary, self._text = vocabulary, text.cpu()
        bank = read_bank(Path(settings.bank))
        if bank.made_of != made_of(dense_inputs):
            raise UsageError(
                f"The memory bank {settings.bank} holds features of another CLIP or of other windows than this "
                "run's. Build one from a run with the same clip and dense settings."
            )
        self._images = bank.images
        self._index = faiss.IndexFlatIP(bank.features.shape[1])
        self._index.add(bank.features)
        self._scores = self._class_scores(bank.features)

    def _class_scores(self, features: Floats) -> Floats:
        """(R, D) → (R, C) float32."""
        cosine = self._text @ torch.from_numpy(features).T
        classes, scale = len(self._vocabulary.names), self._logit_scale
        scores: Floats = class_probabilities(cosine, self._vocabulary.query_class, classes, scale).T.numpy()
        return scores

    def __call__(
        self,
        key: str,
        features: Numbers,
        boxes: Indices,
        size: tuple[int, int],
        owner: Narrow,
        segments: Sequence[Segment],
    ) -> dict[int, tuple[int, float, float]]:
        """Return segment index → class, score, and lead over the second class.

        Args:
            key: key of the image, whose regions are excluded.
            features: (N, gh, gw, D) of its windows.
            boxes: (N, 4) of the windows.
            size: (h, w) at which they were cut.
            owner: (H, W) the segment of each pixel.
            segments: those of the map.
        """
        if not segments:
            return {}
        small = np.asarray(cv2.resize(owner, size[::-1], interpolation=cv2.INTER_NEAREST), np.int32)
        regions = region_features(features, boxes, small, max(segment.index for segment in segments))
        settings = self._settings
        _, found = self._index.search(regions, min(settings.bank_neighbours + EXTRA_NEIGHBOURS, self._index.ntotal))
        near = nearest_others(found, self._images, key_hash(key), settings.bank_neighbours)
        votes = [self._scores[row[row >= 0]] for row in near]
        mixed = mixed_scores(self._class_scores(regions), votes, settings.bank_weight)
        seen = np.linalg.norm(regions, axis=1) > 0
        ordered = np.sort(mixed, axis=1)
        lead = ordered[:, -1] - (ordered[:, -2] if mixed.shape[1] > 1 else 0.0)
        return {
            segment.index: (int(mixed[k].argmax()), float(mixed[k].max()), float(lead[k]))
            for segment in segments
            if seen[k := segment.index - 1]
        }
