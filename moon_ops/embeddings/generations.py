"""Writers of a directory that is replaced as a whole: one at a time, and what a killed one left is removed.

A generation is a directory beside the link that names it. Locks are the kernel's: they end with the process that
holds them. Readers need none. This file does not know what a generation holds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from moon_ops.files import TakenError, locked, put

Opened = TypeVar("Opened")


@contextlib.contextmanager
def turn(place: Path) -> Iterator[None]:
    """Wait for one's turn to replace ``place``; the lock's file stays, so that two writers always mean the same one."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.with_name(f".{place.name}.lock")):
        yield


@contextlib.contextmanager
def held(place: Path) -> Iterator[Path | None]:
    """The generation that ``place`` points to, None if there is none, while no other writer may replace it."""
    with turn(place):
        at = place.resolve()
        yield at if at.is_dir() else None


@contextlib.contextmanager
def fresh_directory(place: Path) -> Iterator[Path]:
    """A directory beside ``place`` to write its next generation into, removed again if that fails."""
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    fresh.chmod(stat.S_IMODE(place.parent.stat().st_mode))  # mkdtemp's is for its owner alone, and a service may be somebody else
    with locked(fresh):  # as long as it is written, nobody takes it for a left one
        try:
            yield fresh
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    _sweep(place)


def _sweep(place: Path) -> None:
    """Remove what killed writers left: directories that no writer holds and that are not the generation in use."""
    for left in place.parent.glob(f".{place.name}-????????"):
        if left.is_symlink() or not any(left.iterdir()):  # an empty one may just have been made
            continue
        with contextlib.suppress(OSError, TakenError), locked(left, patience=0):
            if left.resolve() != place.resolve():  # asked under the lock: it may have become the one in use
                shutil.rmtree(left)


def settled(place: Path, read: Callable[[Path], Opened]) -> Opened:
    """``read`` of the directory that ``place`` points to now: all files are of one writing, even if another takes its place meanwhile."""
    while True:
        at = place.resolve()
        try:
            return read(at)
        except FileNotFoundError:
            if place.resolve() == at:  # else a newer one has taken its place, and this one was removed under us
                raise


def remove(place: Path) -> None:
    """Take the link away, and what it points to."""
    at = place.resolve()
    place.unlink(missing_ok=True)
    if at != place:
        shutil.rmtree(at, ignore_errors=True)


def swap(fresh: Path, place: Path) -> None:
    """Make ``place`` a symbolic link to the directory ``fresh`` in one step, and remove what it pointed to before."""
    before = place.resolve() if place.is_symlink() else None
    link = place.with_name(f".{place.name}-link-{os.getpid()}")
    link.unlink(missing_ok=True)
    link.symlink_to(fresh.name)
    put(link, place)
    if before is not None and before != fresh:
        shutil.rmtree(before, ignore_errors=True)
