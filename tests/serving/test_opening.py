"""How a service begins and ends: the port answers before there is anything to serve, and at the end what was accepted is answered."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, BinaryIO

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from moon_ops.errors import InstallError
from moon_ops.serving import opening
from moon_ops.serving.connections import Bounded
from moon_ops.serving.gate import Gate, Limits
from moon_ops.serving.opening import Opening, Server
from moon_ops.settings import Settings


def free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def service(begun: threading.Event, go: threading.Event, closed: threading.Event) -> FastAPI:
    """A service with one slow route."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        closed.set()

    app = FastAPI(lifespan=lifespan)
    app.state.limits = Limits(4, 30.0)
    app.add_middleware(Gate, limits=app.state.limits)

    @app.get("/v1/slow")
    async def slow() -> str:
        begun.set()
        while not go.is_set():
            await asyncio.sleep(0.01)
        return "done"

    @app.get("/health")
    async def health() -> str:
        return "from the service"

    return app


@contextmanager
def running(make: Callable[[], Any], http: type = Bounded) -> Iterator[tuple[Server, str, threading.Thread]]:
    port = free()
    opened = Opening(make)
    server = Server(uvicorn.Config(opened, port=port, http=http, log_level="error", timeout_graceful_shutdown=5), opened)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server, f"http://127.0.0.1:{port}", thread
    finally:
        server.should_exit = True
        thread.join(10)


def test_the_port_answers_before_there_is_anything_to_serve() -> None:
    go, begun, closed, loading = (threading.Event() for _ in range(4))

    def make() -> FastAPI:
        assert loading.wait(20)
        return service(begun, go, closed)

    with running(make) as (_, address, _), httpx.Client(base_url=address) as client:
        assert client.get("/health").json() == {"status": "ok"}
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["refused"]) == (503, "the champion is being loaded")
        early = client.post("/v1/search", data={"text": "mug"})
        assert (early.status_code, early.headers["retry-after"], early.json()["error"]) == (503, "5", "the champion is being loaded")
        assert (len(early.headers["x-request-id"]), early.headers["x-frame-options"]) == (32, "DENY")
        loading.set()
        end = time.monotonic() + 20
        while client.get("/health").json() != "from the service" and time.monotonic() < end:
            time.sleep(0.02)
        assert client.get("/health").json() == "from the service"
        assert not closed.is_set()
    assert closed.wait(5), "what runs beside the requests is ended, too"


def test_at_the_end_what_was_accepted_is_answered_and_nothing_new_is() -> None:
    go, begun, closed = threading.Event(), threading.Event(), threading.Event()
    answers: list[int] = []
    with running(lambda: service(begun, go, closed)) as (server, address, thread):
        while httpx.get(f"{address}/health").json() != "from the service":
            time.sleep(0.02)
        asking = threading.Thread(target=lambda: answers.append(httpx.get(f"{address}/v1/slow", timeout=20).status_code))
        asking.start()
        assert begun.wait(10)
        server.should_exit = True
        time.sleep(0.5)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/v1/slow")
        assert not answers
        assert thread.is_alive()
        go.set()
        asking.join(10)
        thread.join(10)
        assert answers == [200]
        assert not thread.is_alive()


