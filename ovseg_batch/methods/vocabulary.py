"""Words to classes: prompt templates, text features, and the rules that turn query logits into class probabilities.

Source: SCLIP (wangf3014/SCLIP), whose text features, softmax over all synonyms, probability and area thresholds are
followed here; METHODS decisions on `logit_scale`. A *query* is one word or phrase; a *class* has one or more queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

UNLABELLED = -1

# The stuff words that SCLIP gives the background class of VOC21 and COCO-Object.
COMMON_BACKGROUND = tuple(
    "sky wall tree wood grass road sea river mountain sands desk bed building cloud lamp door window wardrobe "
    "ceiling shelf curtain stair floor hill rail fence".split()
)

_OPENAI80 = """a bad photo of a {}.|a photo of many {}.|a sculpture of a {}.|a photo of the hard to see {}.
a low resolution photo of the {}.|a rendering of a {}.|graffiti of a {}.|a bad photo of the {}.
a cropped photo of the {}.|a tattoo of a {}.|the embroidered {}.|a photo of a hard to see {}.|a bright photo of a {}.
a photo of a clean {}.|a photo of a dirty {}.|a dark photo of the {}.|a drawing of a {}.|a photo of my {}.
the plastic {}.|a photo of the cool {}.|a close-up photo of a {}.|a black and white photo of the {}.
a painting of the {}.|a painting of a {}.|a pixelated photo of the {}.|a sculpture of the {}.
a bright photo of the {}.|a cropped photo of a {}.|a plastic {}.|a photo of the dirty {}.
a jpeg corrupted photo of a {}.|a blurry photo of the {}.|a photo of the {}.|a good photo of the {}.
a rendering of the {}.|a {} in a video game.|a photo of one {}.|a doodle of a {}.|a close-up photo of the {}.
a photo of a {}.|the origami {}.|the {} in a video game.|a sketch of a {}.|a doodle of the {}.|a origami {}.
a low resolution photo of a {}.|the toy {}.|a rendition of the {}.|a photo of the clean {}.
a photo of a large {}.|a rendition of a {}.|a photo of a nice {}.|a photo of a weird {}.|a blurry photo of a {}.
a cartoon {}.|art of a {}.|a sketch of the {}.|a embroidered {}.|a pixelated photo of a {}.|itap of the {}.
a jpeg corrupted photo of the {}.|a good photo of a {}.|a plushie {}.|a photo of the nice {}.
a photo of the small {}.|a photo of the weird {}.|the cartoon {}.|art of the {}.|a drawing of the {}.
a photo of the large {}.|a black and white photo of a {}.|the plushie {}.|a dark photo of a {}.|itap of a {}.
graffiti of the {}.|a toy {}.|itap of my {}.|a photo of a cool {}.|a photo of a small {}.|a tattoo of the {}."""

# The thesis says that it uses seven templates, and four in its best run, but words only two: "a photo of a {}" and
# "{} in the scene". The others of these two sets are our choice.
_SIMPLE4 = ("a photo of a {}.", "a photo of the {}.", "{} in the scene.", "a {}.")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "openai80": tuple(part for line in _OPENAI80.splitlines() for part in line.split("|")),
    "thesis7": (*_SIMPLE4, "a close-up photo of a {}.", "a photo of a large {}.", "a photo of a small {}."),
    "simple4": _SIMPLE4,
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Classes and the queries that stand for them, class by class.

    `names[c]` is class c; `queries[q]` a phrase of class `query_class[q]`; `thresholds[c]` the least probability that
    a pixel of class c needs. With `has_background`, class 0 is the background and catches what falls under a threshold.
    With `pooled`, the dense map has two channels for the whole background (see `pool_background`).
    """

    names: tuple[str, ...]
    queries: tuple[str, ...]
    query_class: tuple[int, ...]
    thresholds: tuple[float, ...]
    has_background: bool
    pooled: bool = False

    @classmethod
    def build(
        cls,
        labels: Sequence[tuple[str, Sequence[str], float]],
        background: Sequence[str] = (),
        pooled: bool = False,
    ) -> Vocabulary:
        """From (name, words, threshold) per class; a background word that is also a label's word is dropped."""
        taken = {word.lower() for _, words, _ in labels for word in words}
        behind = tuple(word for word in background if word.lower() not in taken)
        classes = [("background", behind, 0.0), *labels] if behind else list(labels)
        return cls(
            names=tuple(name for name, _, _ in classes),
            queries=tuple(word for _, words, _ in classes for word in words),
            query_class=tuple(index for index, (_, words, _) in enumerate(classes) for _ in words),
            thresholds=tuple(threshold for _, _, threshold in classes),
            has_background=bool(behind),
            pooled=pooled and bool(behind),
        )

    @property
    def background_queries(self) -> int:
        """How many queries, the first ones, stand for the background."""
        return self.query_class.count(0) if self.has_background else 0

    @property
    def channel_class(self) -> tuple[int, ...]:
        """The class of each channel of a dense map, without the last one of a pooled background."""
        return (0, *self.query_class[self.background_queries :]) if self.pooled else self.query_class

    @property
    def channels(self) -> int:
        """How many channels a dense map has."""
        return len(self.channel_class) + self.pooled

    def probabilities(self, logits: Tensor, logit_scale: float) -> Tensor:
        """Return the probability of each class, (C, …) float32, of the channels of a dense map."""
        return class_probabilities(logits, self.channel_class, len(self.names), logit_scale, self.pooled)

    def left_out(self, prompts: str | Sequence[str] | None) -> list[int]:
        """Return the channels of the classes that a row excludes; the background is never excluded.

        Args:
            prompts: names of classes, as a list or separated by commas; None: all are asked for.

        Raises:
            ValueError: a name that is no class.
        """
        if prompts is None or (isinstance(prompts, str) and not prompts.strip()):
            return []
        names = [n.strip() for n in prompts.split(",")] if isinstance(prompts, str) else [str(n) for n in prompts]
        for name in names:
            if name not in self.names:
                raise ValueError(f"the row's prompt {name!r} is none of the labels")
        wanted = {self.names.index(name) for name in names} | ({0} if self.has_background else set())
        return [channel for channel, label in enumerate(self.channel_class) if label not in wanted]


