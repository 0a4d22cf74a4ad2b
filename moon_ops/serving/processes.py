"""A service of several processes on one port (``MOON_PROCESSES``): Python runs one thread at a time in each, so one keeps one core busy.

Each listens on the port itself, and the system deals new connections out among them. Each listens on a socket file, too, in a directory
that only this user can open: there it is asked for its health, its counts, and what an administrator has told another one.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import multiprocessing
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from moon_ops.errors import MoonError, ServiceError

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.2  # between looks at the processes
ASK_SECONDS = 5.0  # between questions for their health
HUNG_SECONDS = 60.0  # without an answer, after which a process is ended and begun anew
AGAIN_SECONDS = 1.0  # before one that has died is begun anew
MATE_SECONDS = 5.0  # that one process waits for another
SPAWN = multiprocessing.get_context("spawn")  # each begins afresh: a copy of a process with threads may wait for ever
Work = Callable[[Sequence[socket.socket], "Mates"], None]


@dataclass(frozen=True)
class Mates:
    """The processes of a service as one of them, ``own``, sees them: each has a socket file in the directory ``at``.

    ``token`` is the key by which they know each other; nobody else has it.
    """

    at: Path
    own: int
    count: int
    token: str = field(repr=False)

    def file(self, number: int) -> Path:
        """The socket file of a process."""
        return self.at / f"{number}.socket"

    def share(self, whole: int) -> int:
        """What this process gets of so many that are dealt out: at least one."""
        return max(1, whole // self.count + (self.own < whole % self.count))

    def ask(self, method: str, path: str) -> dict[int, bytes]:
        """What the other processes answer, by number; one that does not answer in time is left out."""
        found = {}
        for number in range(self.count):
            if number == self.own:
                continue
            try:
                found[number] = asked(self.file(number), method, path, MATE_SECONDS, token=self.token)
            except (OSError, http.client.HTTPException) as silent:
                log.warning("process %d of the service did not answer %s %s (%s)", number, method, path, silent)
        return found

    def is_mate(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request with these headers comes from another process of the service."""
        shown = next((value for name, value in headers if name == b"authorization"), b"")
        return secrets.compare_digest(shown, f"Bearer {self.token}".encode())


class _Local(http.client.HTTPConnection):
    """HTTP over a socket file."""

    def __init__(self, file: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self.file = file

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.file))


def asked(file: Path, method: str, path: str, seconds: float, *, token: str = "") -> bytes:
    """The body of an answer with status 200; :class:`OSError` or :class:`http.client.HTTPException` if there is none in time."""
    with contextlib.closing(_Local(file, seconds)) as connection:
        connection.request(method, path, headers={"authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        if answer.status != 200:
            raise http.client.HTTPException(f"{path}: {answer.status}")
        return answer.read()


def supervise(work: Work, address: tuple[str, int], count: int) -> None:
    """Keep ``count`` processes running ``work`` until interrupted: one that dies or hangs is begun anew.

    ``work`` gets the sockets to listen on, and the others. What it raises ends the service, and is raised here.
    """
    with tempfile.TemporaryDirectory(prefix="moon-serve-") as folder, _interrupted() as stop:
        token = secrets.token_urlsafe(32)
        crew = [_Member(work, address, Mates(Path(folder), number, count, token)) for number in range(count)]
        try:
            while not stop.wait(LOOK_SECONDS):
                for member in crew:
                    member.look()
        finally:
            for member in crew:
                member.process.terminate()
            for member in crew:
                member.process.join()


@contextlib.contextmanager
def _interrupted() -> Iterator[threading.Event]:
    """Set once somebody wants the service to end."""
    stop = threading.Event()
    before = {kind: signal.signal(kind, lambda *_: stop.set()) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


class _Member:
    """One process, as the first one sees it."""

    def __init__(self, work: Work, address: tuple[str, int], mates: Mates) -> None:
        self.work, self.address, self.mates = work, address, mates
        self.process, self.said = self._begun()

    def _begun(self) -> tuple[SpawnProcess, Connection]:
        self.asked_at = self.heard_at = time.monotonic()
        mine, its = SPAWN.Pipe()
        process = SPAWN.Process(target=_run, args=(self.work, self.address, self.mates, its), name=f"serve-{self.mates.own}")
        process.start()
        its.close()
        return process, mine

    def look(self) -> None:
        """Begin it anew if it has died or hangs; raise what it says has gone wrong."""
        if not self.process.is_alive():
            with contextlib.suppress(EOFError, OSError):
                if self.said.poll():
                    raise self.said.recv()
            log.error("process %d of the service ended with %s and is begun anew", self.mates.own, self.process.exitcode)
            time.sleep(AGAIN_SECONDS)
            self.process, self.said = self._begun()
        elif time.monotonic() - self.asked_at > ASK_SECONDS:
            self._ask()

    def _ask(self) -> None:
        self.asked_at = time.monotonic()
        with contextlib.suppress(OSError, http.client.HTTPException):
            asked(self.mates.file(self.mates.own), "GET", "/health", MATE_SECONDS)
            self.heard_at = time.monotonic()
        if time.monotonic() - self.heard_at > HUNG_SECONDS:
            log.error("process %d of the service has not answered for %.0f seconds and is ended", self.mates.own, HUNG_SECONDS)
            self.process.kill()
            self.process.join()


def _run(work: Work, address: tuple[str, int], mates: Mates, first: Connection) -> None:
    """The whole of one process. ``first`` leads to the one that began it, without which none goes on."""
    threading.Thread(target=_end_with, args=(first,), daemon=True).start()
    try:
        with _listening(address, mates.file(mates.own)) as sockets:
            work(sockets, mates)
    except MoonError as fault:
        first.send(fault)  # anything else ends this process alone, with its traceback


def _end_with(first: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        first.recv()
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _listening(address: tuple[str, int], file: Path) -> Iterator[list[socket.socket]]:
    """The port, which the processes share, and the socket file of this one."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as port, socket.socket(socket.AF_UNIX) as local:
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            port.bind(address)
        except OSError as taken:
            told = f"port {address[1]} on {address[0]} cannot be used ({taken.strerror})"
            raise ServiceError(told, action="stop what uses it, or set MOON_PORT") from taken
        file.unlink(missing_ok=True)
        local.bind(str(file))
        yield [port, local]
