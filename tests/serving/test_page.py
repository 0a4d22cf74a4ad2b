"""The visual search page in a real browser: with a mouse, with the keyboard alone, on a phone, in the dark, and read by a screen reader."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from moon_ops.cli.trial import running
from moon_ops.lake.tables import image_bytes
from moon_ops.registry.registry import CANDIDATE, Registry
from moon_ops.settings import Settings

chromium = pytest.importorskip("chromium", reason="playwright is not installed", exc_type=ImportError)
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = pytest.mark.skipif(chromium.CHROMIUM is None, reason="chromium is not installed")

PHONE = {"width": 390, "height": 844}
GIVE = """([kind, content]) => {
  const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], "given.png", {type: "image/png"}));
  const event = kind === "paste" ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true})
    : new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
  document.body.dispatchEvent(event);
}"""

NOTE = """() => {
  window.sent = [];
  const ask = window.fetch;
  window.fetch = (path, options) => {
    if (options?.body?.get?.("image")) window.sent.push(options.body.get("image"));
    return ask(path, options);
  };
}"""
SENT = """async () => Promise.all(window.sent.map(async file => {
  const picture = await createImageBitmap(file);
  return [file.type, picture.width, picture.height];
}))"""


@pytest.fixture(scope="module")
def service(released: Settings, moved: Callable[[Any, Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = moved(released, tmp_path_factory.mktemp("page") / "home")
    Registry(home).point(CANDIDATE, 1)
    with running(home) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture(scope="module")
def picture(released: Settings) -> bytes:
    item = next(iter(released.lake.read("items", ["image_ids"]).to_pylist()))
    ((_, content),) = image_bytes(released.lake, item["image_ids"][:1])
    made = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").resize((240, 240)).save(made, "PNG")
    return made.getvalue()


@pytest.fixture
def page(service: str) -> Iterator[Any]:
    """The page, opened; nothing may have been asked of anybody else, and no script may have failed."""
    with chromium.opened() as opened:
        asked, faults = list[str](), list[str]()
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("pageerror", lambda fault: faults.append(str(fault)))
        opened.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        opened.goto(service)
        opened.get_by_text("is served").wait_for()
        yield opened
        assert not faults
        assert not [url for url in asked if not url.startswith((service, "blob:", "data:"))]


def cards(page: Any) -> Any:
    return page.locator(".card")


def said(page: Any, text: str) -> None:
    page.locator("#say").get_by_text(text).wait_for()


def test_words_similar_items_and_the_way_back(page: Any) -> None:
    page.get_by_label("Words").fill("lamp")
    page.keyboard.press("Enter")
    said(page, "items, by release 1")
    first = cards(page).first.inner_text()
    assert "similarity" in first
    assert page.locator(".card img").first.evaluate("async image => { await image.decode(); return image.naturalWidth; }") > 0
    cards(page).nth(1).click()
    said(page, "Similar to")
    assert "#similar-" in page.url
    page.go_back()
    said(page, "items, by release 1")
    assert cards(page).first.inner_text() == first


def test_nothing_asked_is_said_and_a_price_that_nothing_has(page: Any) -> None:
    page.get_by_role("button", name="Search", exact=True).click()
    said(page, "Choose a picture or write some words first.")
    page.get_by_text("Filters").click()
    page.get_by_label("Price from").fill("1e9")
    page.get_by_label("Words").fill("lamp")
    page.keyboard.press("Enter")
    said(page, "Nothing was found: try fewer filters.")


def test_a_picture_and_the_part_that_is_meant_by_keyboard(page: Any, picture: bytes, tmp_path: Path) -> None:
    (tmp_path / "lamp.png").write_bytes(picture)
    page.evaluate(NOTE)
    page.get_by_label("Choose a picture").set_input_files(tmp_path / "lamp.png")
    said(page, "items, by release 1")
    box = page.get_by_role("group", name="The part that is searched for")
    box.focus()
    for _ in range(20):
        page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("ArrowRight")
    assert box.evaluate("e => [e.style.left, e.style.width]") == ["2%", "60%"]
    with page.expect_response("**/v1/search"):
        page.get_by_role("button", name="Search", exact=True).click()
    assert page.evaluate(SENT) == [["image/png", 240, 240], ["image/jpeg", 144, 240]]
    said(page, "items, by release 1")
    page.get_by_role("button", name="Remove the picture").click()
    assert page.get_by_text("Drop a picture here").is_visible()


def test_a_part_drawn_with_the_mouse_is_searched_at_once(page: Any, picture: bytes, tmp_path: Path) -> None:
    (tmp_path / "lamp.png").write_bytes(picture)
    page.get_by_label("Choose a picture").set_input_files(tmp_path / "lamp.png")
    said(page, "items, by release 1")
    place = page.locator("#frame").bounding_box()
    with page.expect_request("**/v1/search"):
        page.mouse.move(place["x"] + 0.25 * place["width"], place["y"] + 0.25 * place["height"])
        page.mouse.down()
        page.mouse.move(place["x"] + 0.75 * place["width"], place["y"] + 0.75 * place["height"], steps=4)
        page.mouse.up()
    shares = page.locator("#box").evaluate("e => ['left', 'top', 'width', 'height'].map(name => parseFloat(e.style[name]))")
    assert shares == pytest.approx([25, 25, 50, 50], abs=1.5)


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_picture_that_is_pasted_or_dropped(page: Any, picture: bytes, kind: str) -> None:
    page.evaluate(GIVE, [kind, base64.b64encode(picture).decode()])
    said(page, "items, by release 1")
    assert cards(page).count() > 0


def test_the_candidate_beside_the_champion(page: Any) -> None:
    page.get_by_text("Filters").click()
    page.get_by_label("Beside the candidate").check()
    page.get_by_label("Words").fill("lamp")
    page.keyboard.press("Enter")
    said(page, "items, by release 1")
    assert [heading.inner_text() for heading in page.locator(".column h2").all()] == ["Release 1, champion", "Release 1, candidate"]
    first, second = (column.locator(".card").all_inner_texts() for column in page.locator(".column").all())
    assert first == second


def test_the_operations_tab_by_keyboard(page: Any) -> None:
    page.get_by_label("Words").fill("lamp")
    page.keyboard.press("Enter")
    said(page, "items, by release 1")
    page.get_by_role("tab", name="Search").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("The service is ready.").wait_for()
    assert page.get_by_role("tab", name="Operations").get_attribute("aria-selected") == "true"
    assert "encoder 1" in page.locator("#facts").inner_text()
    page.get_by_role("row", name="/v1/search").wait_for()
    assert "release 1 promoted" in page.locator("#moves").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [chromium.SIZE, PHONE], ids=["desk", "phone"])
def test_everybody_can_use_it(page: Any, picture: bytes, scheme: str, size: dict[str, int]) -> None:
    """No rule of axe is broken, and a phone need not scroll sideways, with results and with the operators' tab open."""
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=scheme)
    page.evaluate(GIVE, ["paste", base64.b64encode(picture).decode()])
    said(page, "items, by release 1")
    for tab in ("Search", "Operations"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
