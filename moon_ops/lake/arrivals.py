"""Which events of a file are new: pipelines deliver at least once, so the same event comes again in this file, or in a later one.

An event with an ``event_id`` is known by it. Sent again with another content it is refused: the first one counts. An event without one is
known by all its standard columns. The shop's own columns tell no events apart: what is sent again with a column
more is no second event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.lake import changes, counting, ids, spills
from moon_ops.lake.event_log import AT_ONCE
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import ROW, Refusals
from moon_ops.lake.query import sql
from moon_ops.lake.refusal_order import TAKEN
from moon_ops.lake.rows import KEYS
from moon_ops.lake.schemas import SCHEMAS

OTHER = "is known with another content, and the first one counts"
ORDER = "coalesce(e.order_id = k.order_id, true)"  # a lake of before, and a file that leaves it out, does not know it


class Named:
    """Which items and queries the lake has: few are looked up, and for many pieces all numbers are sorted once, eight bytes each."""

    def __init__(self, lake: Lake) -> None:
        self.lake, self.asked = lake, 0
        self._every: dict[str, Callable[[pa.Array], pa.Array]] = {}

    def referential(self, raw: pa.Table, refusals: Refusals) -> pa.Table:
        """The rows of the ``events`` table, without ``created``; an event must name an item and a query that the lake has."""
        self.asked += 1
        raw = refusals.split(raw, pc.invert(self._has("items", raw["item_id"])), "events", "item_id", "is no item of the catalogue")
        lost = pc.and_(pc.is_valid(raw["query_id"]), pc.invert(self._has("queries", raw["query_id"])))
        raw = refusals.split(raw, lost, "events", "query_id", "is no known query")
        raw = raw.rename_columns(["event_timestamp" if n == "timestamp" else n for n in raw.column_names])
        return raw.select([*(n for n in SCHEMAS["events"].names if n != "created"), ROW])

    def _has(self, table: str, asked: pa.ChunkedArray) -> pa.Array:
        key = KEYS[table]
        if self.asked == 1:
            return pc.is_in(asked, changes.known(self.lake, table, asked, [key])[key].combine_chunks())
        if table not in self._every:
            self._every[table] = changes.among(self.lake.read(table, [key])[key].combine_chunks())
        return self._every[table](asked.combine_chunks())


@dataclass(frozen=True)
class Again:
    """Which rows of a log [R], ascending, have the ``event_id`` of a row before them, and which of these say something else."""

    rows: NDArray[np.int64]
    differing: NDArray[np.int64]


def again(pieces: Iterable[pa.Table], count: int) -> Again:
    """The same of events that are not in memory at once; ``count``: how many have an id, about. They lie in temporary files meanwhile."""
    parts = spills.Parts(1 + 2 * count // AT_ONCE)
    rows, differing = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for events in pieces:
        named = events.filter(pc.is_valid(events["event_id"]))
        hashed = sql(f"SELECT CAST(hash(event_id) % {parts.count} AS BIGINT) AS part FROM e", e=named.select(["event_id"]))
        parts.add(named, hashed["part"].to_numpy())
    for named in parts:
        _, repeated, differs = _by_id(named, _content(named))
        rows.append(repeated[ROW].to_numpy())
        differing.append(repeated.filter(differs)[ROW].to_numpy())
    return Again(np.sort(np.concatenate(rows)), np.sort(np.concatenate(differing)))


def distinct(events: pa.Table, refusals: Refusals, again: Again | None = None) -> tuple[pa.Table, int]:
    """The events of a file, or of a part of it of which it is known what comes ``again``, each once, and how many of them came again; one
    whose id another one of the file has is refused.
    """
    refusals.order.begin(TAKEN + 1)
    names = _content(events)
    if not events.num_rows:
        return events, 0
    if not pc.any(pc.is_valid(events["event_id"])).as_py():
        found = _once(events, names)
        return found, events.num_rows - found.num_rows
    nameless = events.filter(pc.is_null(events["event_id"]))
    named = events.filter(pc.is_valid(events["event_id"]))
    first, repeated, differs = _by_id(named, names) if again is None else _apart(named, again)
    kept = refusals.split(repeated, differs, "events", "event_id", OTHER)
    alone = _once(nameless, names)
    return pa.concat_tables([first, alone]), kept.num_rows + nameless.num_rows - alone.num_rows


def _by_id(named: pa.Table, names: list[str]) -> tuple[pa.Table, pa.Table, pa.Array]:
    """The first event of each id, the others, and which of these say something else than the first."""
    rows = sql(f"SELECT min({ROW}) AS {ROW} FROM e GROUP BY event_id", e=named.select(["event_id", ROW]))[ROW].combine_chunks()
    is_first = pc.is_in(named[ROW], rows)
    first, repeated = named.filter(is_first), named.filter(pc.invert(is_first))
    return first, repeated, _differing(repeated, first, names)


def _apart(named: pa.Table, again: Again) -> tuple[pa.Table, pa.Table, pa.Array]:
    """The same of some of a log's events."""
    comes_again = pa.array(np.isin(named[ROW].to_numpy(), again.rows))
    repeated = named.filter(comes_again)
    return named.filter(pc.invert(comes_again)), repeated, pa.array(np.isin(repeated[ROW].to_numpy(), again.differing))


