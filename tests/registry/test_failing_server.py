"""An MLflow server that goes away, fails or hangs after the start: one clear line, and no release is taken for a bad one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from moon_ops.errors import StageError
from moon_ops.registry.discreet import AwayError
from moon_ops.registry.registry import CHAMPION, CTR, ENCODER, Registry
from moon_ops.release import served
from moon_ops.settings import Settings

FAULTS: dict[str, tuple[int, bytes]] = {
    "500": (500, b"Internal Server Error"),
    "503": (503, b"<html>upstream is away</html>"),
    "json": (500, json.dumps({"error_code": "INTERNAL_ERROR", "message": "the database is gone"}).encode()),
    "no json": (200, b"<html>a login page</html>"),
}


class Server(ThreadingHTTPServer):
    """Answers as MLflow does at a start, and then with ``fault``."""

    fault: str = ""
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.server.fault == "hangs":
            time.sleep(3)
        status, body = FAULTS.get(self.server.fault, (200, b""))
        if not body:
            if "get-by-name" in self.path:
                body = json.dumps({"experiment": {"experiment_id": "1", "name": "moon"}}).encode()
            elif "search" in self.path:
                body = b"{}"
            elif "alias" in self.path:
                body = json.dumps({"model_version": {"name": "moon-release", "version": "1"}}).encode()
            else:
                status, body = 404, json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "there is none"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name, value in (("MAX_RETRIES", "0"), ("TIMEOUT", "1")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    made = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def remote(copied: Settings, server: Server) -> Settings:
    return copied.replace(tracking_uri=f"http://moon:geheim@127.0.0.1:{server.server_port}")


@pytest.mark.parametrize("fault", [*FAULTS, "hangs", "gone"])
def test_each_question_after_the_start_says_that_mlflow_does_not_answer(remote: Settings, server: Server, fault: str) -> None:
    registry = Registry(remote)
    assert registry.alias(CHAMPION) == 1
    server.fault = fault
    if fault == "gone":
        server.shutdown()
        server.server_close()
    asked = [
        lambda: registry.alias(CHAMPION),
        lambda: registry.tags(ENCODER, 1),
        lambda: registry.newest(CTR),
        lambda: registry.start_run("a stage", {}),
        lambda: registry.append("moon-moves", 1, {}, "a move"),
        lambda: served.choose(remote, registry),
    ]
    for ask in asked[: 2 if fault == "hangs" else None] if fault != "json" else [*asked[:4], asked[5]]:
        with pytest.raises(
            AwayError, match=r"MOON_TRACKING_URI = http://\*\*\*@127.0.0.1:\d+: MLflow does not answer \(.*\) → start it"
        ) as told:
            ask()
        assert "geheim" not in str(told.value)
        assert "\n" not in str(told.value)


def test_a_server_that_is_well_says_no_by_itself(remote: Settings, server: Server) -> None:
    registry = Registry(remote)
    with pytest.raises(StageError, match=r"moon-encoder has no version 4"):
        registry.tags(ENCODER, 4)
    assert server.fault == ""


def test_a_command_ends_with_one_line(remote: Settings, server: Server) -> None:
    server.fault = "503"
    environment = {**os.environ, "MOON_TRACKING_URI": remote.tracking_uri.get_secret_value(), "MOON_HOME": str(remote.home)}
    done = subprocess.run([sys.executable, "-m", "moon_ops.cli", "status"], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("moon: ")]
    assert "MLflow does not answer" in line
    assert "Traceback" not in done.stderr
    assert "geheim" not in done.stderr + done.stdout
