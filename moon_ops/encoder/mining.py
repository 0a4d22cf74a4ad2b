"""Hard negatives: of each item the most similar ones of its category that are another product (MOON, stage 2b).

FAISS compares. Up to :data:`EXACT` items of a category each is compared with all, a block of pairs in memory at a time; of more, inverted
lists name the candidates, in one byte a number, and the vectors themselves rank them. An item that is about as near to the queries as
what they led to may well answer them, too: see :class:`Ceiling`. I items, D dimensions, H hard negatives per item, R rows, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moon_ops.encoder.pairs import Rows

Floats = NDArray[np.float32]
Search = Callable[[Rows, int], Rows]  # rows [R] of a category's vectors, and how many → the nearest rows [R, K], -1 where there are none
EXACT = 50_000  # items of a category that are all compared with all
BLOCK = 1024  # items that are asked for at a time
NUMBERS = 2**25  # of candidates' vectors that are in memory at a time
SPARE = 32  # candidates beyond those asked for: some are the same product
PROBES = 32  # inverted lists that are looked into
MOST = 1024  # candidates of an item from inverted lists


@dataclass(frozen=True)
class Ceiling:
    """How near to an item's queries a negative may be: ``share`` of how near the item itself is (NV-Retriever, 2407.15831: TopK-PercPos,
    .95). ``asked`` [I, D] are the mean vectors of the queries that led to each item; zeros of an item that no query led to, which has no
    ceiling.
    """

    asked: Floats
    share: float

    def passed_over(self, vectors: Floats, rows: Rows, candidates: Rows) -> NDArray[np.bool_]:
        """Which of the ``candidates`` [R, K] are too near to the queries of the items ``rows`` [R]."""
        asked = self.asked[rows]
        own = (asked * vectors[rows]).sum(1)
        near = np.einsum("rd,rkd->rk", asked, vectors[candidates])
        beyond: NDArray[np.bool_] = (near >= self.share * own[:, None]) & np.any(asked, axis=1, keepdims=True)
        return beyond


def mine(vectors: Floats, categories: Rows, product: Rows, count: int, ceiling: Ceiling | None = None) -> Rows:
    """Each item's ``count`` most similar items of the same category and another product, below the ``ceiling`` [I, H]; -1 where there are
    fewer. Of equally similar candidates the first.

    ``vectors`` [I, D] are the previous encoder's; ``categories`` and ``product`` [I]. An item without a category (-1) has none. In
    categories of more than :data:`EXACT` items it may miss some, and is then given the next ones.
    """
    out = np.full((len(vectors), count), -1, np.int64)
    for category in np.unique(categories[categories >= 0]).tolist():
        members = np.flatnonzero(categories == category)
        own = np.ascontiguousarray(vectors[members])
        search, most = (_exact(own), len(own)) if len(own) <= EXACT else (_lists(own), min(len(own), MOST))
        left, few = np.arange(len(own)), min(count + SPARE, most)
        while len(left):
            short, size = [], max(1, min(BLOCK, NUMBERS // (few * own.shape[1])))
            for start in range(0, len(left), size):
                some = left[start : start + size]
                near = search(some, few)
                candidates = np.where(near < 0, -1, members[near])
                out[members[some]], fewer = _chosen(vectors, members[some], candidates, product, count, ceiling)
                short.append(some[fewer])
            left = np.concatenate(short) if few < most else left[:0]
            few = min(4 * few, most)
    return out


def _chosen(
    vectors: Floats, rows: Rows, candidates: Rows, product: Rows, count: int, ceiling: Ceiling | None
) -> tuple[Rows, NDArray[np.bool_]]:
    """The ``count`` best [R, H] of the candidates [R, K] that may be negatives of ``rows`` [R], and which rows have fewer."""
    there = (candidates >= 0) & (product[rows][:, None] != product[candidates])
    if ceiling is not None:
        there &= ~ceiling.passed_over(vectors, rows, candidates)
    similarity = np.where(there, np.einsum("rd,rkd->rk", vectors[rows], vectors[candidates]), -np.inf)
    best = np.lexsort((candidates, -similarity), axis=1)[:, :count]
    kept = np.where(np.take_along_axis(there, best, 1), np.take_along_axis(candidates, best, 1), -1)
    filled = np.pad(kept, ((0, 0), (0, count - kept.shape[1])), constant_values=-1)
    return filled, there.sum(1) < count


def _exact(own: Floats) -> Search:
    """Every vector of the category [N, D] is compared."""
    import faiss

    def search(rows: Rows, few: int) -> Rows:
        return faiss.knn(own[rows], own, few, metric=faiss.METRIC_INNER_PRODUCT)[1]

    return search


def _lists(own: Floats) -> Search:
    """Those in the nearest inverted lists are compared, by 8 bits a number."""
    import faiss

    lists, dim = int(4 * len(own) ** 0.5), own.shape[1]
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(dim), dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.cp.spherical, index.cp.max_points_per_centroid = 1, 8, True, 40
    index.train(own)
    for start in range(0, len(own), 2**16):
        index.add(own[start : start + 2**16])
    index.nprobe = min(PROBES, lists)

    def search(rows: Rows, few: int) -> Rows:
        return index.search(own[rows], few)[1]

    return search
