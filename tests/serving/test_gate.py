"""How much is taken on at once, seen from outside: 429, 504, 408 and 503, and who never waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Message

from moon_ops.serving import gate, problems
from moon_ops.serving.gate import Gate, Limits


class Answer:
    """What a client has read."""

    def __init__(self, start: Message, body: bytes) -> None:
        self.status_code, self.body = start["status"], body
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}

    def json(self) -> Any:
        return json.loads(self.body)


class Work:
    """An application whose answers wait until they are let go."""

    def __init__(self, **limits: Any) -> None:
        self.limits, self.go = Limits(**{"most": 2, "seconds": 5.0, **limits}), asyncio.Event()
        routes = [Route(path, self.answer, methods=["GET", "POST"]) for path in ("/health", "/v1/search", "/v1/items")]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: problems.other})
        self.app.add_middleware(Gate, limits=self.limits)
        self.running = set[asyncio.Task[None]]()

    async def answer(self, request: Request) -> PlainTextResponse:
        await request.body()
        if request.url.path != "/health":
            await self.go.wait()
        return PlainTextResponse("done")

    async def ask(self, path: str = "/v1/search", parts: Sequence[bytes] = (b"x" * 10,), pause: float = 0.0) -> Answer:
        """A POST whose body comes in parts, answered when the answer is sent, whatever else goes on."""
        coming, sent, done = list(parts), list[Message](), asyncio.get_running_loop().create_future()

        async def receive() -> Message:
            if len(coming) < len(parts):
                await asyncio.sleep(pause)
            return {"type": "http.request", "body": coming.pop(0), "more_body": bool(coming)}

        async def send(message: Message) -> None:
            sent.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body") and not done.done():
                done.set_result(None)

        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(b"transfer-encoding", b"chunked")],
            "query_string": b"",
            "state": {},
        }
        task = asyncio.create_task(self.app(scope, receive, send))
        self.running.add(task)
        await asyncio.wait_for(done, 10)
        assert len([one for one in sent if one["type"] == "http.response.start"]) == 1
        return Answer(sent[0], b"".join(one.get("body", b"") for one in sent[1:]))

    async def asking(self, count: int, path: str = "/v1/search") -> list[asyncio.Task[Answer]]:
        tasks = [asyncio.create_task(self.ask(path)) for _ in range(count)]
        await asyncio.sleep(0.05)
        return tasks

    async def end(self) -> None:
        """Let all go, and see that nothing is left."""
        self.go.set()
        await asyncio.wait_for(asyncio.gather(*self.running), 10)
        assert (self.limits.queries.working, self.limits.writes.working, self.limits.held) == (0, 0, 0)


def test_one_more_is_told_to_come_again_and_health_does_not_wait() -> None:
    async def run() -> None:
        work = Work()
        inside = await work.asking(2)
        answer = await work.ask()
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["title"] == "Too Many Requests"
        assert "2 requests are being worked on" in answer.json()["error"]
        assert (await work.ask("/health")).status_code == 200
        await work.asking(1, "/v1/items")  # writes are counted apart
        assert (work.limits.queries.working, work.limits.writes.working, work.limits.refused["full"]) == (2, 1, 1)
        work.go.set()
        assert [(await one).status_code for one in inside] == [200, 200]
        assert (await work.ask()).status_code == 200
        await work.end()

    asyncio.run(run())


def test_what_would_be_late_is_not_begun() -> None:
    async def run() -> None:
        work = Work(most=8)
        work.limits.queries.pace = 2.0
        inside = await work.asking(3)
        answer = await work.ask()
        assert (answer.status_code, answer.headers["retry-after"], work.limits.refused["slow"]) == (429, "6", 1)
        work.go.set()
        await asyncio.gather(*inside)

    asyncio.run(run())


def test_who_waits_too_long_is_told_and_keeps_the_place_until_the_work_ends() -> None:
    async def run() -> None:
        work = Work(seconds=0.2)
        answer = await work.ask()
        assert (answer.status_code, work.limits.refused["late"]) == (504, 1)
        assert "MOON_REQUEST_SECONDS" in answer.json()["error"]
        assert work.limits.queries.working == 1, "the handler goes on: its place is not given away"
        await work.end()
        assert (await work.ask()).status_code == 200

    asyncio.run(run())


def test_a_body_that_does_not_come_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.3)

    async def run() -> None:
        work = Work(most=1)
        slow = asyncio.create_task(work.ask(parts=(b"x", b"y"), pause=1))
        await asyncio.sleep(0.1)
        assert (work.limits.queries.working, work.limits.held) == (0, 1)
        work.go.set()
        assert (await work.ask()).status_code == 200
        assert (await slow).status_code == 408
        await work.end()

    asyncio.run(run())


def test_bodies_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MOST_HELD", 25)

    async def run() -> None:
        work = Work(most=100)
        inside = await work.asking(2)
        assert (await work.ask()).status_code == 429
        assert work.limits.refused["memory"] == 1
        work.go.set()
        assert [(await one).status_code for one in inside] == [200, 200]

    asyncio.run(run())


def test_at_the_end_nothing_new_is_taken_on() -> None:
    async def run() -> None:
        work = Work()
        inside = await work.asking(1)
        work.limits.ending = True
        answer = await work.ask()
        assert (answer.status_code, answer.headers["connection"]) == (503, "close")
        assert (await work.ask("/health")).status_code == 200
        work.go.set()
        assert (await inside[0]).status_code == 200

    asyncio.run(run())


def test_one_that_hangs_is_no_reason_to_refuse_others() -> None:
    """A score that had waited 13 s for a Redis that hung made the service refuse every search while one more was waiting."""

    async def run() -> None:
        work = Work(most=8)
        load = work.limits.queries
        load.enter(0.0)
        load.leave(13.0)
        assert load.pace == 0.0, "one alone tells nothing"
        load.pace = 13.0  # of a crowd that has gone
        inside = await work.asking(2)
        assert work.limits.why_not(load) == ""
        work.go.set()
        await asyncio.gather(*inside)

    asyncio.run(run())
