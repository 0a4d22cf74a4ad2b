"""Files that several processes use and any of them may be killed over: one lock, and one way to write a file.

Locks are the kernel's: they end with the process that holds them, so a killed one leaves none. A directory can be locked as a file can,
and several readers may share a lock; filelock, which torch and others bring along, offers neither.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from moon_ops.errors import StageError

log = logging.getLogger(__name__)
FULL = re.compile(r"No space left on device|Not enough free space to write|\d+ requested and \d+ written")
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
    _sync(place.parent)  # else the new name may be lost with the power


def is_claimed(directory: Path, mark: str) -> bool:
    """Whether a directory holds anything; what a killed process left that was just writing the file ``mark`` into it is nothing."""
    return directory.is_dir() and not all(path.name.startswith(f".{mark}-") for path in directory.iterdir())


def put(fresh: Path, place: Path) -> None:
    """Give a file or a directory that is complete its name: all of it is on the disk before it is found there."""
    sync(fresh)
    fresh.replace(place)
    _sync(place.parent)


def sync(place: Path) -> None:
    """Have a file, or a directory with all that is in it, on the disk when this returns."""
    if place.is_dir():
        for inner in place.iterdir():
            if not inner.is_symlink():
                sync(inner)
    _sync(place)


def _sync(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(file: BinaryIO, size: int) -> None:
    """Take the disk's room for the first ``size`` bytes of an open file, before it is mapped: a process that writes into a mapped file for
    which there is none is ended by the system, without a word. :class:`OSError` where the disk is full.
    """
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)


def is_full(fault: OSError) -> bool:
    """Whether it says that the disk is full, or the share of it that one may use; numpy says so without a number."""
    return fault.errno in (errno.ENOSPC, errno.EDQUOT) or FULL.search(str(fault)) is not None


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


def remembered(place: Path, then: str) -> dict[str, Any] | None:
    """A JSON object that can be found out again: None where the file is not there; also, with a warning that says what happens ``then``,
    where it is empty or cut, as a power failure leaves it.
    """
    try:
        return _object(place)
    except FileNotFoundError:
        return None
    except ValueError as damaged:
        log.warning("%s cannot be read (%s): %s", place, damaged, then)
        return None


def required(place: Path, action: str) -> dict[str, Any]:
    """A JSON object that nothing else can tell; :class:`StageError` with what to do where the file is empty, cut, or not there."""
    try:
        return _object(place)
    except (FileNotFoundError, ValueError) as damaged:
        why = "is not there" if isinstance(damaged, FileNotFoundError) else f"cannot be read ({damaged})"
        raise StageError(f"{place} {why}", action=action) from damaged


def _object(place: Path) -> dict[str, Any]:
    content = json.loads(place.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__} instead of an object")
    return content
