"""Politeness to hosts, and the record of addresses, against a real server on the loopback interface."""

from __future__ import annotations

import datetime as dt
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from coat_and_hat import DAY, NOW, Shop, current, set_aside
from PIL import Image

from moon_ops.inputs import images
from moon_ops.lake import fetch, fetches, hosts
from moon_ops.lake.fetch import FetchError
from moon_ops.lake.hosts import Hosts
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake

MINUTE, HOUR = dt.timedelta(minutes=1), dt.timedelta(hours=1)
MODIFIED = "Mon, 01 Jun 2026 00:00:00 GMT"


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return file.getvalue()


class Site(ThreadingHTTPServer):
    """A picture at ``/a.png`` with an ETag; what it answers, and what it was asked, are its attributes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.asked: list[dict[str, str]] = []  # headers, and the path
        self.picture, self.etag = png("red"), '"1"'
        self.headers: dict[str, str] = {}  # that an answer has beside
        self.answers: list[tuple[int, dict[str, str]]] = []  # status and headers of the next ones, before it is well again
        self.inside, self.most, self.slow = 0, 0, 0.0  # requests at a time

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Page(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None: ...

    def do_GET(self) -> None:
        site = self.server
        site.asked.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
        site.inside += 1
        site.most = max(site.most, site.inside)
        time.sleep(site.slow)
        site.inside -= 1
        if site.answers:
            status, headers = site.answers.pop(0)
            self.reply(status, b"busy", headers)
        elif self.headers["if-none-match"] == site.etag or self.headers["if-modified-since"] == MODIFIED:
            self.reply(304, b"", site.headers)
        else:
            self.reply(200, site.picture, {"etag": site.etag} | site.headers if site.etag else site.headers)

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(fetch, "is_public", lambda ip: True)
    monkeypatch.setattr(hosts, "PAUSE_SECONDS", 0.0)
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def shop(site: Site, make_shop: Shop) -> Path:
    """A hat whose picture lies at the site."""
    return make_shop(items=[{"item_id": 1, "title": "Hat", "images": f"{site.address}/a.png"}])


def record(lake: Lake) -> dict[str, Any]:
    [row] = lake.read("fetches").to_pylist()
    return row


def test_we_say_who_we_are(site: Site) -> None:
    with Hosts() as polite:
        polite.fetch(f"{site.address}/a.png", max_bytes=10_000)
    assert site.asked[0]["user-agent"].startswith("moon_ops/0")
    assert site.asked[0]["host"] == f"127.0.0.1:{site.server_port}"


def test_a_host_gets_few_requests_at_a_time(site: Site) -> None:
    site.slow = 0.05
    with Hosts() as polite, ThreadPoolExecutor(12) as pool:
        made = list(pool.map(lambda n: polite.fetch(f"{site.address}/{n}.png", max_bytes=10_000), range(12)))
    assert [one.content for one in made] == [site.picture] * 12
    assert 2 <= site.most <= hosts.PER_HOST


@pytest.mark.parametrize("status", [429, 503, 500])
def test_a_busy_host_is_asked_again(site: Site, status: int) -> None:
    site.answers = [(status, {})] * 2
    with Hosts() as polite:
        assert polite.fetch(f"{site.address}/a.png", max_bytes=10_000).content == site.picture
    assert len(site.asked) == 3


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_an_answer_that_stays_is_not_asked_for_again(site: Site, status: int) -> None:
    site.answers = [(status, {"retry-after": "0"})]
    with Hosts() as polite, pytest.raises(FetchError, match=str(status)):
        polite.fetch(f"{site.address}/a.png", max_bytes=10_000)
    assert len(site.asked) == 1


@pytest.mark.parametrize("wanted", ["1", "Mon, 01 Jun 2026 12:00:01 GMT"])
def test_a_pause_that_a_host_wants_is_made(site: Site, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time is meant by the host's own clock, which BaseHTTPRequestHandler writes as ours: it is set here."""
    monkeypatch.setattr(BaseHTTPRequestHandler, "date_time_string", lambda *_: "Mon, 01 Jun 2026 12:00:00 GMT")
    site.answers = [(429, {"retry-after": wanted})]
    began = time.monotonic()
    with Hosts() as polite:
        assert polite.fetch(f"{site.address}/a.png", max_bytes=10_000).content == site.picture
    assert 0.9 < time.monotonic() - began < 5


