"""Real processes, each with a shard of one index: the answers of one service with all of it, and what is said while one is killed."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from moon_ops.publication import publication
from moon_ops.serving.app import create_app
from moon_ops.settings import Settings

WAIT_SECONDS = 120.0


@contextlib.contextmanager
def serving(settings: Settings, port: int, log: Path, **told: str) -> Iterator[subprocess.Popen[bytes]]:
    """`moon serve` as a process of its own."""
    told = {"MOON_HOME": str(settings.home), "MOON_PORT": str(port), "MOON_WORKERS": "1", "MOON_INDEX_SHARDS": "3", **told}
    with log.open("ab") as out:
        started = subprocess.Popen([sys.executable, "-m", "moon_ops.cli", "serve"], stdout=out, stderr=out, env={**os.environ, **told})
    try:
        yield started
    finally:
        started.kill()
        started.wait(30)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def until(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if found := what():
                return found
        time.sleep(0.1)
    raise AssertionError(f"not within {WAIT_SECONDS:g} seconds")


@pytest.mark.slow
def test_three_processes_are_one_service_until_one_is_killed(copied: Settings, tmp_path: Path, now: dt.datetime) -> None:
    settings = copied.replace(index_shards=3)
    publication.publish(settings, 1, now=now)
    with TestClient(create_app(settings)) as alone:
        wanted = {text: alone.post("/v1/search", data={"text": text, "k": "50"}).json()["items"] for text in ("red mug", "lamp", "vase")}
    ports = free_ports(3)
    named = ",".join(f"{shard}=http://127.0.0.1:{ports[shard]}" for shard in (1, 2))
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(settings, ports[0], tmp_path / "front", MOON_INDEX_SHARD="0", MOON_INDEX_PEERS=named))
        stack.enter_context(serving(settings, ports[1], tmp_path / "one", MOON_INDEX_SHARD="1"))
        doomed = stack.enter_context(serving(settings, ports[2], tmp_path / "two", MOON_INDEX_SHARD="2"))
        front = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}", timeout=30, trust_env=False))
        until(lambda: front.get("/ready").status_code == 200)
        for text, items in wanted.items():
            assert front.post("/v1/search", data={"text": text, "k": "50"}).json()["items"] == items
        doomed.send_signal(signal.SIGKILL)
        doomed.wait(30)
        refused = front.post("/v1/search", data={"text": "lamp"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert f"shard 2 of the index (http://127.0.0.1:{ports[2]}) does not answer" in refused.json()["error"]
        assert front.post("/v1/embed", data={"text": "lamp"}).status_code == 200
        until(lambda: front.get("/ready").json()["status"] == "degraded")
        stack.enter_context(serving(settings, ports[2], tmp_path / "two", MOON_INDEX_SHARD="2"))
        until(lambda: front.post("/v1/search", data={"text": "lamp"}).status_code == 200)
        assert front.post("/v1/search", data={"text": "lamp", "k": "50"}).json()["items"] == wanted["lamp"]
