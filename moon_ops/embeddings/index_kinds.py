"""The kinds of index as they are in memory: an exact scan for few items, inverted lists of codes for many.

B queries, D dimensions, N items in the base, M in the delta, L lists. A row is a number: 0 … N-1 is an item of the base, N … N+M-1 one of
the delta, -1 none. This file knows neither item ids nor contracts nor files.

Lists are trained by k-means. A query is compared with the codes of the ``probes`` nearest lists, and the best ``refine`` · k of those with
the vectors themselves, so cosines are exact. A code has 8 bits a number or, where memory is short, a byte for several (``index_codes.py``);
the vectors are read from disk. The base is shared by its generations and never changed: a list that a delta touches is written
anew in memory, without what is gone and with what is new. The alternatives cost more in every search: a selector that is asked about each
code a tenth, a second set of lists for the delta a fifth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings.index_codes import turned
from moon_ops.pieces import let_go

swig: Any = faiss  # for names that its type stubs do not know
Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Look = Callable[[Floats, int], tuple[Rows, Floats, Floats]]  # of queries and a number: so many rows, their scores, best first, and cosines

EXACT_UP_TO = 30_000  # items: a scan of 30,000 x 128 takes 0.25 ms on one core, of 50,000 already 0.7 ms; then lists are faster
RECALL = 0.996  # of the ten nearest that ``probes`` is chosen for
BATCH, BLOCK = 65_536, 256  # vectors and queries handled at once
SAME = 1e-6  # cosines that differ by less are equal
REFINE = 2  # times k candidates whose cosines are computed
TIES, MOST = 8, 4096  # so many more are asked for, to see whether equal ones are left out; up to so many, if they are
WIDE = 256  # candidates; of more those as good as the k-th are picked before they are sorted


@dataclass(frozen=True)
class Base:
    """What generations share: a FAISS index and the vectors [N, D] it holds.

    For lists also their codes in row order [N, C], and the row that each list begins with [L + 1]; both are empty for a flat index.
    ``by`` is how vectors are turned before they become product codes; the index and its centroids are turned, the vectors are not.
    """

    index: Any  # faiss.IndexFlatIP, IndexIVFScalarQuantizer or IndexIVFPQ
    vectors: Floats
    codes: NDArray[np.uint8]
    starts: Rows
    by: Floats | None = None


@dataclass(frozen=True)
class Delta:
    """What changed since the base was built: vectors [M, D], their lists [M], and the base's rows that are gone (sorted)."""

    vectors: Floats
    lists: Rows
    tombstones: Rows


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
        """Rows [B, k] and cosines [B, k], best first, of equal ones the greater row; -1 where there are no more."""
        return _with_equals(self._scanned, queries, k, k + TIES)

    def _scanned(self, queries: Floats, k: int) -> tuple[Rows, Floats, Floats]:
        cosines, rows = self.base.index.search(queries, k, params=self._params)
        if len(self.delta.vectors):
            more, later = self._later.search(queries, k)
            later[later >= 0] += len(self.base.vectors)
            rows, cosines = best(np.concatenate([rows, later], 1), np.concatenate([cosines, more], 1), k)
        return rows, cosines, cosines


