"""Filters, orders and the address of the gallery, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.report.conftest import ATTACK, names

MASKS = "entries.map(e => Array.from({ length: maskCount(e) }, (_, k) => maskOf(e, k)))"


def fill(page: Page, control: str, value: object) -> None:
    """Fill a control, and wait until the gallery has followed."""
    page.locator(f"#{control}").evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", str(value)
    )
    page.wait_for_timeout(200)


def shown(page: Page) -> int:
    return int(page.inner_text("#count").split()[0])


def test_images_by_name_and_kind(page: Page) -> None:
    assert page.inner_text("#count") == "6 of 6 images"
    page.select_option("#show", "failed")
    assert page.inner_text("#count") == "1 of 6 images"
    assert page.locator(".tile.failed .why").inner_text() == "not an image"
    page.select_option("#show", "masks")
    assert shown(page) == 5
    page.select_option("#show", "edited")
    assert shown(page) == page.evaluate("entries.filter(e => e[EDITED]).length") > 0
    page.select_option("#show", "empty")
    assert shown(page) == 0 and page.locator("#empty").is_visible()
    page.locator("#clear").click()
    assert shown(page) == 6 and page.locator("#clear").is_hidden()
    page.fill("#name", "onerror")
    page.wait_for_function("document.getElementById('count').textContent.startsWith('1 of')")
    page.fill("#name", "")
    page.wait_for_function("document.getElementById('count').textContent.startsWith('6 of')")
    page.locator("[data-failed=not_an_image]").click()
    assert shown(page) == 1 and page.input_value("#show") == "failed not_an_image"


def test_images_by_their_masks(page: Page) -> None:
    masks: list[list[list[int]]] = page.evaluate(MASKS)
    label = next(image for image in masks if image)[0][0]
    page.select_option("#label", value=page.evaluate(f"run.labels[{label}]"))
    assert shown(page) == sum(any(mask[0] == label for mask in image) for image in masks)
    page.select_option("#label", label="all")
    for control, value, wanted in (
        ("most", 0.5, lambda mask: mask[1] <= 500),
        ("least", 0.3, lambda mask: 300 <= mask[1] <= 500),
        ("largest", 2, lambda mask: 300 <= mask[1] <= 500 and mask[2] <= 2000),
        ("smallest", 0.2, lambda mask: 300 <= mask[1] <= 500 and 200 <= mask[2] <= 2000),
    ):
        fill(page, control, value)
        assert shown(page) == sum(any(map(wanted, image)) for image in masks)
    assert page.inner_text("#narrowed") == "on"
    page.locator("#clear").click()
    page.locator("#mask-filters summary").click()
    page.select_option("#source", "dense")
    assert shown(page) == sum(any(mask[3] == 1 for mask in image) for image in masks)


def test_the_viewer_hides_masks_that_the_filter_excludes(page: Page) -> None:
    label = page.evaluate("maskOf(entries.find(entry => maskCount(entry)), 0)[LABEL]")
    page.select_option("#label", value=page.evaluate(f"run.labels[{label}]"))
    page.locator(".tile").first.click()
    page.locator("#masks .row").first.wait_for()
    if page.locator("#tool-edited").get_attribute("aria-pressed") == "true":
        page.keyboard.press("e")
    visible = page.locator(".mask:not(.off)").evaluate_all(
        "paths => paths.map(path => maskOf(shown.entry, +path.dataset.mask)[LABEL])"
    )
    assert visible and set(visible) == {label}
    assert page.locator("#masks .row:not(.off)").count() == len(visible)


def test_orders(page: Page) -> None:
    page.select_option("#show", "masks")
    texts = page.locator(".sure").all_inner_texts()
    unsure = [int(text.split()[0]) if "unsure" in text else 0 for text in texts]
    least = names(page)
    doubts = page.evaluate("view.map(place => sumsOf(entries[place]).doubt)")
    assert sorted(doubts, reverse=True) == doubts and len(set(doubts)) > 1
    page.select_option("#order", "sure")
    assert names(page) == least[::-1]
    page.select_option("#order", "masks")
    counts = page.evaluate("view.map(place => maskCount(entries[place]))")
    assert counts == sorted(counts, reverse=True)
    page.select_option("#order", "few")
    assert page.evaluate("view.map(place => maskCount(entries[place]))") == sorted(counts)
    page.select_option("#order", "name")
    assert names(page) == sorted(names(page))
    page.select_option("#order", "row")
    rows = page.evaluate("view.map(place => entries[place][ROW])")
    assert rows == sorted(rows)
    page.select_option("#show", "unsure")
    assert shown(page) == sum(count > 0 for count in unsure)


def test_a_reload_restores_filters_image_and_mask(page: Page) -> None:
    page.select_option("#label", label=ATTACK)
    page.select_option("#order", "name")
    fill(page, "least", 0.1)
    fill(page, "opacity", 0.3)
    page.locator(".tile").nth(1).click()
    page.locator("#masks .pick").first.click()
    page.keyboard.press("f")
    page.keyboard.press("v")
    before = page.evaluate("({ ...state })")
    assert before["view"] == "side" and before["outlines"] and before["image"] and before["mask"]
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("({ ...state })") == before
    assert page.input_value("#least") == "0.1" and page.locator("#viewer").evaluate("viewer => viewer.open")
    assert page.locator(".mask.selected").get_attribute("data-mask") == before["mask"]
    assert page.locator(".pane").count() == 2


@pytest.mark.parametrize(
    "address", ["label=nothing&least=x&order=&image=99&mask=7", "%%%", "numbers", "mask=3&image=1"]
)
def test_any_address_opens_the_page(browser: Browser, reported: Path, address: str) -> None:
    opened = browser.new_page()
    events: list[str] = []
    opened.on("pageerror", lambda error: events.append(str(error)))
    opened.goto(f"{(reported / 'index.html').as_uri()}#{address}")
    opened.wait_for_selector("html[data-ready]")
    assert events == [] and opened.locator(".tile").count() > 0
    opened.close()


def test_the_keyboard_filters(page: Page) -> None:
    page.locator(".tile").first.focus()
    for key, control in (
        ("l", "label"),
        ("k", "show"),
        ("o", "order"),
        ("d", "decided"),
        ("i", "least"),
        ("/", "name"),
    ):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.id") == control
        page.evaluate("document.activeElement.blur()")
    page.select_option("#show", "masks")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("c")
    assert page.input_value("#show") == "" and shown(page) == 6
    before = page.evaluate("getComputedStyle(document.body).color")
    page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).color") != before
    page.keyboard.press("m")
    assert page.input_value("#opacity") == "0"
    page.keyboard.press("m")
    page.keyboard.press("[")
    assert page.input_value("#opacity") == "0.45"
    page.keyboard.press("]")
    assert page.input_value("#opacity") == "0.55"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible() and page.locator("#help kbd").count() > 30
