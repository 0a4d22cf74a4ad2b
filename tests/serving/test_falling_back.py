"""A service always falls back on the last good release: a wrong alias, none, or a registry that is away is no outage, also at a start."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from moon_ops import tasks
from moon_ops.errors import StageError
from moon_ops.publication import publication
from moon_ops.registry.moves import moves
from moon_ops.registry.registry import CHAMPION, PREVIOUS, Registry, manifest_of
from moon_ops.release import promotion, served
from moon_ops.release.status import status
from moon_ops.serving import follower as following
from moon_ops.serving.app import create_app
from moon_ops.serving.follower import Follower
from moon_ops.settings import Settings

FAILED = {
    "gate": "image_search/recall@10",
    "value": 0.01,
    "threshold": 0.1,
    "rule": "at least the floor 0.1",
    "champion": None,
    "passed": False,
}
WISH = promotion.Wish("on-call@laptop", "2026-06-02T03:00:00+00:00", "tried")
Make = Callable[..., int]


def test_a_restarted_service_serves_the_last_good_release(copied: Settings, registry: Registry, make_release: Make) -> None:
    """The alias names a release that failed; all that served before is healthy."""
    failed = make_release(evidence=[FAILED], passed=False)
    registry.point(CHAMPION, failed)
    with TestClient(create_app(copied)) as client:
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert (ready.json()["release"], ready.json()["asked"]) == (1, 2)
        assert "release 2 is not served" in ready.json()["refused"]
        assert "recall@10 = 0.0100" in ready.json()["refused"]
        assert client.post("/v1/search", data={"text": "mug"}).json()["release"] == 1
        metrics = client.get("/metrics").text
        assert "moon_release_served 1.0" in metrics
        assert "moon_release_asked 2.0" in metrics
        assert "moon_degraded 1.0" in metrics
    assert registry.alias(CHAMPION) == failed, "reported, not repaired: that is a setting"


def test_the_jobs_work_for_what_is_served(
    copied: Settings, registry: Registry, make_release: Make, now: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry.point(CHAMPION, make_release(evidence=[FAILED], passed=False, encoder={**manifest_of(registry, 1)["encoder"], "version": 9}))
    monkeypatch.setenv("MOON_HOME", str(copied.home))
    assert tasks.embed_for_champion(now.isoformat()) == 0
    assert "release 1 is served in place of 2, because release 2 is not served" in caplog.text
    assert tasks._encoder_to_serve(copied) == 1
    found = status(copied)
    assert (found["champion"]["release"], found["serving"]["release"]) == (2, 1)
    assert "did not pass its gates" in found["serving"]["degraded"]


def test_without_an_alias_the_last_champion_is_served(copied: Settings, registry: Registry) -> None:
    registry.drop(CHAMPION)
    follower = Follower(copied)
    follower.follow()
    assert follower.champion().version == 1
    assert (follower.state().status, follower.state().asked) == ("degraded", None)
    assert served.NO_CHAMPION in follower.refused


def test_previous_is_served_where_nothing_is_recorded(unrecorded: Settings, registry: Registry, make_release: Make) -> None:
    registry.point(PREVIOUS, 1)
    registry.point(CHAMPION, make_release(passed=False))
    assert served.choose(unrecorded, registry).release == 1


def test_a_service_starts_while_mlflow_is_away(copied: Settings) -> None:
    first = Follower(copied)
    first.follow()
    assert json.loads((copied.home / "served.json").read_text())["release"] == 1
    away = copied.replace(tracking_uri="http://127.0.0.1:9")
    follower = Follower(away)
    follower.start()
    try:
        assert follower.champion().version == 1
        assert follower.state().status == "degraded"
        assert "MLflow does not answer" in follower.refused or "has not answered" in follower.refused
    finally:
        follower.stop()


def test_what_was_served_last_is_checked_before_it_is_served_again(copied: Settings) -> None:
    follower = Follower(copied)
    follower.follow()
    parts = served.recall(copied)
    assert parts is not None
    with (parts.encoder / "trunk.onnx").open("ab") as stream:
        stream.write(b" ")
    assert served.recall(copied) is None
    (copied.home / "served.json").write_text("{")
    assert served.recall(copied) is None


def test_a_home_may_be_moved(copied: Settings, tmp_path: Path) -> None:
    Follower(copied).follow()
    shutil.copytree(copied.home, tmp_path / "moved", symlinks=True)
    parts = served.recall(copied.replace(home=tmp_path / "moved"))
    assert parts is not None
    assert parts.encoder.is_relative_to(tmp_path / "moved")


def test_a_promotion_in_mlflow_is_served_and_noted(copied: Settings, registry: Registry, make_release: Make) -> None:
    follower = Follower(copied)
    follower.follow()
    registry.point(CHAMPION, make_release())
    follower.follow()
    assert (follower.champion().version, follower.refused) == (2, "")
    assert [(m.kind, m.before, m.release) for m in moves(registry)] == [("promote", None, 1), ("noticed", 1, 2)]
    assert registry.alias(PREVIOUS) == 1


def test_a_wrong_alias_is_moved_back_where_the_setting_says_so(copied: Settings, registry: Registry, make_release: Make) -> None:
    follower = Follower(copied.replace(repair=True))
    follower.follow()
    registry.point(CHAMPION, make_release(passed=False))
    follower.follow()
    assert registry.alias(CHAMPION) == 1
    last = moves(registry)[-1]
    assert (last.kind, last.before, last.release) == ("rollback", 2, 1)
    assert last.by.startswith("moon serve on ")
    assert "release 2 is not served" in last.why


@pytest.mark.parametrize(
    ("fault", "traced"),
    [
        (MlflowException("the server is away"), False),
        (sqlite3.OperationalError("database is locked"), False),
        (ConnectionResetError("reset by peer"), False),
        (MlflowException("no such name", INVALID_PARAMETER_VALUE), True),
        (KeyError("release"), True),
    ],
)
def test_an_unexpected_fault_is_logged_with_its_traceback_once(
    copied: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception, traced: bool
) -> None:
    def fail(_alias: str) -> int:
        raise fault

    follower = Follower(copied)
    follower.follow()
    monkeypatch.setattr(follower.registry, "alias", fail)
    with caplog.at_level("ERROR", logger=following.__name__):
        for _ in range(3):
            follower.follow()
    assert [bool(record.exc_info) for record in caplog.records] == [traced]
    assert follower.champion().version == 1, "what is served goes on"
    assert follower.refused.startswith("the registry could not be asked for the champion: ")
    assert follower.refused.endswith(str(fault))


def test_a_registry_that_hangs_holds_up_no_publication(copied: Settings, monkeypatch: pytest.MonkeyPatch, now: Any) -> None:
    """MLflow is stopped, not gone: a question to it never comes back."""
    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.5)
    follower, hung = Follower(copied, every_seconds=0.1), threading.Event()
    follower.follow()
    monkeypatch.setattr(follower.registry, "alias", lambda _alias: hung.wait(30))
    follower.start()
    try:
        before = follower.champion().places
        publication.publish(copied, 1, now=now, full=True)
        begun = time.monotonic()
        while follower.champion().places == before and time.monotonic() - begun < 20:
            time.sleep(0.05)
        assert follower.champion().places != before
        while follower.state().status == "ready" and time.monotonic() - begun < 20:
            time.sleep(0.05)
        assert "the registry has not answered for" in follower.refused
    finally:
        hung.set()
        follower.stop()


def test_a_refresh_does_not_undo_a_switch(copied: Settings, make_release: Make, registry: Registry, now: Any) -> None:
    """While the old release's new index is opened, the alias moves and another release is installed."""
    follower = Follower(copied)
    follower.follow()
    old = follower.champion()
    other = following.Champion(copied, served.parts_of(copied, registry, make_release()))

    class Slow:
        version, encoder, dimensions, places = old.version, old.encoder, old.dimensions, ["other"]

        def refreshed(self) -> Any:
            follower._serve(other)
            return old

    slow: Any = Slow()
    follower.current = slow
    follower.refresh()
    assert follower.champion() is other


def test_nothing_to_serve_is_an_error_that_says_so(tmp_path: Path) -> None:
    settings = Settings.from_environment(tmp_path / "empty")
    with pytest.raises(StageError, match=r"there is no champion release → run `moon rollback`"):
        served.choose(settings, Registry(settings))
