"""The settings of a run: YAML, environment, `--set` and flags merged into one checked, immutable tree.

Precedence: flags and `--set` > `OVSEG_<SECTION>__<KEY>` > file > defaults. Unknown keys are errors that name the
nearest valid one. Which keys decide a stage's result is the stage's own knowledge (`Stage.inputs`), not this module's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ovseg_batch import datasets
from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.settings import Config

ENVIRONMENT_PREFIX = "OVSEG_"
RESERVED_ENVIRONMENT = {"OVSEG_CACHE", "OVSEG_CHECKPOINTS", "OVSEG_FAILPOINTS"}


def load_config(
    file: Path | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Merge every source of settings and check the result.

    Args:
        file: a YAML file, or the name of a preset, or None.
        overrides: `section.key=value` strings, the value read as YAML.
        flags: dotted keys → values from the command line; None values are left out.
        environment: defaults to the process's.

    Raises:
        UsageError: an unreadable file, an unknown key (with the nearest valid one), or a value out of range.
    """
    file = _preset_or_file(file) if file else None
    tree: dict[str, Any] = _read_yaml(file) if file else {}
    origin = str(file) if file else "config"
    _check_keys(tree, Config, origin)
    for name, text in sorted((os.environ if environment is None else environment).items()):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in RESERVED_ENVIRONMENT:
            _assign(tree, name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"), _scalar(text), f"${name}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"--set {override!r} has no value. Write --set section.key=value.")
        _assign(tree, key.strip().split("."), _scalar(text), f"--set {override}")
    for key, value in (flags or {}).items():
        if value is not None:
            _assign(tree, key.split("."), value, key)
    labels = tree.get("labels")
    if isinstance(labels, str) and labels.strip().startswith(datasets.PREFIX):
        _of_dataset(tree, datasets.load(labels.strip().removeprefix(datasets.PREFIX)))
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(_explain(error)) from None


def _of_dataset(tree: dict[str, Any], dataset: datasets.Dataset) -> None:
    """The classes of a data set for `labels`, and its background and thresholds where nothing else was said."""
    tree["labels"] = dataset.labels()
    tree.setdefault("background", list(dataset.background) or "none")
    for key, value in dataset.settings.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {}).setdefault(name, value)


def dump_config(config: Config) -> str:
    """The resolved settings as YAML that `load_config` reads back to an equal `Config`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def presets() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    package = Path(__file__).resolve().parent
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def _preset_or_file(file: Path) -> Path:
    """A file wins over a preset of its name."""
    return file if file.exists() else presets().get(str(file), file)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = nearest(str(file), presets())
        raise UsageError(f"There is no config file {file}, nor a preset of that name.{hint}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"Cannot read the config file {file}: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"The config file {file} is a {type(tree).__name__}; it must be a mapping of sections.")
    return {key: value for key, value in tree.items() if value is not None}


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _check_keys(tree: Mapping[str, Any], model: type[BaseModel], origin: str, path: str = "") -> None:
    for key, value in tree.items():
        if key not in model.model_fields:
            raise UsageError(
                f"{origin}: unknown key '{path}{key}'.{nearest(str(key), model.model_fields)} "
                f"Valid here: {', '.join(model.model_fields)}."
            )
        kind = model.model_fields[key].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and value is not None:
            if not isinstance(value, Mapping):
                raise UsageError(f"{origin}: '{path}{key}' is a section with keys, not {value!r}.")
            _check_keys(value, kind, origin, f"{path}{key}.")


def _assign(tree: dict[str, Any], path: Sequence[str], value: Any, origin: str) -> None:
    nested: Any = value
    for key in reversed(path):
        nested = {key: nested}
    _check_keys(nested, Config, origin)
    branch = tree
    for key in path[:-1]:
        branch = branch.setdefault(key, {})
    branch[path[-1]] = value


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"])
        given = f" (given: {problem['input']!r})" if problem["type"] != "missing" else ""
        lines.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}{given}")
    return "The settings do not make sense:\n  " + "\n  ".join(dict.fromkeys(lines))
