"""The part of a page above its gallery: the forecast of a run, the time of its stages, and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

ASSET = files("ovseg_batch.report") / "assets" / "foreword.html"


@dataclass(frozen=True, slots=True)
class StageLine:
    """A stage in the table: its name, and its figures as text."""

    name: str
    start: str
    per_image: str
    images_per_second: str
    share: str


@dataclass(frozen=True, slots=True)
class Foreword:
    """What stands above the gallery.

    Attributes:
        title: heading.
        sentences: the forecast.
        stages: rows of the table.
        warnings: (what was found, what to do) of each.
        command: the command line that starts the run.
    """

    title: str
    sentences: Sequence[str]
    stages: Sequence[StageLine]
    warnings: Sequence[tuple[str, str]]
    command: str

    def html(self) -> str:
        """Return the HTML for `build_report`. All texts are escaped."""
        import jinja2  # imported here: its import is slow

        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        return environment.from_string(ASSET.read_text(encoding="utf-8")).render(foreword=self)
