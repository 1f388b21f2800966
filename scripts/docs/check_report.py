#!/usr/bin/env python
"""The report of a run of thousands of scenes in a real Chromium: used as a person would, and drawn for the docs.

check_report.py                          # 2,000 scenes; about ten minutes on two cores
check_report.py --images 50 --folder /tmp/report-check
check_report.py --images 50 --gallery 20000      # also times the first picture of a gallery of so many images
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
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
from ovseg_batch.report.build import CHUNK, PAGE, build_report
from ovseg_batch.report.build import FIRST as FIRST_CHUNK
from ovseg_batch.runs import pipeline
from ovseg_batch.workdir.store import Workdir

DOCS = Path(__file__).parents[2] / "docs"
FIRST = 20_000  # of the held-out scenes
ATTACK = "<script>alert(1)</script>"


@click.command()
@click.option("--images", default=2000, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to leave it; otherwise it goes.")
@click.option("--chromium", default="/usr/bin/chromium", show_default=True)
@click.option("--gallery", default=0, show_default=True, help="Images of a gallery of copies, to be timed. 0: none.")
@click.option("--draw/--no-draw", default=False, show_default=True, help="Keep the pictures in docs/.")
def main(images: int, folder: Path | None, chromium: str, gallery: int, draw: bool) -> None:
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
                click.echo(f"{name:8} {_marks(opened)}")
                _use(opened, root / f"{name}-")
                opened.close()
            if gallery:
                _multiply(root / "report", root / "copies", gallery)
                for name, width, height in (("desktop", 1280, 860), ("phone", 390, 860)):
                    opened = browser.new_page(viewport={"width": width, "height": height})
                    opened.goto((root / "copies" / "index.html").as_uri())
                    opened.wait_for_selector("html[data-ready]")
                    opened.wait_for_function("performance.getEntriesByName('first picture').length")
                    ready = opened.evaluate("performance.now()")
                    click.echo(f"{gallery:,} images, {name}: {_marks(opened)}, all listed after {ready:.0f} ms")
                    opened.close()
            browser.close()
        click.echo(f"on the console: {events or 'nothing'}")
        if draw:
            _keep(root)
        sys.exit(bool(events))


def _marks(page: Page) -> str:
    """Return the times from the start of the page to the first list and to the first picture."""
    marks = page.evaluate("performance.getEntriesByType('mark').map(mark => [mark.name, mark.startTime])")
    return ", ".join(f"{name} after {time:.0f} ms" for name, time in marks)


def _multiply(report: Path, copies: Path, count: int) -> None:
    """Write a report with copies of the images of another, as many files as a run of so many images would have."""
    shutil.rmtree(copies, ignore_errors=True)
    shutil.copytree(report / "assets", copies / "assets")
    entries, details = list[list[object]](), list[object]()
    for path in sorted((report / "data").glob("index-*.js")):
        entries += json.loads(path.read_text().removeprefix("OVSEG.add(").removesuffix(");\n"))
    for path in sorted((report / "data").glob("details-*.js")):
        details += json.loads(path.read_text().partition(",")[2].removesuffix(");\n"))
    (copies / "data").mkdir()
    new = list[list[object]]()
    for row in range(count):
        entry = entries[row % len(entries)]
        new.append([row, f"{row:06d}-{entry[1]}", *entry[2:7]])
        for kind, token in (("images", entry[3]), ("masks", entry[4])):
            if token:
                old, target = (
                    root / kind / f"{number // 1000:05d}" / f"{number:08d}-{token}.webp"
                    for root, number in ((report, int(str(entry[0]))), (copies, row))
                )
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(old, target)
    firsts = [0, *range(FIRST_CHUNK, count, CHUNK), count]
    for number, (first, last) in enumerate(itertools.pairwise(firsts)):
        text = f"OVSEG.add({json.dumps(new[first:last])});\n"
        (copies / "data" / f"index-{number:05d}.js").write_text(text)
    for number in range(-(-count // PAGE)):
        few = [details[k % len(details)] for k in range(number * PAGE, min(count, (number + 1) * PAGE))]
        (copies / "data" / f"details-{number:05d}.js").write_text(f"OVSEG.details({number},{json.dumps(few)});\n")
    page = (report / "index.html").read_text()
    data = re.compile(r'(?<=<script type="application/json" id="run">).*?(?=</script>)')
    found = data.search(page)
    assert found is not None
    run = json.dumps(json.loads(found[0]) | {"entries": count, "chunks": len(firsts) - 1}).replace("<", "\\u003c")
    (copies / "index.html").write_text(data.sub(lambda _: run, page))


def _run(root: Path) -> None:
    """Segmented under a hostile name for the sky, cut out, and evaluated under its own."""
    labels = [ATTACK + ": sky" if name == "sky" else name for name in scenes.CLASSES]
    flags = {"labels": labels, "edit.mode": "cutout", "edit.keep": list(scenes.THING_NAMES)}
    workdir = Workdir(root / "run")
    pipeline.run([str(root / "images")], workdir, load_config("demo", (), flags, environment={}))
    evaluate(workdir, datasets.load("scenes"), root)


def _use(page: Page, prefix: Path) -> None:
    """Filters, gallery, viewer and keyboard; a picture of each view."""
    page.wait_for_timeout(800)
    page.screenshot(path=f"{prefix}gallery.png")
    total = page.inner_text("#count")
    if page.locator("#more").is_visible():
        page.locator("#more").click()
    page.select_option("#label", label=ATTACK)
    by_label = page.inner_text("#count")
    page.select_option("#label", label="all")
    page.select_option("#show", "failed")
    failed = page.inner_text("#count")
    page.select_option("#show", "masks")
    page.locator(".tile").first.focus()
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    page.locator("#masks .row").first.wait_for()
    if page.locator("#tool-edited").get_attribute("aria-pressed") == "true":
        page.keyboard.press("e")
    for key in ("ArrowDown", "w", "ArrowDown", "r"):
        page.keyboard.press(key)
    page.mouse.move(2, 2)
    page.wait_for_timeout(500)
    page.screenshot(path=f"{prefix}viewer.png")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.evaluate("scrollTo({ top: document.documentElement.scrollHeight, behavior: 'instant' })")
    page.wait_for_timeout(500)
    tiles = page.locator(".tile").count()
    click.echo(f"         {total}; {ATTACK}: {by_label}; failed: {failed}; {tiles} tiles in the page at its end")


def _keep(root: Path) -> None:
    """The pictures of the docs: gallery, viewer, and both on a phone."""
    phone = [Image.open(root / f"phone-{name}.png").convert("RGB") for name in ("gallery", "viewer")]
    sheet = Image.new("RGB", (sum(view.width for view in phone) + 20, phone[0].height), "white")
    sheet.paste(phone[0], (0, 0))
    sheet.paste(phone[1], (phone[0].width + 20, 0))
    views = {
        "report": Image.open(root / "desktop-gallery.png").convert("RGB"),
        "report-viewer": Image.open(root / "desktop-viewer.png").convert("RGB"),
        "report-phone": sheet,
    }
    for name, view in views.items():
        view.quantize(256).save(DOCS / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
