"""What a connection does with what clients send who are slow, wrong, hostile, or of another language: seen over a socket."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from uvicorn.config import Config
from uvicorn.server import ServerState

from moon_ops.serving import connections, problems
from moon_ops.serving.access import Access
from moon_ops.serving.connections import MOST, Bounded
from moon_ops.serving.gate import Gate, Limits
from moon_ops.serving.opening import Server
from tests.serving.test_opening import answer, running

HEAD = b"POST /v1/echo HTTP/1.1\r\nhost: x\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAA\r\n"  # as Java's HttpClient asks


def service(limits: Limits, go: threading.Event) -> FastAPI:
    """One that answers with what it was sent."""
    app = FastAPI()
    app.state.limits = limits
    for kind, said in problems.ANSWERS:
        app.add_exception_handler(kind, said)
    app.add_middleware(Gate, limits=limits)
    app.add_middleware(Access)

    @app.post("/v1/echo")
    async def echo(request: Request) -> dict[str, Any]:
        return {"got": (await request.body()).decode(), "version": request.scope["http_version"]}

    @app.get("/v1/slow")
    @app.delete("/v1/items/7")
    async def slow() -> str:
        while not go.is_set():
            await asyncio.sleep(0.01)
        return "done"

    @app.post("/v1/unread")
    async def unread() -> Any:
        return PlainTextResponse("no", status_code=403, headers={"connection": "close"})

    @app.get("/health")
    async def health() -> str:
        return "well"

    return app


class Served:
    """A service under way: its port, its limits, and what lets its slow answers go."""

    def __init__(self, server: Server, port: int, limits: Limits, go: threading.Event) -> None:
        self.server, self.port, self.limits, self.go, self.told = server, port, limits, go, list[int]()
        limits.told = self.told.append

    def full(self) -> None:
        """No more room."""
        self.limits.queries.most = 0

    @contextmanager
    def line(self) -> Iterator[tuple[socket.socket, Any]]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as line, line.makefile("rb") as lines:
            yield line, lines


@contextmanager
def served(most: int = 8, http: type = Bounded) -> Iterator[Served]:
    go, limits = threading.Event(), Limits(most, 30.0)
    with running(lambda: service(limits, go), http) as (server, address, _):
        until(lambda: server.opening.app is not None)
        try:
            yield Served(server, int(address.rpartition(":")[2]), limits, go)
        finally:
            go.set()


def until(what: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end, "not within 20 seconds"
        time.sleep(0.01)


def test_a_refusal_has_all_that_other_answers_have(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "moon_ops.serving.access")
    with served() as one, one.line() as (line, lines):
        one.full()
        line.sendall(HEAD + b"x-request-id: mine\r\ncontent-length: 5\r\n\r\nhello" + HEALTH)
        status, headers, _ = answer(lines)
        assert (status, one.told, headers["x-content-type-options"]) == (429, [429], "nosniff")
        health = answer(lines)
        assert (health[0], set(headers) - set(health[1])) == (200, {"retry-after"})
        assert "request_id=mine method=POST route=- status=429" in caplog.text


def test_who_waits_to_be_told_to_go_on_is_refused_and_the_connection_ends() -> None:
    """What would follow might be the body, or another request."""
    with served() as one, one.line() as (line, lines):
        one.full()
        line.sendall(HEAD + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        status, headers, _ = answer(lines)
        assert (status, headers["connection"], lines.read()) == (429, "close", b"")


def test_who_reads_no_answers_is_not_read_either() -> None:
    """Refusals that were written whether or not anybody read them had taken 260 MB in eight seconds, of one connection."""
    with served() as one, one.line() as (line, _):
        one.full()
        line.settimeout(1)
        with pytest.raises(TimeoutError):
            line.sendall(b"GET /v1/slow HTTP/1.1\r\nhost: x\r\n\r\n" * 800_000)
        (kept,) = one.server.server_state.connections
        assert kept.transport.get_write_buffer_size() < 2**20


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("framing", "body"), [(b"content-length: 5\r\n", b"hello"), (b"transfer-encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n")]
)
@pytest.mark.parametrize("pause", [0.0, 0.1])
def test_a_request_that_would_rather_speak_http_2_is_answered_in_this_one(full: bool, framing: bytes, body: bytes, pause: float) -> None:
    """Its body was thrown away: each POST of Java's client had 422."""
    with served() as one, one.line() as (line, lines):
        if full:
            one.full()
        for _ in range(3):
            line.sendall(HEAD + H2C + framing + b"\r\n")
            time.sleep(pause)
            line.sendall(body + HEALTH + HEALTH.replace(b"host: x\r\n", b"host: x\r\n" + H2C))
            status, _, got = answer(lines)
            assert status == 429 if full else (status, json.loads(got)["got"]) == (200, "hello")
            assert [answer(lines)[0] for _ in range(2)] == [200, 200]


