"""Words to classes, and the prompt templates around them.

A *query* is one word or phrase; a *class* has one or more queries.
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
BACKGROUND = "background"  # the name of class 0 where there is a background

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
        """From (name, words, threshold) per class; a background word that is also a label's word is dropped.

        Raises:
            UsageError: a label has the name of the background, which is a class of its own in all outputs.
        """
        taken = {word.lower() for _, words, _ in labels for word in words}
        behind = tuple(word for word in background if word.lower() not in taken)
        if behind and (taken_name := next((name for name, _, _ in labels if name.casefold() == BACKGROUND), None)):
            raise UsageError(
                f"labels: {taken_name!r} is the name of the class that the setting `background` makes. "
                f"Give the label another name, or give {setting('background', 'none')}."
            )
        classes = [(BACKGROUND, behind, 0.0), *labels] if behind else list(labels)
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

    def left_out(self, prompts: str | Sequence[str] | None) -> list[int]:
        """Return the channels of the classes that a row excludes; the background is never excluded.

        Args:
            prompts: names of classes, as a list, a JSON list or with commas between them. Without a name, all are
                asked for.

        Raises:
            ValueError: a name that is no class.
        """
        names = self._asked(prompts)
        if names is None:
            return []
        for name in names:
            if name not in self.names:
                raise ValueError(f"the row's prompt {name!r} is none of the labels.{self._nearest(name)}")
        wanted = {self.names.index(name) for name in names} | ({0} if self.has_background else set())
        return [channel for channel, label in enumerate(self.channel_class) if label not in wanted]

    def _asked(self, prompts: str | Sequence[str] | None) -> list[str] | None:
        """Return the names in a row's prompts; None where there are none.

        A text is one name, a JSON list, or names with commas between them. Names may hold commas themselves.
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
        """Return the names between commas, the longest known name first where names hold commas."""
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
    """The query in every template's place."""
    return [template.format(query) for template in templates]
