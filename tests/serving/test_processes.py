"""A service of several processes: real ones, on one port, by `moon serve`."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import io
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry, Counter

from moon_ops.errors import StageError
from moon_ops.serving import keys, opening
from moon_ops.serving.exposition import together
from moon_ops.serving.processes import Mates, supervise
from moon_ops.settings import Settings

WAIT_SECONDS = 120.0
Served = tuple[subprocess.Popen[bytes], str, Path]
KEY = {"authorization": "Bearer a-secret"}


@pytest.fixture
def served(copied: Settings, tmp_path: Path) -> Iterator[Served]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    told = {
        "MOON_HOME": str(copied.home),
        "MOON_PORT": str(port),
        "MOON_PROCESSES": "2",
        "MOON_WORKERS": "2",
        "MOON_ITEMS_TOKEN": "a-secret",
    }
    with (tmp_path / "log").open("wb") as log:
        service = subprocess.Popen([sys.executable, "-m", "moon_ops.cli", "serve"], stdout=log, stderr=log, env={**os.environ, **told})
    try:
        yield service, f"http://127.0.0.1:{port}", copied.home
    finally:
        service.terminate()
        service.wait(60)


def asked(url: str, **fields: Any) -> httpx.Response:
    """An answer over a connection of its own, which either process may get."""
    return httpx.request(fields.pop("method", "GET"), url, trust_env=False, timeout=30, **fields)


def until(what: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if found := what():
                return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:g} seconds")


def figures(url: str, name: str) -> dict[str, float]:
    """A gauge of each process."""
    lines = re.findall(rf'^{name}{{process="(\d)"}} (\S+)$', asked(f"{url}/metrics").text, re.MULTILINE)
    return {process: float(value) for process, value in lines}


def searches(url: str) -> dict[str, float]:
    """How many each process has answered."""
    lines = re.findall(r'^moon_requests_total{.*process="(\d)".*route="/v1/search"} (\S+)$', asked(f"{url}/metrics").text, re.MULTILINE)
    return {process: float(value) for process, value in lines}


def both_serve(url: str) -> bool:
    return figures(url, "moon_release_served") == {"0": 1.0, "1": 1.0}


def children(process: int) -> set[int]:
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return {int(one) for one in listed if "spawn_main" in Path(f"/proc/{one}/cmdline").read_text()}


def picture() -> str:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


@pytest.mark.parametrize(("whole", "count", "shares"), [(24, 2, [12, 12]), (24, 5, [5, 5, 5, 5, 4]), (1, 3, [1, 1, 1]), (10, 1, [10])])
def test_what_a_service_may_do_is_dealt_out_among_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int, count: int, shares: list[int]
) -> None:
    had = list[tuple[int, int]]()
    monkeypatch.setattr(opening, "run", lambda settings, *_: had.append((settings.workers, settings.queue)))
    for own in range(count):
        opening._entered(None, Settings(home=tmp_path, workers=whole, queue=whole), None, [], Mates(tmp_path, own, count, "x"))
    assert had == [(share, share) for share in shares]


@pytest.mark.slow
def test_two_processes_are_one_service(served: Served) -> None:
    service, url, home = served
    until(lambda: both_serve(url))
    answers = [asked(f"{url}/v1/search", method="POST", data={"text": "red mug"}).json() for _ in range(40)]
    assert all(answer == answers[0] for answer in answers)
    until(lambda: set(searches(url)) == {"0", "1"} and sum(searches(url).values()) == 40)
    routes = asked(f"{url}/admin/operations").json()["routes"]
    assert next(row["requests"] for row in routes if row["route"] == "/v1/search") == 40

    pushed = {"items": [{"item_id": 987_654_321, "title": "a red square", "images": [picture()]}]}
    assert asked(f"{url}/v1/items", method="POST", headers=KEY, json=pushed).status_code == 202
    until(lambda: all(found_first(url) for _ in range(12)))  # whichever is asked

    key = {"authorization": f"Bearer {admin_key(home)}"}
    for path, status in (("drain", 503), ("resume", 200)):
        assert asked(f"{url}/admin/{path}", method="POST", headers=key).status_code == 200
        assert {asked(f"{url}/ready").status_code for _ in range(16)} == {status}

    ended = kill_one(service.pid)
    assert asked(f"{url}/health").status_code == 200
    until(lambda: len(children(service.pid) - ended) == 2 and both_serve(url))
    service.send_signal(signal.SIGTERM)
    mine = children(service.pid)
    assert service.wait(60) == 0
    assert not [one for one in mine if Path(f"/proc/{one}").exists()]


def found_first(url: str) -> bool:
    answer = asked(f"{url}/v1/search", method="POST", files={"image": base64.b64decode(picture())}, data={"text": "a red square"})
    return bool(answer.json()["items"][0]["item_id"] == 987_654_321)


def kill_one(parent: int) -> set[int]:
    """Kill one of its processes, and wait until its sockets are closed: until then it is dealt connections that nobody will answer."""
    one = min(children(parent))
    watched = os.pidfd_open(one)
    try:
        os.kill(one, signal.SIGKILL)
        assert select.select([watched], [], [], WAIT_SECONDS)[0], "it has not ended"
    finally:
        os.close(watched)
    return {one}


def admin_key(home: Path) -> str:
    return keys.create(home / "keys.json", "on call", ["admin"], per_second=100, now=dt.datetime.now(dt.UTC))[1]


@pytest.mark.slow
def test_processes_end_with_the_one_that_began_them(served: Served) -> None:
    service, url, _ = served
    until(lambda: both_serve(url))
    mine = children(service.pid)
    service.kill()
    until(lambda: not [one for one in mine if Path(f"/proc/{one}/cmdline").exists() and Path(f"/proc/{one}/cmdline").read_text()])


def refused(_: Sequence[socket.socket], mates: Mates) -> None:
    if mates.own == 1:
        raise StageError("there is no release 7", action="look at `moon releases`")
    threading.Event().wait(WAIT_SECONDS)


def test_what_a_process_cannot_do_ends_the_service_with_its_words() -> None:
    with pytest.raises(StageError, match="there is no release 7"):
        supervise(refused, ("127.0.0.1", 0), 2)


def test_figures_of_several_processes_are_told_apart() -> None:
    told = []
    for number in (1, 0):
        counter = Counter("moon_asked", "Asked.", ["route"], registry=(registry := CollectorRegistry()))
        counter.labels("/v1/search").inc(number + 1)
        told.append((number, registry.collect()))
    (family,) = [one for one in together(told) if one.name == "moon_asked"]
    totals = [(one.labels, one.value) for one in family.samples if one.name == "moon_asked_total"]
    assert totals == [({"route": "/v1/search", "process": "0"}, 1.0), ({"route": "/v1/search", "process": "1"}, 2.0)]


def test_only_who_knows_the_token_is_a_mate(tmp_path: Path) -> None:
    mates = Mates(tmp_path, 0, 2, "the-token")
    assert mates.is_mate([(b"host", b"x"), (b"authorization", b"Bearer the-token")])
    assert not mates.is_mate([(b"authorization", b"Bearer another")])
    assert not mates.is_mate([])
    assert mates.ask("GET", "/metrics") == {}  # nobody is there
    assert "the-token" not in repr(mates)
