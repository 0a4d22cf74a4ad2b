"""Which texts stand behind keys: collected while a shop's files are read, told apart, and committed before the rows that use them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.lake import ids
from moon_ops.lake.ids import KINDS, TABLE, Cells
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import Column, Refusals
from moon_ops.lake.query import sql
from moon_ops.lake.refusal_order import CLASHED
from moon_ops.lake.schemas import SCHEMAS, STAMP

FEW = 4  # tables of ids, before each is kept once
PAIRS = pa.schema([("key", pa.int64()), ("source_id", pa.string())])
OWN = {  # kind → tables and columns of its keys, and which rows say one
    "item": (("items", "item_id", None),),
    "query": (("queries", "query_id", None),),
    "user": (("users", "user_id", None), ("events", "user_id", None)),
    "session": (("events", "session_id", None),),
    "product": (("items", "spu_id", "spu_id != item_id"),),  # an item without a product is its own
    "seller": (("items", "seller_id", None),),
}


@dataclass
class Names:
    """The ids of a shop's files by kind: the texts among them, and the columns of numbers as they are, which cost nothing."""

    texts: dict[str, list[pa.Table]] = field(default_factory=dict)
    numbers: dict[str, list[Column]] = field(default_factory=dict)
    clashed: dict[str, dict[int, tuple[str, str]]] = field(default_factory=dict)  # kind → keys that two ids have, and these: once settled

    def saw(self, column: str, cells: Cells) -> None:
        """Take down the ids of a column."""
        self.note(KINDS[column], cells)

    def note(self, kind: str, cells: Cells) -> None:
        """Take down the ids of a kind."""
        is_text = pc.is_valid(cells.texts)
        if cells.texts.null_count == len(cells.texts):
            self.numbers.setdefault(kind, []).append(cells.keys)
            return
        self.numbers.setdefault(kind, []).append(cells.keys.filter(pc.invert(is_text)))
        found = pa.table([cells.keys.filter(is_text), cells.texts.filter(is_text)], schema=PAIRS)
        self.texts.setdefault(kind, []).append(found.group_by(["key", "source_id"]).aggregate([]))

    def compact(self) -> None:
        """Keep each id once. Of a log that is read in pieces, all of them do not fit."""
        for texts in self.texts.values():
            if len(texts) > FEW and sum(map(len, texts[1:])) > len(texts[0]):  # else the first one is copied too often
                texts[:] = [_once(texts)]
        for numbers in self.numbers.values():
            numbers[-1] = pc.unique(numbers[-1])
            if len(numbers) > FEW and sum(map(len, numbers[1:])) > len(numbers[0]):
                numbers[:] = [pc.unique(pa.chunked_array(numbers, pa.int64()))]

    def join(self, other: Names, kinds: Collection[str]) -> None:
        """Take over what another has of ``kinds``."""
        for kind in kinds:
            self.texts.setdefault(kind, []).extend(other.texts.get(kind, []))
            self.numbers.setdefault(kind, []).extend(other.numbers.get(kind, []))
        self.texts = {kind: texts for kind, texts in self.texts.items() if texts}

    def forget(self) -> None:
        """Keep none of the ids."""
        self.texts.clear()
        self.numbers.clear()

    def clashing(self, kind: str) -> dict[int, str]:
        """The keys that two ids of a kind have, of which one is a text: the first text of each."""
        given = _once(self.texts.get(kind, []))
        numbers = pc.unique(pa.chunked_array(self.numbers.get(kind, []), pa.int64())).drop_null()
        every, counts = np.unique(_keys(given).to_numpy(), return_counts=True)
        twice = pa.array(np.union1d(every[counts > 1], np.intersect1d(every, numbers.to_numpy())))
        found = given.filter(pc.is_in(given["key"], twice)).to_pylist()
        return {row["key"]: row["source_id"] for row in reversed(found)}

    def settle(self, lake: Lake, raw: Mapping[str, pa.Table], refusals: Refusals) -> tuple[dict[str, pa.Table], dict[str, pa.Table]]:
        """The rows without those whose id has the key of another id, which are refused with both named, never merged; and by kind the
        texts that the lake does not have yet.
        """
        fresh = dict[str, pa.Table]()
        if not self.texts and not lake.exists(TABLE):
            return dict(raw), fresh  # a shop of whole numbers
        _begin(lake)
        for kind in sorted({*self.texts, *self.numbers}):
            clashes, fresh[kind] = self._compared(lake, kind)
            self.clashed[kind] = clashes
            fresh[kind] = fresh[kind].filter(pc.invert(pc.is_in(fresh[kind]["key"], pa.array(list(clashes), pa.int64()))))
        return {name: self.without_clashing(name, rows, refusals) for name, rows in raw.items()}, fresh

    def without_clashing(self, name: str, rows: pa.Table, refusals: Refusals) -> pa.Table:
        """Rows of table ``name``, or some of them, without those whose id has the key of another id, once that is settled."""
        refusals.order.begin(CLASHED, name)
        for kind, clashes in self.clashed.items():
            for key, (first, second) in clashes.items():
                for column in (c for c in rows.column_names if KINDS.get(c) == kind):
                    bad = pc.fill_null(pc.equal(rows[column], key), False)
                    rows = refusals.split(rows, bad, name, column, ids.clash(key, first, second))
        return rows

    def _compared(self, lake: Lake, kind: str) -> tuple[dict[int, tuple[str, str]], pa.Table]:
        """The keys that two ids have, with these; and the texts that are new."""
        given = _once(self.texts.get(kind, []))
        numbers = pc.unique(pa.chunked_array(self.numbers.get(kind, []), pa.int64())).drop_null()
        wanted = pa.concat_arrays([given["key"].combine_chunks(), numbers])
        known = ids.matching(lake, TABLE, "key", wanted, ("source_id",), f"kind = '{kind}'").cast(PAIRS)
        fresh = given.join(known.select(["key", "source_id"]), ["key", "source_id"], join_type="left anti")
        written = [given, known, _as_texts(numbers.filter(pc.is_in(numbers, pa.concat_arrays([_keys(given), _keys(known)]))))]
        first = fresh.filter(pc.invert(pc.is_in(fresh["key"], _keys(known))))
        for table, column, where in OWN.get(kind, ()) if first.num_rows else ():  # whoever has the key already is a number
            if lake.exists(table):
                written.append(_as_texts(pc.unique(ids.matching(lake, table, column, _keys(first), (), where)[column])))
        every = pa.concat_tables(written)
        twice = sql("SELECT key, min(source_id) AS a, max(source_id) AS b FROM ids GROUP BY 1 HAVING a <> b", ids=every)
        clashes = {row["key"]: (row["a"], row["b"]) for row in twice.to_pylist()}
        return clashes, fresh


