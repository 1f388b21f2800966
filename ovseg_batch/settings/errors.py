"""Messages for wrong settings: the key, the value, and what is allowed there.

What is allowed is read from the JSON schema of the settings, so that a message always agrees with `tree.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from ovseg_batch.errors import nearest
from ovseg_batch.settings.labels import parse_labels

SHOWN = 60  # characters of a wrong value that a message shows

Schema = Mapping[str, Any]

TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
}
LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "a multiple of {}",
    "minLength": "length at least {}",
}


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every key below a section, and every section: `refine`, `refine.method`, `refine.vote`, …"""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from dotted_keys(field.annotation, f"{prefix}{name}.")


def similar_keys(key: str, root: type[BaseModel], path: str | None = None) -> list[str]:
    """Return the valid keys that a wrong one can stand for: those of the same last name, else the most similar one.

    Args:
        key: dotted, from the root.
        root: all settings.
        path: the key with those inside of its value. They count before last names that are merely similar.
    """
    keys = list(dotted_keys(root))
    names = [known.rpartition(".")[2] for known in keys]
    tried = (key,) if path in (None, key) else (key, path)
    for one in tried:
        same = [known for known, name in zip(keys, names, strict=True) if name == one.rpartition(".")[2]]
        if close := same or difflib.get_close_matches(one, keys, n=1, cutoff=0.6):
            return close
    for one in tried:
        if match := difflib.get_close_matches(one.rpartition(".")[2], names, n=1, cutoff=0.6):
            return [known for known, name in zip(keys, names, strict=True) if name == match[0]]
    return []


def unknown_key(origin: str, key: str, value: Any, section: type[BaseModel], root: type[BaseModel]) -> str:
    """Return the message for a key that does not exist.

    Args:
        origin: the file, variable or option that has it.
        key: dotted, from the root.
        value: of the key; the keys in it help to find what is meant.
        section: where the key is.
        root: all settings.
    """
    path = key
    while isinstance(value, Mapping) and len(value) == 1:
        ((name, value),) = value.items()
        path = f"{path}.{name}"
    similar = similar_keys(key, root, path)
    meant = f" Did you mean {_or([repr(known) for known in similar])}?" if similar else ""
    return f"{origin}: unknown key {key!r}.{meant} Valid here: {', '.join(section.model_fields)}."