def test_thousands_of_them_at_once_are_only_many() -> None:
    with served() as one, one.line() as (line, lines):
        many = 4_000
        sending = threading.Thread(target=line.sendall, args=(HEALTH.replace(b"host: x\r\n", b"host: x\r\n" + H2C) * many,))
        sending.start()
        assert {answer(lines)[0] for _ in range(many)} == {200}
        sending.join(20)


@pytest.mark.parametrize(
    "wrong",
    [
        b"GET / HTTP/1.1\r\nho\0st: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\nhello",
        HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\nno number\r\n",
    ],
)
def test_what_is_no_http_is_refused_as_all_is(wrong: bytes) -> None:
    with served() as one, one.line() as (line, lines):
        line.sendall(wrong)
        status, headers, body = answer(lines)
        assert (status, headers["connection"], headers["content-type"]) == (400, "close", "application/problem+json")
        assert (json.loads(body)["error"], one.told) == ("this is no HTTP request", [400])
        assert len(headers["x-request-id"]) == 32
        assert lines.read() == b""
        until(lambda: (one.limits.queries.working, one.limits.held) == (0, 0))


def test_who_asked_before_is_answered_first() -> None:
    with served() as one, one.line() as (line, lines):
        line.sendall(b"GET /v1/slow HTTP/1.1\r\nhost: x\r\n\r\n" + HEALTH + b"no request\r\n\r\n")
        until(lambda: one.limits.queries.working == 1)
        one.go.set()
        assert [answer(lines)[0] for _ in range(2)] == [200, 200]
        assert lines.read() == b"", "and the connection is closed"


@pytest.mark.parametrize(
    "begun",
    [b"GET /", b"GET / HTTP/1.1\r\nhost: x\r\nx: ", b"\r\n", HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: "],
)
def test_what_has_no_end_is_not_read_for_ever(begun: bytes) -> None:
    with served() as one, one.line() as (line, lines):
        line.sendall(begun)
        for _ in range(64):
            line.sendall((b"\r\n" if begun == b"\r\n" else b"aa") * 2**14)
        status, headers, body = answer(lines)
        assert (status, headers["connection"], json.loads(body)["error"]) == (431, "close", "the request's head has more than 64 KiB")
        assert lines.read() == b""


def test_a_body_in_the_smallest_parts_is_no_long_head() -> None:
    with served() as one, one.line() as (line, lines):
        line.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 50_000 + b"0\r\n\r\n")
        assert answer(lines)[0] == 200


