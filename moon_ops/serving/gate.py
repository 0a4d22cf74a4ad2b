"""How much a service takes on at once: beyond it 429, in time or 504, and nothing new while it ends.

What is counted is requests whose body has been read and that are not answered yet: a client that sends slowly takes no place. Searches and
writes are counted apart, since a write may wait for the lake. ``/health``, ``/ready`` and ``/metrics`` never wait here.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moon_ops.serving import hooks
from moon_ops.serving.problems import ELSE, problem

WORK = "/v1/"  # what lies below costs something
WRITES = ("/v1/items", "/v1/events")  # asked with another method than GET
BODY_SECONDS = 60.0  # in which a body must have come
MOST_HELD = 256 * 2**20  # bytes of all bodies that are being read or worked on
LATEST = 30  # seconds, the longest Retry-After
REASONS = ("full", "slow", "memory", "late", "ending")  # why requests are refused


@dataclass
class Load:
    """What is worked on now: ``working`` requests of at most ``most``. ``pace``: seconds from one answer to the next while many are.

    Of few the pace tells nothing: one that waits for a store that hangs would be a reason to refuse all others.
    """

    most: int
    working: int = 0
    pace: float = 0.0
    _last: float = 0.0

    def enter(self, now: float) -> None:
        """One more."""
        if not self.working:
            self._last = now
        self.working += 1

    def leave(self, now: float) -> None:
        """One is answered."""
        passed, self._last = now - self._last, now
        if self.crowded:
            self.pace = passed if not self.pace else 0.9 * self.pace + 0.1 * passed
        self.working -= 1

    @property
    def crowded(self) -> bool:
        """Whether a quarter of the places is taken, and more."""
        return self.working > self.most // 4

    @property
    def wait(self) -> float:
        """Seconds until one that came now would be answered, as things go."""
        return self.working * self.pace


@dataclass
class Limits:
    """The limits of a service, and what it has refused by reason. ``seconds``: in which a request must be answered."""

    most: int
    seconds: float
    held: int = 0  # bytes of bodies
    ending: bool = False
    told: Callable[[int], None] = lambda _: None  # hears the status of what is refused before the application has seen it
    refused: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(REASONS, 0)))

    def __post_init__(self) -> None:
        self.queries, self.writes = Load(self.most), Load(self.most)

    def load(self, method: str, path: str) -> Load | None:
        """What a request counts to; None if it needs no place."""
        if not path.startswith(WORK) or path.rstrip("/") == hooks.PATH:
            return None
        return self.writes if method != "GET" and path.startswith(WRITES) else self.queries

    def why_not(self, load: Load) -> str:
        """Why nothing more is taken on; empty if it is."""
        if load.working >= load.most:
            return "full"
        return "slow" if load.crowded and load.wait > self.seconds else ""

    def refusal(self, method: str, path: str) -> JSONResponse | None:
        """The 429 of a request that finds no room, which is counted; None if there is room, or the application has to say it."""
        load = self.load(method, path)
        if load is None or self.ending or not (reason := self.why_not(load)):
            return None
        self.refused[reason] += 1
        return _refusal(load.working, _later(load)["retry-after"])


class Gate:
    """ASGI middleware that answers 408, 429, 503 and 504 itself."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or say why not."""
        limits = self.limits
        load = limits.load(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if load is None:
            await self.app(scope, receive, send)
        elif limits.ending:
            limits.refused["ending"] += 1
            answer = problem(503, "the service is about to end", "ask again: another one answers", headers={"connection": "close"})
            await answer(scope, receive, send)
        elif (busy := limits.refusal(scope["method"], scope["path"])) is not None:
            await busy(scope, receive, send)
        else:
            await _Passage(limits, load, scope, receive, send).through(self.app)


class _Passage:
    """One request on its way through the gate."""

    def __init__(self, limits: Limits, load: Load, scope: Scope, receive: Receive, send: Send) -> None:
        self.limits, self.load, self.scope, self._receive, self._send = limits, load, scope, receive, send
        self.loop = asyncio.get_running_loop()
        self.entered = self.started = False
        self.held = 0
        self.told: asyncio.Task[None] | None = None  # the answer that it is late
        self.timer = self.loop.call_later(BODY_SECONDS, self._late)

    async def through(self, app: ASGIApp) -> None:
        """Run the application; what it says after the time was up is not sent."""
        if self.scope["method"] == "GET" or not _has_body(self.scope):
            self._enter()  # who reads no body would take no place
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:
            if self.told is None:
                raise  # else the client has its answer: that nobody listens any more is no fault
        finally:
            self.timer.cancel()
            self.limits.held -= self.held
            if self.entered:
                self.load.leave(self.loop.time())
            if self.told is not None:
                await self.told

    async def receive(self) -> Message:
        """The next part of the body; with the last one the request takes its place."""
        message = await self._receive()
        if message["type"] != "http.request":
            return message
        self.held += len(message.get("body", b""))
        self.limits.held += len(message.get("body", b""))
        if self.limits.held > MOST_HELD:
            self._refuse("memory")
        if not message.get("more_body", False) and not self.entered:
            if reason := self.limits.why_not(self.load):
                self._refuse(reason)
            self._enter()
        return message

    async def send(self, message: Message) -> None:
        """Pass an answer on, unless another was given."""
        if self.told is None:
            self.started = True
            await self._send(message)

    def _enter(self) -> None:
        self.entered = True
        self.load.enter(self.loop.time())
        self.timer.cancel()
        self.timer = self.loop.call_later(self.limits.seconds, self._late)

    def _refuse(self, reason: str) -> None:
        self.limits.refused[reason] += 1
        raise HTTPException(429, _busy(self.load), _later(self.load))

    def _late(self) -> None:
        """The time is up: say so, whatever the handler still does."""
        if self.started:
            return
        self.limits.refused["late"] += 1
        if self.entered:
            what = f"the request was not answered within {self.limits.seconds:g} seconds (MOON_REQUEST_SECONDS)"
            answer = problem(504, what, "send it again, or less in one request", headers=_later(self.load))
        else:
            answer = problem(
                408, f"the body did not come within {BODY_SECONDS:g} seconds", "send it again", headers={"connection": "close"}
            )
        self.told = self.loop.create_task(answer(self.scope, self._receive, self._send))


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


@functools.lru_cache(maxsize=1024)
def _refusal(working: int, seconds: str) -> JSONResponse:
    """A 429, made once: while there is too much of everything, it has to cost next to nothing."""
    return problem(429, f"the service is busy: {working} requests are being worked on", ELSE[429], headers={"retry-after": seconds})


def _busy(load: Load) -> str:
    return f"the service is busy: {load.working} requests are being worked on"


def _later(load: Load) -> dict[str, str]:
    return {"retry-after": str(min(max(math.ceil(load.wait), 1), LATEST))}
