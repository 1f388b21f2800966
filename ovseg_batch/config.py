"""Load the settings of a run: merge YAML, environment, `--set` and flags into one validated, immutable tree.

Precedence: flags and `--set` > `OVSEG_<SECTION>__<KEY>` > file > defaults. The error for an unknown key names the
nearest valid one. Each stage states which keys decide its result (`Stage.inputs`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ovseg_batch import datasets
from ovseg_batch.datasets import protocols
from ovseg_batch.datasets.protocols import Protocol, Row
from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.settings import Config
from ovseg_batch.settings.definitions import with_definitions
from ovseg_batch.settings.errors import explain, similar_keys, unknown_key
from ovseg_batch.settings.labels import parse_labels, read_labels
from ovseg_batch.settings.section import usable_path
from ovseg_batch.wording import setting

log = logging.getLogger(__name__)

ENVIRONMENT_PREFIX = "OVSEG_"
EXTENDS = "extends"  # key of a settings file that names the preset or file that it extends
RESERVED_ENVIRONMENT = {"OVSEG_CACHE", "OVSEG_CHECKPOINTS", "OVSEG_FAILPOINTS"}


def load_config(
    file: Path | str | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Merge all sources of settings and validate the result.

    Args:
        file: a YAML file, or the name of a preset, or None.
        overrides: `section.key=value` strings. Values are parsed as YAML.
        flags: dotted keys → values from the command line. None values are ignored.
        environment: environment variables. None: those of the process.

    Raises:
        UsageError: a file cannot be read, a key is unknown, or a value is out of range.
    """
    tree = _read_settings(_preset_or_file(Path(file))) if file else {}
    _add_environment(tree, os.environ if environment is None else environment)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"--set {override!r} has no value. Write --set section.key=value.")
        _assign(tree, key.strip().split("."), _scalar(text), f"--set {override}")
    for key, value in (flags or {}).items():
        if value is not None:
            _assign(tree, key.split("."), value, key)
    _read_labels(tree)
    _read_definitions(tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(explain(error, tree, Config)) from None


def _add_environment(tree: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Write the settings of environment variables into the tree."""
    for name, text in sorted(environment.items()):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in RESERVED_ENVIRONMENT:
            path = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            if len(path) == 1 and path[0] not in Config.model_fields:
                log.warning("warning: %s", _no_setting(name, path[0]))
            else:
                _assign(tree, path, _scalar(text), f"${name}")


def _read_labels(tree: dict[str, Any]) -> None:
    """Replace labels that are a text, and a data set in their place, by the list of labels."""
    labels = tree.get("labels")
    if isinstance(labels, str):
        tree["labels"] = read_labels([labels])
    elif isinstance(labels, list) and any(str(label).startswith(datasets.PREFIX) for label in labels):
        tree["labels"] = read_labels([str(label) for label in labels])
    if isinstance(tree.get("labels"), str):
        _of_dataset(tree, tree["labels"].removeprefix(datasets.PREFIX))


def _read_definitions(tree: dict[str, Any]) -> None:
    """Replace a file of definitions by the definitions of the labels."""
    if isinstance(tree.get("definitions"), str) and tree.get("labels"):
        try:
            labels = parse_labels(tree["labels"])
        except ValueError:
            return  # validation names the error
        if isinstance(labels, Sequence):
            tree["labels"] = with_definitions(labels, tree.pop("definitions"))


def _no_setting(variable: str, name: str) -> str:
    """Return the warning for an environment variable with the prefix that names no setting."""
    similar = [f"{ENVIRONMENT_PREFIX}{key.replace('.', '__').upper()}" for key in similar_keys(name, Config)]
    meant = f" Did you mean {similar[0]}?" if similar else ""
    return f"the environment variable {variable} is no setting and is ignored.{meant}"


def _of_dataset(tree: dict[str, Any], name: str) -> None:
    """Set the labels to the classes of a data set, and add what its protocol has and the tree has not.

    A preset that names no protocol gets only the words and thresholds of `protocols.COMMON`.
    """
    dataset, own = datasets.load(name), tree.get("protocol")
    if own is not None and own not in protocols.NAMES:
        return  # validation names the error
    protocol = protocols.load(own or protocols.COMMON)
    row = protocol.rows.get(dataset.name)
    tree["labels"] = dataset.labels(row.words if row else None)
    background = row.background if row and row.background is not None else dataset.background
    tree.setdefault("background", list(background) or "none")
    settings = protocol.settings_of(dataset.name) if own else row.settings if row else {}
    for key, value in {"manifest.dataset": datasets.reference(name), **settings}.items():
        *sections, last = key.split(".")
        branch: Any = tree
        for section in sections:
            branch = branch.setdefault(section, {}) if isinstance(branch, dict) else branch
        if isinstance(branch, dict):
            branch.setdefault(last, value)
    if own and row:
        _require_files(tree, protocol, row)


#: setting of a file → what a protocol does with its content, and the key that makes it unnecessary at 0, if any
PURPOSES = {
    "definitions": ("adds a text to the words of each class of", "dense.definition_weight"),
    "propose.masks": ("uses regions that its authors made for the images of", ""),
}


def _require_files(tree: Mapping[str, Any], protocol: Protocol, row: Row) -> None:
    """Raise UsageError where a protocol needs a file that the settings do not name."""
    for key, file in row.files.items():
        purpose, weight = PURPOSES[key]
        if _value(tree, key) is None and not (weight and _value(tree, weight) == 0):
            without = f" Without them: {setting(weight, 0)}." if weight else ""
            raise UsageError(
                f"{key}: the protocol {row.method} {purpose} {row.dataset}. They are not part of this package. "
                f"Download {file} from {protocol.files_at}, and add {setting(key, file)}.{without}"
            )


def _value(tree: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key, or None."""
    found: Any = tree
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def dump_config(config: Config) -> str:
    """Return the settings as YAML, from which `load_config` reads an equal `Config`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def presets() -> dict[str, Path]:
    """Return the presets of the package: name → file."""
    package = Path(__file__).resolve().parent
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def _preset_or_file(name: Path, folder: Path = Path()) -> Path:
    """Return the file in the folder or in the working folder; if there is none, the preset of that name.

    Raises:
        UsageError: no file can have the name.
    """
    try:
        candidates = [Path(usable_path(str(file))) for file in (folder / name, name)]
    except ValueError as error:
        raise UsageError(f"The config file {name} {error}.") from None
    found = next((file for file in candidates if file.is_file()), None)
    return found or presets().get(str(name), name)


def _read_settings(file: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the settings of a file, merged into those of the preset or file that its `extends` names.

    Args:
        file: a YAML file.
        extended_by: the files that lead to this one.

    Raises:
        UsageError: a file cannot be read, a key is unknown, or files extend each other.
    """
    tree = _read_yaml(file)
    base = tree.pop(EXTENDS, None)
    _check_keys(tree, Config, str(file))
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UsageError(f"{file}: '{EXTENDS}' names one preset or file, not {base!r}.")
    below = _preset_or_file(Path(base), file.parent)
    chain = (*extended_by, file)
    if below.resolve() in {one.resolve() for one in chain}:
        raise UsageError(f"{file}: {EXTENDS}: {base} leads back to a file that extends it. Remove one of the two.")
    return _merged(_read_settings(below, chain), tree)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings key by key. Those of `above` replace those of `below`."""
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        if key != "labels" and isinstance(value, Mapping) and isinstance(known, Mapping):
            value = _merged(known, value)
        merged[key] = value
    return merged


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = nearest(str(file), presets())
        raise UsageError(f"There is no config file {file}, nor a preset of that name.{hint}") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"Cannot read the config file {file}: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"The config file {file} is a {type(tree).__name__}; it must be a mapping of sections.")
    return {key: value for key, value in tree.items() if value is not None}


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        return text


def _check_keys(tree: Mapping[str, Any], model: type[BaseModel], origin: str, path: str = "") -> None:
    for key, value in tree.items():
        if key not in model.model_fields:
            raise UsageError(unknown_key(origin, f"{path}{key}", value, model, Config))
        kind = model.model_fields[key].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and value is not None:
            if not isinstance(value, Mapping):
                raise UsageError(
                    f"{origin}: '{path}{key}' is a section with the keys {', '.join(kind.model_fields)}, not {value!r}."
                )
            _check_keys(value, kind, origin, f"{path}{key}.")


def _assign(tree: dict[str, Any], path: Sequence[str], value: Any, origin: str) -> None:
    nested: Any = value
    for key in reversed(path):
        nested = {key: nested}
    _check_keys(nested, Config, origin)
    branch = tree
    for key in path[:-1]:
        if not isinstance(branch.get(key), dict):
            branch[key] = {}
        branch = branch[key]
    branch[path[-1]] = value