def test_a_host_that_wants_a_long_pause_is_left_alone(site: Site, make_shop: Shop, empty: Lake) -> None:
    """By all of the run, and by those after it until the pause is over."""
    shop = make_shop(items=[{"item_id": n, "title": "Hat", "images": f"{site.address}/{n}.png"} for n in range(9)])
    site.answers = [(503, {"retry-after": "7200"})] * 9
    ingest(shop, empty, now=NOW, workers=1)
    assert len(site.asked) == 1
    reasons = [why for *_, why in set_aside(empty)]
    assert len(reasons) == 9
    assert sum("503 Service Unavailable" in why for why in reasons) == 1
    assert sum("was not fetched: its host wants to be left alone for 7,200 seconds" in why for why in reasons) == 8
    rows = empty.read("fetches").to_pylist()
    assert [row["tries"] for row in rows] == [1] * 9
    assert all(2 * HOUR - MINUTE < row["next_try"] - NOW <= 2 * HOUR for row in rows)
    site.answers = []
    ingest(shop, empty, now=NOW + HOUR, workers=1)
    assert len(site.asked) == 1
    assert ingest(shop, empty, now=NOW + 2 * HOUR, workers=1).images == 1
    assert len(site.asked) == 10


def test_a_host_that_is_down_is_not_asked_for_a_whole_catalogue(site: Site) -> None:
    site.answers = [(500, {})] * 1000
    with Hosts() as polite:
        for n in range(20):
            with pytest.raises(FetchError, match=r"500 Internal|was not fetched: its host failed for 5 pictures in a row"):
                polite.fetch(f"{site.address}/{n}.png", max_bytes=10_000)
    assert len(site.asked) == hosts.GIVE_UP * hosts.TRIES


def test_a_picture_that_announces_too_many_bytes_is_not_read(site: Site) -> None:
    with Hosts() as polite, pytest.raises(FetchError, match="is larger than 10 bytes"):
        polite.fetch(f"{site.address}/a.png", max_bytes=10)


def test_a_picture_is_not_fetched_again_and_then_only_if_it_has_changed(site: Site, shop: Path, empty: Lake) -> None:
    assert ingest(shop, empty, now=NOW).images == 1
    name = images.image_id(site.picture)
    assert record(empty) == {
        **{"address": f"{site.address}/a.png", "image_id": name, "etag": '"1"', "last_modified": None, "fetched_at": NOW},
        **{"fresh_until": NOW + HOUR, "failed_at": None, "reason": None, "tries": 0, "next_try": None, "created": NOW},
    }
    ingest(shop, empty, now=NOW + HOUR - MINUTE)
    assert len(site.asked) == 1
    report = ingest(shop, empty, now=NOW + HOUR)
    assert [asked.get("if-none-match") for asked in site.asked] == [None, '"1"']
    assert (report.images, report.updated, report.refused, report.unread) == (0, 0, {}, {})
    assert (record(empty)["fetched_at"], record(empty)["etag"]) == (NOW + HOUR, '"1"')
    site.picture, site.etag = png("blue"), '"2"'
    report = ingest(shop, empty, now=NOW + DAY)
    assert (report.images, report.updated) == (1, 1)
    assert current(empty, "image_ids", when=NOW + DAY) == [([images.image_id(site.picture)],)]
    assert record(empty)["etag"] == '"2"'


def test_a_date_does_where_there_is_no_etag(site: Site, shop: Path, empty: Lake) -> None:
    site.etag, site.headers = "", {"last-modified": MODIFIED}
    for hours in (0, 2, 4):
        ingest(shop, empty, now=NOW + hours * HOUR)
    assert [asked.get("if-modified-since") for asked in site.asked] == [None, MODIFIED, MODIFIED]


