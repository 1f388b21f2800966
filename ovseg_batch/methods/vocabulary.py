"""Classes, their queries, and prompt templates.

A *query* is a word or phrase. A *class* has one or more queries.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.wording import setting

UNLABELLED = -1
BACKGROUND = "background"  # name of class 0 in vocabularies with a background

# The stuff words of the background class for VOC21 and COCO-Object in SCLIP's code.
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

# García García 2025 uses seven templates, and four in the best run, but prints only two: "a photo of a {}" and
# "{} in the scene". The others are not published and were chosen here.
_SIMPLE4 = ("a photo of a {}.", "a photo of the {}.", "{} in the scene.", "a {}.")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "openai80": tuple(part for line in _OPENAI80.splitlines() for part in line.split("|")),
    "thesis7": (*_SIMPLE4, "a close-up photo of a {}.", "a photo of a large {}.", "a photo of a small {}."),
    "simple4": _SIMPLE4,
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Classes and their queries, sorted by class.

    Attributes:
        names: name of each class.
        queries: words or phrases.
        query_class: class of each query, ascending.
        thresholds: least probability of a pixel, per class, in [0, 1].
        has_background: class 0 is the background. Pixels below their threshold get class 0.
        pooled: the dense map has two channels for all background queries; see `pool_background`.
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
        keep_shared: bool = False,
    ) -> Vocabulary:
        """Build a vocabulary from (name, words, threshold) per class.

        Args:
            keep_shared: keep background words that are also words of a label, as the protocols of data sets do.

        Raises:
            UsageError: a label has the name of the background class.
        """
        label_words = {word.lower() for _, words, _ in labels for word in words}
        competing = tuple(word for word in background if keep_shared or word.lower() not in label_words)
        if competing and (
            clashing_name := next((name for name, _, _ in labels if name.casefold() == BACKGROUND), None)
        ):
            raise UsageError(
                f"labels: {clashing_name!r} is the name of the class that the setting `background` makes. "
                f"Give the label another name, or give {setting('background', 'none')}."
            )
        classes = [(BACKGROUND, competing, 0.0), *labels] if competing else list(labels)
        return cls(
            names=tuple(name for name, _, _ in classes),
            queries=tuple(word for _, words, _ in classes for word in words),
            query_class=tuple(index for index, (_, words, _) in enumerate(classes) for _ in words),
            thresholds=tuple(threshold for _, _, threshold in classes),
            has_background=bool(competing),
            pooled=pooled and bool(competing),
        )

    @property
    def background_queries(self) -> int:
        """The number of background queries, which come first."""
        return self.query_class.count(0) if self.has_background else 0

    @property
    def channel_class(self) -> tuple[int, ...]:
        """The class of each channel of a dense map, without the last channel of a pooled background."""
        return (0, *self.query_class[self.background_queries :]) if self.pooled else self.query_class

    @property
    def channels(self) -> int:
        """The number of channels of a dense map."""
        return len(self.channel_class) + self.pooled

    def left_out(self, prompts: str | Sequence[str] | None) -> list[int]:
        """Return the channels of the classes that a row does not list. The background is never excluded.

        Args:
            prompts: names of classes: a list, a JSON list, or a text with commas. Without names, no class is excluded.

        Raises:
            ValueError: a name is not a class.
        """
        names = self._prompted_names(prompts)
        if names is None:
            return []
        for name in names:
            if name not in self.names:
                raise ValueError(f"the row's prompt {name!r} is none of the labels.{self._nearest(name)}")
        wanted = {self.names.index(name) for name in names} | ({0} if self.has_background else set())
        return [channel for channel, label in enumerate(self.channel_class) if label not in wanted]

    def _prompted_names(self, prompts: str | Sequence[str] | None) -> list[str] | None:
        """Return the names in a row's prompts, or None where there are none.

        A text is one name, a JSON list, or names separated by commas. Names may contain commas.
        """
        if isinstance(prompts, str) and prompts.lstrip().startswith("["):
            with contextlib.suppress(ValueError, RecursionError):
                prompts = json.loads(prompts)
        if isinstance(prompts, str):
            prompts = [prompts] if prompts.strip() in self.names else self._split(prompts)
        if not isinstance(prompts, Sequence | None):
            raise ValueError(f"the row's prompts are {prompts!r}, and not names of labels.")
        names = [str(name).strip() for name in prompts or ()]
        return [name for name in names if name] or None

    def _split(self, text: str) -> list[str]:
        """Split a text at commas. Known names that contain commas are kept whole; the longest match wins."""
        parts, names = re.split("[,;\n]", text), list[str]()
        while parts:
            joined = (",".join(parts[:count]).strip() for count in range(len(parts), 1, -1))
            name = next((one for one in joined if one in self.names), parts[0])
            names.append(name)
            parts = parts[name.count(",") + 1 :]
        return names

    def _nearest(self, name: str) -> str:
        folded = {one.casefold(): one for one in self.names}
        same = folded.get(name.casefold())
        return f" Did you mean {same!r}?" if same else nearest(name, self.names)


def prompts_of(query: str, templates: Sequence[str]) -> list[str]:
    """Return the prompts of a query: every template, filled with the query."""
    return [template.format(query) for template in templates]
