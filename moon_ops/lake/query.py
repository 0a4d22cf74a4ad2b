"""The two questions that many files ask of tables: a DuckDB query over Arrow tables, and the newest row of each key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moon_ops import dealing
from moon_ops.lake.schemas import STAMP


def sql(query: str, parameters: Mapping[str, Any] | None = None, **tables: pa.Table | pa.RecordBatchReader) -> pa.Table:
    """The answer of a query over ``tables`` by name, of which a reader is read once; times are UTC, in microseconds, as in all the lake."""
    import duckdb  # who asks for the newest row alone does without it

    few = dealing.threads()
    with duckdb.connect(config={"threads": few} if few else {}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name, table in tables.items():
            connection.register(name, table)
        found = connection.sql(query, params=dict(parameters) if parameters else None).to_arrow_table()
    return found.cast(pa.schema([f.with_type(STAMP) if pa.types.is_timestamp(f.type) else f for f in found.schema]))


def newest(rows: pa.Table, key: str) -> pa.Table:
    """The row of each ``key``, ascending, that became valid last, of those the one learned last, and of those the one written last."""
    order = pc.sort_indices(rows, [(key, "ascending"), ("event_timestamp", "ascending"), ("created", "ascending")])  # stable
    ids = rows[key].take(order).to_numpy()
    last = np.append(ids[1:] != ids[:-1], True) if len(ids) else np.zeros(0, bool)
    return rows.take(pc.filter(order, pa.array(last)))
