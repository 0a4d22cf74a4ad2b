"""Image-search recall: the query is a picture that a user uploaded, the target the item bought after it (MOON's intermediate metric).

Recall@K is the share of queries whose bought item, or another SKU of its SPU, is among the first K of the whole catalogue. Text queries
are measured the same way. Q queries, N items, D dimensions.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops import metric_names, pieces
from moon_ops.encoder import duplicates
from moon_ops.errors import LeakError, StageError
from moon_ops.inputs.contract import Sample, query_sample
from moon_ops.lake import counting, lookups
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import items_as_of
from moon_ops.metric_names import IMAGE_SEARCH, KS, LEAKED, TEXT_SEARCH, WITHIN_PRODUCT
from moon_ops.ranks import first_hits
from moon_ops.release.relevance import Threshold

NEW_ITEM_DAYS = 7  # an item counts as new in its first days
CERTIFIED = 0.9  # of the whole vector's recall@10 that a prefix must keep

Embed = Callable[[list[Sample]], NDArray[np.float32]]


@dataclass(frozen=True)
class Queries:
    """Queries of one window that led to a purchase: sample, bought item, its SPU, and whether that item was new."""

    query_ids: NDArray[np.int64]
    samples: list[Sample]
    item_ids: NDArray[np.int64]
    spu_ids: NDArray[np.int64]
    is_new: NDArray[np.bool_]
    is_image: NDArray[np.bool_]
    leaked: int = 0  # queries left out, because a near-identical photograph was there before the window

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class Prefix:
    """What a shorter vector costs and keeps: recall of picture queries, bytes of an item, and milliseconds of an exact search."""

    dim: int
    recall_at_1: float
    recall_at_10: float
    bytes_per_item: int
    search_ms: float  # median over single queries, one thread; of more items than a piece, the piece's times their share


@dataclass(frozen=True)
class RecallReport:
    """``metrics`` by public name, and the rank [Q] of each query's first hit (1 is best); where they were measured, what ``prefixes`` keep
    and from which cosine on an item is relevant.
    """

    metrics: dict[str, float]
    queries: Queries
    ranks: NDArray[np.int64]
    prefixes: tuple[Prefix, ...] = ()
    relevance: dict[str, Threshold] = field(default_factory=dict)


def bought_after(lake: Lake, start: dt.datetime, end: dt.datetime, *, trained_until: dt.datetime) -> Queries:
    """The queries that led to their first purchases in [start, end), each with the first item bought that is still there at ``end``.

    A query that had led to a click, a cart or a purchase before is left out: an encoder may have been trained on it. So is one whose
    photograph has a twin among those asked with before the window: it is counted as leaked. Raises :class:`LeakError` if the
    window begins before ``trained_until``, :class:`StageError` if no query is left.
    """
    if start < trained_until:
        raise LeakError(
            f"the window starts at {start:%Y-%m-%dT%H:%MZ}, but the encoder was trained until {trained_until:%Y-%m-%dT%H:%MZ}: "
            "it knows the answers",
            action="evaluate on queries after trained_until",
        )
    queries = {q["query_id"]: q for q in lake.read("queries", ["query_id", "text", "image_id"]).to_pylist()}
    items = {i["item_id"]: i for i in items_as_of(lake, end, ["item_id", "spu_id"]).to_pylist()}
    first: dict[int, dict[str, Any]] = {}
    for event in _purchases(lake, start, end).to_pylist():
        if event["item_id"] in items and event["query_id"] in queries:
            first.setdefault(event["query_id"], event)
    if not first:
        raise StageError(
            f"nothing was bought after a query between {start:%Y-%m-%d} and {end:%Y-%m-%d}: recall cannot be measured",
            action="widen the window",
        )
    twins = _leaked(lake, start, queries, list(first))
    if len(twins) == len(first):
        raise StageError(
            f"all {len(first)} photographs with which something was bought between {start:%Y-%m-%d} and {end:%Y-%m-%d} have a twin from "
            "before: recall cannot be measured",
            action="widen the window",
        )
    kept = {query: event for query, event in first.items() if query not in twins}
    return _queries(lake, kept, queries, {i: item["spu_id"] for i, item in items.items()}, len(twins))


def _queries(
    lake: Lake, first: dict[int, dict[str, Any]], queries: dict[int, dict[str, Any]], spu_of: dict[int, int], leaked: int
) -> Queries:
    """The queries with their ``first`` purchases; an item is new for some days after its first version."""
    known = lake.read("items", ["item_id", "event_timestamp"]).group_by("item_id").aggregate([("event_timestamp", "min")])
    since = dict(zip(known["item_id"].to_pylist(), known["event_timestamp_min"].to_pylist(), strict=True))
    new = dt.timedelta(days=NEW_ITEM_DAYS)
    return Queries(
        query_ids=np.array(list(first)),
        samples=[query_sample(queries[q]) for q in first],
        item_ids=np.array([e["item_id"] for e in first.values()]),
        spu_ids=np.array([spu_of[e["item_id"]] for e in first.values()]),
        is_new=np.array([e["event_timestamp"] - since[e["item_id"]] < new for e in first.values()]),
        is_image=np.array([queries[q]["image_id"] is not None for q in first]),
        leaked=leaked,
    )


def _leaked(lake: Lake, start: dt.datetime, queries: dict[int, dict[str, Any]], asked: list[int]) -> set[int]:
    """Those of the queries ``asked`` whose photograph is near-identical to one of a query that was answered before ``start``."""
    stored = lake.read("images", ["image_id", "phash"]) if lake.exists("images") else None
    if stored is None:
        return set()
    hashes = dict(zip(stored["image_id"].to_pylist(), stored["phash"].to_pylist(), strict=True))
    before = _answered(lake, start).to_pylist()
    pictured = [q for q in asked if queries[q]["image_id"]]
    answered = [q for q in before if q in queries and queries[q]["image_id"]]
    known, new = ([hashes.get(queries[q]["image_id"]) for q in some] for some in (answered, pictured))
    found = duplicates.leaked(duplicates.from_hex(known), [""] * len(known), duplicates.from_hex(new), [""] * len(new))
    return {q for q, twin in zip(pictured, found.tolist(), strict=True) if twin}


def _answered(lake: Lake, start: dt.datetime) -> pa.Array:
    """The queries that had led to something before ``start``."""
    before = f"{counting.LEARNED} AND query_id IS NOT NULL AND event_timestamp < {lookups.moment(start)}"
    return pc.unique(counting.read(lake, ["query_id"], before)["query_id"])


def _purchases(lake: Lake, start: dt.datetime, end: dt.datetime) -> pa.Table:
    """The purchases in [start, end) in time order, without those undone by ``end``, after queries that had led to nothing before."""
    until = f"{counting.BOUGHT} AND event_timestamp < {lookups.moment(end)}"  # from the beginning: an undoing may mean an old purchase
    events = counting.standing(counting.read(lake, [*counting.PURCHASES, "query_id"], until))
    events = events.filter(pc.and_not(pc.is_valid(events["query_id"]), pc.is_in(events["query_id"], _answered(lake, start))))
    return events.sort_by([("event_timestamp", "ascending"), ("query_id", "ascending"), ("item_id", "ascending")])


def evaluate(
    queries: Queries, vectors: NDArray[np.float32], ids: NDArray[np.int64], spus: NDArray[np.int64], items: NDArray[np.float32]
) -> RecallReport:
    """Recall of query ``vectors`` [Q, D] against a catalogue: ids and SPUs [N], vectors ``items`` [N, D]."""
    ranks = first_hits(vectors, items, queries.spu_ids, spus)
    metrics: dict[str, float] = {"catalogue_items": float(len(ids)), LEAKED: float(queries.leaked)}
    for name, chosen in ((IMAGE_SEARCH, queries.is_image), (TEXT_SEARCH, ~queries.is_image)):
        slices = {"": chosen, "new_items": chosen & queries.is_new}
        for where, rows in slices.items():
            if rows.any():
                metrics[metric_names.queries(name, where)] = float(rows.sum())
                metrics |= {metric_names.recall(name, k, where): float((ranks[rows] <= k).mean()) for k in KS}
    return RecallReport(metrics, queries, ranks)


def modalities(items: list[Sample]) -> dict[str, list[Sample]]:
    """The catalogue as pictures alone and as texts alone; an item that lacks the one is shown by the other."""
    return {
        "picture_only": [Sample("", item.image_ids) if item.image_ids else item for item in items],
        "text_only": [Sample(item.text) if item.text else item for item in items],
    }


def within_product(texts: NDArray[np.float32], pictures: NDArray[np.float32], spus: NDArray[np.int64]) -> dict[str, float]:
    """How often the pictures of an item's own product are among the 10 nearest to its text: [N, D] of items that have both."""
    if not len(spus):
        return {}
    return {metric_names.recall(WITHIN_PRODUCT): float((first_hits(texts, pictures, spus, spus) <= 10).mean())}