@pytest.mark.parametrize(
    ("headers", "held"),
    [
        ({"cache-control": "public, max-age=600"}, 10 * MINUTE),
        ({"cache-control": "max-age=600", "age": "300"}, 5 * MINUTE),
        ({"cache-control": "max-age=31536000, immutable"}, DAY),
        ({"cache-control": "no-cache"}, dt.timedelta(0)),
        ({"cache-control": "no-store, max-age=600"}, dt.timedelta(0)),
        ({"expires": "0"}, HOUR),
        ({}, HOUR),
    ],
)
def test_an_answer_holds_as_long_as_its_host_says_but_no_longer_than_a_day(
    site: Site, shop: Path, empty: Lake, headers: dict[str, str], held: dt.timedelta
) -> None:
    site.headers = headers
    ingest(shop, empty, now=NOW)
    assert record(empty)["fresh_until"] - NOW == held


def test_what_failed_is_remembered_with_reason_and_next_try(site: Site, shop: Path, empty: Lake) -> None:
    ingest(shop, empty, now=NOW)
    site.answers = [(404, {})] * 3
    for when, wait, tries in ((NOW + DAY, 10, 1), (NOW + DAY + HOUR, 20, 2), (NOW + DAY + 2 * HOUR, 40, 3)):
        assert ingest(shop, empty, now=when).unread == {"items.jsonl images": 1}
        row = record(empty)
        assert (row["tries"], row["next_try"], row["failed_at"]) == (tries, when + wait * MINUTE, when)
        assert row["reason"].endswith("/a.png could not be fetched (404 Not Found)")
    assert len(site.asked) == 4
    ingest(shop, empty, now=when + 39 * MINUTE)
    assert len(site.asked) == 4
    assert set_aside(empty)[-1][2].endswith(
        "could not be fetched (404 Not Found) (asked 2026-06-02 02:00Z, and again after 2026-06-02 02:40Z)"
    )
    assert current(empty, "image_ids", when=when + HOUR) == [([images.image_id(site.picture)],)]  # it keeps the picture that it had
    assert ingest(shop, empty, now=when + HOUR).unread == {}
    assert (record(empty)["tries"], record(empty)["reason"], record(empty)["next_try"]) == (0, None, None)
    assert site.asked[-1]["if-none-match"] == '"1"'


def test_what_is_no_picture_is_remembered_too(
    site: Site, shop: Path, empty: Lake, make_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "is_public", lambda ip: ip == "127.0.0.1")
    make_shop(items=[{"item_id": 1, "title": "Hat", "images": f"{site.address}/a.png|http://10.0.0.1/b.png"}])
    site.picture = b"<html>please log in</html>"
    ingest(shop, empty, now=NOW)
    assert "it is not a JPEG" in record(empty)["reason"]  # and of the address inside, which nobody was asked for, nothing
    ingest(shop, empty, now=NOW + MINUTE)
    assert len(site.asked) == 1


def test_a_picture_that_the_lake_has_lost_is_fetched_whole(site: Site, shop: Path, empty: Lake) -> None:
    ingest(shop, empty, now=NOW)
    empty.open("images").delete("true")
    assert ingest(shop, empty, now=NOW + MINUTE).images == 1
    assert "if-none-match" not in site.asked[-1]


def test_a_record_of_a_clock_that_was_ahead_holds_nothing_up(site: Site, shop: Path, empty: Lake) -> None:
    site.answers = [(404, {})]
    ingest(shop, empty, now=NOW + 300 * DAY)
    assert ingest(shop, empty, now=NOW).images == 1


def test_waits_grow_to_a_day() -> None:
    known = fetches.Fetch("a")
    waits = []
    for _ in range(12):
        known = known.failed("down", NOW)
        assert known.next_try is not None
        waits.append((known.next_try - NOW) // MINUTE)
    assert waits == [10, 20, 40, 80, 160, 320, 640, 1280, 1440, 1440, 1440, 1440]
