"""A user's clicks as a Feast feature: each is kept once in the lake, and a row of the view points to those that it shows.

``features/user_behavior`` has a row for every click. The view ``user_behavior`` shows the last ``length`` of them as lists, a row for every
moment at which one more became known. Here these lists lie in one another: Arrow's list views into one array, 8 bytes a row. Feast's own
joins know only lists with values of their own, and get such: clicks × length.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureView
from feast.infra.data_sources.contrib.lance.lance_source import LanceSource
from feast.protos.feast.core.DataSource_pb2 import DataSource as Proto
from numpy.typing import NDArray

from moon_ops.embeddings.histories import in_order
from moon_ops.errors import InputError
from moon_ops.lake.schemas import STAMP

STORED = ("user_id", "item_id", "query_id", "event_timestamp")  # of a click; the time is that from which on it is known
LISTS = ("item_ids", "query_ids", "times")
MOST = 2**31 - 1  # values of all lists of a column
Ints = NDArray[np.int64]
TICK = 1  # µs from a click to the moment from which on it is known


class ClickSequences(LanceSource):
    """Feast's source of ``user_behavior``; ``length`` clicks at most in a list, oldest first."""

    def __init__(self, *, length: int, **more: Any) -> None:
        super().__init__(**more)
        self.length = length

    def get_schema(self) -> pa.Schema:
        """What Feast sees: a row a moment, with lists."""
        lists = [pa.field(name, pa.list_(pa.int64())) for name in LISTS]
        return pa.schema([pa.field("user_id", pa.int64()), *lists, *(pa.field(n, STAMP) for n in ("event_timestamp", "created"))])

    def to_arrow(self, columns: list[str] | None = None, feature_view: FeatureView | None = None) -> pa.Table:  # noqa: ARG002
        """All rows for Feast's own joins and materialisation."""
        table = self.of(self.get_dataset().to_table(columns=list(STORED)))
        return owned(table.select(columns or table.column_names))

    def of(self, clicks: pa.Table) -> pa.Table:
        """The rows that these clicks of some users make."""
        return sequences(clicks, self.length)

    def __eq__(self, other: object) -> bool:
        return bool(super().__eq__(other) and self.length == getattr(other, "length", 0))

    __hash__ = LanceSource.__hash__

    def _to_proto_impl(self) -> Proto:
        proto = super()._to_proto_impl()
        proto.data_source_class_type = f"{__name__}.{type(self).__name__}"
        options = json.loads(proto.custom_options.configuration) | {"length": self.length}
        proto.custom_options.configuration = json.dumps(options).encode()
        return proto

    @staticmethod
    def from_proto(data_source: Proto) -> ClickSequences:
        """What :meth:`to_proto` wrote; of the plain table that the view once read, lists of length 0: Feast replaces it."""
        plain = vars(LanceSource.from_proto(data_source))
        names = ("name", "uri", "table_format", "storage_options", "timestamp_field", "created_timestamp_column", "field_mapping")
        more = {name: plain[name] for name in (*names, "description", "tags", "owner")}
        return ClickSequences(length=json.loads(data_source.custom_options.configuration).get("length", 0), **more)


def sequences(clicks: pa.Table, length: int) -> pa.Table:
    """Of clicks [F] (columns :data:`STORED`, any order) what is known of a user from each of M moments on: user_id, event_timestamp,
    created, and the last ``length`` item_ids, query_ids and times [µs] until then, as list views. Of clicks at one moment there is one row.
    """
    user, item, query, known = (one(clicks[name].cast(pa.int64())).to_numpy(zero_copy_only=False) for name in STORED)
    if not in_order(user, known, item, query):
        order = _order(user, item, query, known)
        user, item, query, known = (column[order] for column in (user, item, query, known))
    count, values = len(user), dict(zip(LISTS, (item, query, known - TICK), strict=True))
    narrow = np.int32 if count <= MOST else np.int64  # arrays of ten million: half of the memory, and of the time to get it
    begins = np.flatnonzero(np.append(True, user[1:] != user[:-1])[:count])
    first = np.repeat(begins.astype(narrow), np.diff(begins, append=count))
    ends = np.arange(1, count + 1, dtype=narrow)
    last = np.append(~_same(user, known), True)[:count]
    if not last.all():
        user, known, first, ends = (column[last] for column in (user, known, first, ends))
    counts = np.minimum(ends - first, length, dtype=narrow)
    kind = pa.ListViewArray if count <= MOST else pa.LargeListViewArray
    starts, sizes, moments = pa.array(ends - counts), pa.array(counts), pa.array(known).cast(STAMP)
    lists = {name: kind.from_arrays(starts, sizes, pa.array(column)) for name, column in values.items()}
    return pa.table({"user_id": user, **lists, "event_timestamp": moments, "created": moments})


def one(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; without a copy where it is one, which combine_chunks() makes all the same."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _order(user: Ints, item: Ints, query: Ints, known: Ints) -> Ints:
    """Places [F] by user and time, which is quick, as the table mostly is; and those of one user and moment by item and query."""
    order = np.lexsort((known, user))
    same = _same(user[order], known[order])
    places = np.flatnonzero(np.append(same, False) | np.append(False, same))
    some = order[places]
    order[places] = some[np.lexsort((query[some], item[some], known[some], user[some]))]
    return order


def _same(user: Ints, known: Ints) -> NDArray[np.bool_]:
    """Of each click but the last whether the next one is of the same user and moment."""
    return (user[1:] == user[:-1]) & (known[1:] == known[:-1])


def owned(rows: pa.Table) -> pa.Table:
    """The same rows, whose lists have values of their own: what most readers know. It takes memory for clicks × length."""
    return pa.table({name: _owned(rows[name]) if name in LISTS else rows[name] for name in rows.column_names})


def _owned(column: pa.ChunkedArray) -> pa.Array:
    """The same lists [M], each with values of its own; :class:`InputError` for more than Arrow's lists can hold."""
    views = one(column)
    starts, counts = np.asarray(views.offsets, np.int64), np.asarray(views.sizes, np.int64)
    ends = np.append(0, np.cumsum(counts))
    if ends[-1] > MOST:
        problem = f"Feast's own join would copy {ends[-1]:,} clicks into lists, and can hold {MOST:,}"
        raise InputError(problem, action="read them with moon_ops.ctr.loader, or show fewer (MOON_BEHAVIORS)")
    places = np.repeat(starts - ends[:-1], counts) + np.arange(ends[-1])
    return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), views.values.take(pa.array(places)))
