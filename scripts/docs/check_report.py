#!/usr/bin/env python
"""The report of a run of thousands of scenes in a real Chromium: used as a person would, and drawn for the docs.

check_report.py                          # 2,000 scenes; about ten minutes on two cores
check_report.py --images 50 --folder /tmp/report-check
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import click
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from ovseg_batch import datasets, scenes
from ovseg_batch.config import load_config
from ovseg_batch.evaluate.run import evaluate
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.report.build import build_report
from ovseg_batch.runs import pipeline
from ovseg_batch.workdir.store import Workdir

DOCS = Path(__file__).parents[2] / "docs"
FIRST = 20_000  # of the held-out scenes
ATTACK = "<script>alert(1)</script>"


@click.command()
@click.option("--images", default=2000, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to leave it; otherwise it goes.")
@click.option("--chromium", default="/usr/bin/chromium", show_default=True)
@click.option("--draw/--no-draw", default=False, show_default=True, help="Keep the pictures in docs/.")
def main(images: int, folder: Path | None, chromium: str, draw: bool) -> None:
    """Run, report, look."""
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or Path(temporary)
        if not (root / "images").is_dir():
            write_scenes(root, scenes.HELD_OUT_SEEDS[FIRST : FIRST + images], jpeg_every=0)
            broken = sorted((root / "images").iterdir())[:: max(images // 20, 1)]
            for path in broken:
                path.write_bytes(path.read_bytes()[:200])
        _run(root)
        started = time.perf_counter()
        page = build_report(Workdir(root / "run"), root / "report").page
        click.echo(f"written in {time.perf_counter() - started:.0f} s: {page}")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            events = list[str]()
            for name, width, height, scheme in (("desktop", 1280, 860, "light"), ("phone", 390, 860, "dark")):
                opened = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
                opened.on("console", lambda message: events.append(message.text))
                opened.on("pageerror", lambda error: events.append(str(error)))
                opened.goto(page.as_uri())
                opened.wait_for_selector("html[data-ready]")
                first = opened.evaluate("performance.getEntriesByName('first view')[0].startTime")
                click.echo(f"{name:8} first view after {first:.0f} ms")
                _use(opened, root / f"{name}-")
                opened.close()
            browser.close()
        click.echo(f"on the console: {events or 'nothing'}")
        if draw:
            _keep(root)
        sys.exit(bool(events))


def _run(root: Path) -> None:
    """Segmented under a hostile name for the sky, cut out, and evaluated under its own."""
    labels = [ATTACK + ": sky" if name == "sky" else name for name in scenes.CLASSES]
    flags = {"labels": labels, "edit.mode": "cutout", "edit.keep": list(scenes.THING_NAMES)}
    workdir = Workdir(root / "run")
    pipeline.run([str(root / "images")], workdir, load_config("demo", (), flags, environment={}))
    evaluate(workdir, datasets.load("scenes"), root)


def _use(page: Page, prefix: Path) -> None:
    """Filters, gallery, slider and keyboard; a picture of each view."""
    page.screenshot(path=f"{prefix}top.png")
    total = page.inner_text("#count")
    page.evaluate("document.getElementById('gallery').scrollIntoView({ behavior: 'instant' })")
    page.wait_for_timeout(800)
    page.screenshot(path=f"{prefix}gallery.png")
    page.select_option("#label", label=ATTACK)
    by_label = page.inner_text("#count")
    page.select_option("#label", label="all")
    page.select_option("#show", "failed")
    failed = page.inner_text("#count")
    page.select_option("#show", "edited")
    page.locator(".tile").first.focus()
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    page.locator(".frame.after img").wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=f"{prefix}viewer.png")
    page.keyboard.press("Escape")
    page.evaluate("scrollTo({ top: document.documentElement.scrollHeight, behavior: 'instant' })")
    page.wait_for_timeout(500)
    tiles = page.locator(".tile").count()
    click.echo(f"         {total}; {ATTACK}: {by_label}; failed: {failed}; {tiles} tiles in the page at its end")


def _keep(root: Path) -> None:
    """The pictures of the docs: the top of the page, and gallery, viewer and phone side by side."""
    Image.open(root / "desktop-top.png").save(DOCS / "report.png", optimize=True)
    views = [
        Image.open(root / f"{name}.png").convert("RGB")
        for name in ("desktop-gallery", "desktop-viewer", "phone-gallery")
    ]
    sheet = Image.new("RGB", (sum(view.width for view in views) + 40, views[0].height), "white")
    left = 0
    for view in views:
        sheet.paste(view, (left, 0))
        left += view.width + 20
    sheet.resize((sheet.width * 3 // 5, sheet.height * 3 // 5), Image.Resampling.LANCZOS).quantize(256).save(
        DOCS / "report-gallery.png", optimize=True
    )


if __name__ == "__main__":
    main()
