"""What another encoder changes for those who search: their answers, the neighbours of items, and the parts of the catalogue that lose.

Both encoders are asked the same queries against the same items, with the vectors that the lake holds; nothing is embedded. Everything is
drawn with a fixed seed and bounded, so the same two releases always give the same answer. Q queries, N items, D dimensions.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moon_ops.embeddings import vector_tables
from moon_ops.embeddings.prefixes import both_served
from moon_ops.errors import MoonError, StageError
from moon_ops.inputs.contract import Sample
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import VALIDITY
from moon_ops.lake.tables import active_as_of, items_as_of
from moon_ops.metric_names import ANSWERS, NEIGHBOURS, overlap
from moon_ops.ranks import first_hits
from moon_ops.release.recall import Queries, bought_after
from moon_ops.release.windows import Windows

log = logging.getLogger(__name__)

QUERIES, ITEMS, PROBES = 1000, 10_000, 2000  # at most so many are asked, searched, and looked at for their neighbours
K, SHOWN, WIDE = 10, 5, 50  # answers that are compared, of these shown, and a wider neighbourhood
ROWS, MOVED, FELL = 8, 6, 8  # queries, items and groups that are shown
GROUPS, LEAST, DRAWS = 24, 5, 2000  # groups of the catalogue at most; queries of a group at least; of an interval
PATH = " › "
WHOLE = 0, 0  # vectors of both releases

Pair = tuple[int, int]
Vectors = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Answer:
    """A query under both encoders: the first items [5] of each, the rank of the first hit, and which items are the product bought."""

    query_id: int
    query: Sample
    before: tuple[int, ...]
    after: tuple[int, ...]
    ranks: tuple[int, int]
    bought: frozenset[int]
    common: int  # of the first 10


@dataclass(frozen=True)
class Moved:
    """An item and its nearest others [5] under both encoders."""

    item_id: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    common: int  # of the first 10


@dataclass(frozen=True)
class Group:
    """A part of the catalogue: how many items, how many queries bought there, recall@10 under both, and the difference's interval."""

    name: str
    items: int
    queries: int
    before: float
    after: float
    low: float
    high: float
    examples: tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """How an item is shown."""

    title: str
    image_id: str | None
    source_id: str = ""  # the shop's


@dataclass(frozen=True)
class Changes:
    """What differs, most changed first; ``figures`` for the manifest, ``notes`` say what is not there and why."""

    figures: dict[str, float] = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()
    moved: tuple[Moved, ...] = ()
    fell: tuple[Group, ...] = ()
    judged: int = 0  # groups that had enough queries
    worse: int = 0  # of these, where recall fell; the first are in ``fell``
    items: dict[int, Item] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Both:
    """The common items: ids and SPUs [N], category paths, and vectors [N, D] under each encoder."""

    ids: NDArray[np.int64]
    spus: NDArray[np.int64]
    paths: list[list[str]]
    vectors: Vectors


def tried(
    lake: Lake, encoders: Pair | None, windows: Windows, until: dt.datetime | None, queries: Queries | None = None, dimensions: Pair = WHOLE
) -> Changes:
    """:func:`between`, or a note that says why there is none: a release is never lost over its pictures."""
    if encoders is None:
        return Changes(notes=("This is the first release: there is no champion whose answers could be shown beside its own.",))
    try:
        return between(lake, encoders, windows, until, queries, dimensions)
    except Exception as fault:  # whatever it is, the release is registered without
        log.warning("what encoder %d changes cannot be shown (%s)", encoders[1], fault)
        return Changes(notes=(f"What changed cannot be shown: {fault.problem if isinstance(fault, MoonError) else repr(fault)}.",))


def between(
    lake: Lake, encoders: Pair, windows: Windows, until: dt.datetime | None = None, queries: Queries | None = None, dimensions: Pair = WHOLE
) -> Changes:
    """What changes from the first of ``encoders`` to the second, for the ``queries`` after ``windows.trained_until`` (default: read).

    ``until``: when the training of the first encoder ended; one that was trained into the windows knows answers, and its recall says
    nothing. ``dimensions``: how many numbers of a vector are searched, 0 for all. Raises :class:`StageError` if one of the encoders has no
    vectors of queries or items.
    """
    if encoders[0] == encoders[1] and dimensions[0] == dimensions[1]:
        figures = {overlap(ANSWERS): 1.0, overlap(NEIGHBOURS): 1.0}
        return Changes(figures, notes=(f"Both releases have encoder {encoders[0]}: every search finds the same.",))
    start = windows.trained_until
    asked = queries if queries is not None else bought_after(lake, start, windows.end, trained_until=start)
    rows = np.sort(np.random.default_rng(0).permutation(len(asked))[:QUERIES])
    both, total = _items(lake, encoders, windows.end, asked.item_ids[rows])
    rows, vectors = _asked(lake, encoders, asked, rows)
    both, vectors = replace(both, vectors=both_served(both.vectors, dimensions)), both_served(vectors, dimensions)
    if len(both.ids) <= 1 or not len(rows):
        raise StageError("the two encoders have vectors of no common items or queries", action="run `moon embed` for both")
    notes = [f"Among {len(both.ids):,} of {total:,} items, drawn at random."] if len(both.ids) < total else []
    answers, figures, ranks = _answers(asked, rows, vectors, both)
    moved, figures[overlap(NEIGHBOURS)] = _moved(both)
    fell, judged = list[Group](), 0
    if until is not None and until > start:
        notes.append(f"The older encoder was trained until {until:%Y-%m-%d %H:%M}, into these queries: its hits say nothing.")
    else:
        fell, judged = _fell(both, asked.item_ids[rows], ranks)
    named = {i for a in answers for i in (*a.before, *a.after)} | {i for m in moved for i in (m.item_id, *m.before, *m.after)}
    shown = _shown(lake, windows.end, named | {i for g in fell[:FELL] for i in g.examples})
    return Changes(figures, tuple(answers), tuple(moved), tuple(fell[:FELL]), judged, len(fell), shown, tuple(notes))


