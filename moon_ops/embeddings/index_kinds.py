"""The two kinds of index as they are in memory: an exact scan for few items, inverted lists for many.

B queries, D dimensions, N items in the base, M in the delta, L lists. A row is a number: 0 … N-1 is an item of the base, N … N+M-1 one of
the delta, -1 none. This file knows neither item ids nor contracts nor files.

Lists are trained by k-means. A query is compared with the 8-bit codes of the ``probes`` nearest lists, and the best of those with the
vectors themselves, so cosines are exact. The base is shared by its generations and never changed: a list that a delta touches is written
anew in memory, without what is gone and with what is new. The alternatives cost more in every search: a selector that is asked about each
code a tenth, a second set of lists for the delta a fifth.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

swig: Any = faiss  # for names that its type stubs do not know
Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

EXACT_UP_TO = 30_000  # items: a scan of 30,000 x 128 takes 0.25 ms on one core, of 50,000 already 0.7 ms; then lists are faster
RECALL = 0.996  # of the ten nearest that ``probes`` is chosen for
QUERIES = 1000  # sampled to choose it; with fewer the choice is chance
BLOCK_ROWS = 16_384  # vectors copied at once
BATCH, BLOCK = 65_536, 256  # vectors and queries handled at once


@dataclass(frozen=True)
class Base:
    """What generations share: a FAISS index and the vectors [N, D] it holds.

    For lists also their codes in row order [N, C], and the row that each list begins with [L + 1]; both are empty for a flat index.
    """

    index: Any  # faiss.IndexFlatIP or faiss.IndexIVFScalarQuantizer
    vectors: Floats
    codes: NDArray[np.uint8]
    starts: Rows


@dataclass(frozen=True)
class Delta:
    """What changed since the base was built: vectors [M, D], their lists [M], and the base's rows that are gone (sorted)."""

    vectors: Floats
    lists: Rows
    tombstones: Rows


@dataclass(frozen=True)
class Choice:
    """What a base became and why; ``recall`` is that of the ten nearest, 1.0 where the scan is exact."""

    kind: str
    reason: str
    probes: int
    recall: float


@dataclass
class Flat:
    """Exact search: a scan of the base that skips tombstones by a selector, and a scan of the delta."""

    base: Base
    delta: Delta
    _params: Any = field(init=False, default=None)
    _later: faiss.Index = field(init=False)

    def __post_init__(self) -> None:
        if len(self.delta.tombstones):
            live = np.ones(len(self.base.vectors), bool)
            live[self.delta.tombstones] = False
            self._selector = swig.IDSelectorBitmap(np.packbits(live, bitorder="little"))
            self._params = swig.SearchParameters(sel=self._selector)
        self._later = faiss.IndexFlatIP(self.base.vectors.shape[1])
        self._later.add(self.delta.vectors)

    def nearest(self, queries: Floats, k: int) -> tuple[Rows, Floats]:
        """Rows [B, k] and cosines [B, k], best first; -1 where there are no more."""
        cosines, rows = self.base.index.search(queries, k, params=self._params)
        if not len(self.delta.vectors):
            return rows, cosines
        more, later = self._later.search(queries, k)
        later[later >= 0] += len(self.base.vectors)
        return best(np.concatenate([rows, later], 1), np.concatenate([cosines, more], 1), k)


