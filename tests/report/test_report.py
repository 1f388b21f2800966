"""The report: what it shows of a run, and that it works in a real browser, opened from the disk."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from ovseg_batch.report.build import build_report
from ovseg_batch.report.page import SCRIPTS
from ovseg_batch.report.totals import Gathered, worth_showing
from ovseg_batch.workdir import findings
from ovseg_batch.workdir.store import Workdir
from tests.conftest import LABELS, Command, run_arguments
from tests.report.conftest import ATTACK, names, show


def test_the_numbers_are_the_runs(page: Page, reported: Path) -> None:
    annotations = json.loads((reported.parent / "run" / "annotations.json").read_text())
    texts = (page.locator(f"#numbers {tag}").all_inner_texts() for tag in ("dt", "dd"))
    tiles = dict(zip(*texts, strict=True))
    assert page.locator(".summary").inner_text().startswith("5 images · ")
    assert page.locator(".summary").inner_text().endswith(" · 1 failed")
    assert tiles["Images"].startswith("5") and tiles["Failed"].startswith("1")
    assert tiles["Masks"].startswith(str(len(annotations["annotations"])))
    assert page.locator("header .state").inner_text() == "Complete"
    rows = page.locator("[aria-label=Stages] tbody tr").all_inner_texts()
    assert [row.split()[0] for row in rows] == ["dense", "refine", "edit"]
    assert "not_an_image" in rows[0]
    assert "logit_scale" in (page.locator("#numbers pre").text_content() or "")


def test_hostile_names_are_text(page: Page) -> None:
    assert page.locator("#charts th", has_text=ATTACK).count() == 1
    assert page.locator("#label option", has_text=ATTACK).count() == 1
    assert any(name.startswith("<img src=x") for name in names(page))
    page.select_option("#label", label=ATTACK)
    page.locator(".tile").first.click()
    page.locator("#masks .label", has_text=ATTACK).first.wait_for()
    page.locator("#masks .pick", has_text=ATTACK).first.click()
    page.locator("#why h3", has_text=ATTACK).wait_for()
    assert page.locator("script").count() == 1 + len(SCRIPTS)  # the data and the page's own


def test_pictures_are_there(page: Page) -> None:
    page.select_option("#show", "masks")
    page.wait_for_function("[...document.querySelectorAll('.tile img')].every(i => i.complete && i.naturalWidth > 0)")
    assert page.locator(".tile .photo").count() == page.locator(".tile .layer").count() == 5
    page.locator("#opacity").evaluate("input => { input.value = 0; input.dispatchEvent(new Event('input')); }")
    assert page.locator(".layer").first.evaluate("image => getComputedStyle(image).opacity") == "0"


def test_every_control_has_a_name(page: Page) -> None:
    """Labels for inputs, text or a label for buttons, alternatives for pictures, titles for charts."""
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, select, button, svg, img')].filter(e =>
             !(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.textContent.trim()
             && !(e.tagName === 'IMG' && e.hasAttribute('alt'))).map(e => e.outerHTML)"""
    )
    assert unnamed == []
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser: Browser, reported: Path, scheme: Literal["light", "dark"]) -> None:
    """Contrast of at least 4.5 to 1 between text and what is behind it (WCAG AA), in both schemes."""
    opened = browser.new_page(color_scheme=scheme)
    show(opened, reported)
    opened.locator(".tile").first.click()
    opened.locator("#masks .pick").first.click()
    opened.keyboard.press("w")
    opened.keyboard.press("?")
    worst = opened.evaluate(
        """() => {
          const light = (rgb) => rgb.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
          const parse = (text) => text.match(/[\\d.]+/g).map(Number);
          const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] > 0.99) return c.slice(0, 3); } return [255, 255, 255]; };
          let worst = [99, ''];
          const texts = 'h1, h2, h3, p, dt, dd, small, td, th, a, label, legend, summary, button, figcaption, kbd,'
            + '.caption span, .badge, .number';
          for (const e of document.querySelectorAll(texts)) {
            if (!e.textContent.trim() || !e.checkVisibility()) continue;
            const pair = [light(parse(getComputedStyle(e).color).slice(0, 3)), light(behind(e))].sort((a, b) => b - a);
            const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
            if (contrast < worst[0]) worst = [contrast, e.outerHTML.slice(0, 200)];
          }
          return worst;
        }"""
    )
    opened.close()
    assert worst[0] >= 4.5, worst


def test_a_phone_shows_it_whole(browser: Browser, reported: Path) -> None:
    opened = browser.new_page(viewport={"width": 390, "height": 844})
    show(opened, reported)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    assert opened.locator(".tile").first.evaluate("tile => tile.getBoundingClientRect().top + scrollY") < 600
    assert opened.locator("#label").is_hidden()
    opened.locator("#more").click()
    opened.select_option("#show", "masks")
    opened.locator("#mask-filters summary").click()
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    opened.locator("#mask-filters summary").click()
    opened.locator(".tile").first.click()
    opened.locator("#masks .pick").first.click()
    viewer = opened.locator("#viewer")
    assert viewer.evaluate("viewer => viewer.scrollWidth <= viewer.clientWidth")
    assert opened.locator("#stage").evaluate("stage => stage.getBoundingClientRect().height") > 300
    opened.keyboard.press("?")
    assert opened.locator("#help").evaluate("help => help.scrollWidth <= help.clientWidth")
    opened.close()