def _items(lake: Lake, encoders: Pair, when: dt.datetime, bought: NDArray[np.int64]) -> tuple[_Both, int]:
    """The items that both encoders have vectors of, at most :data:`ITEMS` and those ``bought``; and how many there are in all."""
    known = items_as_of(lake, when, ["item_id", "spu_id", "category"])
    every = known["item_id"].to_numpy()
    wanted = np.union1d(np.random.default_rng(0).permutation(every)[:ITEMS], np.intersect1d(bought, every))
    found = []
    for encoder in encoders:  # one after the other: both catalogues are never in memory whole
        ids, vectors = vector_tables.vectors_as_of(lake, encoder, when)
        kept = np.isin(ids, wanted) & np.isfinite(vectors).all(axis=1)
        found.append((ids[kept], vectors[kept]))
    ids, left, right = np.intersect1d(found[0][0], found[1][0], return_indices=True)
    known = known.take(pa.array(np.searchsorted(every, ids)))
    paths = [list(path or ()) for path in known["category"].to_pylist()]
    return _Both(ids, known["spu_id"].to_numpy(), paths, (found[0][1][left], found[1][1][right])), len(every)


def _asked(lake: Lake, encoders: Pair, asked: Queries, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Vectors]:
    """Of ``rows`` of the queries those with a vector under both encoders, and these vectors [Q, D]."""
    found = []
    for encoder in encoders:
        table = lake.open(vector_tables.query_table_name(encoder), needs=f"moon embed --encoder {encoder}")
        where = f"query_id IN ({', '.join(map(str, asked.query_ids[rows].tolist()))})"
        read = table.to_table(columns=["query_id", "embedding"], filter=where)
        vectors = vector_tables.as_matrix(read["embedding"], vector_tables.dim_of(table))
        good = np.isfinite(vectors).all(axis=1)
        ids, first = np.unique(read["query_id"].to_numpy()[good], return_index=True)
        found.append((ids, vectors[good][first]))
    ids, left, right = np.intersect1d(found[0][0], found[1][0], return_indices=True)
    kept = rows[np.isin(asked.query_ids[rows], ids)]
    order = np.searchsorted(ids, asked.query_ids[kept])
    return kept, (found[0][1][left[order]], found[1][1][right[order]])


def _answers(
    asked: Queries, rows: NDArray[np.int64], vectors: Vectors, both: _Both
) -> tuple[list[Answer], dict[str, float], NDArray[np.int64]]:
    """The queries whose answers changed most, the figures over all of them, and the rank [2, Q] of their first hits.

    Fewest answers in common first; of these the one whose bought product went up or down furthest.
    """
    first = [_nearest(v, items, K) for v, items in zip(vectors, both.vectors, strict=True)]
    ranks = np.stack([first_hits(v, items, asked.spu_ids[rows], both.spus) for v, items in zip(vectors, both.vectors, strict=True)])
    common = _common(*first)
    hit = ranks <= K
    figures = {
        overlap(ANSWERS): float(common.mean() / first[0].shape[1]),
        f"{ANSWERS}/compared": float(len(rows)),
        f"{ANSWERS}/lost": float((hit[0] & ~hit[1]).sum()),
        f"{ANSWERS}/won": float((~hit[0] & hit[1]).sum()),
    }
    apart = np.abs(1 / ranks[0] - 1 / ranks[1])
    chosen = [n for n in np.lexsort((asked.query_ids[rows], -apart, common)).tolist() if common[n] < first[0].shape[1]][:ROWS]
    made = []
    for n in chosen:
        before, after = (tuple(both.ids[ids[n, :SHOWN]].tolist()) for ids in first)
        bought = frozenset(both.ids[both.spus == asked.spu_ids[rows[n]]].tolist())
        place = (int(ranks[0, n]), int(ranks[1, n]))
        made.append(Answer(int(asked.query_ids[rows[n]]), asked.samples[rows[n]], before, after, place, bought, int(common[n])))
    return made, figures, ranks


