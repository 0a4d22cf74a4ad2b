"""How much of the catalogue a release can find, and how far its vectors lag behind the catalogue."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.embeddings import due, index_shards, vector_tables
from moon_ops.lake.lake import Lake
from moon_ops.lake.query import newest
from moon_ops.lake.schemas import STAMP
from moon_ops.lake.tables import items_as_of
from moon_ops.metric_names import catalogue
from moon_ops.publication import places, sharing
from moon_ops.settings import Settings


def of_catalogue(settings: Settings, encoder: int, end: dt.datetime, *, now: dt.datetime) -> dict[str, float]:
    """Of the items on sale at ``end`` and still at ``now``, the shares with a vector of what they say now, in the index, and in the table.

    ``catalogue/lag_hours`` is the newest item version's valid-from minus that of the newest one with a vector, 0 if none is due.

    Items that the encoder can read nothing of (``excused``) are counted apart, and are in no share. Raises
    :class:`~moon_ops.errors.StageError` for an encoder that was never published.
    """
    lake = settings.lake
    said = items_as_of(lake, now, ["item_id", "content_hash"])
    on_sale = np.intersect1d(items_as_of(lake, end, ["item_id"])["item_id"].to_numpy(), said["item_id"].to_numpy())
    embedded = _items(lake, vector_tables.table_name(encoder), said, now)
    excused = np.setdiff1d(np.intersect1d(_items(lake, vector_tables.excused_table_name(encoder), said, now), on_sale), embedded)
    wanted = np.setdiff1d(on_sale, excused)
    sharing.fetch(settings, encoder)
    indexed = np.concatenate([shard.items() for shard in index_shards.each(places.index_place(settings, encoder))])
    held = wanted[places.table(settings, "items", encoder).rows(wanted) >= 0]
    found = {catalogue("on_sale"): float(len(on_sale)), catalogue("excused"): float(len(excused))}
    for name, there in (("with_vector", embedded), ("in_index", indexed), ("in_table", held)):
        found[catalogue(name)] = float(np.isin(wanted, there).mean()) if len(wanted) else 1.0
    return found | {catalogue("lag_hours"): _lag(lake, encoder, now)}


def _items(lake: Lake, name: str, said: pa.Table, now: dt.datetime) -> NDArray[np.int64]:
    """The items whose newest row in a table is of what they say ``now``: one of a content that was replaced since counts for nothing."""
    if not lake.exists(name):
        return np.zeros(0, np.int64)
    rows = lake.read(name, ["item_id", "content_hash", "event_timestamp", "created"])
    rows = newest(rows.filter(pc.less_equal(rows["event_timestamp"], pa.scalar(now, STAMP))), "item_id")
    return rows.join(said, ["item_id", "content_hash"], join_type="left semi")["item_id"].to_numpy()


def _lag(lake: Lake, encoder: int, now: dt.datetime) -> float:
    """Hours; what becomes valid after ``now`` counts on neither side."""
    missing = _newest(due.due(lake, encoder, now).rows, now)
    made = [_newest(lake.read(name, ["event_timestamp"]), now) for name in _done(encoder) if lake.exists(name)]
    known = [moment for moment in made if moment is not None]
    if missing is None or not known:
        return 0.0
    return max(0.0, (missing - max(known)) / dt.timedelta(hours=1))


def _done(encoder: int) -> tuple[str, str]:
    """The tables of item versions that nothing is to be done for."""
    return vector_tables.table_name(encoder), vector_tables.excused_table_name(encoder)


def _newest(rows: pa.Table, now: dt.datetime) -> dt.datetime | None:
    column = rows["event_timestamp"]
    newest: dt.datetime | None = pc.max(column.filter(pc.less_equal(column, pa.scalar(now, STAMP)))).as_py()
    return newest
