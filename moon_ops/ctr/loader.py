"""Batches for anybody's click model: rows and a Feast service in, arrays with features, sequences and vectors out.

This is the way in for those who bring their own model; ours is trained on the same joins. B rows, S behaviours, D vector dimensions.
"""

from __future__ import annotations

import datetime as dt
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureService, FeatureStore
from numpy.typing import NDArray

from moon_ops.ctr.behaviors import Lengths, flat, last, most_similar
from moon_ops.ctr.prefetch import prefetched
from moon_ops.embeddings import as_of, features
from moon_ops.embeddings.as_of import Joined, VectorHistory
from moon_ops.embeddings.sequences import one
from moon_ops.errors import InputError, LeakError, StageError
from moon_ops.inputs.contract import require_same
from moon_ops.lake import ids
from moon_ops.lake.ids import KINDS

Ints = NDArray[np.integer[Any]]
Batch = dict[str, NDArray[Any]]
_IS = pa.types
PLAIN = (_IS.is_integer, _IS.is_floating, _IS.is_boolean, _IS.is_timestamp, _IS.is_string, _IS.is_large_string)  # columns of rows
LENGTH = 50  # clicks that are read by default
SEQUENCES = {"item_ids": "item", "query_ids": "query"}  # list features, and whose vectors belong to them


