"""What a release's index misses: its answers to sampled queries beside those of an exact scan of the same vectors.

Q queries, D dimensions. The scan reads the vectors piece by piece. An exact index misses nothing and is not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings import index_kinds as kinds
from moon_ops.embeddings import index_shards, vector_tables
from moon_ops.embeddings.index import IndexHeader, ItemIndex
from moon_ops.embeddings.index_codes import FLAT
from moon_ops.embeddings.prefixes import served
from moon_ops.lake.lake import Lake
from moon_ops.metric_names import INDEX, queries, recall
from moon_ops.publication import places
from moon_ops.settings import Settings

K, SAMPLED = 10, 1000  # neighbours, and queries that are asked: ± .003 at a recall of .996
Z = 1.959964  # of the normal distribution, for 95 %


def figures(settings: Settings, encoder: int, dimensions: int = 0) -> dict[str, float]:
    """``index/recall@10``, ``_low`` and ``_high``, and ``index/queries``, on what users of this shop asked; empty for an exact index.

    ``dimensions``: of an index of the first numbers of each vector, 0 for all: recall is against a scan of the same numbers.
    """
    place = places.index_place(settings, encoder, dimensions)
    if place.is_dir() and IndexHeader.read(place).kind == FLAT:
        return {}
    asked = served(_asked(settings.lake, encoder), dimensions)
    return measured(index_shards.each(place), asked) if len(asked) else {}


def measured(shards: Iterable[ItemIndex], asked: NDArray[np.float32], k: int = K) -> dict[str, float]:
    """The same of an index's shards and queries [Q, D]. A neighbour as near as the k-th that an exact scan finds is as good as that one."""
    cosines = np.full((2, len(asked), k), -np.inf, np.float32)  # that searches find, that scans find
    for shard in shards:
        for at in range(0, len(asked), kinds.BLOCK):
            some = slice(at, at + kinds.BLOCK)
            both = np.concatenate([cosines[:, some], _nearest(shard, asked[some], k)], 2)
            cosines[:, some] = -np.sort(-both, axis=2)[:, :, :k]
    found = _share(*cosines)
    name, (low, high) = recall(INDEX, k), interval(float(found.mean()), len(found))
    return {name: float(found.mean()), f"{name}_low": low, f"{name}_high": high, queries(INDEX): float(len(found))}


def _nearest(shard: ItemIndex, asked: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """The k greatest cosines of each query [2, B, k]: that a search of the shard finds, and that a scan does."""
    rows, cosines = shard.searcher.nearest(asked, k)
    _, best = kinds.exact(shard.base, shard.searcher.delta, asked, k)
    return np.stack([np.where(rows < 0, -np.inf, cosines), best])


def _share(cosines: NDArray[np.float32], best: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each query [Q] the share of its k nearest that is found."""
    there = np.isfinite(best).sum(1)
    last = np.take_along_axis(best, np.maximum(there - 1, 0)[:, None], 1)
    hits = (cosines >= last - kinds.SAME).sum(1)
    return np.minimum(hits, there) / np.maximum(there, 1)


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's interval at 95 % of the mean ``share`` of ``count`` queries: none varies more than of yes and no."""
    middle, room = share + Z * Z / (2 * count), Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    return (middle - room) / (1 + Z * Z / count), min(1.0, max(share, (middle + room) / (1 + Z * Z / count)))


def note(metrics: Mapping[str, float]) -> str:
    """The figures in a sentence; empty where there are none."""
    name = recall(INDEX)
    if name not in metrics:
        return ""
    low, high, count = metrics[f"{name}_low"], metrics[f"{name}_high"], metrics[queries(INDEX)]
    return f"the index finds {metrics[name]:.4f} [{low:.4f}, {high:.4f}] of the ten nearest that an exact scan finds ({count:,.0f} queries)"


def _asked(lake: Lake, encoder: int) -> NDArray[np.float32]:
    """Vectors of sampled queries [Q, D], seeded."""
    name = vector_tables.query_table_name(encoder)
    if not lake.exists(name):
        return np.zeros((0, 0), np.float32)
    table = lake.open(name)
    rows = np.sort(np.random.default_rng(0).permutation(table.count_rows())[:SAMPLED])
    vectors = vector_tables.as_matrix(table.take(rows, columns=["embedding"])["embedding"], vector_tables.dim_of(table))
    return vectors[np.isfinite(vectors).all(1)]
