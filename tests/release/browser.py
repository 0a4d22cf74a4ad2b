"""MLflow's pages in a real browser, used as whoever is on call uses them."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Page


def look_at(page: Page, server: str, release: int, picture: Path | None = None) -> str:
    """The page of a release: what it says."""
    page.goto(f"{server}/#/models/moon-release/versions/{release}")
    said = page.get_by_test_id("note-editor-preview-content")
    said.get_by_text(f"Release {release}:").wait_for()
    _pictured(page, picture)
    return said.inner_text()


def make_champion(page: Page, server: str, release: int, picture: Path | None = None) -> None:
    """Give a release the alias ``champion``, by the pencil beside its aliases."""
    page.goto(f"{server}/#/models/moon-release/versions/{release}")
    page.get_by_role("heading", name=f"Version {release}").wait_for()
    page.get_by_title(re.compile("^(Add|Edit) aliases$")).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("combobox").press_sequentially("champion")
    dialog.get_by_role("combobox").press("Enter")
    _pictured(page, picture)
    dialog.get_by_role("button", name="Save aliases").click()
    dialog.wait_for(state="hidden")


def list_of_releases(page: Page, server: str, picture: Path | None = None) -> str:
    """The list of releases, with their tags and aliases."""
    page.goto(f"{server}/#/models/moon-release")
    page.get_by_role("link", name="Version 1").wait_for()
    _pictured(page, picture)
    return " ".join(page.get_by_role("main").inner_text().split()).replace(" :", ":")


def read_report(page: Page, server: str, run: tuple[str, str], picture: Path | None = None) -> str:
    """The report of a release where MLflow shows a run's artifacts; ``run`` is its experiment and its id. What it says."""
    page.goto(f"{server}/#/experiments/{run[0]}/runs/{run[1]}/artifacts/report/report.html")
    shown = page.frame_locator("iframe").locator("body")
    shown.get_by_text("Compared with release").first.wait_for()
    _pictured(page, picture)
    return shown.inner_text()


def _pictured(page: Page, picture: Path | None) -> None:
    """A picture of the page as it is seen, without MLflow's assistant beside it."""
    close = page.get_by_role("button", name="Close", exact=True)
    if close.count() == 1 and page.get_by_role("dialog").count() == 0:
        close.click()
    if picture is not None:
        page.wait_for_timeout(500)  # what moves has come to rest
        page.screenshot(path=picture)
