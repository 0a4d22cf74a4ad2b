"""A base in the making: lists are trained on a sample, and as many of them searched as it takes. N items, D dimensions, L lists.

The vectors may lie in a file: what is in memory at a time is the sample, which grows as the root of N, and a block. This file knows neither
item ids nor files.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from moon_ops.embeddings import index_kinds as kinds
from moon_ops.embeddings.index_codes import FLAT, LISTS, PRODUCT, Plan, rotation, turned
from moon_ops.embeddings.index_kinds import BATCH, RECALL, REFINE, Base, Floats, Lists, Rows, best, empty, nothing
from moon_ops.pieces import let_go, spans

QUERIES = 1000  # sampled to choose how many lists are searched; with fewer the choice is chance
BLOCK_ROWS = 16_384  # vectors copied at once
PRODUCT_REFINE = (10, 20, 40)  # times k candidates whose cosines are computed, of product codes: the first that is enough
SLACK = 0.002  # of recall that is left to the lists where codes alone lose too much: else all of them would be searched
LISTS_OF = {LISTS: 8.0, PRODUCT: 2.0}  # times the root of N: short codes are scanned quickly, and many lists are long in making


@dataclass(frozen=True)
class Choice:
    """What a base became and why; ``recall`` is that of the ten nearest, 1.0 where the scan is exact."""

    kind: str
    reason: str
    probes: int
    recall: float
    refine: int = REFINE


@dataclass(frozen=True)
class Trained:
    """An index without codes (a flat one holds its vectors), the order [N] of its rows, the list [N] of each row, and how it is turned."""

    index: Any
    order: Rows
    lists: Rows
    plan: Plan
    by: Floats | None = None


def train(vectors: Floats, plan: Plan) -> Trained:
    """An index of the planned kind for the vectors [N, D]: :func:`encode` and :func:`fill` are for its codes. Every sample is seeded."""
    if plan.kind == FLAT:
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return Trained(index, np.arange(len(vectors)), np.zeros(len(vectors), np.int64), plan)
    index, nearest, by = _train_lists(vectors, plan)
    order = np.argsort(nearest, kind="stable")
    return Trained(index, order, nearest[order], plan, by)


def choose(base: Base, plan: Plan) -> Choice:
    """How the base is searched: exactly, or in so many lists that ``RECALL`` of the ten nearest of queries beside its items are found.

    Of product codes as few candidates are compared as find as much in all lists; if none do, :data:`SLACK` less than most do is enough.
    """
    items = len(base.vectors)
    if not len(base.starts):
        return Choice(FLAT, f"{items:,} items are at most {kinds.EXACT_UP_TO:,}: exact search is fast enough", 0, 1.0)
    lists, queries = Lists(base, nothing(base.vectors.shape[1]), 1), _moved(base.vectors)
    wanted = scan(queries, base.vectors, 10)[0].tolist()

    def found(probes: int) -> float:
        lists.probes = probes
        rows = lists.nearest(queries, 10)[0].tolist()
        return sum(len(set(w).intersection(r)) for w, r in zip(wanted, rows, strict=True)) / (10 * len(rows))

    aim = RECALL
    if plan.kind == PRODUCT:
        for lists.refine in PRODUCT_REFINE:
            if (most := found(base.index.nlist)) >= RECALL:
                break
        aim = RECALL if most >= RECALL else most - SLACK
    high = 8
    while high < base.index.nlist and found(high) < aim:
        high *= 2
    high = min(high, base.index.nlist)
    probes = high // 2 + bisect_left(range(high // 2, high), aim, key=found)
    reached = found(probes)
    reason = (
        f"{plan.because or f'{items:,} items are more than {kinds.EXACT_UP_TO:,}'}: {probes} of {base.index.nlist:,} lists are searched, "
        f"{f'{lists.refine} k candidates compared, ' if plan.kind == PRODUCT else ''}"
        f"and {reached:.3f} of the ten nearest of queries beside sampled items found"
    )
    return Choice(plan.kind, reason, probes, reached, lists.refine)


def scan(queries: Floats, vectors: Floats, k: int) -> tuple[Rows, Floats]:
    """Rows [B, k] and cosines [B, k] of an exact scan, the vectors [N, D] read piece by piece; -1 where there are no more."""
    rows, cosines = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    for piece in spans(len(vectors), BATCH):
        few = min(k, piece.stop - piece.start)
        more, found = faiss.knn(queries, np.ascontiguousarray(vectors[piece]), few, metric=faiss.METRIC_INNER_PRODUCT)
        rows, cosines = best(np.concatenate([rows, found + piece.start], 1), np.concatenate([cosines, more], 1), k)
        let_go(vectors)
    return rows, cosines


def _moved(vectors: Floats) -> Floats:
    """Sampled items, each moved by the difference of two other near ones: queries lie beside the items, not on them."""
    rng = np.random.default_rng(1)
    items = np.ascontiguousarray(vectors[np.sort(rng.choice(len(vectors), min(len(vectors), QUERIES), replace=False))])
    near = scan(items, vectors, 11)[0][:, -1]
    moved = items + rng.permutation(vectors[near] - items)
    unit: Floats = moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-6)
    return unit


def _train_lists(vectors: Floats, plan: Plan) -> tuple[Any, Rows, Floats | None]:
    """Empty lists trained on a sample, the list of each vector [N], and how vectors are turned; one block of them in memory at a time."""
    lists, dim = int(LISTS_OF[plan.kind] * len(vectors) ** 0.5), vectors.shape[1]
    sample = np.random.default_rng(0).choice(len(vectors), min(len(vectors), 32 * lists), replace=False)
    chosen = np.ascontiguousarray(vectors[np.sort(sample)])
    let_go(vectors)
    means = faiss.Kmeans(dim, lists, niter=8, spherical=True, seed=1, min_points_per_centroid=1, max_points_per_centroid=32)
    means.train(chosen)
    flat, few = faiss.IndexFlatIP(dim), np.ascontiguousarray(chosen[:: max(1, len(chosen) // 50_000)])
    plain: Any = means.centroids
    flat.add(plain)
    del chosen
    by = rotation(few - plain[flat.search(few, 1)[1][:, 0]], plan.code) if plan.kind == PRODUCT else None
    centroids = turned(plain, by)
    graph = faiss.IndexHNSWFlat(centroids.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 100
    graph.add(centroids)
    index = empty(graph, centroids.shape[1], lists, plan.code if plan.kind == PRODUCT else 0)
    index.train(turned(few, by))
    nearest = []
    for span in spans(len(vectors), BLOCK_ROWS):
        nearest.append(flat.search(np.ascontiguousarray(vectors[span]), 1)[1][:, 0])
        let_go(vectors)
    return index, np.concatenate(nearest), by