class Lists:
    """Approximate search in inverted lists, with exact cosines."""

    def __init__(self, base: Base, delta: Delta, probes: int, refine: int = REFINE) -> None:
        self.base, self.delta, self.probes, self.refine = base, delta, probes, refine
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
        lists, wanted = self._index.nlist, self.refine * k
        probes = min(lists, max(probes, 4 * wanted * lists // max(items, 1)))  # many neighbours lie in many lists
        coarse = swig.SearchParametersHNSW(efSearch=max(64, probes * 5 // 4))
        parameters = swig.SearchParametersIVF(nprobe=probes, quantizer_params=coarse, **more)

        def look(asked: Floats, candidates: int) -> tuple[Rows, Floats, Floats]:
            near, rows = self._index.search(turned(asked, self.base.by), candidates, params=parameters)
            return rows, near, self._cosines(asked, rows)

        return _with_equals(look, queries, k, wanted)

    def _cosines(self, queries: Floats, rows: Rows) -> Floats:
        last = len(self.base.vectors) - 1
        vectors = self.base.vectors[np.clip(rows, 0, last)]  # [B, R, D]
        later = rows > last
        if later.any():
            vectors[later] = self.delta.vectors[rows[later] - last - 1]
        cosines: Floats = np.einsum("brd,bd->br", vectors, queries)  # matmul gives equal vectors cosines that differ in the last bit
        cosines[rows < 0] = -np.inf
        return cosines


def best(rows: Rows, cosines: Floats, k: int) -> tuple[Rows, Floats]:
    """The k best of candidates [B, C], C at least k; of equal ones the greater row, so that the best of fewer begin those of more."""
    if rows.shape[1] > WIDE:
        least = np.partition(cosines, -k, axis=1)[:, -k, None]
        parts = [
            _sorted(r[None, near], c[None, near], k) for r, c, near in zip(rows, cosines, ~(cosines < least), strict=True)
        ]  # nan stays
        return np.concatenate([part for part, _ in parts]), np.concatenate([part for _, part in parts])
    return _sorted(rows, cosines, k)


def _sorted(rows: Rows, cosines: Floats, k: int) -> tuple[Rows, Floats]:
    order = np.lexsort((-rows, -cosines))[:, :k]  # along the last axis
    return np.take_along_axis(rows, order, 1), np.take_along_axis(cosines, order, 1)


def _with_equals(look: Look, queries: Floats, k: int, wanted: int) -> tuple[Rows, Floats]:
    """:func:`best` of the ``wanted`` candidates, at least k, of each query, and of more where items as good as the k-th may be left out.

    Those queries are asked again one by one: a few with thousands of equal items must not make a whole block's candidates so many.
    """

    def found(asked: Floats) -> tuple[Rows, Floats, NDArray[np.bool_]]:
        rows, scores, cosines = look(asked, wanted)
        return *best(rows, cosines, k), _cut(rows, scores, k)

    rows, cosines, cut = found(queries)
    while wanted <= MOST and cut.any():
        wanted *= 4
        for at in np.flatnonzero(cut):
            rows[at], cosines[at], cut[at] = (part[0] for part in found(queries[at : at + 1]))
    return rows, cosines


def _cut(rows: Rows, scores: Floats, k: int) -> NDArray[np.bool_]:
    """Of which queries [B] the last of the more than k candidates [B, C], best first, is as good as the k-th: others may be, too."""
    cut: NDArray[np.bool_] = (rows[:, -1] >= 0) & (scores[:, -1] >= scores[:, k - 1])
    return cut & (scores.shape[1] > k)


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
            let_go(vectors)
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


def encode(index: Any, vectors: Floats, lists: Rows, by: Floats | None = None) -> NDArray[np.uint8]:
    """Codes [M, C] of the vectors [M, D] in these lists [M]; a code begins with the number of its list."""
    codes = np.empty((len(vectors), index.sa_code_size()), np.uint8)
    vectors, lists = np.ascontiguousarray(turned(vectors, by)), np.ascontiguousarray(lists)
    index.encode_vectors(len(codes), faiss.swig_ptr(vectors), faiss.swig_ptr(lists), faiss.swig_ptr(codes), True)
    return codes


def fill(index: Any, codes: NDArray[np.uint8], rows: Rows) -> None:
    """Put codes [M, C] of these rows [M] into lists; one call for many, since each call lets go of the interpreter's lock."""
    for at in range(0, len(rows), BATCH):
        index.add_sa_codes(np.ascontiguousarray(codes[at : at + BATCH]), np.ascontiguousarray(rows[at : at + BATCH]))


def fill_whole(index: Any, codes: NDArray[np.uint8], starts: Rows) -> None:
    """Put all codes [N, C] of a base into its lists, a list at a time: none grows, so none takes more memory than it needs."""
    number = codes.shape[1] - index.code_size  # a code's first bytes are its list's
    for part in range(index.nlist):
        first, last = int(starts[part]), int(starts[part + 1])
        if last > first:
            own, rows = np.ascontiguousarray(codes[first:last, number:]), np.arange(first, last)
            index.invlists.add_entries(part, last - first, faiss.swig_ptr(rows), faiss.swig_ptr(own))
    index.ntotal = len(codes)
    let_go(codes)


def nothing(dim: int) -> Delta:
    """The delta of a fresh base."""
    return Delta(np.zeros((0, dim), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))


def assign(index: Any, vectors: Floats, by: Floats | None = None) -> Rows:
    """The list of each vector [M]; zeros for a flat index, which has none."""
    if not isinstance(index, faiss.IndexIVF) or not len(vectors):
        return np.zeros(len(vectors), np.int64)
    nearest: Rows = index.quantizer.search(turned(vectors, by), 1, params=swig.SearchParametersHNSW(efSearch=64))[1][:, 0]
    return nearest


def empty(quantizer: faiss.Index, dim: int, lists: int, product: int = 0) -> Any:
    """Lists of 8-bit codes, or of ``product`` codes of so many bytes."""
    if not product:
        return faiss.IndexIVFScalarQuantizer(quantizer, dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, True)
    index = faiss.IndexIVFPQ(quantizer, dim, lists, product, 8, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.niter, index.pq.cp.min_points_per_centroid, index.pq.cp.max_points_per_centroid = 10, 1, 64
    return index


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
    fill(out, encode(out, delta.vectors, delta.lists, base.by), len(base.vectors) + np.arange(len(delta.vectors)))
    fill(out, base.codes[base.starts[emptied]], np.full(len(emptied), -1))  # an empty list would show the base's
    return out


def _like(base: Any) -> Any:
    """Lists with the base's centroids and scales, or points of its parts, and no codes."""
    product = isinstance(base, faiss.IndexIVFPQ)
    index = empty(base.quantizer, base.d, base.nlist, base.pq.M if product else 0)
    index.own_fields = False  # the base owns the centroids
    if product:
        index.pq = base.pq
    else:
        index.sq = base.sq
    index.is_trained = True
    return index
