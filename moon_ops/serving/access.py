"""Around every request: its id, its line in the log, the headers that a browser heeds, and an answer where a fault of ours left none.

Requests are told apart by ``X-Request-ID``: taken over where it is a short plain word, made otherwise, and sent back either way.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moon_ops.serving.problems import problem

log = logging.getLogger(__name__)
HEADER = b"x-request-id"
PLAIN = re.compile(rb"[A-Za-z0-9._:-]{1,64}")  # what is taken over: nothing that could forge a line of the log
QUIET = ("/health", "/ready", "/metrics", "/v1/shards/ready")  # asked every few seconds, and told only if they fail
DOCS = ("/docs", "/redoc")  # FastAPI's, whose scripts come from a host of its own
API = b"default-src 'none'; frame-ancestors 'none'"
PAGE = b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
PAGE += b"form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@dataclass
class Noted:
    """What is known of the request that is being answered."""

    request_id: str
    release: int | None = None
    batch: int | None = None  # queries that went through the encoder together
    waited: float | None = None  # seconds before it


REQUEST: ContextVar[Noted | None] = ContextVar("request", default=None)  # of this context: each request has its own


def noted(*, release: int | None = None, batch: int | None = None, waited: float | None = None) -> None:
    """Add to what the log will say of the present request; outside one, nothing."""
    now = REQUEST.get()
    if now is not None:
        now.release = release if release is not None else now.release
        now.batch = batch if batch is not None else now.batch
        now.waited = waited if waited is not None else now.waited


class Access:
    """ASGI middleware around all others."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, and tell it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        now = Noted(_request_id(scope["headers"]))
        REQUEST.set(now)
        began, status = time.perf_counter(), 0
        answered = scope if scope["method"] != "HEAD" else {**scope, "method": "GET"}  # of its answer uvicorn sends the headers alone
        headers = _around(scope["path"], now.request_id)

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            await send(message)

        try:
            await self.app(answered, receive, sent)
        except Exception:
            log.exception("request %s: %s %s failed", now.request_id, scope["method"], scope["path"])
            if status:
                raise  # half an answer is sent: the connection must end
            await problem(500, "a fault of the service", f"look in its log for {now.request_id}, and report it")(scope, receive, sent)
        finally:
            _tell({**answered, "method": scope["method"]}, now, status, time.perf_counter() - began)


def outright(
    answer: Response, given: Iterable[tuple[bytes, bytes]], path: str, more: Iterable[tuple[bytes, bytes]] = (), *, method: str = "-"
) -> bytes:
    """An answer as it goes over the wire, for a request with the headers ``given`` that no application will see; ``more``: its own."""
    now = Noted(_request_id(given))
    _tell({"path": path, "method": method}, now, answer.status_code, 0.0)
    headers = [*more, *answer.raw_headers, *_around(path, now.request_id)]
    lines = [b"HTTP/1.1 %d %s" % (answer.status_code, HTTPStatus(answer.status_code).phrase.encode())]
    return b"\r\n".join([*lines, *(b"%s: %s" % one for one in headers), b"", bytes(answer.body)])


def _request_id(given: Iterable[tuple[bytes, bytes]]) -> str:
    shown = next((value for name, value in given if name == HEADER), b"")
    return shown.decode() if PLAIN.fullmatch(shown) else uuid.uuid4().hex


def _around(path: str, request_id: str) -> list[tuple[bytes, bytes]]:
    """The headers that every answer gets."""
    policy = [] if path.startswith(DOCS) else [(b"content-security-policy", PAGE if path == "/" else API)]
    return [*ALWAYS, (HEADER, request_id.encode()), *policy]


def _tell(scope: Mapping[str, Any], now: Noted, status: int, seconds: float) -> None:
    """The line of a request: its route and not its address, which may hold what nobody should read in a log.

    What was refused because there was too much of it is counted alone: thousands of lines would be more of it.
    """
    level = logging.DEBUG if status == 429 or (scope["path"] in QUIET and status < 500) else logging.INFO
    if not log.isEnabledFor(level):
        return
    route = getattr(scope.get("route"), "path", "-")
    more = {"release": now.release, "batch": now.batch, "waited_ms": None if now.waited is None else round(1e3 * now.waited, 1)}
    told = {"request_id": now.request_id, "method": scope["method"], "route": route, "status": status, "ms": round(1e3 * seconds, 1)}
    told |= {name: value for name, value in more.items() if value is not None}
    log.log(level, " ".join(f"{name}={value}" for name, value in told.items()), extra={"request": told})
