"""How many connections a service keeps open: beyond it the one that has been idle longest makes room, else the new one is closed.

A connection that has sent half a request counts as idle, so that clients which send nothing more cannot shut others out. While there is no
room for a request, it is refused here, before a task and the application are begun for it: under overload refusals would take half of the
event loop.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as HttpProtocol
else:
    from uvicorn.protocols.http.auto import AutoHTTPProtocol as HttpProtocol  # httptools' where it is installed

MOST = 512  # each is an open file, of which a process may often have 1,024


class _Refused:
    """In the place of a request that has its answer: the rest of its body is read and dropped."""

    response_complete = True
    message_event = asyncio.Event()  # that nobody waits for


class Bounded(HttpProtocol):
    """uvicorn's HTTP protocol, so many at a time."""

    most = MOST
    heard = 0.0  # when something came last, of the monotonic clock

    def connection_made(self, transport: Any) -> None:
        """Let it in, and close another one if there are too many."""
        super().connection_made(transport)
        self.heard = time.monotonic()
        if len(self.connections) > self.most:
            idle: list[Any] = [one for one in self.connections if one is not self and _is_idle(one)]
            min(idle, key=lambda one: one.heard, default=self).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass it on, and note when."""
        self.heard = time.monotonic()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """Begin a request, or refuse it. httptools' parser calls this; h11 has none such, and the application refuses."""
        if not self._refused():
            super().on_headers_complete()

    def _refused(self) -> bool:
        ask, method = (
            getattr(self.config.app, "refusal", None),
            self.parser.get_method(),
        )  # :class:`moon_ops.serving.opening.Opening` has it
        waiting = bool(self.pipeline) or not (self.cycle is None or self.cycle.response_complete)  # answers have an order
        plain = self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive() and not self.parser.should_upgrade()
        if ask is None or waiting or not plain or method == b"HEAD":  # whose answer has no body
            return False
        answer = ask(method.decode("ascii"), self.url.partition(b"?")[0].decode("latin-1"), self.headers)
        if answer is None:
            return False
        self.cycle = _Refused()  # type: ignore[assignment]  # no more of it is looked at
        self.transport.write(answer)
        self.on_response_complete()
        return True


def _is_idle(connection: Any) -> bool:
    return connection.cycle is None or bool(connection.cycle.response_complete)
