"""What was acknowledged is there, whenever the service is killed: items, changes of items, withdrawals and events."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from moon_ops.lake import versions
from moon_ops.lake.ingest import ingest
from moon_ops.settings import Settings

TOKEN = {"authorization": "Bearer a-secret"}
WAIT_SECONDS = 120.0
Shop = Callable[..., Path]


class Pushing:
    """Pushes until the service is gone; ``kept`` is what it has acknowledged: the title, price and state of items, and ids of events."""

    def __init__(self, url: str, first: int) -> None:
        self.http = httpx.Client(base_url=url, headers=TOKEN, timeout=30, trust_env=False)
        self.numbers = itertools.count(first)
        self.items: dict[int, tuple[str, float, str]] = {}
        self.events: set[str] = set()
        self.acknowledged = threading.Event()

    def run(self) -> None:
        with contextlib.suppress(httpx.TransportError):
            for number in self.numbers:
                item = {"item_id": number, "title": f"item {number}", "price": 1.0}
                self._sent("POST", "/v1/items", {"items": [item]})
                self.items[number] = (f"item {number}", 1.0, "active")
                click = {"timestamp": "2026-06-02T12:00:00Z", "item_id": number, "event": "click", "user_id": 1, "event_id": f"e-{number}"}
                self._sent("POST", "/v1/events", {"events": [click]})
                self.events.add(f"e-{number}")
                self._sent("PATCH", f"/v1/items/{number}", {"price": 2.0})
                self.items[number] = (f"item {number}", 2.0, "active")
                if number % 2:
                    self._sent("DELETE", f"/v1/items/{number}", None)
                    self.items[number] = (f"item {number}", 2.0, "deleted")

    def _sent(self, method: str, path: str, body: Any) -> None:
        answer = self.http.request(method, path, json=body)
        while answer.status_code in (429, 503, 504):  # a slow machine: not acknowledged, so sent again
            time.sleep(0.2)
            answer = self.http.request(method, path, json=body)
        assert answer.status_code in (200, 202), answer.text
        self.acknowledged.set()


@contextlib.contextmanager
def serving(settings: Settings, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`moon serve` as a process of its own, with its routes loaded."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    told = {"MOON_HOME": str(settings.home), "MOON_ITEMS_TOKEN": "a-secret", "MOON_PORT": str(port), "MOON_WORKERS": "1"}
    with log.open("ab") as out:
        started = subprocess.Popen([sys.executable, "-m", "moon_ops.cli", "serve"], stdout=out, stderr=out, env={**os.environ, **told})
    try:
        end, url = time.monotonic() + WAIT_SECONDS, f"http://127.0.0.1:{port}"
        while time.monotonic() < end:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{url}/metrics", trust_env=False).raise_for_status()
                break
            assert started.poll() is None, log.read_text()
            time.sleep(0.1)
        yield started, url
    finally:
        started.kill()
        started.wait(30)


@pytest.fixture
def home(make_shop: Shop, tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path / "home", workers=1)
    ingest(make_shop(items=[{"item_id": 1, "title": "mug"}]), settings.lake, now=dt.datetime.now(dt.UTC))
    return settings


@pytest.mark.slow
@pytest.mark.parametrize("moments", [2, pytest.param(20, marks=pytest.mark.large)])
def test_nothing_that_was_acknowledged_is_lost(home: Settings, tmp_path: Path, moments: int) -> None:
    draw = random.Random(17)
    for moment in range(moments):
        with serving(home, tmp_path / "log") as (service, url):
            pushing = Pushing(url, 1000 * (moment + 1))
            thread = threading.Thread(target=pushing.run)
            thread.start()
            assert pushing.acknowledged.wait(WAIT_SECONDS), (tmp_path / "log").read_text()
            time.sleep(draw.uniform(0, 3) if moment else 0)  # the first one at the very moment
            service.send_signal(signal.SIGKILL)
            thread.join(WAIT_SECONDS)
        assert pushing.items
        require_kept(home, pushing)


def require_kept(home: Settings, pushing: Pushing) -> None:
    """Items as they were acknowledged, or as what was being sent when the service was killed would have them; no event lost."""
    rows = versions.current(home.lake, ["title", "price", "status"]).to_pylist()
    there = {row["item_id"]: (row["title"], row["price"], row["status"]) for row in rows}
    last = max(pushing.items)
    for number, told in pushing.items.items():
        steps = [(told[0], 1.0, "active"), (told[0], 2.0, "active"), (told[0], 2.0, "deleted")]
        later = steps[steps.index(told) : steps.index(told) + 2] if number == last else [told]
        assert there[number] in later, f"item {number}: {there[number]} instead of {told}"
    kept = home.lake.read("events", ["event_id"])["event_id"].to_pylist() if pushing.events else []
    assert pushing.events <= set(kept)
    assert len(kept) == len(set(kept))