def test_a_service_that_cannot_be_made_ends_with_the_reason(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from moon_ops.serving import app

    def create_app(*_: Any, **__: Any) -> None:
        raise InstallError("faiss is not installed", action="install the extra serve")

    monkeypatch.setattr(app, "create_app", create_app)
    monkeypatch.setattr(opening, "LOGGING", {"version": 1, "disable_existing_loggers": False})
    with pytest.raises(InstallError, match="faiss is not installed"):
        opening.serve(Settings(home=tmp_path, port=free()))


def test_connections_have_a_limit_and_the_one_idle_longest_makes_room() -> None:
    go, begun, closed = threading.Event(), threading.Event(), threading.Event()
    few = type("Few", (Bounded,), {"most": 3})
    with running(lambda: service(begun, go, closed), few) as (server, address, _):
        while httpx.get(f"{address}/health").json() != "from the service":
            time.sleep(0.02)
        asking = threading.Thread(target=lambda: httpx.get(f"{address}/v1/slow", timeout=20))
        asking.start()
        assert begun.wait(10)
        port = int(address.rpartition(":")[2])
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        idle[-1].sendall(b"GET /health HTTP/1.1\r\n")  # and never the rest
        time.sleep(0.3)
        assert httpx.get(f"{address}/health").json() == "from the service"
        assert len(server.server_state.connections) <= 3
        assert asking.is_alive(), "one that is being answered is kept"
        go.set()
        asking.join(10)
        for one in idle:
            one.close()


@contextmanager
def full(limits: int = 2) -> Iterator[tuple[int, Server, threading.Event]]:
    """A service with no room left: its port, itself, and what lets its work go."""
    go, begun, closed = threading.Event(), threading.Event(), threading.Event()
    with running(lambda: service(begun, go, closed)) as (server, address, _):
        while httpx.get(f"{address}/health").json() != "from the service":
            time.sleep(0.02)
        server.opening.made.state.limits.queries.most = limits
        asking = [threading.Thread(target=lambda: httpx.get(f"{address}/v1/slow", timeout=20)) for _ in range(limits)]
        for one in asking:
            one.start()
        while server.opening.made.state.limits.queries.working < limits:
            time.sleep(0.02)
        try:
            yield int(address.rpartition(":")[2]), server, go
        finally:
            go.set()
            for one in asking:
                one.join(10)


def answer(lines: BinaryIO) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next answer on a connection."""
    status = int(lines.readline().split()[1])
    headers = dict(line.decode().strip().split(": ", 1) for line in iter(lines.readline, b"\r\n"))
    return status, headers, lines.read(int(headers["content-length"]))


def test_one_too_many_is_refused_before_its_body_has_come_and_the_connection_goes_on() -> None:
    with full() as (port, server, go), socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        told, lines = list[int](), line.makefile("rb")
        limits = server.opening.made.state.limits
        limits.told = told.append
        line.sendall(b"POST /v1/slow?a=b HTTP/1.1\r\nhost: x\r\nx-request-id: mine\r\ncontent-length: 5\r\n\r\n")
        status, headers, body = answer(lines)
        assert (status, headers["retry-after"], headers["x-request-id"]) == (429, "1", "mine")
        assert (headers["content-type"], headers["x-frame-options"]) == ("application/problem+json", "DENY")
        assert json.loads(body)["error"] == "the service is busy: 2 requests are being worked on"
        assert (limits.refused["full"], told, limits.held) == (1, [429], 0)
        line.sendall(b"helloGET /health HTTP/1.1\r\nhost: x\r\n\r\n")  # what was left of it, and another one
        assert answer(lines)[0] == 200
        go.set()
        while limits.queries.working:
            time.sleep(0.02)
        line.sendall(b"GET /v1/slow HTTP/1.1\r\nhost: x\r\n\r\n")
        assert answer(lines)[0] == 200


def test_answers_keep_the_order_of_requests_that_were_sent_together() -> None:
    with full() as (port, _, _), socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        lines = line.makefile("rb")
        for kinds in (("/health", "/v1/slow", "/health"), ("/v1/slow", "/v1/slow", "/health")):
            line.sendall(b"".join(b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % kind.encode() for kind in kinds))
            assert [answer(lines)[0] for _ in kinds] == [200 if kind == "/health" else 429 for kind in kinds]


def test_a_client_that_ends_its_connection_is_refused_too() -> None:
    for head in (b"GET /v1/slow HTTP/1.0\r\n\r\n", b"GET /v1/slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"):
        with full() as (port, _, _), socket.create_connection(("127.0.0.1", port), timeout=20) as line:
            lines = line.makefile("rb")
            line.sendall(head)
            assert answer(lines)[0] == 429
            assert lines.read() == b"", "the connection is closed"


def test_the_refusal_of_a_head_request_has_no_body() -> None:
    with full() as (port, _, _), socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        lines = line.makefile("rb")
        line.sendall(b"HEAD /v1/slow HTTP/1.1\r\nhost: x\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert lines.readline().split()[1] == b"429"
        while lines.readline() != b"\r\n":
            pass
        assert answer(lines)[0] == 200, "what follows is the next answer"
