"""Point-in-time joins by row number: of each row and feature view, which of the view's rows was known then.

Feast's own join copies every feature into every row. Here a row gets the number of the feature row instead, and values are gathered when
a batch is made: memory grows with the features, not with rows × features. The result is that of Feast's ``get_historical_features``
(tested column by column); views, keys, ttl and time columns are those that are registered with Feast.
R rows, K entities, M feature rows. Times are microseconds since 1970, UTC.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureService, FeatureStore, FeatureView
from numpy.typing import NDArray

from moon_ops import pieces
from moon_ops.dealing import Deal, here
from moon_ops.embeddings import features, vector_tables
from moon_ops.embeddings.histories import History
from moon_ops.embeddings.sequences import one
from moon_ops.embeddings.table import MISSING
from moon_ops.errors import InputError
from moon_ops.lake.schemas import STAMP

Ints = NDArray[np.integer[Any]]
STEPS = 127  # of int8 on either side of zero: -128 has no counterpart, and is not used
CACHED = 1 << 18  # numbers that are made float together: 1 MB


@dataclass(frozen=True)
class Joined:
    """R rows, the rows of the feature views that they see, and which: ``at`` [R] of each view, -1 where nothing was known.

    Of more than :data:`.pieces.LONG` rows, ``rows`` and ``at`` lie in mapped files.
    """

    rows: pa.Table
    views: dict[str, pa.Table]
    at: Mapping[str, Ints]

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def head(self, count: int) -> Joined:
        """The first ``count`` rows."""
        return self.part(slice(0, count))

    def part(self, some: slice) -> Joined:
        """Some rows in a row."""
        return Joined(self.rows.slice(some.start, some.stop - some.start), self.views, {name: at[some] for name, at in self.at.items()})

    def view_of(self, column: str) -> str:
        """The view that has a feature."""
        return next(name for name, view in self.views.items() if column in view.column_names)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of the rows, or a feature joined to them [R]; null where nothing was known."""
        if name in self.rows.column_names:
            return self.rows[name]
        view = self.view_of(name)
        return self.views[view][name].take(pa.array(self.at[view], mask=self.at[view] < 0))

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows with some of their features; with all of them by default, which takes memory per row."""
        names = columns or [*self.rows.column_names, *(name for view in self.views.values() for name in view.column_names)]
        return pa.table({name: self.column(name) for name in names})


def join(store: FeatureStore, rows: pa.Table, service: FeatureService, *, deal: Deal = here) -> Joined:
    """The features of ``service`` but the vectors, as known strictly before each row's ``event_timestamp``.

    ``rows`` has a column for each key that the views need; of many rows parts are looked up wherever ``deal`` has it done. Raises
    :class:`InputError` for a missing column, or times without zone.
    """
    microseconds(rows.slice(0, 0), "event_timestamp")
    views, at = dict[str, pa.Table](), dict[str, Ints]()
    for projection in service.feature_view_projections:
        if features.VECTORS in projection.name:
            continue
        view = store.get_feature_view(projection.name)
        key = view.join_keys[0]
        history, table = read(view, [feature.name for feature in projection.features])
        views[view.name], at[view.name] = table, pieces.column(rows.num_rows, np.int32)
        asked = ((some, _asked(rows.slice(some.start, some.stop - some.start), key)) for some in pieces.parts(rows.num_rows))
        for some, found in deal(history.part, asked):
            at[view.name][some] = found
    return Joined(rows, views, at)


def _asked(rows: pa.Table, key: str) -> tuple[Ints, Ints]:
    """Of whom rows ask [R], and when [R]."""
    return identifiers(rows, key), microseconds(rows, "event_timestamp")


def read(view: FeatureView, columns: Sequence[str]) -> tuple[History, pa.Table]:
    """A view's history and, in the order in which it numbers them, its rows' ``columns``."""
    names, dataset = _names(view), features.dataset_of(view)
    table = features.rows(view, dict.fromkeys([*names, *columns]), lambda stored: dataset.to_table(columns=stored))
    return _history(view, table, names), table.select(list(columns))


def _names(view: FeatureView) -> list[str]:
    """The columns that say of whom a row is, from when on it was known, and when it was written."""
    assert view.batch_source is not None, "every view here reads a table of the lake"
    return [view.join_keys[0], view.batch_source.timestamp_field, view.batch_source.created_timestamp_column]


def _history(view: FeatureView, table: pa.Table, names: Sequence[str]) -> History:
    ids, times, created = (_integers(table[name]) for name in names)
    ttl = int(view.ttl.total_seconds() * 1e6) if view.ttl else 0
    return History(ids, times, created, ttl)


class VectorHistory:
    """The vectors of all versions of an encoder's items (or queries), and since when each is valid: what a row could know."""

    def __init__(self, history: History, vectors: NDArray[Any], contract_id: str, scales: NDArray[np.float32] | None = None) -> None:
        """``vectors`` [M + 1, D], float32, float16 or int8, the last of which is zeros: what -1 stands for. ``scales`` [M + 1] of int8."""
        self.history, self.vectors, self.contract_id, self.scales = history, vectors, contract_id, scales

    def __len__(self) -> int:
        """K: how many items."""
        return len(self.history.ids)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.vectors.shape[1])

    def codes(self, ids: Ints) -> Ints:
        """The number of each item, any shape; -1 for one without a vector."""
        return self.history.codes(ids)

    def at(self, codes: Ints, times: Ints) -> Ints:
        """The row number of the vector valid strictly before ``times``; -1 where the item was not embedded yet."""
        return self.history.at(codes, times)

    def gather(self, rows: Ints) -> NDArray[np.float32]:
        """Vectors [..., D] of row numbers [...]; zeros for -1."""
        if self.scales is not None:
            return _floats(self.vectors, self.scales, rows)
        return np.take(self.vectors, rows, axis=0, mode="wrap").astype(np.float32, copy=False)


