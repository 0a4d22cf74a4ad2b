"""On the disk before it is acknowledged: Lance writes files and leaves it to the kernel when they get there.

A process that is killed loses nothing of that, a machine without power does. Who tells somebody else that rows are kept asks here first.
An object store keeps what it has acknowledged.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from moon_ops.lake.lake import Lake

SLACK = 2.0  # seconds: times of files are coarser than those of clocks


def sync(lake: Lake, tables: Sequence[str], since: float) -> None:
    """Have all that was written to ``tables`` after ``since`` (seconds of the clock that files have) on the disk when this returns."""
    if lake.remote:
        return
    fresh = [file for table in tables for file in _written(Path(lake.address(table)), since - SLACK)]
    for file in fresh:
        _sync(file)
    for directory in sorted({above for file in fresh for above in (file.parent, file.parent.parent)}):  # else the names may be lost
        _sync(directory)


def _written(place: Path, since: float) -> list[Path]:
    """The files under a directory that were written after ``since``; one that is removed meanwhile has been replaced."""
    found = []
    for at, _, names in os.walk(place):
        for name in names:
            file = Path(at) / name
            try:
                if file.stat().st_mtime >= since:
                    found.append(file)
            except FileNotFoundError:
                continue
    return found


def _sync(place: Path) -> None:
    try:
        descriptor = os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
