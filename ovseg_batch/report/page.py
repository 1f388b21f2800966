"""Write the page of the report: numbers, charts, failures, and the container of the gallery."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ovseg_batch.evaluate.calibration import CalibrationScore
from ovseg_batch.evaluate.kept_scores import KeptScores
from ovseg_batch.evaluate.run import scores_folder
from ovseg_batch.io.atomic import write_text
from ovseg_batch.io.marks import REPORT_PAGE
from ovseg_batch.methods.colours import hex_palette
from ovseg_batch.methods.confidence import STEPS, UNSURE, step_of
from ovseg_batch.report import charts
from ovseg_batch.report.totals import AREA_BINS, MOST_UNSURE, Gathered
from ovseg_batch.version import __version__
from ovseg_batch.workdir.findings import Findings, edit_note, edit_warning, embedded_note, label_notes, read_findings
from ovseg_batch.workdir.progress import StageStatus, duration
from ovseg_batch.workdir.results import Results

BARS = 40  # most labels in a chart
GALLERY_NOTE = (
    "The gallery shows {1:,} of {0:,} images: failed images, the least certain ones, and an even sample of the others. "
    "`report --limit` shows more."
)
ASSETS = files("ovseg_batch.report") / "assets"


def write_page(results: Results, output: Path, found: Gathered, layout: dict[str, int], foreword: str = "") -> None:
    """Write `index.html` and its assets.

    Args:
        layout: `entries` in the gallery, `chunks` of its index, and images per `page` of details.
        foreword: HTML above the gallery.
    """
    for name in ("report.css", "report.js"):
        write_text(output / "assets" / name, (ASSETS / name).read_text(encoding="utf-8"))
    import jinja2  # imported here: its import is slow, and `ovseg_batch.Run` does not need it

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((ASSETS / "report.html").read_text(encoding="utf-8"))
    complete = all(stage.complete for stage in found.stages)
    colours = hex_palette(len(results.labels))
    left_out = found.images + sum(math.isnan(found.doubt[row]) for row in found.failures) - layout["entries"]
    page = template.render(
        title=results.workdir.root.resolve().name,
        workdir=results.workdir.root.resolve(),
        version=__version__,
        complete=complete,
        run={
            "labels": results.labels,
            "colours": colours,
            "codes": sorted(found.codes),
            **layout,
        },
        numbers=_numbers(results, found),
        notes=_notes(results, found) if complete else [],
        stages=[_stage(stage) for stage in found.stages],
        settings=_settings(results),
        charts=_charts(results, found),
        labels=_labels(results.labels, colours, found),
        failures=_failures(found),
        edited=results.edits is not None,
        foreword=foreword,
        gallery_note=GALLERY_NOTE.format(found.images, layout["entries"]) if left_out > 0 else "",
    )
    write_text(output / REPORT_PAGE, page)


def _labels(names: Sequence[str], colours: Sequence[str], found: Gathered) -> list[dict[str, str]]:
    """Return the rows of the table of labels."""
    return [
        {
            "name": name,
            "colour": colour,
            "masks": f"{found.label_masks[name]:,}",
            "images": f"{found.label_images[name]:,}",
            "share": f"{found.label_pixels[name] / max(found.pixels, 1):.2%}",
        }
        for name, colour in zip(names, colours, strict=True)
    ]


def _numbers(results: Results, found: Gathered) -> list[tuple[str, str, str]]:
    """Return (name, value, explanation) of each number."""
    rows, failed = results.manifest.rows, sum(found.codes.values())
    unsure = int(found.sure[: step_of(UNSURE)].sum())
    numbers = [
        ("Images", f"{found.images:,}", f"of {rows:,} listed"),
        ("Masks", f"{found.masks:,}", f"{found.masks / max(found.images, 1):.1f} an image"),
        ("Without masks", f"{found.empty:,}", ""),
        ("Failed", f"{failed:,}", f"{failed / max(rows, 1):.2%}" if failed else ""),
        ("Unsure masks", f"{unsure:,}", f"{unsure / max(found.masks, 1):.1%}, confidence below {UNSURE}"),
    ]
    hours = sum(stage.seconds for stage in found.stages) / 3600
    numbers.append(("Working time", duration(3600 * hours), "summed over the workers"))
    return numbers


def _notes(results: Results, found: Gathered) -> list[str]:
    """Return the notes on a finished run, one sentence each."""
    counted = {label: found.label_images[label] for label in results.labels}
    edits = (read_findings(results.workdir) or Findings(0)).edits
    edited = [note for note in (edit_note(edits), edit_warning(edits)) if note is not None]
    embedded = embedded_note(results.workdir.read_plan().get("embedded_models", []))
    return [*([embedded] if embedded else []), *label_notes(found.images, counted), *edited]


def _stage(stage: StageStatus) -> dict[str, str]:
    failed = ", ".join(f"{count:,} {code}" for code, count in stage.failed.items() if code != "upstream")
    return {
        "name": stage.name,
        "done": f"{stage.shards_done:,}",
        "shards": f"{stage.shards:,}",
        "rows": f"{stage.rows:,}",
        "failed": failed or "0",
        "time": duration(stage.seconds),
        "speed": f"{stage.rows / stage.seconds:.1f}" if stage.seconds else "–",
    }


def _settings(results: Results) -> str:
    try:
        return results.workdir.config.read_text(encoding="utf-8", errors="backslashreplace")
    except OSError:
        return "config.yaml does not exist any more"


def _failures(found: Gathered) -> list[dict[str, Any]]:
    examples = {code: f"{stage}: {message}" for stage, code, message in reversed(found.failures.values())}
    return [
        {"code": code, "count": f"{count:,}", "example": examples.get(code, "")}
        for code, count in found.codes.most_common()
    ]


def _charts(results: Results, found: Gathered) -> list[dict[str, str]]:
    most = [name for name, _ in found.label_masks.most_common(BARS)]
    rest = f", of the {BARS} most frequent labels" if len(found.label_masks) > BARS else ""
    areas = [f"1/{2 ** (k + 1)}" if k < AREA_BINS - 1 else "less" for k in range(AREA_BINS)]
    masks = found.sure[:STEPS].reshape(20, -1).sum(axis=1)
    masks[-1] += found.sure[STEPS]
    steps = [f"{k / 20:.2f}" for k in range(20)]
    counts = [*(str(k) for k in range(MOST_UNSURE)), f"{MOST_UNSURE} or more"]
    drawn = {
        f"Masks of every label{rest}": charts.bars([found.label_masks[name] for name in most], most, "masks"),
        "Area of the masks: at least this share of the image": charts.bars(found.areas.tolist(), areas, "masks"),
        "Confidence of the masks": charts.bars(masks.tolist(), steps, "masks"),
        "Unsure masks of the images": charts.bars(found.unsure.tolist(), counts, "images"),
    }
    for name, calibration in _evaluations(results):
        drawn |= _calibration_charts(name, calibration)
    return [{"caption": caption, "svg": svg} for caption, svg in drawn.items()]


def _calibration_charts(name: str, calibration: CalibrationScore) -> dict[str, str]:
    points = [(sure, right) for sure, right, _ in calibration.precision_by_confidence()]
    caption = f"Share of correct pixels by confidence of their mask, on {name} (dashed: perfect calibration)"
    drawn = {caption: charts.line(points, "confidence", "right", diagonal=True)}
    risk = calibration.risk_coverage()
    if len(risk):
        few = risk[np.linspace(0, len(risk) - 1, min(len(risk), 200)).astype(int)]
        share = f"{calibration.worst_share():.0%}"
        caption = f"Wrong and missed segments per image, most certain images first. The last tenth has {share} of them"
        drawn[caption] = charts.line([(x, y) for x, y in few.tolist()], "share of the images kept", "errors per image")
    return drawn


def _evaluations(results: Results) -> list[tuple[str, CalibrationScore]]:
    """Return the data set's name and the counts of every evaluation of the run's present masks."""
    found = []
    for folder in sorted(scores_folder(results).glob("*/")):
        total: CalibrationScore | None = None
        for shard in range(results.manifest.shards):
            arrays = KeptScores(folder).read(shard, results.state_of(shard))
            if arrays is None or "doubt of images" not in arrays:
                break
            total = total or CalibrationScore(len(arrays["confidence counts"]))
            total.merge(arrays)
        else:
            if total is not None:
                found.append((folder.name.rpartition("-")[0], total))
    return found
