"""Typed JSON records of files. Invalid records raise an error."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

Count = Annotated[int, Field(ge=0)]


class ManifestRecord(BaseModel):
    """The metadata of a manifest.

    Attributes:
        origin: fingerprint of its first revision.
        revisions: shard → revision in which its rows last changed.
        remote: scheme → number of images behind such URLs.
    """

    shard_rows: Annotated[int, Field(ge=1)]
    fingerprint: str
    origin: str = ""
    revision: Count = 0
    revisions: dict[Count, Count] = {}
    remote: dict[str, Count] = {}


class StageRecord(BaseModel):
    """A stage of a run, and the earlier stages that it needs."""

    name: str
    folder: Annotated[str, Field(pattern=r"^[^/\x00]*[^/\x00.][^/\x00]*$")]
    fingerprint: str
    needs: list[str] = []


class PlanRecord(BaseModel):
    """The plan of a run: the values that `status` and the exports read without loading settings and models."""

    inputs: list[str] = []
    exclude: list[str] = []
    manifest: str
    rows: Count
    shards: Count
    revisions: dict[Count, Count] = {}
    labels: list[str]
    stuff: list[str] = []
    background: bool = False
    embedded_models: list[str] = []
    stages: Annotated[list[StageRecord], Field(min_length=1)]

    @model_validator(mode="after")
    def _needs_are_earlier_stages(self) -> PlanRecord:
        names: set[str] = set()
        for stage in self.stages:
            if not names.issuperset(stage.needs) or stage.name in names:
                raise ValueError("a stage needs one that does not come before it, or comes twice")
            names.add(stage.name)
        return self


def reason(error: ValidationError) -> str:
    """Return the first error and its location in one line."""
    first = error.errors(include_url=False)[0]
    return ": ".join([".".join(map(str, first["loc"])), first["msg"]] if first["loc"] else [first["msg"]])


def parse_json(content: bytes | str) -> Any:
    """Parse JSON. Raises ValueError, also where it is nested too deeply for Python."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
