"""Where the right answer of a search stands: what every recall is counted from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SCORE_BATCH = 256  # queries scored at a time: Q x N similarities are never all in memory
TIE = 1e-6  # cosines that differ by less are equal: the same two vectors' product depends by that much on where in the matrix they lie


def first_hits(
    queries: NDArray[np.float32], items: NDArray[np.float32], wanted: NDArray[np.int64], spus: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Rank [Q], from 1, of the best item of each query's SPU.

    A tie counts against the query, so vectors that have collapsed to one point get the worst rank, not the best, and so does what is not
    a number. A query whose SPU is not in the catalogue gets rank N + 1.
    """
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), SCORE_BATCH):
        rows = slice(start, start + SCORE_BATCH)
        scores = queries[rows] @ items.T
        own = wanted[rows, None] == spus[None, :]
        best = np.where(own, scores, -np.inf).max(axis=1)
        ranks[rows] = 1 + (~(scores < best[:, None] - TIE) & ~own).sum(axis=1)
    return ranks
