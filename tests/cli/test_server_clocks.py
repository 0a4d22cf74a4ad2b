"""The doctor reads the clocks of the servers that it asks."""

from __future__ import annotations

import datetime as dt
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from moon_ops.cli import stores, terminal
from moon_ops.settings import Settings

NOON = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)


class Dated(BaseHTTPRequestHandler):
    """Answers with the dates of the class."""

    dates = ("Fri, 01 May 2026 12:00:00 GMT",)

    def do_GET(self) -> None:
        self.send_response_only(200)
        for date in self.dates:
            self.send_header("date", date)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("dates", [Dated.dates, Dated.dates * 2, ("Fri, 01 May 2026 12:00:00 -0000",)], ids=["one", "two", "no zone"])
def test_mlflows_clock_is_read_however_it_says_the_date(dates: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow behind uvicorn says it twice. Ours is read beside it: after a minute's look at the stores it differed by a minute."""
    monkeypatch.setattr(terminal, "now", lambda: NOON + dt.timedelta(seconds=3))
    server = HTTPServer(("127.0.0.1", 0), type("Given", (Dated,), {"dates": dates}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = dict(stores._servers(Settings(tracking_uri=f"http://127.0.0.1:{server.server_port}")))
    finally:
        server.shutdown()
        server.server_close()
    assert found == {"MLflow": dt.timedelta(seconds=3)}
