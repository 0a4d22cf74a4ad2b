"""How a service begins and ends: its port answers at once, while the rest is loaded; what was accepted is answered at the end.

Nothing heavy is imported here. The service itself is made in a thread, and takes over when it has something to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging.config
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import uvicorn
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from moon_ops.serving.access import Access
from moon_ops.serving.connections import Bounded
from moon_ops.serving.problems import problem
from moon_ops.serving.processes import Mates, supervise
from moon_ops.serving.sockets import require_free
from moon_ops.settings import Settings
from moon_ops.telemetry import logs

log = logging.getLogger(__name__)
LOADING = "the champion is being loaded"
KEEP_ALIVE = 30  # seconds that an idle connection is kept
SWITCH_SECONDS = 0.0005  # that a thread keeps the interpreter while others want it: Python's five milliseconds are a batch of the encoder
LOGGING = {  # each line with its time, of the service and of uvicorn alike
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s", "datefmt": "%Y-%m-%dT%H:%M:%S%z"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
    "loggers": {"moon_ops": {"level": "INFO"}, "uvicorn": {"level": "WARNING"}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},
}


class Opening:
    """ASGI application: ``/health`` and ``/ready`` from the first moment on, and everything as soon as ``make`` has made it.

    ``loaded`` is called once, in a thread, when all is there.
    """

    def __init__(self, make: Callable[[], Any], *, release: int | None = None, loaded: Callable[[], None] = lambda: None) -> None:
        self.make, self.release, self.loaded = make, release, loaded
        self.app: ASGIApp | None = None
        self.made: Any = None
        self.fault: BaseException | None = None  # why there is no service
        self.failed: Callable[[], None] = lambda: None  # called then
        self._ended = asyncio.Event()
        self._early = Access(self._say_so)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the service answer."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self.app is not None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._early(scope, receive, send)

    def end(self) -> None:
        """Take nothing new on."""
        if self.made is not None:
            self.made.state.limits.ending = True

    def refusal(self, method: str, path: str) -> Response | None:
        """The answer to a request for which there is no room, which is counted; None if there is, or nothing is served yet."""
        busy = None if self.app is None else self.made.state.limits.refusal(method, path)
        if busy is not None:
            self.told(busy.status_code)
        return busy

    def told(self, status: int) -> None:
        """Count an answer that was given before the application has seen the request."""
        if self.app is not None:
            self.made.state.limits.told(status)

    async def _say_so(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _early(scope["path"], self.release)(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        loading = asyncio.create_task(self._open())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._ended.set()
        await loading
        await send({"type": "lifespan.shutdown.complete"})

    async def _open(self) -> None:
        """Make the service, and keep it until the end."""
        try:
            self.made = await asyncio.to_thread(self.make)
            if self._ended.is_set():
                return
            async with self.made.router.lifespan_context(self.made):
                await asyncio.to_thread(self.loaded)
                self.app = self.made
                await self._ended.wait()
        except BaseException as fault:
            self.fault = fault
            self.failed()


def _settle() -> None:
    """Have the garbage collector leave alone what is there now: to look through it all holds each request up for a tenth of a second."""
    gc.collect()
    gc.freeze()


def _early(path: str, release: int | None) -> JSONResponse:
    """What is said before there is a service, which will serve the champion or one ``release``."""
    if path == "/health":
        return JSONResponse({"status": "ok"})
    if path == "/ready":
        body = {
            "ready": False,
            "status": "unavailable",
            "asked": release,
            "release": None,
            "refused": LOADING,
            "fixed": release is not None,
        }
        return JSONResponse({**body, "alerts": [], "watch": {}, "canary": None}, status_code=503)
    return problem(503, LOADING, "ask again in some seconds, or wait for /ready", headers={"retry-after": "5"})


class Server(uvicorn.Server):
    """uvicorn's, which tells the service that it is about to end before it waits for what is being worked on."""

    def __init__(self, config: uvicorn.Config, opening: Opening) -> None:
        super().__init__(config)
        self.opening = opening
        opening.failed = self._give_up

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, answer what was accepted, and end."""
        self.opening.end()
        await super().shutdown(sockets)

    def _give_up(self) -> None:
        self.should_exit = True


def serve(
    settings: Settings, *, release: int | None = None, enter: Callable[[], None] | None = None, opens: Callable[[], None] = lambda: None
) -> None:
    """Serve until interrupted: the champion, or one ``release``, in as many processes as the settings name, each of which begins with
    ``enter``. ``opens`` is called once the port is known to be free and the ``release`` to be one that can be served.

    :class:`~moon_ops.errors.ServiceError` if the port is in use.
    """
    require_free(settings.host, settings.port)
    if release is not None:
        from moon_ops.serving import fixed

        fixed.parts(settings, release)  # one that cannot be served is an error now
    opens()
    if settings.processes == 1:
        run(settings, release)
        return
    logging.config.dictConfig(logs.configuration(settings.log, LOGGING))
    supervise(partial(_entered, enter, settings, release), (settings.host, settings.port), settings.processes)


def _entered(
    enter: Callable[[], None] | None, settings: Settings, release: int | None, sockets: Sequence[socket.socket], mates: Mates
) -> None:
    if enter is not None:
        enter()
    run(_shared(settings, mates), release, sockets, mates)


def _shared(settings: Settings, mates: Mates) -> Settings:
    """The settings of one process: the cores and the places are those of the service, and each gets its share."""
    return settings.replace(workers=mates.share(settings.workers), queue=mates.share(settings.queue))


def run(settings: Settings, release: int | None, sockets: Sequence[socket.socket] | None = None, mates: Mates | None = None) -> None:
    """Serve in this process until interrupted: at the settings' port, or at the ``sockets`` that the processes of a service have."""
    sys.setswitchinterval(SWITCH_SECONDS)

    def make() -> Any:
        from moon_ops.serving.app import create_app

        return create_app(settings, release=release, mates=mates)

    opening = Opening(make, release=release, loaded=_settle)
    config = uvicorn.Config(
        opening,
        host=settings.host,
        port=settings.port,
        http=Bounded,
        ws="none",
        log_config=logs.configuration(settings.log, LOGGING),
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    with contextlib.suppress(KeyboardInterrupt):
        Server(config, opening).run(None if sockets is None else list(sockets))
    if opening.fault is not None:
        raise opening.fault
