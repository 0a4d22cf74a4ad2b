"""Directories of files that take long to make: found again by what decided them, and those used longest ago make room for new ones.

Each file is known by its length and checksum, so one that was cut or damaged is made again; nothing is synchronised to the disk. Whoever
has mapped a file keeps it, also when it is removed. This file does not know what is in them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moon_ops import pieces
from moon_ops.errors import ServiceError, StageError
from moon_ops.files import TakenError, is_full, locked, remembered, write_text

log = logging.getLogger(__name__)
ABOUT = "about.json"
READ = 1 << 24  # bytes of a file that are looked at together


@dataclass(frozen=True)
class Kept:
    """A directory for ``limit`` bytes. ``guard`` is held while something is put there: nothing that it depends on changes meanwhile."""

    directory: Path
    limit: int
    guard: Callable[[], AbstractContextManager[object]] = nullcontext

    @contextlib.contextmanager
    def found(self, kind: str, identity: Callable[[], Any], fill: Callable[[Path], None]) -> Iterator[Path]:
        """The directory that ``fill`` has made for this ``identity``, now or before, for as long as it takes to map its files.

        ``identity`` gives what JSON can hold. What it is of may change while ``fill`` works: then, and where there is no room, the
        directory is not kept, and removed after the block. Who wants the same at the same time waits.
        """
        name = _name(kind, identity())
        place, fresh = self.directory / name, self.directory / f".{name}.new"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as fault:
            raise StageError(f"{self.directory} cannot be a directory of kept rows ({fault})", action="remove what lies there") from fault
        with locked(self._lock(name)):
            if whole(place):
                os.utime(place / ABOUT)  # it was used now
                yield place
                return
            try:
                shutil.rmtree(fresh, ignore_errors=True)
                fresh.mkdir()
                fill(fresh)
                size = _seal(fresh)
                with self.guard():
                    if keep := size <= self.limit and _name(kind, identity()) == name:
                        shutil.rmtree(place, ignore_errors=True)
                        fresh.rename(place)
                if keep:
                    self._make_room(name)
                yield place if keep else fresh
            finally:
                shutil.rmtree(fresh, ignore_errors=True)

    def forget(self) -> None:
        """Remove everything, once nobody is about to map it; what somebody makes just now of what has changed, he removes himself."""
        for about in self.directory.glob(f"[!.]*/{ABOUT}"):
            with locked(self._lock(about.parent.name)):
                shutil.rmtree(about.parent, ignore_errors=True)
        self._remove_left()

    def _make_room(self, newest: str) -> None:
        """Remove what was used longest ago until the rest is within the limit, and what killed processes have left; not what somebody is
        about to map."""
        abouts = sorted(self.directory.glob(f"[!.]*/{ABOUT}"), key=_used, reverse=True)
        total = _size(self.directory / newest)
        for about in (about for about in abouts if about.parent.name != newest):
            total += (size := _size(about.parent))
            if total > self.limit and self._removed(about.parent, about.parent.name):
                total -= size
        self._remove_left()

    def _remove_left(self) -> None:
        for left in self.directory.glob(".*.new"):
            self._removed(left, left.name[1 : -len(".new")])

    def _removed(self, place: Path, name: str) -> bool:
        try:
            with locked(self._lock(name), patience=0):
                shutil.rmtree(place, ignore_errors=True)
            return True
        except TakenError:
            return False

    def _lock(self, name: str) -> Path:
        return self.directory / f".{name}.lock"


def _name(kind: str, identity: Any) -> str:
    return f"{kind}-{hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]}"


def _used(file: Path) -> float:
    """When it was used last; long ago if somebody has removed it meanwhile."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def whole(place: Path) -> bool:
    """Whether all files are there as they were written."""
    about = remembered(place / ABOUT, "it is made again") if place.is_dir() else None
    if about is None:
        return False
    for name, expected in about.get("files", {}).items():
        try:
            found = _checksum(place / name)
        except OSError:
            found = []
        if found != expected:
            log.warning("%s is not what was written (%s instead of %s): it is made again", place / name, found, expected)
            return False
    return True


def _seal(place: Path) -> int:
    """Note how the files are known; their bytes."""
    files = {file.name: _checksum(file) for file in sorted(place.iterdir())}
    write_text(place / ABOUT, json.dumps({"files": files}))
    return sum(size for size, _ in files.values())


def _checksum(file: Path) -> list[int]:
    """Length and checksum."""
    size = checksum = 0
    with file.open("rb") as opened:
        while some := opened.read(READ):
            size, checksum = size + len(some), zlib.crc32(some, checksum)
    return [size, checksum]


def _size(place: Path) -> int:
    """0 for one that somebody has removed meanwhile."""
    return sum(size for size, _ in (remembered(place / ABOUT, "it counts as empty") or {}).get("files", {}).values())


def write_arrays(place: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
    """Arrays by name, one file each, and what else JSON can hold; :class:`ServiceError` where the disk has no room for them."""
    try:
        for number, array in enumerate(arrays.values()):
            np.save(place / f"{number}.npy", array, allow_pickle=False)
            pieces.let_columns_go()
        (place / "arrays.json").write_text(json.dumps({"names": list(arrays), "about": about}))
    except OSError as fault:
        if not is_full(fault):
            raise
        size = sum(array.nbytes for array in arrays.values()) / 1e6
        problem = f"the disk is full: {place.parent} has no room for {size:,.0f} MB of prepared arrays"
        action = "make room there, and run it again; with MOON_ROWS_GB=0 a process alone writes none"
        raise ServiceError(problem, action=action) from fault


def read_arrays(place: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """What :func:`write_arrays` wrote. Arrays are mapped: they are the same pages for all processes, and may not be written to."""
    told = json.loads((place / "arrays.json").read_text())
    found = {name: np.load(place / f"{number}.npy", mmap_mode="r", allow_pickle=False) for number, name in enumerate(told["names"])}
    for array in found.values():
        if len(array) > pieces.LONG:
            pieces.remember(array._mmap)
    return {name: np.asarray(array) for name, array in found.items()}, told["about"]
