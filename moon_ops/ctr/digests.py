"""A number for each of many rows, by which equal ones are known: what is trained on has changed if the numbers of its rows have.

No protection against somebody who wants two rows to have one number. N rows; arithmetic is modulo 2^64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moon_ops import pieces

Numbers = NDArray[np.uint64]
FIRST, FACTOR, STEP = np.uint64(0xCBF29CE484222325), np.uint64(0xD6E8FEB86659FD93), np.uint64(0x9E3779B97F4A7C15)
HALF = np.uint64(32)


def of_rows(columns: Sequence[NDArray[Any]]) -> Numbers:
    """A number [N] of what stands in each row of ``columns`` [N] and [N, k], in their order."""
    found = np.full(len(columns[0]), FIRST)
    for some in pieces.spans(len(found)):
        for column in columns:
            part = column[some] if column.ndim > 1 else column[some, None]
            for place in range(part.shape[1]):
                found[some] = _mixed(found[some] * STEP ^ _bits(part[:, place]))
    return found


def of_lists(values: Numbers, ends: NDArray[np.integer[Any]], counts: NDArray[np.integer[Any]]) -> Numbers:
    """A number [M] of the ``counts`` [M] values before ``ends`` [M], in their order, wherever they lie among ``values`` [F].

    Each value counts as often as the power of an odd number that its place has; sums from the beginning tell those of any span.
    """
    odd, inverse = FACTOR, np.uint64(pow(int(FACTOR), -1, 2**64))
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * _powers(odd, len(values)), out=sums[1:])
    starts = ends.astype(np.int64) - counts
    found = (sums[ends] - sums[starts]) * _powers(inverse, len(values) + 1)[starts]
    return _mixed(found ^ counts.astype(np.uint64) * STEP)


def _powers(base: np.uint64, count: int) -> Numbers:
    found = np.full(count, base)
    found[:1] = 1
    return np.multiply.accumulate(found)


def _mixed(numbers: Numbers) -> Numbers:
    numbers = (numbers ^ numbers >> HALF) * FACTOR
    return numbers ^ numbers >> HALF


def _bits(column: NDArray[Any]) -> Numbers:
    """A column's numbers, each as 64 bits."""
    if column.dtype.kind == "f":
        column = np.ascontiguousarray(column).view(f"i{column.dtype.itemsize}")
    return column.astype(np.int64).view(np.uint64)
