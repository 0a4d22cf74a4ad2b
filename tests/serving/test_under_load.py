"""Many requests at once, on the released shop: health beside them, too many of them, and a release that changes meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from moon_ops.registry.registry import CHAMPION, Registry
from moon_ops.serving.app import create_app
from moon_ops.serving.routes import search
from moon_ops.settings import Settings

COUNTED = ("moon_queue_seconds_count", "moon_batch_size_sum")


def test_health_does_not_wait_for_searches_and_one_too_many_is_told_so(copied: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It used to share forty threads with them: a burst failed the liveness probe, and the service was restarted in the midst of it."""
    go, found = threading.Event(), search.found

    def slow(*given: Any, **named: Any) -> dict[str, Any]:
        assert go.wait(60)
        return found(*given, **named)

    monkeypatch.setattr(search, "found", slow)
    app = create_app(copied.replace(queue=50))
    with TestClient(app) as client, ThreadPoolExecutor(60) as pool:
        asked = [pool.submit(client.post, "/v1/search", data={"text": f"mug {n}"}) for n in range(60)]
        end = time.monotonic() + 30
        while app.state.limits.refused["full"] < 10 and time.monotonic() < end:
            time.sleep(0.05)
        for path in ("/health", "/ready", "/metrics"):
            began = time.monotonic()
            assert client.get(path).status_code == 200
            assert time.monotonic() - began < 5, "it would be sixty"
        metrics = client.get("/metrics").text
        assert 'moon_requests_working{kind="query"} 50.0' in metrics
        assert 'moon_requests_refused_total{reason="full"} 10.0' in metrics
        assert "moon_queue_depth 0.0" in metrics
        go.set()
        statuses = sorted(one.result().status_code for one in asked)
        assert statuses == [200] * 50 + [429] * 10
        metrics = client.get("/metrics").text
        figures = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith(COUNTED))
        assert figures == {"moon_queue_seconds_count": "50.0", "moon_batch_size_sum": "50.0"}


def test_a_release_that_changes_under_load_fails_no_request(copied: Settings, make_release: Callable[..., int]) -> None:
    second, stop = make_release(), threading.Event()
    app = create_app(copied)
    with TestClient(app) as client, ThreadPoolExecutor(4) as pool:

        def asking(number: int) -> list[tuple[int, int]]:
            seen = []
            while not stop.is_set():
                answer = client.post("/v1/search", data={"text": f"red lamp {number}", "k": "3"})
                seen.append((answer.status_code, answer.json().get("release")))
            return seen

        running = [pool.submit(asking, number) for number in range(4)]
        time.sleep(0.5)
        Registry(copied).point(CHAMPION, second)
        app.state.follower.wake()
        end = time.monotonic() + 60
        while client.get("/ready").json()["release"] != second and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.5)
        stop.set()
        seen = [one for answers in running for one in answers.result()]
    assert {status for status, _ in seen} == {200}
    assert {release for _, release in seen} == {1, second}


def test_answers_of_many_at_once_are_those_of_one_at_a_time(copied: Settings) -> None:
    words = [f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in ("lamp", "mug", "dress", "chair")]

    def vector(text: str) -> list[float]:
        found: list[float] = client.post("/v1/embed", data={"text": text}).json()["embedding"]
        return found

    with TestClient(create_app(copied)) as client, ThreadPoolExecutor(12) as pool:
        alone = [vector(text) for text in words]
        np.testing.assert_allclose(list(pool.map(vector, words)), alone, atol=1e-5)
