"""The connections of a service: how many are kept, what is refused before a request is begun, and how one ends that is not read to its end.

Beyond so many, the one that has been idle longest makes room, else the new one is closed. A connection that has sent half a request counts
as idle, so that clients which send nothing more cannot shut others out. While there is no room for a request, it is refused here, before a
task and the application are begun for it: under overload refusals would take half of the event loop.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from moon_ops.serving.access import outright
from moon_ops.serving.problems import problem

MOST = 512  # each is an open file, of which a process may often have 1,024
MOST_HEAD = 64 * 2**10  # bytes that may come without any of them being a body: a head, or the end of a body, that never ends
MOST_DROPPED = 64 * 2**20  # bytes that are read and dropped of a body whose request has its answer
LINGER_SECONDS = 5.0  # that a connection is read after its last answer
FRAMING = (b"content-length", b"transfer-encoding")  # headers that say where a body ends


class _Refused:
    """In the place of a request that has its answer: the rest of its body is read and dropped."""

    response_complete = True
    message_event = asyncio.Event()  # that nobody waits for


class Bounded(HttpToolsProtocol):
    """uvicorn's HTTP protocol, so many at a time."""

    most = MOST
    heard = 0.0  # when something came last, of the monotonic clock
    reading = False  # whether a body has not come to its end
    deaf = False  # whether all that comes is dropped
    without = 0  # bytes that came and were no body
    dropped = 0  # bytes of a body that nobody wants

    def connection_made(self, transport: Any) -> None:
        """Let it in, and close another one if there are too many."""
        super().connection_made(transport)
        self.heard = time.monotonic()
        self._wait()
        if len(self.connections) > self.most:
            kept: list[Any] = [one for one in self.connections if not one.transport.is_closing()]  # others go by themselves
            if len(kept) > self.most:
                idle = [one for one in kept if one is not self and _is_idle(one)]
                min(idle, key=lambda one: one.heard, default=self).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read it, and note when it came; what has no end is not read for ever."""
        self.heard = time.monotonic()
        if self.deaf:
            self._drop(len(data))
            return
        self.without += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(memoryview(data))
        except httptools.HttpParserError:
            self._end(400, "this is no HTTP request", "send one of HTTP/1.1")
        if self.without > MOST_HEAD and not self.deaf:
            self._end(
                431, f"the request's head has more than {MOST_HEAD // 2**10} KiB", "send shorter headers, and what is long in the body"
            )
        if self.timeout_keep_alive_task is None and _is_idle(self) and not self.transport.is_closing():
            self._wait()  # also for the rest of half a head, or of a body that nobody wants

    def on_headers_complete(self) -> None:
        """Begin a request, or refuse it."""
        self.without, self.dropped, self.reading = 0, 0, True
        if not self._refused():
            super().on_headers_complete()
            self.cycle.transport = _Ending(self)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """Keep a part of a body, or drop it."""
        self.without = 0
        if self.cycle.response_complete:
            self._drop(len(body))
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """All of a request has come."""
        self.without, self.reading = 0, False
        super().on_message_complete()

    def finish(self) -> None:
        """Close it after its last answer; while a body is coming in, read on for a moment: to close at once would take the answer back."""
        self.pipeline.clear()
        if not self.reading or not self.transport.can_write_eof():
            self.transport.close()
        elif not self.transport.is_closing():
            self.deaf = True
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _should_upgrade(self) -> bool:
        return False

    def _refused(self) -> bool:
        app, method = self.config.app, self.parser.get_method()
        ask = getattr(app, "refusal", None)  # :class:`moon_ops.serving.opening.Opening` has it
        waiting = bool(self.pipeline) or not _is_idle(self)  # answers have an order
        if ask is None or waiting or self.flow.write_paused or method == b"HEAD":  # who reads no answer, or gets none with a body
            return False
        path = self.url.partition(b"?")[0].decode("latin-1")
        busy = ask(method.decode("ascii"), path)
        if busy is None:
            return False
        last = self.parser.get_http_version() != "1.1" or not self.parser.should_keep_alive() or self.expect_100_continue
        self.cycle = _Refused()  # type: ignore[assignment]  # no more of it is looked at
        self._answer(busy, path, last=last, method=method.decode("ascii"))
        return True

    def _answer(self, answer: Response, path: str, *, last: bool, method: str = "-") -> None:
        """Send an answer that no application has given."""
        more = [*self.server_state.default_headers, *([(b"connection", b"close")] if last else [])]
        self.transport.write(outright(answer, self.headers or [], path, more, method=method))
        if last:
            self.finish()
        self.on_response_complete()

    def _end(self, status: int, error: str, action: str) -> None:
        """Say what is wrong with what came, and read no further; who asked before is answered first."""
        cycle, alone = self.cycle, not self.pipeline
        self.deaf = True
        if not _is_idle(self) and not (self.reading and alone and not cycle.response_started):
            cycle.keep_alive = False
            return
        if cycle is not None and not _is_idle(self):  # it waits for a body that will not come
            cycle.disconnected = True
            cycle.message_event.set()
        self.cycle, self.reading = _Refused(), True  # type: ignore[assignment]
        if (told := getattr(self.config.app, "told", None)) is not None:
            told(status)
        self._answer(problem(status, error, action), "", last=True)

    def _parse(self, data: memoryview) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stopped:
                self._read_on()
                data = data[stopped.args[0] :]

    def _read_on(self) -> None:
        """After a request that asks for another protocol, which RFC 9110 lets us ignore: the parser has ended, and left its body out."""
        self.parser = httptools.HttpRequestParser(told := _Known(self))
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        framing = [b"%s: %s\r\n" % one for one in self.headers if one[0] in FRAMING]
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(framing) if framing else b"GET / HTTP/1.1\r\n\r\n")
        told.rest = True
        if told.body_comes and not self.cycle.response_complete:
            self.cycle.more_body = True  # the application has not been begun: that is done after this
            self.cycle.message_event.clear()
        self.reading = told.body_comes

    def _drop(self, count: int) -> None:
        self.dropped += count
        if self.dropped > MOST_DROPPED:
            self.transport.abort()

    def _wait(self) -> None:
        """Close it if nothing comes for as long as an idle connection is kept."""
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)


class _Ending:
    """A connection as a request's answer is written to it: it is closed with care, and may have been closed by the client."""

    def __init__(self, line: Bounded) -> None:
        self.is_closing, self.close, self._write = line.transport.is_closing, line.finish, line.transport.write

    def write(self, data: bytes) -> None:
        """Send it. uvicorn tells only the last of several requests that nobody listens any more."""
        if not self.is_closing():
            self._write(data)


class _Known:
    """What a second parser tells of a connection: the head that it is given first is known already. ``rest``: once it has been."""

    def __init__(self, line: Bounded) -> None:
        self.line, self.known, self.rest, self.body_comes = line, True, False, True
        self.on_body = line.on_body

    def on_message_begin(self) -> None:
        if not self.known:
            self.line.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self.known:
            self.line.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.known:
            self.line.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self.known:
            self.line.on_headers_complete()
        self.known = False

    def on_message_complete(self) -> None:
        if self.rest:
            self.line.on_message_complete()
        else:
            self.body_comes = False


def _is_idle(connection: Any) -> bool:
    return connection.cycle is None or bool(connection.cycle.response_complete)
