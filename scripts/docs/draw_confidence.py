#!/usr/bin/env python
"""What confidence is worth on held-out scenes: the figures of docs/confidence.md, and docs/confidence.svg.

draw_confidence.py                    # 500 scenes
draw_confidence.py --images 300 --first 3000 --no-draw
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from ovseg_batch import datasets, scenes
from ovseg_batch.config import load_config
from ovseg_batch.evaluate.calibration import WORST, CalibrationScore
from ovseg_batch.evaluate.run import evaluate
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.report import charts
from ovseg_batch.runs import pipeline
from ovseg_batch.workdir.store import Workdir

Array = np.ndarray[Any, Any]

TARGET = Path(__file__).parents[2] / "docs" / "confidence.svg"
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #57606a; }
.tick, .axis { text-anchor: middle; } .value { text-anchor: end; }
.grid { stroke: #d0d7de; } .curve { fill: none; stroke: #0550ae; stroke-width: 2.5; } .dot { fill: #0550ae; }
.ideal { stroke: #57606a; stroke-dasharray: 4 4; }
"""


@click.command()
@click.option("--images", default=500, show_default=True)
@click.option("--first", default=0, show_default=True, help="The first of the held-out scenes.")
@click.option("--draw/--no-draw", default=True, show_default=True)
def main(images: int, first: int, draw: bool) -> None:
    """Run, evaluate, print and draw."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scenes(root, scenes.HELD_OUT_SEEDS[first : first + images], jpeg_every=0)
        config = load_config("demo", (), {"labels": list(scenes.CLASSES)}, environment={})
        workdir = Workdir(root / "run")
        pipeline.run([str(root / "images")], workdir, config)
        score = evaluate(workdir, datasets.load("scenes"), root)
        assert score.calibration is not None
        _print(score.calibration, {row: score.quality(row) for row in range(images)})
        if draw:
            TARGET.write_text(_drawing(score.calibration), encoding="utf-8")


def _print(calibration: CalibrationScore, quality: dict[int, float]) -> None:
    rows, doubt, segments = calibration.images().T
    classes = 1 - np.array([quality[int(row)] for row in rows])
    click.echo(f"{len(rows)} images, {segments.sum():.0f} wrong or missed segments in {(segments > 0).sum()} of them")
    for name, errors in (("wrong and missed segments", segments), ("1 - mean IoU of the image's classes", classes)):
        few = max(1, round(WORST * len(errors)))
        found = errors[np.argsort(-doubt, kind="stable")[:few]].sum() / errors.sum()
        most = np.sort(errors)[::-1][:few].sum() / errors.sum()
        click.echo(f"{name:36} in the least certain tenth {found:.3f}, in the worst tenth there is {most:.3f}")
    for share, errors in calibration.risk_coverage()[[len(rows) * k // 10 - 1 for k in range(1, 11)]].tolist():
        click.echo(f"  of the surest {share:4.0%}: {errors:.3f} errors an image")
    for confidence, right, pixels in calibration.precision_by_confidence():
        click.echo(f"  confidence {confidence:.2f}: {right:.3f} of {pixels} pixels right")


def _drawing(calibration: CalibrationScore) -> str:
    risk = calibration.risk_coverage()
    few = risk[np.linspace(0, len(risk) - 1, min(len(risk), 250)).astype(int)]
    points = [(sure, right) for sure, right, _ in calibration.precision_by_confidence()]
    drawn = [
        charts.line([(x, y) for x, y in few.tolist()], "share of the images kept, the surest first", "errors an image"),
        charts.line(points, "confidence of the mask", "share of its pixels that are right", diagonal=True),
    ]
    titles = ["Wrong and missed segments an image", "How often a pixel is right"]
    wide, tall = charts.WIDTH + 20, charts.HEIGHT + 24
    parts = [
        f'<text x="{k * wide + charts.LEFT}" y="14" style="font-size: 13px">{title}</text>'
        + chart.replace("<svg ", f'<svg x="{k * wide}" y="24" width="{charts.WIDTH}" height="{charts.HEIGHT}" ', 1)
        for k, (title, chart) in enumerate(zip(titles, drawn, strict=True))
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * wide} {tall}" width="{2 * wide}">'
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    main()
