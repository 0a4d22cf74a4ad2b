"""`moon serve --release N`: a candidate is looked at over HTTP before anybody promotes it, and leaves no trace."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from moon_ops.cli.trial import running
from moon_ops.errors import ContractError
from moon_ops.registry.moves import moves
from moon_ops.registry.registry import CHAMPION, Registry, manifest_of
from moon_ops.release import promotion
from moon_ops.release.examination import examine
from moon_ops.serving import fixed
from moon_ops.serving.app import create_app
from moon_ops.settings import Settings

WISH = promotion.Wish("on-call@laptop", "2026-06-02T03:00:00+00:00", "tried")
FAILED = {"gate": "ctr/auc", "value": 0.4, "rule": "at least the floor 0.5", "threshold": 0.5, "champion": None, "passed": False}
Make = Callable[..., int]


def test_a_candidate_is_served_and_nothing_is_written_down(copied: Settings, registry: Registry, make_release: Make, now: Any) -> None:
    before = {file.name for file in copied.home.iterdir()}
    with TestClient(create_app(copied, release=make_release())) as client:
        ready = client.get("/ready").json()
        assert (ready["release"], ready["asked"], ready["status"], ready["fixed"]) == (2, 2, "ready", True)
        assert client.post("/v1/search", data={"text": "mug"}).json()["release"] == 2
        registry.point(CHAMPION, 2)
        registry.point(CHAMPION, 1)
        promotion.promote(copied, make_release(), WISH)
        follower = client.app.state.follower  # type: ignore[attr-defined]
        follower.follow()
        assert follower.champion().version == 2, "it follows no alias"
        follower.reopen()
    assert {file.name for file in copied.home.iterdir()} == before
    assert [move.release for move in moves(registry)] == [1, 3]
    with TestClient(create_app(copied)) as client:
        assert client.get("/ready").json()["fixed"] is False


def test_one_that_failed_its_gates_may_be_looked_at_and_its_log_says_so(
    copied: Settings, make_release: Make, caplog: pytest.LogCaptureFixture
) -> None:
    release = make_release(evidence=[FAILED], passed=False)
    with TestClient(create_app(copied, release=release)) as client:
        assert client.get("/ready").json()["release"] == release
    assert "release 2 is served to be looked at, although the release did not pass its gates: ctr/auc = 0.4000" in caplog.text


def test_it_changes_nothing_that_the_settings_would_let_it(copied: Settings) -> None:
    settings = fixed.without_effect(copied.replace(repair=True, auto_rollback=True, items_token="secret"))
    assert (settings.repair, settings.auto_rollback, settings.items_token.get_secret_value()) == (False, False, "")
    with TestClient(create_app(copied.replace(items_token="secret"), release=1)) as client:
        taken = client.post("/v1/items", json={"items": []}, headers={"authorization": "Bearer secret"})
        assert taken.status_code == 403


def test_parts_that_are_not_what_the_manifest_says_are_not_served(copied: Settings, registry: Registry, make_release: Make) -> None:
    of_one = manifest_of(registry, 1)["encoder"]
    release = make_release(encoder={**of_one, "sha256": {**of_one["sha256"], "trunk.onnx": "0" * 64}})
    with pytest.raises(ContractError, match=r"trunk\.onnx of moon-encoder 1"):
        fixed.parts(copied, release)
    with TestClient(create_app(copied, release=release)) as client:
        answer = client.get("/ready")
        assert answer.status_code == 503
        assert answer.json()["refused"].startswith("release 2 cannot be served: trunk.onnx of moon-encoder 1")


def test_verify_knows_what_it_asks(copied: Settings, make_release: Make, now: Any) -> None:
    with running(copied, release=make_release()) as client:
        (finding,) = [found for found in examine(copied, now=now, url=str(client.base_url)) if found.part == "service"]
    assert not finding.grave
    assert finding.problem.endswith("serves release 2 alone, whatever the alias says")


def test_the_command(copied: Settings, make_release: Make) -> None:
    """One that is not there is one line; another one is served until it is stopped."""
    make_release()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moon_ops.cli", "serve", "--home", str(copied.home), "--release"]
    environment = {**os.environ, "MOON_PORT": str(port)}
    absent = subprocess.run([*command, "99"], env=environment, capture_output=True, text=True, timeout=60)
    assert (absent.returncode, absent.stderr) == (1, "moon: moon-release has no version 99 (there are: 1, 2) → name one of these\n")
    assert absent.stdout == "", "no address where nothing answers"
    service = subprocess.Popen([*command, "2"], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        found, begun = None, time.monotonic()
        while found is None and time.monotonic() - begun < 60:
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False)
                found = answer.json() if answer.status_code == 200 else None
                assert answer.json()["fixed"] is True, "from the first answer on, while it is being loaded"
            except httpx.TransportError:
                time.sleep(0.1)
        assert found is not None
        assert (found["release"], found["fixed"]) == (2, True)
    finally:
        service.terminate()
        assert "release 2 alone, whatever is champion" in service.communicate(timeout=30)[0]