def prompts_of(query: str, templates: Sequence[str]) -> list[str]:
    """The query in every template's place."""
    return [template.format(query) for template in templates]


def query_feature(features: Tensor) -> Tensor:
    """One query's feature (D,) from its templates' (T, D): each normalised, averaged, normalised again (SCLIP)."""
    mean = torch.nn.functional.normalize(features.float(), dim=-1).mean(dim=0)
    return torch.nn.functional.normalize(mean, dim=-1)


def pool_background(cosine: Tensor, queries: int, logit_scale: float) -> Tensor:
    """Reduce the background's queries to two channels, whose cost does not grow with their number.

    The first channel keeps the background's share of the softmax's denominator, log Σ exp(s·c) / s over its queries
    for a logit scale s. The last one keeps its best query. `class_probabilities` reads both. Where the map is not
    resized, they give the same probabilities as all queries do.

    Args:
        cosine: (N, Q, h, w) similarities, the background's queries first.
        queries: how many these are.
        logit_scale: s.

    Returns:
        (N, 1 + labels' queries + 1, h, w).
    """
    background = cosine[:, :queries]
    together = torch.logsumexp(background * logit_scale, dim=1, keepdim=True) / logit_scale
    return torch.cat([together, cosine[:, queries:], background.amax(dim=1, keepdim=True)], dim=1)


def class_probabilities(
    logits: Tensor, query_class: Sequence[int], classes: int, logit_scale: float, pooled: bool = False
) -> Tensor:
    """Softmax over all queries, then the maximum over each class's queries (SCLIP).

    Args:
        logits: (Q, …) cosine similarities in [-1, 1]; with `pooled` the channels of `pool_background`.
        query_class: class of each query, length Q, ascending; with `pooled` without the last channel.
        classes: how many classes C there are.
        logit_scale: multiplies the cosines before the softmax.
        pooled: class 0 has the first and the last channel.

    Returns:
        (C, …) float32. Columns sum to 1 only where every class has one query.
    """
    if pooled:
        probabilities = torch.softmax(logits[:-1].float() * logit_scale, dim=0)
        probabilities[0] *= ((logits[-1].float() - logits[0].float()) * logit_scale).clamp(max=0.0).exp()
    else:
        probabilities = torch.softmax(logits.float() * logit_scale, dim=0)
    if tuple(query_class) == tuple(range(classes)):
        return probabilities
    for query, label in enumerate(query_class):  # a class's place is never behind its queries'
        if query and query_class[query - 1] == label:
            torch.maximum(probabilities[label], probabilities[query], out=probabilities[label])
        elif label != query:
            probabilities[label] = probabilities[query]
    return probabilities[:classes]


def scarce_classes(counts: Array, area_threshold: float, has_background: bool) -> Array:
    """Which classes the area rule removes: (C,) bool.

    A class whose share of the foreground pixels is at or under the threshold is taken for noise (SCLIP, `area_thd`).
    The background is never removed.

    Args:
        counts: (C,) pixels won by each class.
        area_threshold: share in [0, 1]; 0 switches the rule off.
        has_background: class 0 is the background and not part of the foreground.
    """
    first = int(has_background)
    scarce = np.zeros(len(counts), dtype=bool)
    if area_threshold > 0:
        foreground = counts[first:]
        scarce[first:] = foreground <= area_threshold * foreground.sum()
    return scarce


def decide(
    probabilities: Tensor, thresholds: Tensor, has_background: bool, scarce: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The winning class per pixel, its probability, and by how much it won.

    Args:
        probabilities: (C, …) as `class_probabilities` gives them.
        thresholds: (C,) the least probability a pixel of each class needs.
        has_background: whether a pixel under its threshold becomes class 0 or `UNLABELLED`.
        scarce: (C,) bool, classes to zero before the decision.

    Returns:
        labels (…) int16, probability and its lead over the next class's (…) float32.
    """
    if scarce is not None and bool(scarce.any()):
        probabilities = probabilities * (~scarce).view(-1, *[1] * (probabilities.dim() - 1))
    best, labels = probabilities.max(dim=0)
    probabilities.scatter_(0, labels[None], 0.0)
    lead = best - probabilities.amax(dim=0)
    probabilities.scatter_(0, labels[None], best[None])  # as it was: a copy of all classes would cost more
    labels = labels.to(torch.int16)
    if bool((thresholds > 0).any()):
        labels.masked_fill_(best < thresholds[labels.long()], 0 if has_background else UNLABELLED)
    return labels, best, lead