def fresh(lake: Lake, events: pa.Table, refusals: Refusals, again: Again | None = None) -> tuple[pa.Table, int]:
    """The ``events`` of a file, or of a part of it of which it is known what comes ``again``, that the lake does not have, in order, and
    how many are known; ``event_timestamp`` is their time.
    """
    events, known = distinct(events, refusals, again)
    refusals.order.begin(TAKEN + 2)
    if events.num_rows and lake.count("events"):
        names = _content(events)
        events, found = _not_named(lake, events, names, refusals)
        low, high = (
            (f"{end(events['event_timestamp']).as_py():%Y-%m-%d %H:%M:%S.%f}" for end in (pc.min, pc.max)) if len(events) else ("", "")
        )
        near = f"event_timestamp >= timestamp '{low}' AND event_timestamp <= timestamp '{high}'"
        new = events
        for some in counting.parts(lake, [*names, "event_id", "order_id"], near) if len(events) else ():
            new = _not_alike(new, some, names)
        events, known = new, known + found + events.num_rows - new.num_rows
    if not events.num_rows:
        return events.drop_columns(ROW), known
    return sql(f"SELECT * FROM e ORDER BY {', '.join(n for n in events.column_names if n != ROW)}", e=events).drop_columns(ROW), known


def _content(events: pa.Table) -> list[str]:
    """The columns that say what happened; an order is compared where both sides name one."""
    return [name for name in events.column_names if name not in ("event_id", "order_id", "extra", ROW)]


def _once(events: pa.Table, names: list[str]) -> pa.Table:
    """Events without ids, each once: the first row counts."""
    first = sql(f"SELECT min({ROW}) AS {ROW} FROM e GROUP BY {', '.join(names)}, order_id", e=events.select([*names, "order_id", ROW]))
    return events if first.num_rows == events.num_rows else events.filter(pc.is_in(events[ROW], first[ROW].combine_chunks()))


def _differing(events: pa.Table, known: pa.Table, names: list[str]) -> pa.Array:
    """Which events say something else than the known one of the same id."""
    same = " AND ".join(f"e.{name} IS NOT DISTINCT FROM k.{name}" for name in names)
    query = f"SELECT e.{ROW} FROM e JOIN k USING (event_id) WHERE NOT ({same} AND {ORDER})"
    return pc.is_in(events[ROW], sql(query, e=events, k=known)[ROW].combine_chunks())


def _not_named(lake: Lake, events: pa.Table, names: list[str], refusals: Refusals) -> tuple[pa.Table, int]:
    """The events whose id the lake does not have, and how many it has as they are; with another content they are refused."""
    given = events["event_id"].combine_chunks().drop_null()
    if not len(given) or "event_id" not in lake.open("events").schema.names:
        return events, 0
    wanted = ids.matching(lake, "events", "event_id", given, ())["event_id"].combine_chunks()
    if not len(wanted):
        return events, 0
    known = ids.matching(lake, "events", "event_id", wanted, [*names, "order_id"])
    events = refusals.split(events, _differing(events, known, names), "events", "event_id", OTHER)
    there = pc.is_in(events["event_id"], wanted)
    return events.filter(pc.invert(pc.and_(there, pc.is_valid(events["event_id"])))), pc.sum(there).as_py() or 0


def _not_alike(events: pa.Table, known: pa.Table, names: list[str]) -> pa.Table:
    """The events that are like no known one in all columns, unless both have an id, which then tells them apart."""
    same = " AND ".join(f"e.{name} IS NOT DISTINCT FROM k.{name}" for name in names)
    if pc.any(pc.is_valid(events["order_id"])).as_py() or pc.any(pc.is_valid(known["order_id"])).as_py():
        same += f" AND {ORDER}"
    if pc.any(pc.is_valid(events["event_id"])).as_py() or pc.any(pc.is_valid(known["event_id"])).as_py():
        same += " AND (e.event_id IS NULL OR k.event_id IS NULL)"
    return sql(f"SELECT * FROM e WHERE NOT EXISTS (SELECT 1 FROM k WHERE {same})", e=events, k=known).cast(events.schema)
