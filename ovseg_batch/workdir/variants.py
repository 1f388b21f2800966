"""Folders of a stage whose settings differ from those of another folder in some keys only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg_batch.io.records import parse_json
from ovseg_batch.workdir.store import StageStore, fingerprint


@dataclass(frozen=True, slots=True)
class Variant:
    """A folder of a stage, and the settings in its `stage.json`."""

    store: StageStore
    settings: Mapping[str, Any]


def variants(store: StageStore, keys: Collection[str]) -> list[Variant]:
    """Return the folders of the same stage that differ from one only in the values of some settings.

    Version, manifest, upstream and all other settings are equal, so a row with the same content differs only by these.

    Args:
        store: the folder; its workdir and those of `store.beside` are searched.
        keys: keys of the stage's settings that may differ.
    """
    own = _inputs(store.folder)
    if own is None:
        return []
    found = []
    for stages in (store.folder.parent, *store.beside):
        for path in sorted(stages.glob(f"{store.stage}-*/stage.json")):
            inputs = _inputs(path.parent)
            if inputs is None or inputs == own or _without(inputs, keys) != _without(own, keys):
                continue
            other = StageStore(path.parent, store.stage, fingerprint(inputs), upstream=store.upstream)
            found.append(Variant(other, inputs["settings"]))
    return found


def _inputs(folder: Path) -> dict[str, Any] | None:
    """Return the inputs in the `stage.json` of a folder; None unless the folder has the name of their fingerprint."""
    try:
        inputs: dict[str, Any] = parse_json((folder / "stage.json").read_bytes())["inputs"]
        name = f"{inputs['stage']}-{fingerprint(inputs)[:8]}"
        return inputs if folder.name == name and isinstance(inputs["settings"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _without(inputs: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {**inputs, "settings": {name: value for name, value in inputs["settings"].items() if name not in keys}}