def test_who_is_still_sending_can_read_why_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is closed while something comes in is reset, which takes back the answer on its way."""
    monkeypatch.setattr(connections, "LINGER_SECONDS", 60.0)
    with served() as one, one.line() as (line, lines):
        line.sendall(HEAD.replace(b"echo", b"unread") + b"content-length: 20000000\r\n\r\n")
        line.sendall(b"a" * 20_000_000)
        assert answer(lines)[0] == 403
        assert lines.read() == b""


def test_it_is_not_read_for_ever() -> None:
    short = pytest.MonkeyPatch()
    short.setattr(connections, "MOST_DROPPED", 2**20)
    short.setattr(connections, "LINGER_SECONDS", 60.0)
    for path in (b"unread", b"slow"):  # one that ends the connection, and one that is dropped to its end
        with short.context(), served() as one, one.line() as (line, _):
            one.limits.queries.most = 0 if path == b"slow" else 8
            line.sendall(HEAD.replace(b"echo", path) + b"content-length: 100000000\r\n\r\n")
            with pytest.raises(OSError, match=r"reset|pipe"):
                line.sendall(b"a" * 100_000_000)
    short.undo()


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", HEAD + b"content-length: 50\r\n\r\n", HEALTH])
def test_a_connection_on_which_nothing_comes_ends(sent: bytes) -> None:
    """Also in the middle of a head, or of a body that nobody wants."""
    quick = type("Quick", (Bounded,), {"timeout_keep_alive": property(lambda _: 0.3, lambda *_: None)})
    with served(http=quick) as one, one.line() as (line, lines):
        one.full()
        line.sendall(sent)
        if sent.startswith(HEAD):
            assert answer(lines)[0] == 429
            line.sendall(b"some of it")
        while lines.readline():
            pass  # until it is closed, or the twenty seconds of the socket are over


class Transport:
    """One whose end is told later, as a loop does."""

    closing = False

    def abort(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, _: str) -> None:
        return None


def test_connections_that_come_all_at_once_are_not_too_many() -> None:
    """The one idle longest was closed again and again before the loop had said that it was gone, and all others stayed."""
    loop, state = asyncio.new_event_loop(), ServerState()
    many = [Bounded(Config(FastAPI()), state, {}, loop) for _ in range(MOST + 50)]
    for one in many:
        one.connection_made(Transport())
    assert sum(not one.transport.is_closing() for one in many) == MOST
    loop.close()


def test_what_has_no_body_takes_a_place() -> None:
    """A DELETE was not counted, and told after a minute that its body had not come."""
    with served(most=1) as one, one.line() as (line, lines), one.line() as (other, others):
        line.sendall(b"DELETE /v1/items/7 HTTP/1.1\r\nhost: x\r\n\r\n")
        until(lambda: one.limits.writes.working == 1)
        other.sendall(b"DELETE /v1/items/7 HTTP/1.1\r\nhost: x\r\n\r\n")
        assert answer(others)[0] == 429
        one.go.set()
        assert answer(lines)[0] == 200
        until(lambda: one.limits.writes.working == 0)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v1/sl",
        HEAD + b"content-length: 50\r\n\r\nhalf",
        HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhe",
        b"GET /v1/slow HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /v1/slow HTTP/1.1\r\nhost: x\r\n\r\n" * 3,
        b"GET /v1/slow HTTP/1.1\r\nhost: x\r\n\r\n" + HEAD + b"content-length: 50\r\n\r\nhalf",
        HEAD + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\n",
    ],
)
def test_who_goes_away_leaves_nothing_behind(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with served() as one:
        with one.line() as (line, _):
            line.sendall(sent)
            time.sleep(0.1)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset
        one.go.set()
        until(lambda: not one.server.server_state.connections and not one.server.server_state.tasks)
        assert (one.limits.queries.working, one.limits.writes.working, one.limits.held) == (0, 0, 0)
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_head_request_is_a_get_without_the_body() -> None:
    """What watches a page or a service often asks so."""
    with served() as one, one.line() as (line, lines):
        line.sendall(HEALTH.replace(b"GET", b"HEAD") + HEALTH)
        assert lines.readline().split()[1] == b"200"
        assert b"content-length: 6\r\n" in list(iter(lines.readline, b"\r\n"))
        assert answer(lines)[0] == 200, "what follows is the next answer"