def commit(lake: Lake, fresh: Mapping[str, pa.Table], used: Mapping[str, pa.Table], now: dt.datetime) -> int:
    """Append the texts whose keys the rows ``used`` have; how many."""
    made = []
    for kind, texts in fresh.items():
        columns = [t[c] for t in used.values() for c in t.column_names if KINDS.get(c) == kind]
        keys = pc.unique(pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.int64()))
        rows = texts.filter(pc.is_in(texts["key"], keys)).select(["key", "source_id"])
        kinds, times = pa.array([kind] * rows.num_rows, pa.string()), pa.array([now] * rows.num_rows, STAMP)
        made.append(pa.table([kinds, *rows.columns, times], schema=SCHEMAS[TABLE]))
    return lake.append(TABLE, pa.concat_tables(made).combine_chunks()) if made else 0


def _begin(lake: Lake) -> None:
    """Make the table, with what a lake from before it knows of its items and queries."""
    if lake.exists(TABLE):
        return
    parts = []
    for kind, table, key in (("item", "items", "item_id"), ("query", "queries", "query_id")):
        known = lake.read(table, [key, "source_id", "created"])
        texts = known.filter(pc.fill_null(pc.not_equal(known["source_id"], known[key].cast(pa.string())), False)).to_pylist()
        found = {row[key]: row for row in texts if ids.stable_id(row["source_id"]) == row[key]}
        parts += [{"kind": kind, "key": number, **{n: row[n] for n in ("source_id", "created")}} for number, row in found.items()]
    lake.append(TABLE, pa.Table.from_pylist(parts, schema=SCHEMAS[TABLE]))


def _once(texts: Sequence[pa.Table]) -> pa.Table:
    """Each pair once, in the order in which they came."""
    every = pa.concat_tables([PAIRS.empty_table(), *texts])
    return every.group_by(["key", "source_id"], use_threads=False).aggregate([])


def _keys(pairs: pa.Table) -> pa.Array:
    return pairs["key"].combine_chunks()


def _as_texts(numbers: pa.Array) -> pa.Table:
    return pa.table([numbers, numbers.cast(pa.string())], schema=PAIRS)
