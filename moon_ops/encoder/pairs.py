"""Query → bought item: the pairs that the encoder learns from, as they were known at ``trained_until``."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.errors import StageError
from moon_ops.lake.contract import Sample, item_sample, query_sample
from moon_ops.lake.tables import STAMP, Lake, items_as_of


@dataclass(frozen=True)
class Pairs:
    """P pairs over Q queries and I items; ``query`` and ``item`` [P] are rows of the two sample lists."""

    queries: list[Sample]
    items: list[Sample]
    item_ids: NDArray[np.int64]  # [I]
    spu_ids: NDArray[np.int64]  # [I]
    query: NDArray[np.int64]
    item: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.query)

    def image_ids(self) -> list[str]:
        """Every picture that training may look at, each once: those of the queries and all those of the items that were bought."""
        bought = [self.items[row] for row in np.unique(self.item)]
        return list(dict.fromkeys(i for s in (*self.queries, *bought) for i in s.image_ids))

    def batches(self, size: int, steps: int, seed: int) -> Iterator[NDArray[np.int64]]:
        """``steps`` batches of pair numbers; every pair is seen once before any is seen again."""
        generator = np.random.default_rng(seed)
        waiting = np.empty(0, np.int64)
        for _ in range(steps):
            while len(waiting) < min(size, len(self)):
                waiting = np.concatenate([waiting, generator.permutation(len(self))])
            batch, waiting = waiting[:size], waiting[size:]
            yield batch


def purchases(lake: Lake, trained_until: dt.datetime) -> Pairs:
    """All purchases after a query and before ``trained_until``, with the item versions valid then.

    Raises :class:`StageError` if there are fewer than two: nothing could be contrasted.
    """
    events = lake.read("events", ["event_timestamp", "item_id", "query_id", "event"], "event = 'purchase' AND query_id IS NOT NULL")
    events = events.filter(pc.less(events["event_timestamp"], pa.scalar(trained_until, STAMP)))
    items = items_as_of(lake, trained_until)
    queries = lake.read("queries", ["query_id", "text", "image_id"])
    query_row = {q: n for n, q in enumerate(queries["query_id"].to_pylist())}
    item_row = {i: n for n, i in enumerate(items["item_id"].to_pylist())}
    bought = sorted(set(zip(events["query_id"].to_pylist(), events["item_id"].to_pylist(), strict=True)))
    pairs = [(query_row[q], item_row[i]) for q, i in bought if q in query_row and i in item_row]
    if len(pairs) < 2:
        raise StageError(
            f"the lake has {len(pairs)} purchases after a query before trained_until = {trained_until:%Y-%m-%dT%H:%MZ}: too few",
            action="ingest events, or train until a later time",
        )
    used = sorted({q for q, _ in pairs})
    compact = {row: n for n, row in enumerate(used)}
    return Pairs(
        queries=[query_sample(q) for q in queries.take(pa.array(used)).to_pylist()],
        items=[item_sample(i) for i in items.to_pylist()],
        item_ids=items["item_id"].to_numpy(),
        spu_ids=items["spu_id"].to_numpy(),
        query=np.array([compact[q] for q, _ in pairs]),
        item=np.array([i for _, i in pairs]),
    )
