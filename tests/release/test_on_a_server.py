"""Moves through a real MLflow server: the record's numbers are the server's, and an alias moved in its UI is noticed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from by_hand import WISH, Make, aliases, said

from moon_ops.errors import GateError
from moon_ops.registry.moves import moves
from moon_ops.registry.registry import CHAMPION, PREVIOUS, Registry
from moon_ops.release import promotion
from moon_ops.serving.follower import Follower
from moon_ops.settings import Settings

WAIT_SECONDS = 90.0


@pytest.fixture
def through_server(copied: Settings, tmp_path: Path) -> Iterator[Settings]:
    """The copied home with its MLflow behind a server of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{copied.home}/mlflow.db", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--default-artifact-root", str(copied.home / "mlartifacts")]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        )
        try:
            began = time.monotonic()
            while time.monotonic() - began < WAIT_SECONDS:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                        break
                time.sleep(0.2)
            else:
                raise AssertionError((tmp_path / "server.log").read_text())
            yield copied.replace(tracking_uri=f"http://127.0.0.1:{port}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, 9)
            server.wait(30)


def test_moves_through_a_server(through_server: Settings, make_release: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promoted by the command, in the UI, and by twelve machines at once; the record is complete, and a service follows."""
    for _ in range(4):
        make_release()
    registry, follower = Registry(through_server), Follower(through_server)
    assert said(registry) == [("promote", None, 1)], "what was recorded without a server is there"
    follower.follow()
    assert (follower.champion().version, follower.refused) == (1, "")
    promotion.promote(through_server, 2, WISH)
    registry.client.set_registered_model_alias("moon-release", CHAMPION, "3")  # the UI's request
    follower.follow()
    assert follower.champion().version == 3
    assert said(registry)[1:] == [("promote", 1, 2), ("noticed", 2, 3)]
    assert promotion.rollback(through_server, WISH).after == 2
    assert aliases(registry) == {CHAMPION: 2, PREVIOUS: 3}
    promotion.rollback(through_server, WISH, to=1)
    monkeypatch.setattr(promotion, "_alone", lambda _settings: contextlib.nullcontext())  # machines share no lock

    def ask(number: int) -> str:
        try:
            return "moved" if promotion.promote(through_server, 4 + number % 2, WISH).move else "it is champion already"
        except GateError as fault:
            return fault.problem

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    assert answers.count("moved") == 1, answers
    last = moves(registry)[-1]
    assert (last.kind, last.before, last.release in (4, 5)) == ("promote", 1, True)
    assert aliases(registry) == {CHAMPION: last.release, PREVIOUS: 1}
