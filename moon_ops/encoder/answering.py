"""Reads of the process that has the lake open, for workers that were forked from it: Lance does not survive a fork.

A worker that opened the lake for itself would hang now and then. A thread answers each worker over a socket of the machine; what it reads
releases Python's lock, so the model computes meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing import AuthenticationError, current_process
from multiprocessing.connection import Client, Connection, Listener
from typing import Any
from weakref import WeakValueDictionary

BACKLOG = 128  # workers that connect at the same moment
PATIENCE = 5.0  # seconds
_numbers = count()
_readers: WeakValueDictionary[int, Reader] = WeakValueDictionary()
_addresses: list[Any] = []  # where the process that forked answers; the last one counts


class Reader:
    """``read`` of the process that made it, in that process and in those forked from it within :func:`answering`."""

    def __init__(self, read: Callable[[Any], Iterator[Any]]) -> None:
        self.read, self.owner, self.number = read, os.getpid(), next(_numbers)
        self._connection: tuple[int, Connection] | None = None  # by the process with that id
        _readers[self.number] = self

    def __call__(self, wanted: Any) -> Iterator[Any]:
        """What ``read(wanted)`` yields, or raises."""
        return self.read(wanted) if os.getpid() == self.owner else self._asked(wanted)

    def _asked(self, wanted: Any) -> Iterator[Any]:
        if self._connection is None or self._connection[0] != os.getpid():
            self._connection = os.getpid(), Client(_addresses[-1], authkey=current_process().authkey)
        connection = self._connection[1]
        connection.send((self.number, wanted))
        whole = False
        try:
            while (found := connection.recv()) is not None:
                if whole := isinstance(found, Exception):
                    raise found
                yield found
            whole = True
        finally:
            if not whole:  # the rest of the answer would be taken for that of the next question
                connection.close()
                self._connection = None


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Within, processes that are forked may ask what this one reads."""
    key, over = current_process().authkey, threading.Event()
    with Listener(family="AF_UNIX", backlog=BACKLOG, authkey=key) as listener:
        _addresses.append(listener.address)
        thread = threading.Thread(target=_accept, args=(listener, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            _addresses.remove(listener.address)
            over.set()
            with contextlib.suppress(OSError, EOFError):
                Client(listener.address, authkey=key).close()  # a thread that waits for somebody does not notice that nobody can come
            thread.join(PATIENCE)


def _accept(listener: Listener, over: threading.Event) -> None:
    while not over.is_set():
        try:
            connection = listener.accept()
        except (OSError, EOFError, AuthenticationError):  # one that came has ended
            continue
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: Connection) -> None:
    with connection, contextlib.suppress(EOFError, OSError):  # the worker has ended
        while True:
            number, wanted = connection.recv()
            try:
                for found in _readers[number].read(wanted):
                    connection.send(found)
                connection.send(None)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                return
            except Exception as fault:  # for the worker to raise, whatever it is
                connection.send(fault)