class Loader:
    """Rows joined with the features of a service as known strictly before each row's time; values are gathered batch by batch.

    A batch has the rows' own numbers (ids as keys: whole numbers are their own, :meth:`shop_ids` turns others back); each feature [B]
    (numbers; texts as the row numbers of ``values``, 0: nothing; ids -1 where nothing was known); each list feature [B, S], newest last,
    -1 where there was nothing (0 among texts); and for ``vectors`` = item, query, item_ids, query_ids the arrays ``item_embedding``,
    ``query_embedding`` [B, D], ``item_ids_embedding``, ``query_ids_embedding`` [B, S, D], zeros for what had no vector then. Memory grows
    with items and users, not with rows times sequence length.
    """

    def __init__(
        self,
        store: FeatureStore,
        rows: pd.DataFrame | pa.Table,
        service: str | FeatureService,
        *,
        behaviors: int | None = None,
        top_k: int = 0,
        vectors: Sequence[str] = ("item", "query", "item_ids"),
        seen_by_encoder: bool = False,
        now: dt.datetime | None = None,
    ) -> None:
        """``rows`` has user_id, item_id, query_id, event_timestamp and what else is wanted in batches, such as label; ids are the shop's.

        Of the last ``behaviors`` clicks (default: 50, or as many as the service shows) the ``top_k`` most similar in content are kept (0:
        all). Raises :class:`StageError` for a service that Feast does not know, :class:`ContractError` for one of vectors of two
        contracts, :class:`InputError` for rows without a needed column, with times without zone, or after ``now`` (default: the
        present), and for more clicks than are shown, and :class:`LeakError` for rows from before the end of the encoder's training: it
        knows what was bought then. Models may be trained on these (``seen_by_encoder``), never judged.
        """
        _require_sound(vectors, now)
        table = _keyed(_table(rows))
        self.lake = features.lake_of(store)
        self.service = _service(store, service)
        self.contract_id = _contract(store, self.service)
        self.times = as_of.microseconds(table, "event_timestamp")
        _require_past(self.times, now or dt.datetime.now(dt.UTC))
        if not seen_by_encoder:
            _require_unseen(store, self.times, self.service)
        self.length, self.top_k = _lengths(store, self.service, behaviors, top_k)
        self.joined = as_of.join(store, table, self.service)
        _require_no_clash(table, self.joined)
        kinds = {SEQUENCES.get(name, name) for name in vectors} | ({"item"} if self.top_k else set())
        self.vectors = {kind: _vectors(store, self.service, kind) for kind in sorted(kinds)}
        self.wanted = tuple(vectors)
        self._code(table)

    def _code(self, table: pa.Table) -> None:
        """All columns and lists as numbers."""
        self.values: dict[str, list[str]] = {}  # of each text feature: what its row numbers stand for
        self._own = {name: self._numbers(name, table[name]) for name in table.column_names}
        columns = [(view, name, found[name]) for view, found in self.joined.views.items() for name in found.column_names]
        self._features = {name: (view, self._numbers(name, column)) for view, name, column in columns if not _is_list(column)}
        lists = [(view, name, one(column)) for view, name, column in columns if _is_list(column)]
        different = {_offsets(column): column for _, _, column in lists}  # a view's lists often end in the same places
        lengths = {offsets: Lengths.of(column) for offsets, column in different.items()}
        self._lists = {name: (view, lengths[_offsets(column)], self._list_values(name, column)) for view, name, column in lists}
        self._codes = {kind: found.codes(as_of.identifiers(table, f"{kind}_id")) for kind, found in self.vectors.items()}
        self._list_codes = {name: self.vectors[SEQUENCES[name]].codes(self._lists[name][2]) for name in self._needed_lists()}

    def __len__(self) -> int:
        """R: how many rows."""
        return len(self.joined)

    def batches(self, size: int, *, seed: int | None = None, workers: int = 2) -> Iterator[Batch]:
        """All rows once, ``size`` at a time (the last may be fewer), in order or shuffled by ``seed``; ``workers`` threads work ahead."""
        for name, value, least in (("size", size, 1), ("workers", workers, 1), ("seed", 0 if seed is None else seed, 0)):
            _whole(name, value, least)
        order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
        return (made for _, made in prefetched(self.batch, order, size, workers=workers))

    def batch(self, chosen: Ints) -> Batch:
        """The rows ``chosen`` [B]."""
        batch = {name: column[chosen] for name, column in self._own.items()}
        batch |= {name: column[self.joined.at[view][chosen]] for name, (view, column) in self._features.items()}
        times = self.times[chosen]
        read = {kind: found for kind, found in self.vectors.items() if kind in self.wanted or (kind == "item" and self.top_k)}
        vector = {kind: found.gather(found.at(self._codes[kind][chosen], times)) for kind, found in read.items()}
        places = self._places(chosen, times, vector)
        batch |= {name: values[places[view]] for name, (view, _, values) in self._lists.items()}
        for name in self.wanted:
            if name in SEQUENCES:
                found = self.vectors[SEQUENCES[name]]
                codes = self._list_codes[name][places[self._lists[name][0]]]
                batch[f"{name}_embedding"] = found.gather(found.at(codes, times[:, None]))
            else:
                batch[f"{name}_embedding"] = vector[name]
        return batch

    def shop_ids(self, name: str, keys: NDArray[Any]) -> NDArray[np.object_]:
        """The shop's ids, numbers or texts, of a batch's column of ids, any shape, e.g. ``item_ids`` [B, S]; None for none."""
        if name not in KINDS:
            raise InputError(f"{name} is no column of ids", action=f"name one of {', '.join(KINDS)}")
        different, at = np.unique(keys, return_inverse=True)
        known = np.array([*ids.named(self.lake, KINDS[name], different), None], object)[:-1]  # of texts alone numpy would make its own kind
        return known[at].reshape(np.shape(keys))

    def _places(self, chosen: Ints, times: Ints, vector: dict[str, NDArray[np.float32]]) -> dict[str, Ints]:
        """Where the behaviours lie that each row reads, by view."""
        lists = {view: counts for view, counts, _ in self._lists.values()}
        places = {view: last(counts, self.joined.at[view][chosen], self.length) for view, counts in lists.items()}
        if self.top_k:
            view, codes = self._lists["item_ids"][0], self._list_codes["item_ids"]
            places[view] = most_similar(places[view], codes, self.vectors["item"], times, vector["item"], self.top_k)
        return places

    def _needed_lists(self) -> list[str]:
        named = {name for name in self.wanted if name in SEQUENCES} | ({"item_ids"} if self.top_k else set())
        if missing := sorted(named - set(self._lists)):
            raise InputError(f"vectors names {missing[0]}, which service {self.service.name} does not have", action="leave it out")
        return sorted(named)

    def _list_values(self, name: str, lists: pa.Array) -> Ints:
        """The values of lists as :class:`Lengths` counts them: texts as row numbers of ``values``."""
        if not _is_text(lists.values.type):
            return flat(lists)
        return self._numbers(name, pa.chunked_array([lists.values]))

    def _numbers(self, name: str, column: pa.ChunkedArray) -> NDArray[Any]:
        """A column as numbers, and one more for "nothing was known" at its end: -1 for whole numbers, NaN for others, 0 for texts."""
        if pa.types.is_timestamp(column.type):  # a time of the caller's own may be missing
            return np.append(pc.fill_null(column.cast(as_of.STAMP, safe=False).cast(pa.int64()), -1).to_numpy(), -1)
        if _is_text(column.type):
            coded = column.combine_chunks().dictionary_encode()
            self.values[name] = ["", *coded.dictionary.to_pylist()]
            return np.append(pc.fill_null(coded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False) + 1, 0)
        if pa.types.is_floating(column.type):
            return np.append(pc.fill_null(column, np.nan).to_numpy(), np.nan)
        try:
            return np.append(pc.fill_null(column.cast(pa.int64()), -1).to_numpy(), -1)
        except pa.ArrowInvalid as large:
            raise InputError(f"{name} holds numbers of 2^63 or more", action="drop the column, or make it text") from large