def explain(error: ValidationError, tree: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Return one line for each setting that is wrong.

    Args:
        error: of `model.model_validate(tree)`.
    """
    root = model.model_json_schema()
    lines = []
    for problem in error.errors(include_url=False):
        place = _Place(problem["loc"], root, tree)
        given = problem["input"] if place.whole else place.value
        sentence = SENTENCES.get(problem["type"], _not_allowed) if place.whole else _not_allowed
        lines.append(sentence(place, given, problem))
    return "These settings are wrong:\n  " + "\n  ".join(dict.fromkeys(lines))


class _Place:
    """Where a value is in the settings.

    Attributes:
        name: for a person, as in `refine.vote` or `labels, entry 2 (cat), threshold`.
        schema: of what is allowed there.
        value: in the tree as it was given. None: the settings give it in another form.
        siblings: the valid keys beside this one.
        whole: the location leads to one value. Otherwise it leads into one of several alternatives for the value.
    """

    def __init__(self, location: Sequence[int | str], root: Schema, tree: Any) -> None:
        self._root = root
        self.name, self.schema, self.value, self.whole = "", root, tree, True
        self.siblings: list[str] = []
        for part in location:
            inner = self._inner(part)
            if inner is None:
                self.whole = False
                return
            self.siblings = list(self.schema.get("properties", ()))
            self.schema = _resolved(inner, root)
            if self.name == "labels":
                self.value = _parsed(self.value)
            self.value = _item(self.value, part)
            self._append(part)

    def _inner(self, part: int | str) -> Schema | None:
        """Return the schema of an item; None where the part names one of several alternatives."""
        if isinstance(part, int):
            items: Schema | None = self.schema.get("items")
            return items
        if "properties" in self.schema:
            inner: Schema | None = self.schema["properties"].get(part, {})
            return inner
        others: Schema | None = self.schema.get("additionalProperties") or None
        return others

    def _append(self, part: int | str) -> None:
        if isinstance(part, int):
            label = self.value.get("name") if isinstance(self.value, Mapping) else None
            self.name += f", entry {part + 1}" + (f" ({label})" if label else "")
        else:
            self.name += f"{', ' if ', entry' in self.name else '.' if self.name else ''}{part}"

    def allowed(self) -> str:
        """Return what the settings allow there."""
        return _allowed(self.schema, self._root)

    def choices(self) -> list[str]:
        """Return the words that are allowed there."""
        parts = [self.schema, *self.schema.get("anyOf", ())]
        return [str(word) for part in parts for word in (*part.get("enum", ()), *_const(part))]


def _item(value: Any, part: int | str) -> Any:
    try:
        return value[part]
    except (KeyError, IndexError, TypeError):
        return None


def _parsed(labels: Any) -> Any:
    try:
        return parse_labels(labels)
    except ValueError:
        return labels


def _resolved(schema: Schema, root: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    definition: Schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return definition


def _const(schema: Schema) -> list[Any]:
    return [schema["const"]] if "const" in schema else []


def _allowed(schema: Schema, root: Schema) -> str:
    return _or(list(_alternatives(_resolved(schema, root), root)))


def _alternatives(schema: Schema, root: Schema) -> Iterator[str]:
    if "anyOf" in schema:
        for part in schema["anyOf"]:
            yield from _alternatives(_resolved(part, root), root)
    elif words := [*schema.get("enum", ()), *_const(schema)]:
        yield from map(str, words)
    elif "properties" in schema:
        yield f"a section with the keys {', '.join(schema['properties'])}"
    elif schema["type"] == "array":
        yield f"a list (each entry: {_allowed(schema['items'], root)})"
    elif schema["type"] == "object":
        yield f"a mapping (each value: {_allowed(schema['additionalProperties'], root)})"
    else:
        limits = ", ".join(text.format(schema[name]) for name, text in LIMITS.items() if name in schema)
        yield TYPES[schema["type"]] + (f" ({limits})" if limits else "")


def _or(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _not_allowed(place: _Place, given: Any, problem: Mapping[str, Any]) -> str:
    near = nearest(given, place.choices()) if isinstance(given, str) else ""
    return f"{place.name}: {_shown(given)} is not allowed.{near} Allowed: {place.allowed()}."


def _not_text(place: _Place, given: Any, problem: Mapping[str, Any]) -> str:
    quotes = " If it is a word, write it in quotes." if isinstance(given, bool | int | float) else ""
    return _not_allowed(place, given, problem) + quotes


def _not_a_section(place: _Place, given: Any, problem: Mapping[str, Any]) -> str:
    """Return the message for a value where a section belongs. A label is a section, too, or text."""
    if not place.name.startswith("labels"):
        return _not_allowed(place, given, problem)
    return _not_text(place, given, problem).replace("Allowed: ", "Allowed: text, or ")


def _missing(place: _Place, given: Any, problem: Mapping[str, Any]) -> str:
    above, _, key = place.name.rpartition(", ")
    return f"{above}: the key {key!r} is missing."


def _unknown(place: _Place, given: Any, problem: Mapping[str, Any]) -> str:
    above, _, key = place.name.rpartition(", ")
    return f"{above}: unknown key {key!r}.{nearest(key, place.siblings)} Valid here: {', '.join(place.siblings)}."


def _own_check(place: _Place, given: Any, problem: Mapping[str, Any]) -> str:
    """Return the message of one of our own checks, which begins with a verb."""
    shown = "" if isinstance(given, Mapping) else f" (given: {_shown(given)})"
    return f"{place.name}: {problem['ctx']['error']}{shown}"


#: The sentence for each type of error that pydantic reports; `_not_allowed` for all others, which are about the value.
SENTENCES: dict[str, Callable[[_Place, Any, Mapping[str, Any]], str]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    "model_type": _not_a_section,
    "string_type": _not_text,
    "value_error": _own_check,
}
