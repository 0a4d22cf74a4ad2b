"""Politeness to those who serve a seller's pictures: few requests to a host at a time, pauses when it asks for them, and an end of asking.

A host that is down or wants to be left alone for long is not asked for the rest of a run: a catalogue has thousands of pictures there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from urllib.parse import urlsplit

import httpx

from moon_ops.lake import fetch
from moon_ops.lake.fetch import Fetched, FetchError

PER_HOST = 4  # requests at a time
TRIES = 3  # of an address in one run, where another try may help
PAUSE_SECONDS = 0.5  # before the second try; twice that before the third
PATIENCE_SECONDS = 30.0  # the longest pause that a run makes for a host; if it wants more, it is not asked any more
GIVE_UP = 5  # addresses of a host in a row that failed all their tries, after which it is not asked any more


class _Host:
    """What a run knows of a host."""

    def __init__(self) -> None:
        self.gate, self.lock = threading.BoundedSemaphore(PER_HOST), threading.Lock()
        self.client = fetch.new_client(PER_HOST)
        self.until = 0.0  # on the monotonic clock; nobody asks before it
        self.failed = 0  # addresses in a row
        self.closed = ""  # why it is not asked any more


class Hosts:
    """Fetches pictures from many threads; a context that closes the connections at its end."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        for host in self._hosts.values():
            host.client.close()

    def fetch(self, address: str, *, max_bytes: int, known: Fetched | None = None) -> Fetched:
        """What lies at ``address``, tried up to ``TRIES`` times; :class:`FetchError` as :func:`moon_ops.lake.fetch.fetch`."""
        host = self._host(_name(address))
        with host.gate:
            for attempt in range(TRIES):
                self._wait(host, address)
                try:
                    fetched = fetch.fetch(address, max_bytes=max_bytes, known=known, client_of=self._client)
                except FetchError as fault:
                    if not self._again(host, fault, attempt):
                        raise
                else:
                    host.failed = 0
                    return fetched
        raise AssertionError("the last try returns or raises")

    def _again(self, host: _Host, fault: FetchError, attempt: int) -> bool:
        """Note what a fault says of its host; whether to try once more."""
        if not fault.again:
            return False
        pause = PAUSE_SECONDS * 2**attempt if fault.retry_after is None else fault.retry_after
        with host.lock:
            if pause > PATIENCE_SECONDS:
                host.until, host.closed = time.monotonic() + pause, f"wants to be left alone for {pause:,.0f} seconds"
                return False
            if attempt + 1 < TRIES:
                host.until = max(host.until, time.monotonic() + pause)
                return True
            host.failed += 1
            if host.failed >= GIVE_UP:
                host.closed = f"failed for {host.failed} pictures in a row"
            return False

    def _wait(self, host: _Host, address: str) -> None:
        """Until the host may be asked; :class:`FetchError` if that is not in this run."""
        left = host.until - time.monotonic()
        if host.closed:
            problem = f"{address} was not fetched: its host {host.closed}"
            raise FetchError(problem, action="try again later", asked=False, again=True, retry_after=max(left, 0.0) or None)
        if left > 0:
            time.sleep(left)

    def _host(self, name: str) -> _Host:
        with self._lock:
            return self._hosts.setdefault(name, self._hosts.get(name) or _Host())

    @contextlib.contextmanager
    def _client(self, name: str) -> Iterator[httpx.Client]:
        yield self._host(name).client


def _name(address: str) -> str:
    """The host of an address; what is no address is refused where it is fetched."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
