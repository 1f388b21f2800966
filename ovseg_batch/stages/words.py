"""The words of a run: queries, templates, and definitions of labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ovseg_batch.methods.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Words:
    """The queries of a vocabulary, the prompt templates around them, and definitions of labels.

    `definitions` are by name of the class; `weight` is theirs against the words', where there are any.
    """

    vocabulary: Vocabulary
    templates: tuple[str, ...]
    definitions: Mapping[str, str]
    weight: float

    @property
    def query_definitions(self) -> list[str]:
        """The definition of each query's class, or nothing."""
        return [self.definitions.get(self.vocabulary.names[k], "") for k in self.vocabulary.query_class]

    def inputs(self) -> dict[str, Any]:
        """Return the values that decide the features, for fingerprints."""
        return {
            "templates": list(self.templates),
            "queries": list(self.vocabulary.queries),
            "definitions": self.query_definitions,
            "definition_weight": self.weight if any(self.query_definitions) else None,
        }
