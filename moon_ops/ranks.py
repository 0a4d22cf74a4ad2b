"""Where the right answer of a search stands: what every recall is counted from.

Q queries, N items, D dimensions. The items are read piece by piece, so they may lie in a file that memory does not hold.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moon_ops.pieces import let_go, spans

SCORE_BATCH = 256  # queries scored at a time, against a piece of the items: Q x N similarities are never all in memory
TIE = 1e-6  # cosines that differ by less are equal: the same two vectors' product depends by that much on where in the matrix they lie

Floats = NDArray[np.float32]


def first_hits(
    queries: Floats, items: Floats, wanted: NDArray[np.int64], spus: NDArray[np.int64], *, cut: Callable[[Floats], Floats] | None = None
) -> NDArray[np.int64]:
    """Rank [Q], from 1, of the best item of each query's SPU. ``cut`` makes of some items what they are compared as.

    A tie counts against the query, so vectors that have collapsed to one point get the worst rank, not the best, and so does what is not
    a number. A query whose SPU is not in the catalogue gets rank N + 1.
    """
    shown = cut or (lambda some: some)
    best = _best(queries, items, wanted, spus, shown)
    ranks = np.ones(len(queries), np.int64)
    for piece in spans(len(items)):
        some = shown(items[piece])
        for rows in spans(len(queries), SCORE_BATCH):
            own = wanted[rows, None] == spus[None, piece]
            ranks[rows] += (~(queries[rows] @ some.T < best[rows, None] - TIE) & ~own).sum(axis=1)
        let_go(items)
    return ranks


def _best(queries: Floats, items: Floats, wanted: NDArray[np.int64], spus: NDArray[np.int64], shown: Callable[[Floats], Floats]) -> Floats:
    """The cosine [Q] of the best item of each query's SPU, minus infinity where there is none."""
    best = np.full(len(queries), -np.inf, np.float32)
    for rows in spans(len(queries), SCORE_BATCH):
        asked = np.flatnonzero(np.isin(spus, wanted[rows]))
        for part in spans(len(asked)):
            there = asked[part]
            scores = queries[rows] @ shown(items[there]).T
            own = wanted[rows, None] == spus[None, there]
            best[rows] = np.maximum(best[rows], np.where(own, scores, -np.inf).max(axis=1))
    return best
