"""A search shows an item, and its correction, that were taken in while a clock was wrong."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from moon_ops.cli.trial import running
from moon_ops.lake.ingest import ingest
from moon_ops.publication import publication
from moon_ops.release import stages
from moon_ops.settings import Settings

MONTH = dt.timedelta(days=30)


@pytest.mark.parametrize("skew", [MONTH, -MONTH], ids=["ahead", "set back"])
def test_title_and_correction_are_shown(copied: Settings, make_shop: Callable[..., Path], skew: dt.timedelta) -> None:
    """Ahead: the item comes while the clock is wrong. Set back: its correction does."""
    now = dt.datetime.now(dt.UTC)
    first, second = (now + skew, now) if skew > dt.timedelta(0) else (now, now + skew)
    with running(copied) as client:
        for title, when in (("violet zeppelin", first), ("violet airship", second)):
            shop = make_shop(items=[{"item_id": 900_001, "title": title}])
            report = ingest(shop, copied.lake, now=when)
            assert report.items + report.updated == 1
            stages.embed(copied, 1, now=when)
            publication.publish(copied, 1, now=when)
            assert eventually(client, title) == title
            again = ingest(shop, copied.lake, now=when)
            assert (again.updated, again.known) == (0, 1), "the same again is nothing new"


def eventually(client: httpx.Client, title: str) -> object:
    """The title under which the item is shown: the one wanted, or what it is after half a minute; None if it is not found."""
    end = time.monotonic() + 30
    while True:
        hits = client.post("/v1/search", data={"text": title, "k": "20"}).json()["items"]
        shown = next((hit["title"] for hit in hits if hit["item_id"] == 900_001), None)
        if shown == title or time.monotonic() > end:
            return shown
        time.sleep(0.1)