def _table(rows: pd.DataFrame | pa.Table) -> pa.Table:
    """Rows as Arrow holds them; :class:`InputError` for what it cannot."""
    if isinstance(rows, pd.DataFrame) and rows.empty:  # pandas knows no types then
        kinds = {name: "int64" if name.endswith("_id") else "float64" for name in rows.columns if rows[name].dtype == object}
        rows = rows.astype(kinds | ({"event_timestamp": "datetime64[us, UTC]"} if "event_timestamp" in rows.columns else {}))
    if not isinstance(rows, pd.DataFrame | pa.Table):
        raise InputError(f"rows are a {type(rows).__name__}, not a table", action="bring a pandas DataFrame, or an Arrow table")
    try:
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(rows, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError) as odd:
        problem = f"rows cannot be read ({str(odd).splitlines()[0]})"
        raise InputError(problem, action="bring a DataFrame with plain columns, each name once") from odd
    if len(set(table.column_names)) != len(table.column_names):
        raise InputError(f"rows have columns of one name: {', '.join(table.column_names)}", action="keep one of each")
    for name in table.column_names:
        kind = table[name].type
        if not any(is_kind(kind) for is_kind in PLAIN):
            raise InputError(f"{name} is {kind}: neither numbers, texts nor times", action="drop the column, or turn it into numbers")
    return table


def _keyed(rows: pa.Table) -> pa.Table:
    """Rows with the keys of ids that are texts, floats or unsigned; null and -1 are none."""
    for name in (n for n in rows.column_names if n in KINDS and n not in SEQUENCES):
        column = rows[name]
        if pa.types.is_integer(column.type) and column.type != pa.uint64():
            continue
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.equal(column, -1), None, column)
        made = ids.of_column(name, column)
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(made, mask=made < 0))
    return rows


def _whole(name: str, value: Any, least: int) -> int:
    """A whole number, numpy's too; :class:`InputError` for anything else, or one below ``least``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise InputError(f"{name} = {value!r} must be a whole number of at least {least}", action="give another number")
    return int(value)


def _offsets(lists: pa.Array) -> tuple[int, ...]:
    """What is the same of two arrays of lists that end in the same places: their buffers, but not those of their values."""
    own = 1 if pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type) else 2
    return len(lists), lists.offset, *(0 if buffer is None else buffer.address for buffer in lists.buffers()[: own + 1])


def _is_text(kind: pa.DataType) -> bool:
    return bool(_IS.is_string(kind) or _IS.is_large_string(kind))


def _is_list(column: pa.ChunkedArray) -> bool:
    return any(is_kind(column.type) for is_kind in (_IS.is_list, _IS.is_large_list, _IS.is_list_view, _IS.is_large_list_view))


def _service(store: FeatureStore, service: str | FeatureService) -> FeatureService:
    known = {found.name: found for found in store.list_feature_services()}
    name = service.name if isinstance(service, FeatureService) else str(service)
    if name not in known:
        there = ", ".join(sorted(known)) or "none"
        raise StageError(f"Feast has no feature service {name} (there are: {there})", action="name one of these, or run `moon publish`")
    renamed = [p.name for p in known[name].feature_view_projections if p.join_key_map or p.name_alias]
    if renamed:
        problem = f"service {name} gives {renamed[0]} another name or key (with_name, with_join_key_map), which the loader does not know"
        raise InputError(problem, action="rename the columns of rows instead")
    return known[name]


def _require_no_clash(rows: pa.Table, joined: Joined) -> None:
    """A column of the rows that has a feature's name would hide it, or be hidden."""
    known = {name: view for view, table in joined.views.items() for name in table.column_names}
    for name in rows.column_names:
        if name in known or name.endswith("_embedding"):
            raise InputError(f"rows have a column {name}, and so has {known.get(name, 'every batch')}", action="rename or drop yours")


