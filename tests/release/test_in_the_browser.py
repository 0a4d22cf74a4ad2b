"""A night on call, with a real MLflow server, its pages in a real browser, and a running service that is searched all the time."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from by_hand import Make, said
from processes import free_port, process

from moon_ops.errors import ContractError
from moon_ops.publication import publication
from moon_ops.registry.encoders import encoder_version
from moon_ops.registry.moves import moves
from moon_ops.registry.registry import CHAMPION, Registry, manifest_of
from moon_ops.release import stages
from moon_ops.release.manifest import release
from moon_ops.release.windows import windows
from moon_ops.settings import Settings

chromium = pytest.importorskip("chromium", reason="playwright is not installed", exc_type=ImportError)
browser = pytest.importorskip("browser", reason="playwright is not installed", exc_type=ImportError)
pytestmark = pytest.mark.skipif(chromium.CHROMIUM is None, reason="chromium is not installed")

LIMIT_SECONDS = 60.0  # goal 5; an ordinary machine needs some five


class Searcher(threading.Thread):
    """Searches without pause; counts what is answered and what is not."""

    def __init__(self, service: str) -> None:
        super().__init__(daemon=True)
        self.service, self.done, self.answered, self.failed = service, threading.Event(), 0, list[str]()

    def run(self) -> None:
        with httpx.Client(base_url=self.service, trust_env=False, timeout=30) as client:
            while not self.done.wait(0.05):
                answer = client.post("/v1/search", data={"text": "something red", "k": "3"})
                good = answer.status_code == 200 and len(answer.json()["items"]) == 3
                self.answered += good
                self.failed += [] if good else [answer.text]


@contextmanager
def searched(settings: Settings, log: Path) -> Iterator[str]:
    """``moon serve`` as a process of its own, searched all the time; no search may fail."""
    port = free_port()
    service = f"http://127.0.0.1:{port}"
    environment = {"MOON_HOME": str(settings.home), "MOON_PORT": str(port)}
    environment |= {"MLFLOW_TRACKING_URI": settings.tracking_uri.get_secret_value()}
    with process([sys.executable, "-m", "moon_ops.cli", "serve"], f"{service}/ready", log, environment):
        searcher = Searcher(service)
        searcher.start()
        yield service
        searcher.done.set()
        searcher.join(60)
    assert (searcher.failed, searcher.answered > 0) == ([], True)


def until(service: str, said: Callable[[dict[str, Any]], bool]) -> tuple[dict[str, Any], float]:
    """What ``/ready`` says as soon as it is so, and the seconds until then."""
    began = time.monotonic()
    while not said(now := httpx.get(f"{service}/ready", trust_env=False).json()):
        assert time.monotonic() - began < LIMIT_SECONDS, now
        time.sleep(0.1)
    return now, time.monotonic() - began


def moon(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "MOON_HOME": str(settings.home)}
    environment |= {"MLFLOW_TRACKING_URI": settings.tracking_uri.get_secret_value(), "USER": "on-call"}
    return subprocess.run([sys.executable, "-m", "moon_ops.cli", *words], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def four(through_server: Settings, make_release: Make, now: dt.datetime) -> Settings:
    """Release 1, a good release 2, release 3 of an encoder that has learned nothing, and release 4 whose parts do not fit each other."""
    times = windows(through_server.lake, trained_until=encoder_version(through_server, 1).trained_until)
    assert release(through_server, 1, 1, times, now=now).passed
    checkpoint = stages.train(through_server, "moon-nano", trained_until=times.trained_until, seed=1, steps=3).checkpoint
    assert stages.export(through_server, Path(checkpoint)).encoder == 2
    stages.embed(through_server, 2, now=now)
    publication.publish(through_server, 2, now=now)
    with pytest.raises(ContractError, match="click model and vectors: contract c-"):
        release(through_server, 2, 1, times, now=now)
    worse = release(through_server, 2, None, times, now=now)
    assert (worse.version, worse.passed) == (3, False)
    registry = Registry(through_server)
    of_two = {name: manifest_of(registry, 3)[name] for name in ("encoder", "embeddings", "index", "feature_service", "contract_id")}
    assert make_release(**of_two) == 4, "registered by hand with the click model of the other encoder, as if all its gates had passed"
    return through_server


def test_a_night_on_call(four: Settings, tmp_path: Path) -> None:
    server, log = four.tracking_uri.get_secret_value(), tmp_path / "service.log"
    with chromium.opened() as page:
        with searched(four, log) as service:
            assert until(service, lambda now: now["release"] == 1)[0]["status"] == "ready"
            assert "✅ passed (compared with release 1)" in browser.look_at(page, server, 2, tmp_path / "release.png")
            assert "❌ failed (compared with release 1)" in browser.look_at(page, server, 3, tmp_path / "failed.png")
            run_id = Registry(four).client.get_model_version("moon-release", "3").run_id
            run = (Registry(four).client.get_run(run_id).info.experiment_id, run_id)
            assert "Release 3 failed" in browser.read_report(page, server, run, tmp_path / "report.png")
            assert "gate: failed" in browser.list_of_releases(page, server, tmp_path / "list.png")
            browser.make_champion(page, server, 2, tmp_path / "champion.png")
            ready, _ = until(service, lambda now: now["release"] == 2)
            assert (ready["status"], ready["asked"]) == ("ready", 2)
            browser.make_champion(page, server, 3)
            ready, _ = until(service, lambda now: now["asked"] == 3 and now["refused"])
            assert (ready["release"], ready["status"]) == (2, "degraded")
            assert "release 3 is not served: the release did not pass its gates" in ready["refused"], ready["refused"]
        with searched(four, log) as service:
            ready, _ = until(service, lambda now: now["asked"] == 3 and now["refused"])
            assert (ready["release"], ready["status"]) == (2, "degraded"), "also after a restart"
            browser.make_champion(page, server, 4)
            ready, _ = until(service, lambda now: now["asked"] == 4 and "release 4" in now["refused"])
            assert (ready["release"], "manifest and click model: contract c-" in ready["refused"]) == (2, True), ready["refused"]
            back = moon(four, "rollback", "--reason", "the encoder and the click model do not fit")
            assert back.returncode == 0, back.stderr
            assert until(service, lambda now: now["asked"] == 2)[0]["status"] == "ready"
            again = moon(four, "rollback", "--again", "--reason", "searches are odd")
            assert again.returncode == 0, again.stderr
            ready, seconds = until(service, lambda now: now["release"] == 1)
            assert (ready["status"], seconds < LIMIT_SECONDS) == ("ready", True)
            assert "@ champion" in browser.list_of_releases(page, server, tmp_path / "after.png")
    registry = Registry(four)
    assert said(registry) == [("promote", None, 1), ("noticed", 1, 2), ("rollback", 4, 2), ("rollback", 2, 1)]
    assert all(move.done and move.by and move.at for move in moves(registry))
    assert registry.alias(CHAMPION) == 1
    assert "now serving release 2 in place of 1" in log.read_text()
