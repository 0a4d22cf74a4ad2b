"""The drop zone: each directory is taken in once, by its content; a broken one is told once and holds up no other."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from moon_ops.errors import InputError
from moon_ops.lake import drops
from moon_ops.lake.lake import Lake

HOUR = dt.timedelta(hours=1)
LAMP = {"item_id": 1, "title": "lamp"}


@pytest.fixture
def zone(tmp_path: Path) -> tuple[Lake, Path]:
    (tmp_path / "zone").mkdir()
    return Lake(str(tmp_path / "lake")), tmp_path / "zone"


def taken(lake: Lake, inbox: Path, now: dt.datetime) -> list[str]:
    """What waited; noted as taken in."""
    found = drops.waiting(lake, inbox, now)
    for drop in found:
        drops.note(lake, drop, now)
    return [drop.name for drop in found]


def test_directories_come_in_order_of_names_and_once(zone: tuple[Lake, Path], make_shop: Any, now: dt.datetime) -> None:
    lake, inbox = zone
    for name in ("2026-06-02", "2026-06-01", ".uploading"):
        make_shop(f"zone/{name}", items=[LAMP])
    assert taken(lake, inbox, now) == ["2026-06-01", "2026-06-02"]
    assert taken(lake, inbox, now + HOUR) == []
    make_shop("zone/2026-06-03", items=[LAMP])
    assert taken(lake, inbox, now + HOUR) == ["2026-06-03"]


def test_the_zone_itself_may_be_the_directory(zone: tuple[Lake, Path], make_shop: Any, now: dt.datetime) -> None:
    lake, inbox = zone
    make_shop("zone", items=[LAMP])
    assert taken(lake, inbox, now) == ["."]
    assert taken(lake, inbox, now) == []


def test_what_is_written_to_is_another_one(zone: tuple[Lake, Path], make_shop: Any, now: dt.datetime) -> None:
    lake, inbox = zone
    place = make_shop("zone/a", items=[LAMP], pictures={"a.png": "red"})
    assert taken(lake, inbox, now) == ["a"]
    os.utime(place / "a.png", ns=(1, 1))
    assert taken(lake, inbox, now) == ["a"]
    (place / "events.jsonl").write_text("")
    assert taken(lake, inbox, now) == ["a"]
    moved = inbox / "b"
    shutil.move(place, moved)
    assert taken(lake, inbox, now) == ["b"]
    assert [drop.name for drop in drops.waiting(lake, inbox, now, again=True)] == ["b"]


def test_a_file_that_arrives_while_it_is_read_is_read_the_next_time(zone: tuple[Lake, Path], make_shop: Any, now: dt.datetime) -> None:
    lake, inbox = zone
    place = make_shop("zone/a", items=[LAMP])
    (drop,) = drops.waiting(lake, inbox, now)
    (place / "events.jsonl").write_text("")
    drops.note(lake, drop, now)
    assert taken(lake, inbox, now) == ["a"]


def test_a_zone_that_is_not_there_is_an_error(zone: tuple[Lake, Path], now: dt.datetime) -> None:
    lake, inbox = zone
    with pytest.raises(InputError, match=r"MOON_INBOX = .*nowhere is no directory, so nothing was taken in → make it"):
        drops.waiting(lake, inbox / "nowhere", now)


def test_a_broken_directory_is_told_once_and_holds_up_no_other(
    zone: tuple[Lake, Path], make_shop: Any, now: dt.datetime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from moon_ops import tasks

    lake, inbox = zone
    monkeypatch.setenv("MOON_HOME", str(inbox.parent / "home"))
    monkeypatch.setenv("MOON_LAKE", lake.uri)
    monkeypatch.setenv("MOON_INBOX", str(inbox))
    (inbox / "1-broken").mkdir()
    (inbox / "1-broken" / "items.csv").write_text("name,price\nlamp,3\n")
    make_shop("zone/2-whole", items=[LAMP, {"item_id": 2}])
    with pytest.raises(
        InputError, match=r"a directory in MOON_INBOX was not taken in: .*1-broken.* → mend it; it is tried again when it changes"
    ):
        tasks.ingest_inbox(now.isoformat())
    assert lake.count("items") == 1
    assert caplog.text.count("MOON_INBOX/2-whole: 1 row was set aside (1 x items.jsonl title); the first: ") == 1
    assert tasks.ingest_inbox((now + HOUR).isoformat()) == {"directories": 0, "changed": 0, "refused": 0}
    assert caplog.text.count("MOON_INBOX/2-whole: 1 row was set aside (1 x items.jsonl title); the first: ") == 1
    (inbox / "1-broken" / "items.csv").write_text("item_id,title\n3,another lamp\n")
    assert tasks.ingest_inbox((now + 2 * HOUR).isoformat()) == {"directories": 1, "changed": 1, "refused": 0}
