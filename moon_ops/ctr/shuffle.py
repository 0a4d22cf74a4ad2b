"""The order in which an epoch goes through the rows: a function of seed and epoch, in pieces, so that no order of all rows is in memory.

A few million rows are one permutation. More are cut into blocks of rows in a row; these are permuted, some of them are read together, and
their rows are permuted. So what is read lies together on the disk, and a batch is of many moments.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from moon_ops import pieces

Ints = NDArray[np.int64]
BLOCK = 8192  # rows in a row
TOGETHER = 128  # blocks of which the rows are mixed: a million rows


def shuffled(count: int, seed: tuple[int, ...], batch: int, done: int = 0) -> Iterator[Ints]:
    """The rows 0 … ``count`` once, but those of the first ``done`` batches; each piece but the last one is whole batches of ``batch``."""
    if count <= pieces.LONG:
        yield np.random.default_rng(seed).permutation(count)[done * batch :]
        return
    left = np.zeros(0, np.int64)
    for rows in _windows(count, seed, done * batch):
        ready = np.concatenate([left, rows])
        whole = len(ready) // batch * batch
        if whole:
            yield ready[:whole]
        left = ready[whole:]
    if len(left):
        yield left


def _windows(count: int, seed: tuple[int, ...], skipped: int) -> Iterator[Ints]:
    """The order in pieces, from its row ``skipped`` on."""
    blocks = np.random.default_rng(seed).permutation(-(-count // BLOCK))
    for window, first in enumerate(range(0, len(blocks), TOGETHER)):
        starts = blocks[first : first + TOGETHER] * BLOCK
        size = int(np.minimum(count - starts, BLOCK).sum())
        if skipped < size:
            rows = (starts[:, None] + np.arange(BLOCK)).ravel()
            yield np.random.default_rng((*seed, window, size)).permutation(rows[rows < count])[skipped:]
        skipped = max(0, skipped - size)
