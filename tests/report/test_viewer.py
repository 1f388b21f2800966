"""The viewer of the report in a real browser: the picture, its masks, and why they are there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from ovseg_batch.report.page import OUTCOMES
from ovseg_batch.types import PromptOutcome
from tests.conftest import Command, run_arguments
from tests.report.conftest import names, show

SCALE = "zoom.scale"
BOX = "path => { const box = path.getBBox(); return [box.x, box.y, box.width, box.height]; }"


@pytest.fixture
def viewer(page: Page) -> Iterator[Page]:
    """The page with the first image that has masks, without its edit."""
    page.select_option("#show", "masks")
    page.locator(".tile").first.click()
    page.locator("#masks .row").first.wait_for()
    if page.locator("#tool-edited").get_attribute("aria-pressed") == "true":
        page.keyboard.press("e")
    yield page


def test_the_keyboard_goes_from_image_to_image(page: Page) -> None:
    page.select_option("#show", "masks")
    order = names(page)
    page.locator(".tile").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.dataset.place") == "1"
    page.keyboard.press("Enter")
    assert page.inner_text("#viewer-name") == order[1]
    for key, place in (("ArrowRight", 2), ("n", 3), ("p", 2), ("ArrowLeft", 1), ("n", 2)):
        page.keyboard.press(key)
        assert page.inner_text("#viewer-name") == order[place]
        page.wait_for_function(f"shown?.place === {place}")
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").evaluate("viewer => viewer.open")
    assert page.evaluate("document.activeElement.dataset.place") == "2"
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.place") == "4"
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement.dataset.place") == "0"


def test_the_picture_is_the_original_file(viewer: Page, reported: Path) -> None:
    image = viewer.locator("#stage img").first
    assert image.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])") == (
        viewer.evaluate("shown.details.size")
    )
    path = image.evaluate("image => new URL(image.src).pathname")
    assert "/images/" in path and str(reported) not in path
    assert viewer.locator("#original").get_attribute("href") == viewer.evaluate("shown.details.path")


def test_masks_are_paths_with_the_area_of_the_mask(viewer: Page) -> None:
    """A mask fills the pixels of its path that the browser counts as inside, holes excluded."""
    shares = viewer.evaluate(
        """() => [...document.querySelectorAll('.mask')].map(path => {
          const k = +path.dataset.mask, [w, h] = shown.details.space;
          let inside = 0;
          for (let y = 0.5; y < h; y += 2) for (let x = 0.5; x < w; x += 2)
            inside += path.isPointInFill(new DOMPoint(x, y));
          return [4 * inside, shown.details.masks[k].area];
        })"""
    )
    assert len(shares) > 2
    for inside, area in shares:
        assert abs(inside - area) <= 0.06 * area + 60
    x, y, width, height = viewer.locator(".mask").first.evaluate(BOX)
    box = viewer.evaluate("shown.details.masks[+document.querySelector('.mask').dataset.mask].bbox")
    assert [x, y, width, height] == pytest.approx(box, abs=1.5)


def test_rows_and_masks_light_each_other(viewer: Page) -> None:
    row = viewer.locator("#masks .row").first
    number = row.get_attribute("data-mask")
    row.hover()
    assert viewer.locator(".mask.lit").get_attribute("data-mask") == number
    inside = viewer.evaluate(
        """() => { const sheet = document.querySelector('.drawing').getBoundingClientRect();
          for (let y = sheet.top + 1; y < sheet.bottom; y += 3) for (let x = sheet.left + 1; x < sheet.right; x += 3) {
            const path = document.elementFromPoint(x, y)?.closest?.('.mask');
            if (path) return [x, y, path.dataset.mask]; } }"""
    )
    viewer.mouse.move(inside[0], inside[1])
    assert viewer.locator("#masks .row.lit").get_attribute("data-mask") == inside[2]
    label = viewer.evaluate(f"run.labels[maskOf(shown.entry, {inside[2]})[LABEL]]")
    assert viewer.locator("#tip").inner_text().startswith(f"{label}, confidence 0.")
    viewer.mouse.click(inside[0], inside[1])
    assert viewer.locator("#masks .row.selected").get_attribute("data-mask") == inside[2]
    viewer.keyboard.press("Escape")
    assert viewer.locator(".selected").count() == 0 and viewer.locator("#viewer").is_visible()


def test_masks_and_labels_are_switched(viewer: Page) -> None:
    masks = viewer.locator(".mask").count()
    visible = viewer.locator(".mask:not(.off)")
    assert visible.count() == masks
    viewer.locator("#masks input").first.uncheck()
    assert visible.count() == masks - 1
    viewer.keyboard.press("a")
    assert visible.count() == masks
    chip = viewer.locator("#labels .chip").first
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false" and visible.count() < masks
    chip.click()
    viewer.keyboard.press("ArrowDown")
    viewer.keyboard.press("h")
    assert visible.count() == masks - 1
    viewer.keyboard.press("h")
    viewer.keyboard.press("Shift+H")
    assert visible.count() < masks
    viewer.keyboard.press("a")
    viewer.keyboard.press("m")
    assert visible.count() == 0 and viewer.locator("#tool-masks").get_attribute("aria-pressed") == "false"
    viewer.keyboard.press("m")
    fill = "path => getComputedStyle(path).fillOpacity"
    assert float(viewer.locator(".mask").last.evaluate(fill)) > 0
    viewer.keyboard.press("f")
    viewer.mouse.move(2, 2)
    unchosen = viewer.locator(".mask:not(.selected, .lit)").first
    assert float(unchosen.evaluate(fill)) == 0
    viewer.keyboard.press("f")
    assert float(unchosen.evaluate(fill)) == pytest.approx(0.55)
    viewer.keyboard.press("]")
    assert float(unchosen.evaluate(fill)) == pytest.approx(0.65)
    viewer.keyboard.press("[")
    assert viewer.input_value("#viewer-opacity") == "0.55"


def test_the_keyboard_goes_from_mask_to_mask(viewer: Page) -> None:
    order = viewer.locator("#masks .row").evaluate_all("rows => rows.map(row => row.dataset.mask)")
    chosen = "document.querySelector('.mask.selected')?.dataset.mask"
    for key, place in (("ArrowDown", 0), (".", 1), ("ArrowDown", 2), (",", 1), ("ArrowUp", 0), ("ArrowUp", 0)):
        viewer.keyboard.press(key)
        assert viewer.evaluate(chosen) == order[place]


def test_zoom_and_pan(viewer: Page) -> None:
    stage = viewer.locator("#stage").bounding_box()
    assert stage is not None
    middle = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
    viewer.mouse.move(*middle)
    viewer.mouse.wheel(0, -400)
    viewer.wait_for_function("zoom.scale > 1.5")
    name = viewer.inner_text("#viewer-name")
    viewer.keyboard.press("ArrowRight")
    assert viewer.evaluate("zoom.x") == pytest.approx(-60, abs=1) and viewer.inner_text("#viewer-name") == name
    viewer.keyboard.press("ArrowDown")
    assert viewer.evaluate("zoom.y") == pytest.approx(-60, abs=1)
    viewer.mouse.down()
    viewer.mouse.move(middle[0] + 40, middle[1] + 30, steps=4)
    viewer.mouse.up()
    assert viewer.evaluate("[zoom.x, zoom.y]") == pytest.approx([-20, -30], abs=2)
    assert viewer.locator(".selected").count() == 0  # a drag chooses no mask
    viewer.keyboard.press("0")
    assert viewer.evaluate("[zoom.scale, zoom.x, zoom.y]") == [1, 0, 0]
    viewer.keyboard.press("+")
    assert viewer.evaluate(SCALE) == 1.25
    viewer.keyboard.press("-")
    assert viewer.evaluate(SCALE) == 1
    viewer.mouse.dblclick(*middle)
    assert viewer.evaluate(SCALE) == 4
    viewer.mouse.dblclick(*middle)
    assert viewer.evaluate(SCALE) == 1
    viewer.locator("#zoom-in").click()
    viewer.locator("#zoom-fit").click()
    assert viewer.evaluate(SCALE) == 1
    sheet, drawing = (viewer.locator(part).bounding_box() for part in (".sheet img", ".drawing"))
    assert sheet == drawing


def test_two_fingers_enlarge(viewer: Page) -> None:
    viewer.evaluate(
        """() => { const stage = document.getElementById('stage'), box = stage.getBoundingClientRect();
          const send = (kind, pointerId, x) => stage.dispatchEvent(new PointerEvent(kind,
            { pointerId, button: 0, bubbles: true, clientX: box.left + x, clientY: box.top + 200 }));
          stage.setPointerCapture = () => {};
          send('pointerdown', 1, 200); send('pointerdown', 2, 260);
          send('pointermove', 2, 300); send('pointermove', 2, 400);
          send('pointerup', 1, 200); send('pointerup', 2, 400); }"""
    )
    assert viewer.evaluate(SCALE) == pytest.approx(2)


def test_original_and_masks_side_by_side(viewer: Page) -> None:
    viewer.keyboard.press("v")
    assert viewer.locator(".pane").count() == 2 and viewer.locator(".drawing").count() == 1
    assert viewer.locator(".pane-name").all_inner_texts() == ["Original", "Masks"]
    viewer.keyboard.press("+")
    assert len(set(viewer.locator(".sheet").evaluate_all("sheets => sheets.map(s => s.style.transform)"))) == 1
    viewer.keyboard.press("v")
    assert viewer.locator(".pane").count() == 1


def test_before_and_after(page: Page) -> None:
    page.select_option("#show", "edited")
    page.locator(".tile").first.click()
    after = page.locator(".after img")
    after.wait_for()
    assert after.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])") == (
        page.evaluate("shown.details.size")
    )
    seen = []
    for value in (0, 100):
        page.locator("#slider").evaluate(
            "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", value
        )
        seen.append(page.locator(".after").evaluate("after => getComputedStyle(after).clipPath"))
    assert seen == ["inset(0px 0px 0px 0%)", "inset(0px 0px 0px 100%)"]
    page.keyboard.press("e")
    assert page.locator(".after").count() == 0 and page.locator("#compare").is_hidden()


def test_a_failed_image_says_why(page: Page) -> None:
    page.select_option("#show", "failed")
    page.locator(".tile").first.click()
    text = page.locator(".failure").inner_text()
    assert text.startswith("Failed: not an image") and "In the stage dense: " in text
    assert "Replace the file by an image" in text


def test_why_a_mask_is_there(viewer: Page) -> None:
    viewer.locator("#masks .pick").last.click()
    facts = dict(zip(*(viewer.locator(f"#why {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True))
    k = viewer.evaluate("selected")
    label = viewer.evaluate(f"run.labels[maskOf(shown.entry, {k})[LABEL]]")
    assert facts["Confidence"].startswith("0.") and facts["Dense map within the mask"].startswith(f"{label} ")
    assert (
        ", then " in facts["Dense map within the mask"] and "embedded demo CLIP" in facts["Dense map within the mask"]
    )
    assert facts["Vote"].split()[1] == "%" and facts["IoU that SAM predicts"].startswith(("0.", "1."))
    assert "What competed" in facts and "Stability of SAM's outline" in facts


def test_the_dense_map_names_the_runner_up(viewer: Page) -> None:
    viewer.keyboard.press("d")
    box = viewer.locator("canvas.dense").bounding_box()
    assert box is not None
    viewer.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    text = viewer.locator("#tip").inner_text()
    first, second = text.split(", then ")
    labels = viewer.evaluate("run.dense.names")
    assert first in labels and second in labels and first != second
    colours = viewer.locator("canvas.dense").evaluate(
        """c => { const p = c.getContext('2d').getImageData(c.width >> 1, c.height >> 1, 1, 1).data;
          return [p[0], p[1], p[2]]; }"""
    )
    own = viewer.evaluate("run.dense.colours")[labels.index(first)]
    assert "#" + "".join(f"{part:02x}" for part in colours) == own
    viewer.keyboard.press("d")
    assert viewer.locator("canvas.dense").count() == 0


def test_prompts_are_dots_with_what_became_of_them(viewer: Page) -> None:
    prompts = viewer.evaluate("shown.details.prompts")
    width, height = viewer.evaluate("shown.details.space")
    assert prompts and all(0 <= x <= width and 0 <= y <= height for x, y, _, _ in prompts)
    viewer.keyboard.press("q")
    dots = viewer.locator(".dot:not(.halo)")
    assert dots.evaluate_all("dots => dots.map(dot => dot.dataset.text)") == [
        f"prompt of {label}: {OUTCOMES[outcome]}" for _, _, label, outcome in prompts
    ]
    assert viewer.locator(".dot.good").count() == sum(one[3] in ("kept", "merged", "blended") for one in prompts)
    dots.first.dispatch_event("pointermove", {"clientX": 300, "clientY": 300, "bubbles": True})
    assert viewer.locator("#tip").inner_text().startswith(f"prompt of {prompts[0][2]}: ")
    viewer.keyboard.press("q")
    assert dots.count() == 0


def test_prompts_that_were_voted_out_are_among_the_rivals(viewer: Page) -> None:
    viewer.keyboard.press("ArrowDown")
    viewer.evaluate(
        """() => { const box = document.querySelector('.mask.selected'), [w, h] = shown.details.space;
          for (let y = 0.5; y < h; y++) for (let x = 0.5; x < w; x++) if (box.isPointInFill(new DOMPoint(x, y))) {
            shown.details.prompts = [[x, y, 'lamp', 'outvoted'], [x, y, 'rug', 'kept'], [-9, -9, 'cup', 'small']];
            return showWhy(); } }"""
    )
    text = viewer.inner_text("#why")
    assert "prompt of lamp: voted out" in text and "rug" not in text and "cup" not in text


def test_every_outcome_of_a_prompt_is_explained() -> None:
    assert set(OUTCOMES) == set(PromptOutcome)


def test_other_files_get_renditions(browser: Browser, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    """Files that browsers cannot show, and with --portable all of them. Files that have moved leave the thumbnail."""
    images = tmp_path / "images"
    shutil.copytree(few_scenes / "images", images)
    files = sorted(images.iterdir())
    for path in files[4:]:
        path.unlink()
    with Image.open(files[0]) as picture:
        picture.convert("CMYK").save(images / "a.tiff")
        picture.convert("RGB").resize((3000, 200)).save(images / "b.png")
    files[0].unlink()
    assert command(*run_arguments(images, tmp_path / "run")).returncode == 0
    assert command("report", tmp_path / "run", "-o", tmp_path / "report").returncode == 0
    large = list((tmp_path / "report" / "large").rglob("*.webp"))
    assert len(large) == 1
    files[1].unlink()
    with Image.open(files[2]) as picture:
        picture.transpose(Image.Transpose.ROTATE_90).resize((500, 90)).save(files[2])
    notes = {files[1].name: "The file is not where it was", files[2].name: "The file has changed since the run"}
    opened = browser.new_page()
    show(opened, tmp_path / "report")
    for name, width in (("a.tiff", None), ("b.png", 3000), (files[1].name, None), (files[2].name, None)):
        opened.fill("#name", name)
        opened.wait_for_function("name => view.length === 1 && entries[view[0]][NAME] === name", arg=name)
        opened.locator(".tile").first.click()
        opened.wait_for_function("name => shown?.entry[NAME] === name", arg=name)
        opened.wait_for_function(
            "note => document.querySelector('.file-note').textContent.startsWith(note)", arg=notes.get(name, "")
        )
        opened.wait_for_function(
            "document.querySelector('#stage img').complete && document.querySelector('#stage img').naturalWidth"
        )
        drawn = opened.evaluate("[document.querySelector('#stage img').naturalWidth, shown.details.size[0]]")
        assert drawn == [width, width] if width else drawn[0] == drawn[1]
        opened.keyboard.press("Escape")
    opened.close()
    assert command("report", tmp_path / "run", "-o", tmp_path / "report", "--portable").returncode == 0
    sizes = [Image.open(path).size for path in (tmp_path / "report" / "large").rglob("*.webp")]
    assert len(sizes) == 3 and max(map(max, sizes)) == 2048  # the others are gone or changed
