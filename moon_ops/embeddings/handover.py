"""Hand over what has changed: to Feast's online store, and to whoever keeps vectors by id, in bounded batches.

A reader's place in a table is a :class:`Since`: the fragments it has seen, and the time up to which rows were valid. Rows count as
changed if they were written after the one or have become valid after the other. Of every entity touched the row that is valid now is
handed over, once.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.embeddings.vector_tables import newest_valid
from moon_ops.lake import changes, lookups
from moon_ops.lake.query import newest
from moon_ops.lake.schemas import STAMP

if TYPE_CHECKING:  # Feast: a command in a hurry asks this file for marks alone
    from feast import FeatureStore, FeatureView

BATCH = 2000  # entities at a time
MANY = 200_000  # entities that are read by one scan, where there are more than so many


@dataclass(frozen=True)
class Since:
    """What was handed over: fragments up to ``mark``, rows valid at ``when``. Without a time nothing was."""

    mark: int = changes.NOTHING
    when: dt.datetime | None = None


def touched(dataset: lance.LanceDataset, key: str, since: Since, now: dt.datetime) -> pa.Array:
    """The entities, ascending, of which a row was written after ``since``, or has become valid between then and ``now``."""
    ids = changes.newer(dataset, since.mark, [key])[key]
    if since.when is not None:
        ripened = f"event_timestamp > {lookups.moment(since.when)} AND event_timestamp <= {lookups.moment(now)}"
        ids = pa.chunked_array([*ids.chunks, *lookups.read(dataset, [key], ripened)[key].chunks], ids.type)
    found = ids.unique()
    return found.take(pc.sort_indices(found))


def online(store: FeatureStore, view: FeatureView, dataset: lance.LanceDataset, since: Since, now: dt.datetime) -> int:
    """Write the newest valid row of every touched entity to the online store; how many entities.

    Many are written in the order in which the store keeps them: in another SQLite would write its pages again for each batch.
    """
    from moon_ops.embeddings import features, online_store

    key = view.join_keys[0]
    columns = [key, *(f.name for f in view.features), "event_timestamp", "created"]
    ids, size, count = touched(dataset, key, since, now), BATCH, 0
    if len(ids) > MANY and features.clicks_of(view) is None:  # a user's clicks are many rows
        ids, size = ids.take(online_store.order(ids)), MANY
    for some in _batches(ids, size):
        rows = newest(features.rows(view, columns, partial(_known_at, dataset, key, some, now)), key)
        rows = rows if size == BATCH else rows.take(online_store.order(rows[key]))
        for start in range(0, rows.num_rows, BATCH):
            store.write_to_online_store(view.name, rows.slice(start, BATCH).to_pandas())
        count += rows.num_rows
    return count


def _known_at(dataset: lance.LanceDataset, key: str, ids: pa.Array, now: dt.datetime, columns: Sequence[str]) -> pa.Table:
    """The rows of ``ids`` that are valid at ``now``. The time is compared here: by its index Lance would find all rows of before."""
    rows = changes.rows_of(dataset, key, ids, columns)
    return rows.filter(pc.less_equal(rows["event_timestamp"], pa.scalar(now, STAMP)))


def vectors(
    dataset: lance.LanceDataset, key: str, ids: pa.Array, now: dt.datetime
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Ids, ascending, and vectors [M, D] of the ascending ``ids`` that have one at ``now``, ``BATCH`` ids at a time."""
    for some in _batches(ids):
        yield newest_valid(changes.rows_of(dataset, key, some, [key, "event_timestamp", "created", "embedding"]), now, key)


def _batches(ids: pa.Array, size: int = BATCH) -> Iterator[pa.Array]:
    for start in range(0, len(ids), size):
        yield ids.slice(start, size)