class Lists:
    """Approximate search in inverted lists, with exact cosines."""

    def __init__(self, base: Base, delta: Delta, probes: int) -> None:
        self.base, self.delta, self.probes = base, delta, probes
        self._index, self._changed = _like(base.index), _rewritten(base, delta)
        self._all = swig.MaskedInvertedLists(self._changed.invlists, base.index.invlists)  # a changed list hides the base's
        self._index.replace_invlists(self._all, False)
        self._index.ntotal = len(base.vectors) - len(delta.tombstones) + len(delta.vectors)

    def nearest(self, queries: Floats, k: int) -> tuple[Rows, Floats]:
        """Rows [B, k] and cosines [B, k], best first; -1 only where the index has no more."""
        if len(queries) <= BLOCK:
            return self._nearest(queries, k)
        parts = [self._nearest(queries[at : at + BLOCK], k) for at in range(0, len(queries), BLOCK)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _nearest(self, queries: Floats, k: int) -> tuple[Rows, Floats]:
        found, cosines = self._probed(queries, k, self.probes, self._index.ntotal)
        short = found[:, -1] < 0
        if short.any():  # the probed lists held fewer than k
            found[short], cosines[short] = exact(self.base, self.delta, queries[short], k)
        return found, cosines

    def among(self, queries: Floats, k: int, selector: Any, items: int) -> tuple[Rows, Floats]:
        """Likewise among the ``items`` rows that FAISS's ``selector`` lets through; -1 also where the lists looked into have no more."""
        return self._probed(queries, k, -(-self.probes * self._index.ntotal // items), items, sel=selector)

    def _probed(self, queries: Floats, k: int, probes: int, items: int, **more: Any) -> tuple[Rows, Floats]:
        """The best of the nearest ``probes`` lists, in all of which there are ``items``."""
        lists, wanted = self._index.nlist, 2 * k
        probes = min(lists, max(probes, 4 * wanted * lists // max(items, 1)))  # many neighbours lie in many lists
        coarse = swig.SearchParametersHNSW(efSearch=max(64, probes * 5 // 4))
        _, rows = self._index.search(queries, wanted, params=swig.SearchParametersIVF(nprobe=probes, quantizer_params=coarse, **more))
        return best(rows, self._cosines(queries, rows), k)

    def _cosines(self, queries: Floats, rows: Rows) -> Floats:
        last = len(self.base.vectors) - 1
        vectors = self.base.vectors[np.clip(rows, 0, last)]  # [B, R, D]
        later = rows > last
        if later.any():
            vectors[later] = self.delta.vectors[rows[later] - last - 1]
        cosines: Floats = np.matmul(vectors, queries[:, :, None])[:, :, 0]
        cosines[rows < 0] = -np.inf
        return cosines


def best(rows: Rows, cosines: Floats, k: int) -> tuple[Rows, Floats]:
    """The k best of candidates [B, C], C at least k."""
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(cosines, order, 1)


def exact(base: Base, delta: Delta, queries: Floats, k: int) -> tuple[Rows, Floats]:
    """Rows [B, k] and cosines [B, k] of a scan over every vector; -1 and minus infinity where there are no more."""
    rows, cosines = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    for vectors, first, dead in ((base.vectors, 0, delta.tombstones), (delta.vectors, len(base.vectors), np.zeros(0, np.int64))):
        for at in range(0, len(vectors), BATCH):
            scores = queries @ vectors[at : at + BATCH].T  # [B, BATCH]
            scores[:, dead[np.searchsorted(dead, at) : np.searchsorted(dead, at + BATCH)] - at] = -np.inf
            top = np.argpartition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
            found = np.take_along_axis(scores, top, 1)
            top = np.where(np.isfinite(found), top + (first + at), -1)
            rows, cosines = best(np.concatenate([rows, top], 1), np.concatenate([cosines, found], 1), k)
    return rows, cosines


class Probe:
    """Sampled items of an index and their k nearest by a full scan, themselves left out: what a search of them should find."""

    def __init__(self, base: Base, delta: Delta, queries: int, k: int, seed: int) -> None:
        live = np.ones(len(base.vectors) + len(delta.vectors), bool)
        live[delta.tombstones] = False
        rows = np.flatnonzero(live)
        rows = np.sort(np.random.default_rng(seed).choice(rows, min(queries, len(rows)), replace=False))
        late = rows >= len(base.vectors)
        self.queries = np.concatenate([base.vectors[rows[~late]], delta.vectors[rows[late] - len(base.vectors)]])
        wanted, _ = exact(base, delta, self.queries, k + 1)
        self.k, self.wanted = k, [[r for r in w if r not in (own, -1)][:k] for own, w in zip(rows.tolist(), wanted.tolist(), strict=True)]

    def recall(self, searcher: Flat | Lists) -> float:
        """The share of them that ``searcher`` finds."""
        found, _ = searcher.nearest(self.queries, self.k + 1)
        hits = sum(len(set(w).intersection(f)) for w, f in zip(self.wanted, found.tolist(), strict=True))
        total = sum(map(len, self.wanted))
        return hits / total if total else 1.0


def train(vectors: Floats) -> tuple[Any, Rows, Rows]:
    """An index for the vectors [N, D], flat or lists by their number, the order [N] of its rows and the list [N] of each row.

    A flat index holds the vectors. Lists are empty: :func:`encode` and :func:`fill` are for them. Every sample is seeded.
    """
    if len(vectors) <= EXACT_UP_TO:
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return index, np.arange(len(vectors)), np.zeros(len(vectors), np.int64)
    lists, nearest = _train_lists(vectors)
    order = np.argsort(nearest, kind="stable")
    return lists, order, nearest[order]


def encode(index: Any, vectors: Floats, lists: Rows) -> NDArray[np.uint8]:
    """Codes [M, C] of the vectors [M, D] in these lists [M]; a code begins with the number of its list."""
    codes = np.empty((len(vectors), index.sa_code_size()), np.uint8)
    vectors, lists = np.ascontiguousarray(vectors), np.ascontiguousarray(lists)
    index.encode_vectors(len(codes), faiss.swig_ptr(vectors), faiss.swig_ptr(lists), faiss.swig_ptr(codes), True)
    return codes


def fill(index: Any, codes: NDArray[np.uint8], rows: Rows) -> None:
    """Put codes [M, C] of these rows [M] into lists; one call for many, since each call lets go of the interpreter's lock."""
    for at in range(0, len(rows), BATCH):
        index.add_sa_codes(np.ascontiguousarray(codes[at : at + BATCH]), np.ascontiguousarray(rows[at : at + BATCH]))


def choose(base: Base) -> Choice:
    """How the base is searched: exactly, or in so many lists that ``RECALL`` of the ten nearest of queries beside its items are found."""
    items = len(base.vectors)
    if not len(base.starts):
        return Choice("flat", f"{items:,} items are at most {EXACT_UP_TO:,}: exact search is fast enough", 0, 1.0)
    lists, queries = Lists(base, nothing(base.vectors.shape[1]), 1), _moved(base.vectors)
    wanted = faiss.knn(queries, base.vectors, 10, metric=faiss.METRIC_INNER_PRODUCT)[1].tolist()

    def found(probes: int) -> float:
        lists.probes = probes
        rows = lists.nearest(queries, 10)[0].tolist()
        return sum(len(set(w).intersection(r)) for w, r in zip(wanted, rows, strict=True)) / (10 * len(rows))

    high = 8
    while high < base.index.nlist and found(high) < RECALL:
        high *= 2
    high = min(high, base.index.nlist)
    probes = high // 2 + bisect_left(range(high // 2, high), RECALL, key=found)
    reached = found(probes)
    reason = (
        f"{items:,} items are more than {EXACT_UP_TO:,}: {probes} of {base.index.nlist:,} lists are searched, "
        f"and {reached:.3f} of the ten nearest of queries beside sampled items found"
    )
    return Choice("ivf", reason, probes, reached)


def _moved(vectors: Floats) -> Floats:
    """Sampled items, each moved by the difference of two other near ones: queries lie beside the items, not on them."""
    rng = np.random.default_rng(1)
    items = np.ascontiguousarray(vectors[np.sort(rng.choice(len(vectors), min(len(vectors), QUERIES), replace=False))])
    near = faiss.knn(items, vectors, 11, metric=faiss.METRIC_INNER_PRODUCT)[1][:, -1]
    moved = items + rng.permutation(vectors[near] - items)
    unit: Floats = moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-6)
    return unit


def nothing(dim: int) -> Delta:
    """The delta of a fresh base."""
    return Delta(np.zeros((0, dim), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))


def assign(index: Any, vectors: Floats) -> Rows:
    """The list of each vector [M]; zeros for a flat index, which has none."""
    if not isinstance(index, faiss.IndexIVF) or not len(vectors):
        return np.zeros(len(vectors), np.int64)
    nearest: Rows = index.quantizer.search(vectors, 1, params=swig.SearchParametersHNSW(efSearch=64))[1][:, 0]
    return nearest


def _train_lists(vectors: Floats) -> tuple[Any, Rows]:
    """Empty lists trained on a sample, and the list of each vector [N]."""
    lists, dim = int(8 * len(vectors) ** 0.5), vectors.shape[1]
    sample = np.random.default_rng(0).choice(len(vectors), min(len(vectors), 32 * lists), replace=False)
    chosen = np.ascontiguousarray(vectors[np.sort(sample)])
    let_go(vectors)
    means = faiss.Kmeans(dim, lists, niter=8, spherical=True, seed=1, min_points_per_centroid=1, max_points_per_centroid=32)
    means.train(chosen)
    centroids: Any = means.centroids
    flat, graph = faiss.IndexFlatIP(dim), faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 100
    flat.add(centroids)
    graph.add(centroids)
    index = _empty(graph, dim, lists)
    index.train(np.ascontiguousarray(chosen[:: max(1, len(chosen) // 50_000)]))
    del chosen
    nearest = []
    for at in range(0, len(vectors), BLOCK_ROWS):
        nearest.append(flat.search(np.ascontiguousarray(vectors[at : at + BLOCK_ROWS]), 1)[1][:, 0])
        let_go(vectors)
    return index, np.concatenate(nearest)


def let_go(vectors: Floats) -> None:
    """If they lie in a file mapped for reading, its pages need not stay in memory: they are read again when they are wanted."""
    owner: Any = vectors
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = getattr(owner, "base", None)
    if owner is not None and not vectors.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


def _empty(quantizer: faiss.Index, dim: int, lists: int) -> Any:
    return faiss.IndexIVFScalarQuantizer(quantizer, dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, True)


def _rewritten(base: Base, delta: Delta) -> Any:
    """The lists that the delta touches, without what is gone and with what is new; all others stay empty."""
    gone = np.searchsorted(base.starts, delta.tombstones, side="right") - 1  # the list of each tombstone
    touched = np.union1d(delta.lists, gone)
    first, sizes = base.starts[touched], np.diff(base.starts)[touched]
    rows = np.repeat(first - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())  # all rows of the touched lists
    live = ~np.isin(rows, delta.tombstones)
    emptied = np.setdiff1d(gone, np.concatenate([delta.lists, np.repeat(touched, sizes)[live]]))
    out = _like(base.index)
    fill(out, base.codes[rows[live]], rows[live])
    fill(out, encode(out, delta.vectors, delta.lists), len(base.vectors) + np.arange(len(delta.vectors)))
    fill(out, base.codes[base.starts[emptied]], np.full(len(emptied), -1))  # an empty list would show the base's
    return out


def _like(base: Any) -> Any:
    """Lists with the base's centroids and scales, and no codes."""
    index = _empty(base.quantizer, base.d, base.nlist)
    index.own_fields = False  # the base owns the centroids
    index.sq, index.is_trained = base.sq, True
    return index
