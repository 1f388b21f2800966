"""Settings of `method: detect`: its model, and the choice of boxes and masks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from ovseg_batch.settings.section import PathText, Precision, Section, Share


class OwlConfig(Section):
    """The OWLv2 that proposes boxes under `method: detect`, and scores words for them."""

    model: PathText = "owlv2-large"
    """A name from `ovseg-batch models list`, or `local-dir:` and a folder that transformers wrote."""
    weights: PathText | None = None
    """Safetensors as published on the Hugging Face hub. null: the weights of the named model."""
    precision: Precision | None = None
    """Precision of the image encoder. null: `run.precision`."""


class DetectConfig(Section):
    """Boxes, masks and labels under `method: detect`."""

    boxes: Annotated[int, Field(ge=1, le=10000)] = 300
    """Boxes of an image that SAM2 is prompted with: those of the highest objectness."""
    objectness: Share = 0.0
    """Boxes with a lower objectness are dropped."""
    templates: tuple[str, ...] = ("a photo of a {}",)
    """Phrases around each word, with {} for the word. The embeddings of several phrases are averaged."""
    threshold: Share = 0.15
    """Lowest score of a mask. OWLv2's scores are low: 0.1 to 0.2 is usual."""
    nms: Share = 0.5
    """Of two masks of a class that overlap by more than this IoU, the one with the lower score is dropped."""
    min_area: Share = 0.0
    """Masks that cover a smaller share of the image are dropped."""

    @field_validator("templates")
    @classmethod
    def _hold_the_word(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise ValueError("needs phrases with exactly one {} each, where the word goes")
        return templates