def _contract(store: FeatureStore, service: FeatureService) -> str:
    """The one contract of the service's vectors; empty if it has none."""
    names = [p.name for p in service.feature_view_projections if features.VECTORS in p.name]
    found = [store.get_feature_view(name).tags.get("contract_id", "") for name in names]
    for other in found[1:]:
        require_same(found[0], other, what=f"vectors of service {service.name}")
    return found[0] if found else ""


def _vectors(store: FeatureStore, service: FeatureService, kind: str) -> VectorHistory:
    names = [p.name for p in service.feature_view_projections if p.name.startswith(f"{kind}{features.VECTORS}")]
    if not names:
        raise InputError(f"vectors names {kind}, but service {service.name} has no {kind} vectors", action="use ctr_v<encoder>")
    return as_of.vectors(store.get_feature_view(names[0]))


def _require_past(times: Ints, now: dt.datetime) -> None:
    late = times > int(now.timestamp() * 1e6)
    if late.any():
        shown = dt.datetime.fromtimestamp(float(times[late].max()) / 1e6, dt.UTC)
        raise InputError(
            f"event_timestamp of {int(late.sum())} rows is after {now:%Y-%m-%dT%H:%MZ}, e.g. {shown:%Y-%m-%dT%H:%MZ}: nobody knows "
            "their features yet",
            action="leave them out",
        )


def _require_unseen(store: FeatureStore, times: Ints, service: FeatureService) -> None:
    """Whatever service it is: the views of the vectors say until when their encoder was trained."""
    views = [store.get_feature_view(p.name) for p in service.feature_view_projections if features.VECTORS in p.name]
    if not views:
        return
    untold = [view.name for view in views if "trained_until" not in view.tags]
    if untold:
        action = "publish the encoder again, or pass seen_by_encoder=True"
        problem = f"view {untold[0]} does not say until when its encoder was trained: its vectors may know the labels"
        raise LeakError(problem, action=action)
    until = max(view.tags["trained_until"] for view in views)
    early = times < int(dt.datetime.fromisoformat(until).timestamp() * 1e6)
    if early.any():
        raise LeakError(
            f"{int(early.sum())} of {len(times)} rows are from before {until}, until when the encoder of {service.name} was trained: its "
            "vectors know what was bought then",
            action="judge on later rows; for training pass seen_by_encoder=True",
        )


def _require_sound(vectors: Sequence[str], now: dt.datetime | None) -> None:
    if isinstance(vectors, str) or not isinstance(vectors, Sequence):
        raise InputError(f"vectors = {vectors!r} is no list of names", action='give a list, e.g. ["item"], or [] for none')
    if now is not None and (not isinstance(now, dt.datetime) or now.tzinfo is None):
        raise InputError(f"now = {now!r} is not a time with a zone", action="give e.g. datetime.now(UTC)")


def _lengths(store: FeatureStore, service: FeatureService, behaviors: int | None, top_k: int) -> tuple[int, int]:
    """How many clicks are read, and how many of them are kept (0: all)."""
    known = min(LENGTH, features.behaviors_of(store, service, LENGTH)) if behaviors is None else _whole("behaviors", behaviors, 1)
    if _whole("top_k", top_k, 0) > known:
        raise InputError(f"top_k = {top_k} is more than behaviors = {known}", action="give a smaller one")
    features.require_behaviors(store, service, known)
    return known, top_k if top_k < known else 0
