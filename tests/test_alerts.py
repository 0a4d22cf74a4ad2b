"""Alerts of the DAGs: what they say, where they go, and that one which cannot be sent fails nothing. Real HTTP and SMTP."""

from __future__ import annotations

import asyncio
import email
import json
import logging
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from moon_ops import alerts

CONTEXT = {
    "ti": SimpleNamespace(dag_id="moon_retrain", task_id="gates", run_id="scheduled__1"),
    "exception": ValueError("ctr/auc = 0.40, it must be at least 0.52 → train again\nand a second line"),
}
LINE = "moon_retrain failed in task gates, run scheduled__1: ctr/auc = 0.40, it must be at least 0.52 → train again"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What was posted to the webhook; a message with the word ``refuse`` is not taken."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(500 if "refuse" in got[-1]["text"] else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MOON_ALERT_WEBHOOK", f"http://127.0.0.1:{server.server_port}/secret-path")
        yield got
        server.shutdown()


def test_a_failure_is_one_line_in_the_log_and_at_the_webhook(hook: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    alerts.failed(CONTEXT)
    assert f"{LINE} (runbook: docs/on-call.md of moon_ops)" in caplog.text
    assert "second line" not in caplog.text
    assert hook == [
        {
            "text": LINE,
            "dag": "moon_retrain",
            "run": "scheduled__1",
            "reason": "ctr/auc = 0.40, it must be at least 0.52 → train again",
            "runbook": "docs/on-call.md of moon_ops",
        }
    ]


def test_a_late_run_is_told(hook: list[dict[str, Any]]) -> None:
    asyncio.run(alerts.late(dag="moon_nightly_refresh", after="3 hours", context={"dag_run": {"dag_run_id": "scheduled__2"}}))
    assert hook[0]["text"] == "moon_nightly_refresh has not ended 3 hours after it was queued, run scheduled__2"


def test_a_webhook_that_fails_is_logged_without_its_address(hook: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    alerts.failed({**CONTEXT, "exception": ValueError("refuse this")})
    assert "MOON_ALERT_WEBHOOK did not take the alert (status 500)" in caplog.text
    assert "secret-path" not in caplog.text


def test_one_that_is_away_fails_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MOON_ALERT_WEBHOOK", "http://127.0.0.1:1/secret-path")
    alerts.failed(CONTEXT)
    assert "MOON_ALERT_WEBHOOK did not take the alert (ConnectError)" in caplog.text
    assert "secret-path" not in caplog.text


def test_settings_that_are_wrong_cover_no_reason(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MOON_PORT", "no number")
    alerts.failed(CONTEXT)
    assert LINE in caplog.text
    assert "the alert could not be sent: MOON_PORT = 'no number'" in caplog.text


class Mail(socketserver.StreamRequestHandler):
    """As much of SMTP as a client asks for."""

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            word = line.split()[0].upper() if line.split() else b""
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                while (text := self.rfile.readline()) != b".\r\n":
                    self.server.got.append(text.decode())  # type: ignore[attr-defined]
            self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")
            if word == b"QUIT":
                return


def test_a_failure_is_mailed_by_airflows_connection(monkeypatch: pytest.MonkeyPatch, airflow_db: None) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail) as server:
        server.got = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": server.server_address[1]}
        extra = {"from_email": "moon@example.com", "disable_tls": True, "disable_ssl": True}
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps({**connection, "extra": extra}))
        monkeypatch.setenv("MOON_ALERT_EMAIL", "oncall@example.com")
        alerts.failed({**CONTEXT, "exception": ValueError("less <than> before")})
        server.shutdown()
        text = "".join(server.got)  # type: ignore[attr-defined]
    message = email.message_from_string(text)
    assert message["To"] == "oncall@example.com"
    (body,) = [part.get_payload(decode=True) for part in message.walk() if part.get_content_type() == "text/html"]
    assert b"less &lt;than&gt; before" in body


def test_nothing_heavy_is_imported_with_it() -> None:
    code = "import sys, moon_ops.alerts; print(sorted(n for n in ('httpx', 'pydantic', 'lance', 'torch', 'airflow') if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert logging.getLogger("moon_ops.alerts") is alerts.log
