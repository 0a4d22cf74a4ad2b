"""Traces and the log in JSON, of real processes: a command within another one's trace, and the service within a caller's."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from moon_ops.lake.ingest import ingest
from moon_ops.release import promotion
from moon_ops.settings import Settings

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
MADE_IN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def told(collector: Any, **more: str) -> dict[str, str]:
    return {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "MOON_LOG": "json", **more}


def test_a_stage_is_a_span_and_a_line_of_the_log_with_the_same_trace(
    copied: Settings, make_shop: Callable[..., Path], now: Any, collector: Any
) -> None:
    ingest(make_shop(items=[{"item_id": 900_001, "title": "red lamp"}]), copied.lake, now=now)
    words = [sys.executable, "-m", "moon_ops.cli", "embed", "--encoder", "1", "--home", str(copied.home)]
    done = subprocess.run(words, env=told(collector, TRACEPARENT=PARENT), capture_output=True, text=True, check=True)
    (span,) = collector.of("moon.embed")
    assert (span["service"], span["trace"], span["parent"]) == ("moon", TRACE, SPAN)
    facts = {"moon.encoder": 1, "moon.items.embedded": 1, "moon.queries.embedded": 0}
    assert {name: span["facts"][name] for name in facts} == facts
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    ended = next(line for line in lines if line["message"] == "embed has ended")
    assert list(ended)[:4] == ["time", "level", "logger", "message"]
    assert (ended["level"], ended["trace_id"], ended["encoder"], ended["items.embedded"]) == ("info", TRACE, 1, 1)
    assert ended["items.contract_id"] == span["facts"]["moon.items.contract_id"]


def test_a_fault_is_one_line_of_json_and_a_failed_span(copied: Settings, collector: Any) -> None:
    words = [sys.executable, "-m", "moon_ops.cli", "embed", "--encoder", "7", "--home", str(copied.home)]
    done = subprocess.run(words, env=told(collector), capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (line["level"], line["logger"]) == ("error", "moon_ops.cli")
    assert "7" in line["message"]
    assert [span["failed"] for span in collector.of("moon.embed")] == [True]


def test_a_request_is_a_span_of_its_callers_trace_and_a_switch_leads_to_what_made_the_release(
    copied: Settings, collector: Any, make_release: Callable[..., int], tmp_path: Path
) -> None:
    promotion.promote(copied, make_release(traceparent=MADE_IN), promotion.Wish("a test", "2026-06-02T03:00:00+00:00", "tried"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = tmp_path / "said"
    words = [sys.executable, "-m", "moon_ops.cli", "serve", "--home", str(copied.home)]
    with said.open("w") as file:
        service = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=file, env=told(collector, MOON_PORT=str(port)))
    try:
        wait_for(lambda: '"now serving' in said.read_text())
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"traceparent": PARENT}, timeout=30) as client:
            wait_for(lambda: answers(client))
            client.post("/v1/search", data={"text": "red lamp"}).raise_for_status()
            client.post("/v1/score", json={"user_id": 1, "item_ids": [1, 2]}).raise_for_status()
        service.send_signal(signal.SIGINT)
        service.wait(30)
    finally:
        service.kill()
    assert not [span["name"] for span in collector.spans if "ready" in span["name"]], "asked every few seconds"
    requests = {span["name"]: span for span in collector.spans if span["parent"] == SPAN}
    assert set(requests) == {"POST /v1/search", "POST /v1/score"}
    within = {span["name"]: span for span in collector.spans if span["parent"] in {request["id"] for request in requests.values()}}
    assert set(within) == {"moon.embed_query", "moon.search", "moon.score"}
    assert {span["service"] for span in collector.spans} == {"moon-serve"}
    assert {span["trace"] for span in within.values()} == {TRACE}
    assert within["moon.score"]["facts"]["moon.items"] == 2
    switch = json.loads(next(line for line in said.read_text().splitlines() if "now serving" in line))
    assert (switch["release"], switch["encoder"], switch["level"]) == (2, 1, "info")
    (served,) = collector.of("moon.serve_release")
    assert switch["trace_id"] == served["trace"]
    assert served["links"] == [MADE_IN.split("-")[1]]


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not what() and time.monotonic() < until:
        time.sleep(0.1)
    assert what()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx.TransportError:
        return False
