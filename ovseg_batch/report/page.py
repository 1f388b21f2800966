"""Write the page of the report: numbers, charts, failures, and the container of the gallery."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ovseg_batch.config import load_config
from ovseg_batch.errors import FailureCode, OvsegError
from ovseg_batch.evaluate.calibration import CalibrationScore
from ovseg_batch.evaluate.kept_scores import KeptScores
from ovseg_batch.evaluate.run import scores_folder
from ovseg_batch.io.atomic import write_text
from ovseg_batch.io.marks import REPORT_PAGE
from ovseg_batch.methods.colours import hex_palette
from ovseg_batch.methods.confidence import STEPS, UNSURE, step_of
from ovseg_batch.report import charts
from ovseg_batch.report.advice import ADVICE
from ovseg_batch.report.dense_view import DenseView
from ovseg_batch.report.entries import SOURCES
from ovseg_batch.report.totals import AREA_BINS, MOST_UNSURE, Gathered
from ovseg_batch.stages.registry import plans_of
from ovseg_batch.units import counted
from ovseg_batch.version import __version__
from ovseg_batch.workdir.findings import Findings, edit_note, edit_warning, embedded_note, label_notes, read_findings
from ovseg_batch.workdir.progress import StageStatus, duration
from ovseg_batch.workdir.results import Results

STYLES = ("base.css", "gallery.css", "viewer.css")
SCRIPTS = ("state.js", "gallery.js", "decisions.js", "zoom.js", "viewer.js", "why.js", "keys.js")
LIMITED = "The report shows the dense maps of {:,} images: the least certain ones and an even sample."
GREY = "#7f7f7f"  # of classes that are no labels
#: outcome of a prompt → what it means; the names are those of `types.PromptOutcome`
OUTCOMES = {
    "kept": "its mask was kept",
    "merged": "its mask is part of a larger mask of the same label",
    "outvoted": "voted out: too few pixels of its mask have the label in the dense map (refine.vote)",
    "absent": "too few pixels of its mask are sure of the label (presence.share)",
    "background": "most of its mask is background",
    "empty": "SAM2 drew no pixel",
    "small": "its mask is smaller than refine.min_area",
    "covered": "other masks cover it",
    "duplicate": "its mask repeats a better one of the label (refine.same_object)",
    "doubtful": "the IoU that SAM2 predicts for its mask is too low (refine.predicted_iou)",
    "blended": "its mask refined the dense map",
}
TITLES = {
    "clip": "CLIP",
    "sam": "SAM",
    "dino": "DINO",
    "owl": "OWLv2",
    "sam3": "SAM 3",
    "matte": "ViTMatte",
    "inpaint": "pipeline",
}
TALL = 20  # labels from which on the chart of labels scrolls
GALLERY_NOTE = (
    "The gallery shows {1:,} of {0:,} images: failed images, the least certain ones, and an even sample of the others. "
    "`report --limit` shows more."
)
ASSETS = files("ovseg_batch.report") / "assets"


def write_page(
    results: Results, output: Path, found: Gathered, layout: dict[str, Any], dense: DenseView, foreword: str = ""
) -> None:
    """Write `index.html` and its assets.

    Args:
        layout: `entries` in the gallery, `chunks` of its index, images per `page` of details, most images with a
            `dense` map, and whether there are `decisions`.
        dense: the dense maps.
        foreword: HTML above the gallery.
    """
    for name in (*STYLES, *SCRIPTS):
        write_text(output / "assets" / name, (ASSETS / name).read_text(encoding="utf-8"))
    import jinja2  # imported here: its import is slow, and `ovseg_batch.Run` does not need it

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((ASSETS / "report.html").read_text(encoding="utf-8"))
    complete = all(stage.complete for stage in found.stages)
    colours = hex_palette(len(results.labels))
    left_out = found.images + sum(math.isnan(found.doubt[row]) for row in found.failures) - layout["entries"]
    embedded = results.workdir.read_plan().get("embedded_models", [])
    page = template.render(
        title=results.workdir.root.resolve().name,
        workdir=results.workdir.root.resolve(),
        version=__version__,
        complete=complete,
        styles=STYLES,
        scripts=SCRIPTS,
        summary=_summary(found),
        embedded=embedded_note(embedded) or "",
        models=_models(results, embedded),
        run=_run(results, found, layout, dense, colours),
        numbers=_numbers(results, found),
        notes=_notes(results, found) if complete else [],
        stages=[_stage(stage) for stage in found.stages],
        settings=_settings(results),
        charts=_charts(results, found),
        labels=_labels(results.labels, colours, found),
        failures=_failures(found),
        foreword=foreword,
        gallery_note=GALLERY_NOTE.format(found.images, layout["entries"]) if left_out > 0 else "",
    )
    write_text(output / REPORT_PAGE, page)


def _run(
    results: Results, found: Gathered, layout: dict[str, Any], dense: DenseView, colours: Sequence[str]
) -> dict[str, Any]:
    """Return what the scripts of the page need of the run."""
    codes = sorted(found.codes)
    of_label = dict(zip(results.labels, colours, strict=True))
    models = dict(_models(results, results.workdir.read_plan().get("embedded_models", [])))
    return {
        "labels": results.labels,
        "colours": colours,
        "codes": codes,
        "advice": {code: ADVICE[FailureCode(code)] for code in codes if code in set(FailureCode)},
        "unsure": step_of(UNSURE),
        "sources": SOURCES,
        "fingerprint": results.masks.fingerprint,
        "workdir": results.workdir.root.resolve().name,
        "edited": results.edits is not None,
        "outcomes": OUTCOMES,
        "models": {kind: f"by {name}" for kind, name in models.items()},
        "dense": {
            "reason": dense.reason,
            "limited": LIMITED.format(layout["dense"]),
            "names": dense.names,
            "colours": [of_label.get(name, GREY) for name in dense.names],
        },
        **{key: value for key, value in layout.items() if key != "dense"},
    }


def _summary(found: Gathered) -> list[str]:
    """Return the key numbers as short texts."""
    failed, unsure = sum(found.codes.values()), int(found.sure[: step_of(UNSURE)].sum())
    return [
        counted(found.images, "image"),
        f"{unsure:,} of {counted(found.masks, 'mask')} unsure" if found.masks else "no masks",
        *([f"{found.empty:,} without masks"] if found.empty else []),
        *([f"{failed:,} failed"] if failed else []),
    ]


def _models(results: Results, embedded: Sequence[str]) -> list[tuple[str, str]]:
    """Return kind and name of each model of the settings that a stage has used. Embedded models are named as such."""
    try:
        config = load_config(results.workdir.config, environment={})
        kinds = dict.fromkeys(kind for plan in plans_of(config) for kind in plan.models_of(config))
    except (OvsegError, ValueError):  # settings of another version, or a file that is no text any more
        return [(setting.removesuffix(".model"), f"embedded demo {setting}") for setting in embedded]
    named = []
    for kind in kinds:
        model = config.edit.alpha.model if kind == "matte" else getattr(config, kind).model
        small = f"{kind}.model" in embedded
        title = TITLES.get(kind, kind)
        named.append((str(kind), f"the embedded demo {title}" if small else f"{title} {model}"))
    return named


def _labels(names: Sequence[str], colours: Sequence[str], found: Gathered) -> list[dict[str, str]]:
    """Return the rows of the table of labels."""
    return [
        {
            "name": name,
            "colour": colour,
            "masks": f"{found.label_masks[name]:,}",
            "images": f"{found.label_images[name]:,}",
            "share": _percent(found.label_pixels[name] / max(found.pixels, 1)),
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
        ("Unsure masks", f"{unsure:,}", f"of {found.masks:,}; their confidence is below {UNSURE}"),
    ]
    hours = sum(stage.seconds for stage in found.stages) / 3600
    numbers.append(("Working time", duration(3600 * hours), "summed over the workers"))
    return numbers


def _notes(results: Results, found: Gathered) -> list[str]:
    """Return the notes on a finished run, one sentence each."""
    counted = {label: found.label_images[label] for label in results.labels}
    edits = (read_findings(results.workdir) or Findings(0)).edits
    edited = [note for note in (edit_note(edits), edit_warning(edits)) if note is not None]
    return [*label_notes(found.images, counted), *edited]


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
        {"code": code, "count": f"{count:,}", "example": examples.get(code, ""), "advice": _advice(code)}
        for code, count in found.codes.most_common()
    ]


def _advice(code: str) -> str:
    return ADVICE[FailureCode(code)] if code in set(FailureCode) else ""


def _percent(share: float) -> str:
    """Return a share in per cent. A small one is not rounded to nothing."""
    return "under 0.01 %" if 0 < share < 1e-4 else f"{100 * share:.2f} %"


def _charts(results: Results, found: Gathered) -> list[dict[str, Any]]:
    most = sorted(results.labels, key=lambda name: -found.label_masks[name])
    areas = [f"1/{2 ** (k + 1)}" if k < AREA_BINS - 1 else "less" for k in range(AREA_BINS)]
    masks = found.sure[:STEPS].reshape(20, -1).sum(axis=1)
    masks[-1] += found.sure[STEPS]
    steps = [f"{k / 20:.2f}" for k in range(20)]
    counts = [*(str(k) for k in range(MOST_UNSURE)), f"{MOST_UNSURE}+"]
    sizes, unsure = found.areas.tolist(), found.unsure.tolist()
    drawn = {
        "Masks of every label": charts.rows([found.label_masks[name] for name in most], most, "masks"),
        "Size of the masks": charts.bars(sizes, areas, "masks", "at least this share of the image"),
        "Confidence of the masks": charts.bars(
            masks.tolist(), steps, "masks", "confidence from this value on (0 to 1)"
        ),
        "Unsure masks of the images": charts.bars(unsure, counts, "images", "unsure masks in an image"),
    }
    for name, calibration in _evaluations(results):
        drawn |= _calibration_charts(name, calibration)
    return [
        {"caption": caption, "svg": svg, "tall": caption.startswith("Masks of") and len(most) > TALL}
        for caption, svg in drawn.items()
    ]


def _calibration_charts(name: str, calibration: CalibrationScore) -> dict[str, str]:
    points = [(sure, right) for sure, right, _ in calibration.precision_by_confidence()]
    caption = f"Share of correct pixels by confidence of their mask, on {name} (dashed: perfect calibration)"
    drawn = {caption: charts.line(points, "confidence (0 to 1)", "share of correct pixels (0 to 1)", diagonal=True)}
    risk = calibration.risk_coverage()
    if len(risk):
        few = risk[np.linspace(0, len(risk) - 1, min(len(risk), 200)).astype(int)]
        share = f"{calibration.worst_share():.0%}"
        caption = f"Wrong and missed segments per image, most certain images first. The last tenth has {share} of them"
        drawn[caption] = charts.line(
            [(x, y) for x, y in few.tolist()], "share of the images kept (0 to 1)", "errors per image"
        )
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
