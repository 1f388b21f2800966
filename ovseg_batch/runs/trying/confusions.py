"""Which labels compete with each other, from the kept features of a run and the embeddings of its words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ovseg_batch.io.manifest import Manifest
from ovseg_batch.settings import Config
from ovseg_batch.stages.base import STUFF, methods_of
from ovseg_batch.stages.registry import part_of, resolve
from ovseg_batch.stages.upstream import CommittedShard
from ovseg_batch.types.arrays import Doubles
from ovseg_batch.workdir.store import StageStore

CLOSE = 0.5  # a second class with at least this share of the probability of the first is close to it


@dataclass(frozen=True, slots=True)
class Confusions:
    """The labels of a run in pairs.

    Attributes:
        names: labels, C in number.
        first: (C,) patches in which each label is the most probable.
        seconds: (C, C) patches in which the label of the row is the most probable, and that of the column is close.
        cosines: (C, C) cosine between the mean text embeddings of two labels.
    """

    names: tuple[str, ...]
    first: Doubles
    seconds: Doubles
    cosines: Doubles

    def pairs(self) -> Iterator[tuple[str, str, float, float]]:
        """Yield two labels, the larger share of the pixels of one that the other is close to, and their cosine."""
        shares = self.seconds / np.maximum(self.first, 1)[:, None]
        for one in range(len(self.names)):
            for other in range(one + 1, len(self.names)):
                share = max(shares[one, other], shares[other, one])
                yield self.names[one], self.names[other], float(share), float(self.cosines[one, other])


def confusions_of(config: Config, stores: Mapping[str, StageStore], manifest: Manifest) -> Confusions | None:
    """Return the confusions of a run that has kept dense features, or None if it has kept none.

    Each patch of each window counts once. Its probabilities are those of the dense map before windows are stitched.
    """
    store = stores.get("dense")
    if store is None or len(config.labels) < 2 or STUFF not in methods_of(config):
        return None
    import torch
    import torch.nn.functional as F

    from ovseg_batch.methods.class_scores import pool_background, vocabulary_probabilities
    from ovseg_batch.models.encoders import load_encoder
    from ovseg_batch.stages.text import word_features

    run = resolve(part_of(config, STUFF) if config.method == "hybrid" else config)
    vocabulary, scale = run.vocabulary, config.dense.logit_scale
    text = word_features(run.words, load_encoder(run.clip, torch.device("cpu"), "fp32"), run.clip)
    classes = len(vocabulary.names)
    start = 1 if vocabulary.has_background else 0
    first, seconds = torch.zeros(classes), torch.zeros(classes, classes)
    kept = False
    for shard in range(manifest.shards):
        with CommittedShard(store, shard) as committed:
            for row in manifest.read_shard(shard):
                features = committed.arrays(row.row).get("features")
                if features is None:
                    continue
                kept = True
                patches = torch.from_numpy(features).float().reshape(-1, text.shape[1])
                cosine = (patches @ text.T).T[None, :, :, None]  # (1, Q, patches, 1)
                if vocabulary.pooled:
                    cosine = pool_background(cosine, vocabulary.background_queries, scale)
                likely = vocabulary_probabilities(vocabulary, cosine[0], scale)[..., 0]
                (best, second), which = likely.topk(2, dim=0)
                first += torch.bincount(which[0], minlength=classes)
                close = second >= CLOSE * best
                flat = which[0][close] * classes + which[1][close]
                seconds += torch.bincount(flat, minlength=classes**2).reshape(classes, classes)
    if not kept:
        return None
    of_class = torch.tensor(vocabulary.query_class)
    means = F.normalize(torch.stack([text[of_class == k].mean(dim=0) for k in range(start, classes)]), dim=-1)
    return Confusions(
        vocabulary.names[start:],
        first[start:].double().numpy(),
        seconds[start:, start:].double().numpy(),
        (means @ means.T).double().numpy(),
    )
