"""Files that several processes use and any of them may be killed over: one lock, and one way to write a file.

Locks are the kernel's: they end with the process that holds them, so a killed one leaves none. A directory can be locked as a file can,
and several readers may share a lock; filelock, which torch and others bring along, offers neither.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from moon_ops.errors import StageError

POLL_SECONDS = 0.05  # between two tries for a lock


@contextlib.contextmanager
def locked(place: Path, *, shared: bool = False, patience: float | None = None) -> Iterator[None]:
    """Hold the lock on a file ``….lock``, which is made if it is not there and stays, or on a directory, which must be there.

    ``shared`` with others that share it. Waits for ``patience`` seconds, for ever without it; then raises :class:`TakenError`.
    """
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT if place.suffix == ".lock" else os.O_RDONLY, 0o666)
    try:
        _take(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, patience)
        yield
    finally:
        os.close(descriptor)


class TakenError(StageError):
    """Somebody else holds the lock."""


def _take(descriptor: int, how: int, patience: float | None) -> None:
    if patience is None:
        fcntl.flock(descriptor, how)
        return
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() - began >= patience:
                raise TakenError(f"somebody else has held a lock for {patience:g} seconds", action="try again later") from None
            time.sleep(POLL_SECONDS)


def link(source: Path, target: Path) -> None:
    """A second name for a file, which nobody may change then; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # another file system, or one without links
        partial = target.with_name(f".{target.name}-{os.getpid()}-{threading.get_ident()}")
        try:
            shutil.copyfile(source, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def write_text(place: Path, content: str, *, mode: int = 0o666) -> None:
    """Replace a file in one step; it is on the disk, whole, when this returns. ``mode`` as far as the process's umask allows."""
    write(place, lambda file: file.write(content.encode()), mode=mode)


def write(place: Path, fill: Callable[[BinaryIO], object], *, mode: int = 0o666) -> None:
    """Replace a file by what ``fill`` writes, in one step; a reader finds the old one or the new one, whole, whatever is killed when."""
    scratch = place.with_name(f".{place.name}-{os.getpid()}-{threading.get_ident()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(place)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    directory = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # else the new name may be lost with the power
    finally:
        os.close(directory)
