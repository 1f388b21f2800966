"""Write the page of a comparison of two runs: numbers, tables, and the images that differ most side by side."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ovseg_batch.errors import UsageError
from ovseg_batch.evaluate.comparison.compare import Comparison, ImageChange, LabelChange
from ovseg_batch.evaluate.comparison.difference import Difference, TruthDifference
from ovseg_batch.evaluate.comparison.record import EMPTY, comparison_notes, shown_value, verdicts
from ovseg_batch.io.atomic import atomic_path, remove_leftovers, temporaries_in, write_text
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.marks import COMPARISON, REPORT_PAGE
from ovseg_batch.methods.colours import hex_palette
from ovseg_batch.report.comparison_pictures import Pictures, draw
from ovseg_batch.settings import RunConfig
from ovseg_batch.units import counted
from ovseg_batch.version import __version__
from ovseg_batch.wording import spelled
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir

ASSETS = files("ovseg_batch.report") / "assets"
PICTURES = "pictures"  # folder of the pictures
ROWS = 60  # most rows of a table of changes


def write_comparison(a: Workdir, b: Workdir, found: Comparison, truth: TruthDifference | None, output: Path) -> Path:
    """Write the page into a folder, and return its path.

    Args:
        output: an empty folder, or one that holds a comparison.

    Raises:
        UsageError: the folder holds other files.
    """
    check_destination(output)
    remove_leftovers(temporaries_in(output))
    shutil.rmtree(output / PICTURES, ignore_errors=True)
    write_text(output / COMPARISON, "")
    for name in ("base.css", "compare.css"):
        write_text(output / "assets" / name, (ASSETS / name).read_text(encoding="utf-8"))
    import jinja2  # imported here: its import is slow, and other commands do not need it

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((ASSETS / "compare.html").read_text(encoding="utf-8"))
    page = template.render(
        a=_run(a),
        b=_run(b),
        version=__version__,
        verdicts=verdicts(found, truth),
        numbers=_numbers(found),
        notes=comparison_notes(found),
        settings=[(key, shown_value(one), shown_value(other)) for key, (one, other) in found.settings.items()],
        labels=_labels(found, truth),
        truth=truth is not None,
        mean=None if truth is None else _difference(truth.mean),
        moved=[(*labels, f"{count:,}") for labels, count in found.moved.most_common(ROWS)],
        flows=[(one, other, f"{pixels:,}", _share(found, pixels)) for one, other, pixels in found.flows(ROWS)],
        images=_images(a, b, found, output),
    )
    write_text(output / REPORT_PAGE, page)
    return output / REPORT_PAGE


def check_destination(output: Path) -> None:
    """Require an empty folder or one that holds a comparison. Raises UsageError."""
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not (output / COMPARISON).is_file()):
        raise UsageError(f"{output} is not empty and holds no comparison. Give another {spelled('-o', 'path')}.")


def _run(workdir: Workdir) -> dict[str, str]:
    results = Results.open(workdir)
    about = f"{counted(results.manifest.rows, 'image')}, {counted(len(results.labels), 'label')}"
    return {"name": workdir.root.resolve().name, "path": str(workdir.root), "about": about}


def _numbers(found: Comparison) -> list[tuple[str, str, str]]:
    """Return (name, value, explanation) of each number."""
    masks = [sum(one.masks[side] for one in found.by_label.values()) for side in (0, 1)]
    matched = sum(one.matched for one in found.by_label.values())
    overlap = sum(one.overlap for one in found.by_label.values())
    return [
        ("Images compared", f"{found.images:,}", f"{found.equal:,} with equal masks"),
        ("Pixels with another label", f"{found.share:.2%}", "of all pixels"),
        ("Masks", f"{masks[0]:,} → {masks[1]:,}", "A → B"),
        ("Masks in both", f"{matched:,}", f"mean IoU {overlap / matched:.3f}" if matched else ""),
        ("Another label at the same place", f"{sum(found.moved.values()):,}", "masks"),
    ]


def _share(found: Comparison, pixels: int) -> str:
    return f"{pixels / max(int(found.pixels.sum()), 1):.2%}"


def _labels(found: Comparison, truth: TruthDifference | None) -> list[dict[str, Any]]:
    """Return the rows of the table of labels, and below them classes of the truth that are no label."""
    colours = dict(zip(found.labels, hex_palette(len(found.labels)), strict=True))
    classes: Mapping[str, Difference] = {} if truth is None else truth.classes
    rows = [
        {"name": name, "colour": colours[name], **_label(one), **_difference(classes.get(name))}
        for name, one in found.by_label.items()
        if any(one.masks) or name in classes
    ]
    empty = _label(None)
    others = [name for name in classes if name not in found.by_label]
    return [*rows, *({"name": name, "colour": "", **empty, **_difference(classes[name])} for name in others)]


def _label(one: LabelChange | None) -> dict[str, str]:
    if one is None:
        return dict.fromkeys(("masks", "pixels", "matched", "iou", "changed", "only_a", "only_b"), EMPTY)
    return {
        "masks": _change(*one.masks),
        "pixels": _change(*one.pixels),
        "matched": f"{one.matched:,}",
        "iou": EMPTY if one.iou is None else f"{one.iou:.3f}",
        "changed": f"{one.changed[0]:,} / {one.changed[1]:,}",
        "only_a": f"{one.only[0]:,}",
        "only_b": f"{one.only[1]:,}",
    }


def _change(one: int, other: int) -> str:
    return f"{one:,}" if one == other else f"{one:,} → {other:,}"


def _difference(one: Difference | None) -> dict[str, str]:
    if one is None:
        return {"truth_a": EMPTY, "truth_b": EMPTY, "change": EMPTY, "limits": "", "shown": ""}
    low, high = one.limits
    shown = "" if math.isnan(one.change) or not one.is_shown else "better" if one.change > 0 else "worse"
    return {
        "truth_a": _percent(one.a),
        "truth_b": _percent(one.b),
        "change": EMPTY if math.isnan(one.change) else _points(one.change),
        "limits": "" if math.isnan(low) else f"{_points(low)} to {_points(high)}",
        "shown": shown,
    }


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _percent(value: float) -> str:
    return EMPTY if math.isnan(value) else f"{value:.1%}"


def _images(a: Workdir, b: Workdir, found: Comparison, output: Path) -> list[dict[str, Any]]:
    """Draw the images that differ most, and return what the page states of them."""
    settings = RunConfig()
    limits = Limits(settings.max_pixels, settings.max_file_bytes)
    runs = Results.open(a), Results.open(b)
    colours = dict(zip(found.labels, hex_palette(len(found.labels)), strict=True))
    shown = []
    for number, change in enumerate(found.most):
        drawn = draw(runs, change.rows, found.labels, limits)
        names = {} if drawn is None else _write(drawn, output, number)
        shown.append({"pictures": names, **_described(change, colours)})
    return shown


def _described(change: ImageChange, colours: Mapping[str, str]) -> dict[str, Any]:
    changes = [
        {
            "a": one,
            "b": other,
            "colour_a": colours.get(one, "transparent"),
            "colour_b": colours.get(other, "transparent"),
            "share": f"{share:.1%}",
        }
        for one, other, share in change.changes
    ]
    return {
        "name": change.file_name,
        "share": f"{change.share:.1%}",
        "unmatched": change.unmatched,
        "changes": changes,
    }


def _write(drawn: Pictures, output: Path, number: int) -> dict[str, Any]:
    names: dict[str, Any] = {"photo": "", "height": drawn.height, "width": drawn.width}
    for kind, picture in drawn.pictures.items():
        path = output / PICTURES / f"{number:03d}-{kind}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            picture.save(file, "WEBP", quality=82, method=4)
        names[kind] = f"{PICTURES}/{path.name}"
    return names