def test_only_what_is_on_the_screen_is_in_the_page(browser: Browser, reported: Path, tmp_path: Path) -> None:
    """20,000 entries: few tiles at any time, and the last one can be reached."""
    shutil.copytree(reported, tmp_path / "report")
    index = tmp_path / "report" / "index.html"
    data = re.compile(r'(?<=<script type="application/json" id="run">).*?(?=</script>)')
    before = data.search(index.read_text())
    assert before is not None
    state = json.dumps(json.loads(before[0]) | {"entries": 20_000, "chunks": 4}).replace("<", "\\u003c")
    index.write_text(data.sub(lambda _: state, index.read_text()))
    for chunk in range(4):
        entries = [
            [k, f"image-{k:05d}.png", -1, "", "", "", [1, k % 1000, 500, 0]]
            for k in range(5000 * chunk, 5000 * (chunk + 1))
        ]
        (tmp_path / "report" / "data" / f"index-{chunk:05d}.js").write_text(f"OVSEG.add({json.dumps(entries)});")
    opened = browser.new_page(viewport={"width": 1200, "height": 800})
    show(opened, index.parent)
    assert opened.inner_text("#count") == "20,000 of 20,000 images"
    opened.select_option("#order", "row")
    opened.locator(".tile").first.focus()
    opened.keyboard.press("End")
    opened.wait_for_function("document.activeElement.dataset.place === '19999'")
    assert opened.locator(".tile").count() < 100
    opened.close()


# --- without a browser -----------------------------------------------------------------------------------------------


def test_a_report_is_brought_up_to_date(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    workdir = tmp_path / "run"
    assert command(*run_arguments(few_scenes / "images", workdir)).returncode == 0
    commit = next((workdir / "stages").glob("refine-*/commits/000/000001.json"))
    content = commit.read_bytes()
    commit.unlink()
    assert command("report", workdir, "-o", tmp_path / "report").returncode == 0
    first = (tmp_path / "report" / "index.html").read_text()
    assert "Not finished" in first and "4<small>of 6 listed" in first and "never found" not in first
    commit.write_bytes(content)
    evaluated = command("eval", workdir, "--dataset", "scenes", "--root", few_scenes)
    assert evaluated.returncode == 0, evaluated.stderr
    assert command("report", workdir, "-o", tmp_path / "report").returncode == 0
    second = (tmp_path / "report" / "index.html").read_text()
    assert "Complete" in second and "6<small>of 6 listed" in second and "never found: tree" in second
    assert "by confidence of their mask, on scenes" in second and "The last tenth" in second
    assert len(list((tmp_path / "report" / "images").rglob("*.webp"))) == 6


def test_labels_without_images_and_edits_without_effect_are_named(
    few_scenes: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No scene has a tree. Its name is markup, and would clear a terminal."""
    hostile, workdir = "<b>tree\x1b[2J</b>", tmp_path / "run"
    labels = LABELS.replace("tree", f"{hostile}: tree").replace(", ", "; ")
    arguments = ("run", few_scenes / "images", "-o", workdir, "--labels", labels)
    done = command(*arguments, "--edit", "cutout", "--keep", hostile)
    assert done.returncode == 0, done.stderr
    assert "never found: <b>tree\\x1b[2J</b>\n" in done.stdout and "\x1b" not in done.stdout
    monkeypatch.setattr(findings, "COMMON_IMAGES", 6)
    monkeypatch.setattr(findings, "COMMON_SHARE", 0.5)
    assert command("report", workdir, "-o", tmp_path / "report").returncode == 0
    page = (tmp_path / "report" / "index.html").read_text()
    notes = re.findall("<li>(.*)</li>", page[page.index('<ul class="notes">') : page.index("</ul>")])
    assert '<p class="banner" role="note">clip.model and sam.model: embedded demo weights' in page
    assert notes[0] == "never found: &lt;b&gt;tree\\x1b[2J&lt;/b&gt;"
    assert notes[1].startswith("found in 50 % of the images: road, balloon. ")
    assert notes[2] == "6 of 6 images without an edited file: no mask of the chosen labels"
    assert notes[3].startswith("6 of 6 images have no edited file. ")
    assert len(notes) == 4


def test_settings_that_are_no_text_any_more_are_shown_as_far_as_they_are(
    reported: Path, tmp_path: Path, command: Command
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(reported.parent / "run", workdir)
    (workdir / "config.yaml").write_bytes(b"labels: \x8a\n")
    done = command("report", workdir, "-o", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert "labels: \\x8a" in (tmp_path / "report" / "index.html").read_text()


def test_a_damaged_dense_map_leaves_the_masks(reported: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(reported.parent / "run", workdir)
    for path in (workdir / "stages").glob("dense-*/data/*/*.npz"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    build_report(Workdir(workdir), tmp_path / "report", workers=0)
    details = (tmp_path / "report" / "data" / "details-00000.js").read_text()
    assert "is damaged" in details and '"dense":' not in details and '"d":"M' in details


def test_a_folder_of_others_is_left_alone(reported: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = command("report", reported.parent / "run", "-o", tmp_path)
    assert done.returncode == 2 and "holds no report" in done.stderr


def test_processes_make_the_same_report(reported: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        build_report(Workdir(reported.parent / "run"), tmp_path / str(workers), workers=workers)
    files = [
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("0", "2")
    ]
    assert files[0] == files[1]


def test_which_images_are_worth_showing() -> None:
    doubt = np.linspace(0, 1, 1000).astype(np.float32)
    doubt[[3, 5]] = np.nan
    found = Gathered(doubt, [], failures={3: ("dense", "empty", "")})
    rows = worth_showing(found, 101).tolist()
    assert len(rows) == 101 and rows == sorted(set(rows)) and 3 in rows and 5 not in rows
    assert set(range(950, 1000)) <= set(rows)  # the least certain
    assert len([row for row in rows if row < 500]) > 20  # and an even choice of the others
    assert len(worth_showing(found, 10_000)) == 999
