"""Writers of a directory that is replaced as a whole: one at a time, and what a killed one left is removed.

A generation is a directory beside the link that names it (see ``table.swap``). Locks are the kernel's: they end with the process that
holds them. Readers need none. This file does not know what a generation holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def held(place: Path) -> Iterator[Path | None]:
    """The generation that ``place`` points to, None if there is none, while no other writer may replace it."""
    with contextlib.ExitStack() as lock:
        while True:
            at = place.resolve()
            if not at.is_dir():
                yield None
                return
            with contextlib.suppress(FileNotFoundError):
                lock.enter_context(_locked(at))
                if place.resolve() == at:
                    break
            lock.close()  # another writer was faster, and this generation is no more
        yield at


@contextlib.contextmanager
def fresh_directory(place: Path) -> Iterator[Path]:
    """A directory beside ``place`` to write its next generation into, removed again if that fails."""
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    with _locked(fresh):  # as long as it is written, nobody takes it for a left one
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
        with contextlib.suppress(OSError), _locked(left, fcntl.LOCK_NB):
            if left.resolve() != place.resolve():  # asked under the lock: it may have become the one in use
                shutil.rmtree(left)


@contextlib.contextmanager
def _locked(at: Path, how: int = 0) -> Iterator[None]:
    descriptor = os.open(at, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(descriptor)
