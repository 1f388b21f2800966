"""Describe every key of the settings: type, default, meaning, and readers.

`ovseg-batch settings` prints these lines, and `docs/settings.md` is made of them. They come from the models of the
settings and from the table of their readers.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ovseg_batch.settings.readers import readers
from ovseg_batch.settings.section import Section
from ovseg_batch.settings.tree import Config, Label

LABEL = "labels[]."  # before the keys of an entry of `labels`
PLAIN = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "null"}
BOUNDS = {annotated_types.Ge: ("ge", "≥"), annotated_types.Gt: ("gt", ">"), annotated_types.Le: ("le", "≤")}
BOUNDS |= {annotated_types.Lt: ("lt", "<"), annotated_types.MultipleOf: ("multiple_of", "multiple of")}


@dataclass(frozen=True, slots=True)
class SettingLine:
    """One key in words.

    Attributes:
        key: dotted, as `--set` takes it. The keys of an entry of `labels` begin with `labels[].`
        type: type, allowed values and range.
        default: as YAML writes it; None where a value has to be given.
        meaning: one or two sentences.
        read_by: the stages that read it, and under which choice.
    """

    key: str
    type: str
    default: str | None
    meaning: str
    read_by: str

    def to_record(self) -> dict[str, Any]:
        """Return the line as plain values, for JSON."""
        return asdict(self)

    def contains(self, word: str) -> bool:
        """Return whether the key or the meaning contains a word, in capitals or not."""
        return word.lower() in f"{self.key}\n{self.meaning}".lower()


def setting_lines() -> list[SettingLine]:
    """Return a line for every key, in the order of the settings."""
    lines = []
    for key, field, meaning in _fields(Config):
        lines.append(_line(key, field, meaning))
        if key == "labels":
            lines += [_line(*entry) for entry in _fields(Label, LABEL)]
    return lines


def section_meanings() -> dict[str, str]:
    """Return section → what it is about, in the order of the settings. The empty section has the keys without one."""
    found = {"": inspect.getdoc(Config) or ""}
    for name, field in Config.model_fields.items():
        if (model := _section(field)) is not None:
            found[name] = inspect.getdoc(model) or ""
    return found


def choices(key: str) -> tuple[str, ...]:
    """Return the values of a key that takes certain values alone, as `--set` takes them; otherwise none."""
    field = next((field for name, field, _ in _fields(Config) if name == key), None)
    if field is None:
        return ()
    if field.annotation is bool:
        return "true", "false"
    parts = get_args(field.annotation) if _is_union(field.annotation) else (field.annotation,)
    return tuple(str(value) for part in parts if get_origin(part) is Literal for value in get_args(part))


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo, str]]:
    """Yield (dotted key, field, meaning) of everything that is no section."""
    meanings = _meanings(model)
    for name, field in model.model_fields.items():
        section = _section(field)
        if section is None:
            yield prefix + name, field, meanings.get(name, "")
        else:
            yield from _fields(section, f"{prefix}{name}.")


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return field → the docstring below it, in one line.

    pydantic can read the docstrings too, but it would do so at every start of the program.
    """
    found = {}
    for section in (one for one in model.__mro__ if issubclass(one, Section)):
        definition = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
        assert isinstance(definition, ast.ClassDef)
        for field, below in itertools.pairwise(definition.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _line(key: str, field: FieldInfo, meaning: str) -> SettingLine:
    kind = _type_text(field.annotation, field.metadata)
    default = None if field.is_required() else _yaml(field.get_default(call_default_factory=True))
    return SettingLine(key, kind, default, meaning, str(readers(key)))


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (typing.Union, types.UnionType)


def _type_text(kind: Any, limits: typing.Sequence[Any] = ()) -> str:
    """Return a type in words, with its allowed values and its range."""
    if isinstance(kind, type) and kind in PLAIN:
        bounds = [f"{sign} {getattr(limit, name)}" for limit in limits for name, sign in _bound(limit)]
        return ", ".join([PLAIN[kind], *bounds])
    origin, parts = get_origin(kind), get_args(kind)
    if origin is typing.Annotated:
        return _type_text(parts[0], _flat(parts[1:]))
    if _is_union(kind):
        return "; or ".join(_type_text(part) for part in parts)
    if origin is Literal:
        return " | ".join(str(value) for value in parts)
    if origin is tuple:
        return f"list of {'labels' if parts[0] is Label else _type_text(parts[0])}"
    assert origin is dict, kind
    return f"mapping of text to {_type_text(parts[1])}"


def _bound(limit: Any) -> list[tuple[str, str]]:
    return [BOUNDS[type(limit)]] if type(limit) in BOUNDS else []


def _flat(metadata: typing.Sequence[Any]) -> list[Any]:
    """Return the limits behind `Annotated`, those in a `Field` among them."""
    return [limit for one in metadata for limit in (one.metadata if isinstance(one, FieldInfo) else [one])]


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        value = [round(part, 4) if isinstance(part, float) else part for part in value]
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)
    return text.removesuffix("\n...\n").strip()