def catalogue_spus(lake: Lake, ids: NDArray[np.int64], when: dt.datetime) -> NDArray[np.int64]:
    """The SPU [N] of each item id."""
    items = items_as_of(lake, when, ["item_id", "spu_id"])
    known, spus = items["item_id"].to_numpy(), items["spu_id"].to_numpy()
    return spus[np.searchsorted(known, ids)]


def certified(prefixes: Sequence[Prefix]) -> list[int]:
    """The lengths, the whole one last, that keep :data:`CERTIFIED` of the whole vector's recall@10."""
    whole = max(prefixes, key=lambda one: one.dim, default=None)
    return (
        [] if whole is None else [one.dim for one in prefixes if one.dim == whole.dim or one.recall_at_10 >= CERTIFIED * whole.recall_at_10]
    )


def by_prefix(
    queries: Queries, vectors: NDArray[np.float32], spus: NDArray[np.int64], items: NDArray[np.float32], prefixes: Sequence[int]
) -> list[Prefix]:
    """The same vectors cut to each of ``prefixes`` and whole, in one pass (Matryoshka); :func:`evaluate` says the rest."""
    chosen = queries.is_image if queries.is_image.any() else np.ones(len(queries), bool)
    out = []
    for dim in sorted({*(p for p in prefixes if p < items.shape[1]), items.shape[1]}):
        cut = partial(_cut, dim=dim)
        asked = cut(vectors[chosen])
        ranks = first_hits(asked, items, queries.spu_ids[chosen], spus, cut=cut)
        took = _milliseconds(asked, cut(items[: pieces.ROWS])) * max(1.0, len(items) / pieces.ROWS)
        out.append(Prefix(dim, float((ranks <= 1).mean()), float((ranks <= 10).mean()), 4 * dim, took))
    return out


def _cut(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    short = vectors[:, :dim]
    return np.ascontiguousarray(short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12))


def _milliseconds(queries: NDArray[np.float32], items: NDArray[np.float32], tries: int = 50) -> float:
    took = []
    for row in range(tries):
        began = time.perf_counter()
        scores = items @ queries[row % len(queries)]
        np.argpartition(-scores, min(10, len(scores) - 1))
        took.append(time.perf_counter() - began)
    return 1000 * float(np.median(took))