def _moved(both: _Both) -> tuple[list[Moved], float]:
    """The items with the fewest common neighbours, and the mean share in common over at most :data:`PROBES` items.

    Of those with equally few the one whose wider neighbourhood changed more comes first.
    """
    probes = np.sort(np.random.default_rng(0).permutation(len(both.ids))[:PROBES])
    wide = [_others(items, probes) for items in both.vectors]
    near = [ids[:, :K] for ids in wide]
    common, size = _common(*near), near[0].shape[1]
    chosen = [n for n in np.lexsort((both.ids[probes], _common(*wide), common)).tolist() if common[n] < size][:MOVED]
    found = []
    for n in chosen:
        before, after = (tuple(both.ids[ids[n, :SHOWN]].tolist()) for ids in near)
        found.append(Moved(int(both.ids[probes[n]]), before, after, int(common[n])))
    return found, float(common.mean() / size)


def _others(items: NDArray[np.float32], probes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows [P, 50] of the nearest items to each of ``probes``, without itself."""
    found = _nearest(items[probes], items, WIDE + 1)
    itself = found == probes[:, None]
    itself[~itself.any(axis=1), -1] = True  # twins stand before it
    return found[~itself].reshape(len(probes), -1)


def _nearest(queries: NDArray[np.float32], items: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Rows [Q, K] of the nearest items, best first."""
    import faiss

    index = faiss.IndexFlatIP(items.shape[1])
    index.add(np.ascontiguousarray(items))
    return np.asarray(index.search(np.ascontiguousarray(queries), min(k, len(items)))[1])


def _common(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many [Q] of each row [K] are in the other's row, too: sorted together, what is in both stands twice in a row."""
    together = np.sort(np.concatenate([left, right], axis=1), axis=1)
    return np.asarray((together[:, 1:] == together[:, :-1]).sum(axis=1))


def _fell(both: _Both, bought: NDArray[np.int64], ranks: NDArray[np.int64]) -> tuple[list[Group], int]:
    """The groups of the catalogue where recall@10 fell, those that lost most queries first; and how many groups could be judged."""
    names = _categories(both.paths) or _clusters(both.vectors[0])
    there = np.isin(bought, both.ids)
    group_of = np.array(names)[np.searchsorted(both.ids, bought[there])]
    hits, counts, judged = (ranks[:, there] <= K).astype(int), Counter(names), 0
    found = []
    for name in sorted(counts):
        gaps = (hits[1] - hits[0])[group_of == name]
        if len(gaps) < LEAST:
            continue
        judged += 1
        if gaps.sum() < 0:
            before, after = (float(h[group_of == name].mean()) for h in hits)
            inside = np.flatnonzero(np.array(names) == name)
            centre = both.vectors[0][inside].mean(axis=0)
            nearest = inside[np.argsort(-(both.vectors[0][inside] @ centre), kind="stable")[:3]]
            found.append(Group(name, counts[name], len(gaps), before, after, *_interval(gaps), tuple(both.ids[nearest].tolist())))
    found.sort(key=lambda g: (-g.queries * (g.before - g.after), g.name))
    return found, judged


def _interval(gaps: NDArray[np.int64]) -> tuple[float, float]:
    """The 95 % interval of the mean of gaps -1, 0 and 1, by drawing the queries again."""
    shares = [float((gaps == gap).mean()) for gap in (-1, 0, 1)]
    drawn = np.random.default_rng(0).multinomial(len(gaps), shares, size=DRAWS)
    low, high = np.percentile((drawn[:, 2] - drawn[:, 0]) / len(gaps), [2.5, 97.5])
    return float(low), float(high)


def _categories(paths: Sequence[Sequence[str]]) -> list[str] | None:
    """A name for each item from its category, as deep as there are few enough; None where most items have none, or all the same."""
    if 2 * sum(bool(path) for path in paths) < len(paths):
        return None
    for depth in range(max(len(path) for path in paths), 0, -1):
        names = [PATH.join(path[:depth]) or "without a category" for path in paths]
        if 1 < len(set(names)) <= GROUPS:
            return names
    return None


def _clusters(vectors: NDArray[np.float32]) -> list[str]:
    """A name for each item from the cluster that its vector lies in."""
    import faiss

    count = int(np.clip(len(vectors) // 50, 2, 16))
    found = faiss.Kmeans(vectors.shape[1], count, niter=20, seed=1, spherical=True, min_points_per_centroid=1, verbose=False)
    found.train(np.ascontiguousarray(vectors))
    return [f"cluster {number + 1:02d}" for number in found.index.search(np.ascontiguousarray(vectors), 1)[1][:, 0].tolist()]


def _shown(lake: Lake, when: dt.datetime, ids: set[int]) -> dict[int, Item]:
    """Title and first picture of the items."""
    columns = list(dict.fromkeys(("title", "image_ids", "source_id", *VALIDITY)))
    rows = lake.read("items", columns, f"item_id IN ({', '.join(map(str, sorted(ids)))})") if ids else None
    found = active_as_of(rows, when).to_pylist() if rows is not None else []
    return {row["item_id"]: Item(row["title"], next(iter(row["image_ids"] or ()), None), row["source_id"] or "") for row in found}
