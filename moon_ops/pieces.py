"""Matrices that memory need not hold: read piece by piece, and written into a file without a name.

N rows, D dimensions. This file does not know what a matrix is of.
"""

from __future__ import annotations

import math
import mmap
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moon_ops.errors import ServiceError
from moon_ops.files import reserve

ROWS = 65_536  # of a matrix that are looked at together
IN_MEMORY = 256 * 2**20  # bytes; a larger matrix is spilled
LONG = 4_000_000  # rows of a column; a longer one is spilled
AT_ONCE = 1 << 20  # rows of long columns that are looked at together
_columns: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()  # what long columns are mapped by


def spans(count: int, rows: int | None = None) -> Iterator[slice]:
    """The rows 0 … ``count`` in order, ``rows`` (:data:`ROWS`) at a time."""
    size = ROWS if rows is None else rows
    return (slice(at, min(at + size, count)) for at in range(0, count, size))


def spilled(count: int, dim: int, kind: Any = np.float32) -> NDArray[Any]:
    """A matrix [N, D] of zeros to be written; a large one lies in a file of ``TMPDIR`` that ends with the matrix, killed or not."""
    if np.dtype(kind).itemsize * count * dim <= IN_MEMORY:
        return np.zeros((count, dim), kind)
    return _mapped((count, dim), kind)


def column(count: int, kind: Any, *width: int) -> NDArray[Any]:
    """Zeros [N] or [N, width] to be written, of a table whose rows memory need not hold: of more than :data:`LONG` in such a file."""
    if count <= LONG or 0 in width:
        return np.zeros((count, *width), kind)
    made = _mapped((count, *width), kind)
    remember(made._mmap)  # type: ignore[attr-defined]
    return np.asarray(made)


def _mapped(shape: tuple[int, ...], kind: Any) -> np.memmap[Any, Any]:
    """Zeros in a file that the mapping keeps; :class:`ServiceError` where the disk has no room for all of them."""
    size = np.dtype(kind).itemsize * math.prod(shape)
    with tempfile.TemporaryFile(prefix="moon-") as file:
        try:
            reserve(file, size)
        except OSError as full:
            problem = (
                f"TMPDIR = {tempfile.gettempdir()}: there is no room for {size / 1e6:,.0f} MB that memory need not hold ({full.strerror})"
            )
            raise ServiceError(
                problem, action="make room there, or let TMPDIR name a directory of a larger disk, and run it again"
            ) from full
        return np.memmap(file, kind, "w+", shape=shape)


def remember(mapping: mmap.mmap) -> None:
    """A long column's file, for :func:`let_columns_go`."""
    _columns.add(mapping)


def let_columns_go() -> None:
    """The pages of all long columns need not stay in memory: they are read again when they are wanted, with what was written."""
    for mapping in list(_columns):
        if hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)


def parts(count: int) -> Iterator[slice]:
    """The rows of long columns in order, :data:`AT_ONCE` at a time, their pages let go after each; one span if there are none."""
    for some in spans(count, AT_ONCE) if count else [slice(0, 0)]:
        yield some
        if count > LONG:
            let_columns_go()


def let_go(matrix: NDArray[Any]) -> None:
    """If it lies in a mapped file, its pages need not stay in memory: they are read again when they are wanted, with what was written."""
    owner: Any = matrix
    while owner is not None and not isinstance(owner, mmap.mmap):
        if getattr(owner, "mode", "") == "c":  # what was written is in memory alone
            return
        owner = getattr(owner, "base", None)
    if owner is not None and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)
