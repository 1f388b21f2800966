"""The page of `compare`: its numbers, and that it works in a real browser, opened from the disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page

from tests.conftest import LABELS, Command
from tests.report.conftest import ATTACK, watched


@pytest.fixture(scope="module")
def compared(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """Two runs over six scenes, one with a hostile name; a hostile label; and the page with ground truth."""
    root = tmp_path_factory.mktemp("comparison")
    images = root / "images"
    shutil.copytree(few_scenes / "images", images)
    first = min(images.iterdir())
    first.rename(images / f"<img src=x onerror=alert(2)>{first.suffix}")
    labels = LABELS.replace("sky", f"{ATTACK}: sky").replace(", ", "; ")
    for name, method in (("a", "prompted"), ("<b>b", "none")):
        done = command("run", images, "-o", root / name, "--labels", labels, "--set", f"refine.method={method}")
        assert done.returncode == 0, done.stderr
    truth = root / "truth.json"
    truth.write_text((root / "a" / "annotations.json").read_text())
    done = command("compare", root / "a", root / "<b>b", "--truth", truth, "-o", root / "page")
    assert done.returncode == 0 and f"page: {root / 'page' / 'index.html'}" in done.stdout, done.stderr
    return root / "page"


@pytest.fixture
def page(browser: Browser, compared: Path) -> Iterator[Page]:
    """The page, open."""
    with watched(browser) as opened:
        opened.goto((compared / "index.html").as_uri())
        yield opened


def test_the_numbers_are_those_of_the_command(page: Page, compared: Path, command: Command) -> None:
    root = compared.parent
    truth = ("--truth", root / "truth.json")
    found = json.loads(command("compare", root / "a", root / "<b>b", *truth, "--json").stdout)
    tiles = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))
    assert tiles["Images compared"].startswith("6")
    assert tiles["Pixels with another label"].startswith(f"{found['pixels with another label']:.2%}")
    assert tiles["mIoU of A"] == "100.0%" and tiles["mIoU of B"] == f"{found['truth']['mIoU']['B']:.1%}"
    assert " ".join(page.locator(".verdict").inner_text().split()) == found["verdict"]
    used = [name for name, one in found["labels"].items() if any(one["masks"])]
    assert page.locator(".labels tbody tr").count() == len(used)
    assert page.locator(".settings tbody th").all_inner_texts() == list(found["settings"])
    names = page.locator(".changed-images h3").all_inner_texts()
    assert names == [one["file_name"] for one in found["most changed"]]


def test_hostile_names_are_text(page: Page) -> None:
    assert page.locator(".labels th", has_text=ATTACK).count() == 1
    assert page.locator(".changed-images h3", has_text="<img src=x onerror").count() == 1
    assert page.locator(".runs", has_text="<b>b").count() == 1
    assert page.locator("script").count() == 0


def test_every_picture_is_there_and_has_a_text(page: Page) -> None:
    images = page.locator(".panel img")
    assert images.count() == 6 * 6
    for image in images.all():
        image.scroll_into_view_if_needed()
    page.wait_for_function("[...document.querySelectorAll('.panel img')].every(i => i.complete && i.naturalWidth > 0)")
    texts = page.locator(".panel .over").evaluate_all("images => images.map(image => image.alt)")
    assert len(set(texts)) == len(texts) == 18 and all(texts)
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_and_can_be_read(
    browser: Browser, compared: Path, scheme: Literal["light", "dark"], width: int
) -> None:
    """No sideways scrolling, and a contrast of at least 4.5 to 1 between text and what is behind it (WCAG AA)."""
    opened = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 844})
    opened.goto((compared / "index.html").as_uri())
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    worst = opened.evaluate(
        """() => {
          const light = colour => {
            const [r, g, b] = colour.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const parse = text => text.match(/[0-9.]+/g).map(Number);
          const behind = element => {
            for (; element; element = element.parentElement) {
              const colour = parse(getComputedStyle(element).backgroundColor);
              if (colour.length < 4 || colour[3] === 1) return colour.slice(0, 3);
            }
            return [255, 255, 255];
          };
          let worst = 99;
          for (const element of document.querySelectorAll('body *')) {
            if (![...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
            const [one, other] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
            worst = Math.min(worst, (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05));
          }
          return worst;
        }"""
    )
    opened.close()
    assert worst >= 4.5


def test_the_same_command_writes_it_again(compared: Path, tmp_path: Path, command: Command) -> None:
    root = compared.parent
    page = shutil.copytree(compared, tmp_path / "page")
    done = command("compare", root / "a", root / "a", "-o", page)
    assert done.returncode == 0 and not (page / "pictures").exists()
    text = (page / "index.html").read_text()
    assert "No difference: the masks of 6 images are equal in both runs." in text and ATTACK not in text
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    done = command("compare", root / "a", root / "a", "-o", tmp_path / "mine")
    assert done.returncode == 2 and "holds no comparison" in done.stderr
    assert (tmp_path / "mine" / "index.html").read_text() == "mine"


def test_an_image_that_is_gone_keeps_its_masks(compared: Path, tmp_path: Path, command: Command) -> None:
    root = compared.parent
    for name in ("a", "<b>b"):
        shutil.copytree(root / name, tmp_path / name)
    gone = max((root / "images").iterdir())
    hidden = gone.rename(tmp_path / gone.name)
    try:
        done = command("compare", tmp_path / "a", tmp_path / "<b>b", "-o", tmp_path / "page")
    finally:
        hidden.rename(gone)
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / "page" / "pictures").glob("*-photo.webp")]) == 5
    assert len([*(tmp_path / "page" / "pictures").glob("*-a.webp")]) == 6
