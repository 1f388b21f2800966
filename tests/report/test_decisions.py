"""Decisions in the browser, and the file that the page saves and later commands read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.conftest import Command
from tests.report.conftest import show


@pytest.fixture
def judged(page: Page) -> Iterator[Page]:
    """The page after decisions: mask 0 of the list wrong, the next one right, and the second image wrong."""
    page.select_option("#show", "masks")
    page.locator(".tile").first.click()
    page.locator("#masks .row").first.wait_for()
    for key in ("ArrowDown", "w", "ArrowDown", "r", "n"):
        page.keyboard.press(key)
    page.wait_for_function("shown?.place === 1")
    page.keyboard.press("w")
    page.keyboard.press("Escape")
    yield page


def counts(page: Page) -> list[str]:
    return page.locator("#decision-count .badge").all_inner_texts()


def saved(page: Page) -> dict[str, Any]:
    with page.expect_download() as waiting:
        page.locator("#save").click()
    assert waiting.value.suggested_filename == "run-decisions.json"
    record: dict[str, Any] = json.loads(waiting.value.path().read_text())
    return record


def test_every_key_decides_and_takes_back(page: Page) -> None:
    page.locator(".tile").first.focus()
    for key, kind in (("r", "right"), ("w", "wrong"), ("u", "unsure")):
        page.keyboard.press(key)
        assert page.locator(f".tile .badge.whole.{kind}").count() == 1
    page.keyboard.press("u")
    assert page.locator(".tile .badge").count() == 0 and page.locator("#save").is_disabled()
    page.keyboard.press("Enter")
    page.locator("#masks .row").first.wait_for()
    for key, kind in (("r", "right"), ("w", "wrong"), ("u", "unsure")):
        page.keyboard.press("ArrowDown")
        page.keyboard.press(key)
        assert page.locator(f"#masks .row.selected .mark.{kind}").count() == 1
        assert page.locator(f"#why .judge.{kind}").get_attribute("aria-pressed") == "true"
        page.keyboard.press(f"Shift+{key.upper()}")
        assert page.locator(f"#judged .judge.{kind}").get_attribute("aria-pressed") == "true"
    assert counts(page) == ["✓ 1 right", "✕ 1 wrong", "? 2 unsure"]
    page.keyboard.press("x")
    assert page.locator("#masks .row.selected .mark.unsure").count() == 0
    page.keyboard.press("Escape")
    page.keyboard.press("x")
    assert counts(page) == ["✓ 1 right", "✕ 1 wrong", "? 0 unsure"]
    page.locator("#judged .judge.right").click()
    assert counts(page)[0] == "✓ 2 right"


def test_decisions_survive_a_reload_and_filter(judged: Page) -> None:
    assert counts(judged) == ["✓ 1 right", "✕ 2 wrong", "? 0 unsure"]
    judged.reload()
    judged.wait_for_selector("html[data-ready]")
    assert counts(judged) == ["✓ 1 right", "✕ 2 wrong", "? 0 unsure"]
    judged.locator("#clear").click()
    for value, images in (("any", 2), ("none", 4), ("wrong", 2), ("right", 1), ("unsure", 0)):
        judged.select_option("#decided", value)
        assert judged.inner_text("#count") == f"{images} of 6 images"


def test_file_names_of_a_filter(judged: Page) -> None:
    judged.select_option("#decided", "wrong")
    judged.evaluate("document.activeElement.blur()")
    with judged.expect_download() as waiting:
        judged.keyboard.press("Shift+F")
    assert waiting.value.suggested_filename == "run-files.txt"
    assert waiting.value.path().read_text().splitlines() == judged.evaluate("view.map(place => entries[place][NAME])")


def test_a_saved_file_is_loaded_again(judged: Page, tmp_path: Path) -> None:
    record = saved(judged)
    (tmp_path / "d.json").write_text(json.dumps(record))
    judged.once("dialog", lambda dialog: dialog.accept())
    judged.evaluate("confirm = () => true")
    judged.locator("#forget").click()
    assert counts(judged) == ["✓ 0 right", "✕ 0 wrong", "? 0 unsure"]
    judged.set_input_files("#file", tmp_path / "d.json")
    judged.wait_for_function("decided.size === 2")
    assert saved(judged) == record
    record["images"][0]["masks"] = [{"index": 0, "label": "no label of it", "bbox": [0, 0, 1, 1], "decision": "right"}]
    for content, words in (
        (json.dumps(record), "about masks that have changed"),
        (json.dumps({**record, "run": {"fingerprint": "0" * 32}}), "of another run"),
        ("{", "no JSON"),
        ("[]", "no file of decisions"),
    ):
        (tmp_path / "d.json").write_text(content)
        judged.set_input_files("#file", tmp_path / "d.json")
        judged.wait_for_function("text => document.getElementById('notice').textContent.includes(text)", arg=words)


def test_a_browser_that_keeps_nothing_says_so(browser: Browser, reported: Path) -> None:
    opened = browser.new_page()
    opened.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    show(opened, reported)
    opened.locator(".tile").first.focus()
    opened.keyboard.press("r")
    assert counts(opened)[0] == "✓ 1 right"
    assert "keeps nothing" in opened.inner_text("#notice")
    opened.close()


def test_decisions_about_masks_that_have_changed_are_dropped(judged: Page) -> None:
    judged.evaluate(
        """() => { const kept = JSON.parse(localStorage[STORE]);
          kept[0][1] = 'other';
          localStorage[STORE] = JSON.stringify(kept); }"""
    )
    judged.reload()
    judged.wait_for_selector("html[data-ready]")
    assert "1 image have changed" in judged.inner_text("#notice").replace("images", "image")
    assert judged.evaluate("decided.size") == 1


def test_later_commands_read_the_file(
    judged: Page, browser: Browser, tmp_path: Path, command: Command, reported: Path
) -> None:
    """What was judged wrong is left out of an export, and a report begins with the decisions."""
    record = saved(judged)
    assert record["version"] == 1 and len(record["images"]) == 2
    path = tmp_path / "decisions.json"
    path.write_text(json.dumps(record))
    run = reported.parent / "run"
    everything = json.loads((run / "annotations.json").read_text())

    def export(*more: object) -> tuple[int, set[str]]:
        done = command("export", run, "-f", "coco", "-o", tmp_path / "out.json", "--decisions", path, *more)
        assert done.returncode == 0, done.stderr
        content = json.loads((tmp_path / "out.json").read_text())
        return len(content["annotations"]), {image["file_name"] for image in content["images"]}

    [wrong] = [image["key"] for image in record["images"] if image["decision"] == "wrong"]
    of_image = {image["file_name"]: image["id"] for image in everything["images"]}
    in_wrong = sum(one["image_id"] == of_image[wrong] for one in everything["annotations"])
    masks, images = export()
    assert masks == len(everything["annotations"]) - in_wrong - 1 and images == set(of_image) - {wrong}
    [partly] = [image["key"] for image in record["images"] if image["masks"]]
    assert export("--only-right") == (1, {partly})

    done = command("report", run, "-o", tmp_path / "report", "--decisions", path)
    assert done.returncode == 0, done.stderr
    opened = browser.new_page()
    show(opened, tmp_path / "report")
    assert counts(opened) == ["✓ 1 right", "✕ 2 wrong", "? 0 unsure"]
    opened.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["run"].update(fingerprint="f" * 32), "about another run"),
        (lambda record: record["images"][0].update(key="none.png"), "'none.png', which the run in"),
        (lambda record: record["images"][0]["masks"][0].update(index=999), "name mask 999 of"),
        (lambda record: record["images"][0]["masks"][0].update(bbox=[0, 0, 1, 2]), "The masks have changed since"),
        (lambda record: record["images"][0]["masks"][0].update(label="car"), "The masks have changed since"),
        (lambda record: record["images"][0]["masks"][0].update(decision="maybe"), "images.0.masks.0.decision"),
        (lambda record: record.update(version=2), "has version 2 of the format, and this program reads 1"),
        (lambda record: record.update(format="coco"), "is no file of decisions"),
        (lambda record: record["images"].append(record["images"][0]), "an image occurs twice"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    change: Any, message: str, reported: Path, tmp_path: Path, command: Command
) -> None:
    run = reported.parent / "run"
    content = json.loads((run / "annotations.json").read_text())
    one = content["annotations"][0]
    labels = {category["id"]: category["name"] for category in content["categories"]}
    names = {image["id"]: image["file_name"] for image in content["images"]}
    mask = {"index": 0, "label": labels[one["category_id"]], "bbox": one["bbox"], "decision": "wrong"}
    plan = json.loads((run / "stages" / "plan.json").read_text())
    [fingerprint] = [stage["fingerprint"] for stage in plan["stages"] if stage["name"] == "refine"]
    record = {
        "format": "ovseg_batch decisions",
        "version": 1,
        "run": {"fingerprint": fingerprint},
        "images": [{"key": names[one["image_id"]], "masks": [mask]}],
    }
    path = tmp_path / "d.json"
    path.write_text(json.dumps(record))
    arguments = ("export", run, "-f", "csv", "-o", tmp_path / "out.csv", "--decisions", path)
    assert command(*arguments).returncode == 0
    change(record)
    path.write_text(json.dumps(record))
    for refused in (arguments, ("report", run, "-o", tmp_path / "report", "--decisions", path)):
        done = command(*refused)
        assert done.returncode == 2 and message in done.stderr
    path.write_bytes(b"\xff{")
    assert command(*arguments).returncode == 2
    missing = command("export", run, "-f", "csv", "-o", tmp_path / "out.csv", "--only-right")
    assert missing.returncode == 2 and "--only-right needs --decisions" in missing.stderr