def vectors(view: FeatureView, between: tuple[dt.datetime, dt.datetime] | None = None, kind: str = "float32") -> VectorHistory:
    """All vectors of one of the views ``item_embedding_v<N>`` and ``query_embedding_v<N>``, once each; many lie in a mapped file.

    ``between`` two moments: those that a row of that time may see, from the first on and before the second. ``kind``: as they are held,
    float32, float16, or int8 with a scale for each vector; what is gathered is float32.
    """
    dataset, names = features.dataset_of(view), _names(view)
    known = dataset.scanner(columns=names, scan_in_order=True).to_table()
    wanted = np.ones(known.num_rows, bool) if between is None else _seen(_history(view, known, names), known, names, between)
    count, dim, done = int(wanted.sum()), vector_tables.dim_of(dataset), 0
    matrix, place = pieces.spilled(count + 1, dim, kind), 0
    scales = pieces.column(count + 1, np.float32) if kind == "int8" else None
    for batch in _in_order(dataset, ["embedding"]):
        chosen = wanted[place : place + len(batch)]
        place += len(batch)
        if some := int(chosen.sum()):
            found = batch["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
            found = found if some == len(batch) else found[chosen]
            if scales is None:
                matrix[done : done + some] = found
            else:
                matrix[done : done + some], scales[done : done + some] = quantized(found)
            pieces.let_go(matrix)
            done += some
    return VectorHistory(_history(view, known.filter(pa.array(wanted)), names), matrix, view.tags["contract_id"], scales)


def quantized(found: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Vectors [N, D] as whole numbers from -127 to 127, and what one of them is worth in each vector [N].

    Zeros stay zeros. A vector with a number that is none is gathered as such, so that a loss tells of it as it does of float32.
    """
    scales = np.abs(found).max(axis=1, initial=0) / np.float32(STEPS)
    told = (scales >= np.finfo(np.float32).tiny) & np.isfinite(scales)
    divisors = np.where(told, scales, np.float32(np.inf))  # by which all others become zeros
    with np.errstate(invalid="ignore"):
        whole = np.rint(found / divisors[:, None])
    return np.nan_to_num(whole, copy=False, nan=0.0).astype(np.int8), scales


def _floats(whole: NDArray[np.int8], scales: NDArray[np.float32], rows: Ints) -> NDArray[np.float32]:
    """Vectors [..., D] of row numbers [...]; what is between lies in the processor's cache."""
    chosen, dim = np.ravel(rows), whole.shape[1]
    out = np.empty((len(chosen), dim), np.float32)
    for some in pieces.spans(len(chosen), max(1, CACHED // dim)):
        out[some] = np.take(whole, chosen[some], axis=0, mode="wrap")
        out[some] *= np.take(scales, chosen[some], mode="wrap")[:, None]
    return out.reshape(*np.shape(rows), dim)


def _seen(history: History, known: pa.Table, names: Sequence[str], between: tuple[dt.datetime, dt.datetime]) -> NDArray[np.bool_]:
    """Which rows are seen between two moments: those before the second that no later one hides before the first."""
    start, end = (int(pa.scalar(when, STAMP).value) for when in between)
    ids, times = (_integers(known[name]) for name in names[:2])
    before = history.at(history.codes(ids), np.array(start))  # of each row's item the last one
    return (times < end) & ((before < 0) | (times >= times[before]))


def _in_order(dataset: lance.LanceDataset, columns: list[str]) -> Sequence[pa.RecordBatch]:
    return dataset.scanner(columns=columns, scan_in_order=True).to_batches()  # type: ignore[return-value]


def identifiers(rows: pa.Table, name: str) -> Ints:
    """A column of ids [R], -1 for null; :class:`InputError` where it is missing or not whole numbers."""
    if name not in rows.column_names:
        raise InputError(f"rows have no column {name}", action=f"bring it: the feature service joins by {name}")
    if not pa.types.is_integer(rows[name].type):
        kind = name.removesuffix("_id")
        action = f'make keys of the shop\'s ids: rows["{name}"] = moon_ops.lake.ids.keys("{kind}", rows["{name}"])'
        raise InputError(f"{name} is {rows[name].type}, not whole numbers", action=action)
    try:
        return pc.fill_null(rows[name].cast(pa.int64()), MISSING).to_numpy()
    except pa.ArrowInvalid as large:
        raise InputError(f"{name} holds numbers of 2^63 or more", action="make keys of them: moon_ops.lake.ids.keys") from large


def microseconds(rows: pa.Table, name: str) -> Ints:
    """A column of times [R]; :class:`InputError` where it is missing, not a time, without a zone, or null."""
    if name not in rows.column_names:
        raise InputError(f"rows have no column {name}", action="bring the time of each row")
    kind, column = rows[name].type, rows[name]
    if not pa.types.is_timestamp(kind) or kind.tz is None:
        shown = f" (e.g. {column[0].as_py()})" if len(column) else ""
        action = "make it UTC, e.g. with pandas.to_datetime(column, utc=True)"
        raise InputError(f"{name} is {kind}{shown}, not a time with a zone", action=action)
    if column.null_count:
        raise InputError(f"{name} is missing in {column.null_count} of {len(column)} rows", action="leave these rows out, or mend them")
    return _integers(column.cast(STAMP, safe=False))


def _integers(column: pa.ChunkedArray) -> Ints:
    column = column.cast(STAMP).cast(pa.int64()) if pa.types.is_timestamp(column.type) else column.cast(pa.int64())
    return np.asarray(one(column).to_numpy(zero_copy_only=False), np.int64)
