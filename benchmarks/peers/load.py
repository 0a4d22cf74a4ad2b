"""A light load generator on one event loop: requests are bytes made before, answers are read to their length and no further.

httpx takes a millisecond of processor time for a request, as much as the service that is measured; this takes a tenth of it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


def form(path: str, fields: dict[str, str], picture: bytes | None = None) -> bytes:
    """A POST of a form, with a picture as a file named ``image``."""
    edge, parts = b"moon-ops-load", b""
    for name, value in fields.items():
        parts += b'--%s\r\ncontent-disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (edge, name.encode(), value.encode())
    if picture is not None:
        parts += b'--%s\r\ncontent-disposition: form-data; name="image"; filename="p"\r\n\r\n%s\r\n' % (edge, picture)
    parts += b"--%s--\r\n" % edge
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: multipart/form-data; boundary={edge.decode()}\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(parts) + parts


def posted(path: str, body: object, key: str = "") -> bytes:
    """A POST of JSON, with a key if there is one."""
    content = json.dumps(body).encode()
    shown = f"authorization: Bearer {key}\r\n" if key else ""
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\n{shown}content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def got(path: str) -> bytes:
    """A GET."""
    return f"GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode()


@dataclass
class Answers:
    """What a run has brought: seconds of each answer with its status, the release that made it, and when it came (monotonic clock)."""

    seconds: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    releases: list[int] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    passed: float = 0.0  # seconds of the whole run
    failures: int = 0  # connections that broke

    def counts(self) -> dict[str, int]:
        """Answers by status."""
        return {str(status): count for status, count in sorted(Counter(self.statuses).items())}

    def good(self) -> list[float]:
        """Seconds of the answers with status 200."""
        return [s for s, status in zip(self.seconds, self.statuses, strict=True) if status == 200]

    def rate(self) -> float:
        """Answers with status 200 a second."""
        return len(self.good()) / self.passed

    def ms(self, percent: float) -> float:
        """A percentile of the answers with status 200."""
        return 1e3 * float(np.percentile(self.good() or [np.nan], percent))


class Connection:
    """One connection that is kept open."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes, answers: Answers, since: float | None = None) -> bytes:
        """Send it and note the answer; its body. ``since``: when it was due, if that is not now."""
        began = time.perf_counter() if since is None else since
        try:
            if self.streams is None or self.streams[0].at_eof():  # or the service has closed a connection that was idle
                self.streams = await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = self.streams
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
            body = await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            answers.failures += 1
            self.close()
            return b""
        answers.seconds.append(time.perf_counter() - began)
        answers.statuses.append(int(head[9:12]))
        answers.at.append(time.monotonic())
        if b"\r\nconnection: close" in head:
            self.close()
        return body

    def close(self) -> None:
        """End it; the next request opens another."""
        if self.streams is not None:
            self.streams[1].close()
        self.streams = None


async def closed(port: int, requests: Sequence[bytes], *, clients: int, seconds: float) -> Answers:
    """So many clients, each of which asks again as soon as it has its answer."""
    answers, began = Answers(), time.perf_counter()

    async def client(number: int) -> None:
        line, asked = Connection(port), number
        while time.perf_counter() - began < seconds:
            await line.ask(requests[asked % len(requests)], answers)
            asked += clients
        line.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    answers.passed = time.perf_counter() - began
    return answers


async def opened(
    port: int, requests: Sequence[bytes], *, rate: float, seconds: float, most: int = 256, stop: asyncio.Event | None = None
) -> Answers:
    """Requests at random moments, ``rate`` a second on average, whether others are answered or not; timed from when they were due.

    ``most`` at a time: beyond them requests wait here, as in a browser's queue. With ``stop`` each answer's release is noted, and it ends
    the run.
    """
    answers, due = Answers(), np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(rate * seconds)))
    free, began, running = [Connection(port) for _ in range(most)], time.perf_counter(), set[asyncio.Task[None]]()
    room = asyncio.Semaphore(most)

    async def one(request: bytes, since: float) -> None:
        async with room:
            line = free.pop()
            body = await line.ask(request, answers, since)
            if stop is not None and body:
                answers.releases.append(int(json.loads(body).get("release") or 0))
            free.append(line)

    for number, moment in enumerate(due):
        if stop is not None and stop.is_set():
            break
        if (wait := began + moment - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(requests[number % len(requests)], began + float(moment)))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    answers.passed = time.perf_counter() - began
    for line in free:
        line.close()
    return answers


async def probed(port: int, path: str, *, every: float, stop: asyncio.Event) -> Answers:
    """The same GET over and over, on a connection of its own, until ``stop``."""
    answers, line = Answers(), Connection(port)
    while not stop.is_set():
        await line.ask(got(path), answers)
        await asyncio.sleep(every)
    line.close()
    return answers
