"""Matrices that memory need not hold: read piece by piece, and written into a file without a name.

N rows, D dimensions. This file does not know what a matrix is of.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS = 65_536  # of a matrix that are looked at together
IN_MEMORY = 256 * 2**20  # bytes; a larger matrix is spilled


def spans(count: int, rows: int | None = None) -> Iterator[slice]:
    """The rows 0 … ``count`` in order, ``rows`` (:data:`ROWS`) at a time."""
    size = ROWS if rows is None else rows
    return (slice(at, min(at + size, count)) for at in range(0, count, size))


def spilled(count: int, dim: int) -> NDArray[np.float32]:
    """A matrix [N, D] of zeros to be written; a large one lies in a file of ``TMPDIR`` that ends with the matrix, killed or not."""
    if 4 * count * dim <= IN_MEMORY:
        return np.zeros((count, dim), np.float32)
    with tempfile.TemporaryFile(prefix="moon-") as file:
        return np.memmap(file, np.float32, "w+", shape=(count, dim))  # the mapping keeps the file


def let_go(matrix: NDArray[Any]) -> None:
    """If it lies in a mapped file, its pages need not stay in memory: they are read again when they are wanted, with what was written."""
    owner: Any = matrix
    while owner is not None and not isinstance(owner, mmap.mmap):
        if getattr(owner, "mode", "") == "c":  # what was written is in memory alone
            return
        owner = getattr(owner, "base", None)
    if owner is not None and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)
