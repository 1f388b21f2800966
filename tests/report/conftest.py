"""A report of six scenes, and a browser that opens it from the disk."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, Page, Request, sync_playwright

from tests.conftest import LABELS, Command

CHROMIUM = shutil.which("chromium")
ATTACK = "<script>alert(1)</script>"


@pytest.fixture(scope="session")
def reported(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """Six scenes, one of them not an image, one with a hostile name; cut out; a hostile label; and the report."""
    root = tmp_path_factory.mktemp("report")
    images = root / "images"
    shutil.copytree(few_scenes / "images", images)
    names = sorted(path.name for path in images.iterdir())
    (images / names[0]).write_bytes(b"no image at all")
    hostile = f"<img src=x onerror=alert(2)>{Path(names[1]).suffix}"
    (images / names[1]).rename(images / hostile)
    labels = LABELS.replace("sky", f"{ATTACK}: sky")
    done = command("run", images, "-o", root / "run", "--labels", labels.replace(", ", "; "), "--edit", "cutout")
    assert done.returncode == 3, done.stderr
    written = command("report", root / "run", "-o", root / "report")
    assert written.returncode == 0, written.stderr
    assert f"5 images, 6 of them shown: {root / 'report' / 'index.html'}" in written.stdout
    return root / "report"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextlib.contextmanager
def watched(browser: Browser) -> Iterator[Page]:
    """A page that must log nothing, open no dialog and request nothing from a network."""
    opened = browser.new_page(viewport={"width": 1200, "height": 800})
    events: list[str] = []
    opened.on("console", lambda message: events.append(message.text))
    opened.on("pageerror", lambda error: events.append(str(error)))

    def dismissed(dialog: Dialog) -> None:
        events.append(dialog.message)
        dialog.dismiss()

    def requested(request: Request) -> None:
        if not request.url.startswith(("file:", "data:")):
            events.append(request.url)

    opened.on("dialog", dismissed)
    opened.on("request", requested)
    yield opened
    opened.close()
    assert events == []


@pytest.fixture
def page(browser: Browser, reported: Path) -> Iterator[Page]:
    """The report, open."""
    with watched(browser) as opened:
        show(opened, reported)
        yield opened


def show(page: Page, report: Path) -> None:
    """Open it, wait for all of it, and go to the images."""
    page.goto((report / "index.html").as_uri())
    page.wait_for_selector("html[data-ready]")
    page.evaluate("document.getElementById('gallery').scrollIntoView({ behavior: 'instant' })")
    page.wait_for_selector(".tile")


def names(page: Page) -> list[str]:
    """What the gallery shows, in order."""
    tiles = page.locator(".cell").evaluate_all(
        "cells => cells.map(c => [+c.getAttribute('aria-posinset'), c.querySelector('.name').textContent])"
    )
    return [name for _, name in sorted(tiles)]
