"""Which events count: those within the caps of a visitor's day, and purchases that nobody has cancelled or returned.

The lake keeps every event. Whoever reads behaviour asks here: statistics, sequences, pairs and impressions alike. Nothing leaks from the
future: whether an event is within the caps depends on earlier events of its day alone, and a purchase counts until it is undone.
A visitor is a user, or a session in which no user is named; events with neither are nobody's, and never one visitor's.
R events, as rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.lake.event_log import AT_ONCE, DAY
from moon_ops.lake.lake import Lake, completed
from moon_ops.lake.query import sql
from moon_ops.lake.schemas import SCHEMAS, STAMP, UNDOING
from moon_ops.recipes.caps import Caps, Most

Ints = NDArray[np.int64]
COLUMNS = ("event_timestamp", "user_id", "session_id", "item_id", "query_id", "event")  # that caps ask for
PURCHASES = ("event_timestamp", "user_id", "session_id", "item_id", "event", "order_id")  # that undoings ask for
LEARNED = "event IN ('click', 'cart', 'purchase')"  # filters of Lance's: what says which item was meant
BOUGHT = f"event IN {('purchase', *UNDOING)}"
VISITOR = "coalesce(user_id, -1 - session_id)"  # ids are 0 or more, so that no session is a user
SOMEBODY, NOBODY = "visitor IS NOT NULL", "visitor IS NULL"
ACT, SHOWN = LEARNED, "event = 'impression'"  # undoings have no cap: each undoes one purchase
RULES = {  # cap → whose events, and of what; the first ones leave fewer for those after them
    "visitor_item": (SOMEBODY, "visitor, item_id"),
    "nobody_item": (NOBODY, "item_id"),
    "visitor": (SOMEBODY, "visitor"),
}
SEEN = f"(SELECT *, {VISITOR} AS visitor, epoch_us(event_timestamp) // {DAY} AS day FROM events)"


def read(lake: Lake, columns: Sequence[str], where: str | None = None, *, last: int = 0) -> pa.Table:
    """Columns of the events, or of the ``last`` ones written; null where a lake of before does not have one."""
    if not lake.exists("events"):
        return SCHEMAS["events"].empty_table().select(list(columns))
    events = lake.open("events")
    there = [name for name in columns if name in events.schema.names]
    some: dict[str, Any] = {"offset": max(0, events.count_rows() - last), "limit": last} if last else {}
    found = events.to_table(columns=there, filter=where, **some)
    return completed(found, "events", columns)


def parts(lake: Lake, columns: Sequence[str], where: str) -> Iterator[pa.Table]:
    """The same, some of them at a time."""
    if not lake.exists("events"):
        return
    events, waiting = lake.open("events"), list[pa.RecordBatch]()
    for batch in events.to_batches(columns=[name for name in columns if name in events.schema.names], filter=where):
        waiting.append(batch)
        if sum(map(len, waiting)) >= AT_ONCE:
            yield completed(pa.Table.from_batches(waiting), "events", columns)
            waiting = []
    if waiting:
        yield completed(pa.Table.from_batches(waiting), "events", columns)


@dataclass(frozen=True)
class Counted:
    """Events that count, and how many did not, by what kept them out."""

    events: pa.Table
    left_out: dict[str, int] = field(default_factory=dict)


def within(events: pa.Table, caps: Caps, rules: Sequence[str] = tuple(RULES)) -> Counted:
    """The events within the caps: of one kind, on one day (UTC), the first ones. ``events`` has the columns of :data:`COLUMNS`."""
    left_out: dict[str, int] = {}
    numbered = _numbered(events)
    busy = _busy(numbered, caps)
    for name in rules:
        who, keys = RULES[name]
        if not (cap := getattr(caps, name)) or (who == NOBODY and not events["user_id"].null_count):
            continue
        found = []
        for kind, limit in ((ACT, cap), (SHOWN, cap * caps.impressions)):
            by_item = who == NOBODY or (keys != "visitor" and kind == ACT)  # of items there are few with so many acts on one day
            near = _items(numbered, kind, limit) if by_item else busy.filter(pc.greater(busy[kind], limit)).select(["visitor"])
            found.append(_beyond(numbered, limit, f"{who} AND {kind}", keys, near))
        if len(far := pa.concat_arrays(found)):
            left_out[name] = len(far)
            numbered = numbered.filter(pc.invert(pc.is_in(numbered["number"], far)))
    return Counted(events.take(numbered["number"]) if left_out else events, left_out)


def _numbered(events: pa.Table) -> pa.Table:
    """What caps look at, with the number of each event."""
    return events.select(list(COLUMNS)).append_column("number", pa.array(np.arange(events.num_rows)))


def _busy(numbered: pa.Table, caps: Caps) -> pa.Table:
    """Visitors who have so many events, on all days together, that they may be beyond a cap; how many of each kind."""
    counts = f'count(*) FILTER ({ACT}) AS "{ACT}", count(*) FILTER ({SHOWN}) AS "{SHOWN}"'
    least = min((cap for cap in (caps.visitor, caps.visitor_item) if cap), default=0)
    query = f"SELECT visitor, {counts} FROM {SEEN} WHERE {SOMEBODY} GROUP BY 1 HAVING count(*) > {least}"
    return sql(query, events=numbered)


def _items(numbered: pa.Table, kind: str, limit: int) -> pa.Table:
    """Items and days of which there are more events than ``limit``."""
    return sql(f"SELECT item_id, day FROM {SEEN} WHERE {kind} GROUP BY ALL HAVING count(*) > {limit}", events=numbered)


def _beyond(numbered: pa.Table, limit: int, who: str, keys: str, near: pa.Table) -> pa.Array:
    """The numbers of events beyond a limit; only what is ``near`` it is looked at."""
    if not near.num_rows:
        return pa.array([], pa.int64())
    query = f"""
    WITH looked AS (SELECT * FROM {SEEN} SEMI JOIN near USING ({", ".join(near.column_names)}) WHERE {who}),
    floods AS (SELECT {keys}, day, event FROM looked GROUP BY ALL HAVING count(*) > {limit})
    SELECT number FROM (
        SELECT number, row_number() OVER (PARTITION BY {keys}, day, event
            ORDER BY event_timestamp, item_id, query_id, session_id, number) AS place
        FROM looked SEMI JOIN floods USING ({keys}, day, event))
    WHERE place > {limit}"""
    return sql(query, events=numbered, near=near)["number"].combine_chunks()


def newest(events: pa.Table, most: Most) -> Counted:
    """Of each visitor, item and query the newest events, as many as ``most`` allows. A query of -1 is none."""
    left_out: dict[str, int] = {}
    for name, key in (("visitor", VISITOR), ("item", "item_id"), ("query", "nullif(query_id, -1)")):
        if not (cap := getattr(most, name)):
            continue
        names = [column for column in COLUMNS if column != "event"]
        numbered = events.select(names).append_column("number", pa.array(np.arange(events.num_rows)))
        some = f"(SELECT *, {key} AS key FROM events WHERE {key} IS NOT NULL)"
        many = sql(f"SELECT key FROM {some} GROUP BY 1 HAVING count(*) > {cap}", events=numbered)
        if many.num_rows:
            order = "event_timestamp DESC, item_id, query_id, session_id, number"
            query = f"""SELECT number FROM (SELECT number, row_number() OVER (PARTITION BY key ORDER BY {order}) AS place
                FROM {some} SEMI JOIN many USING (key)) WHERE place > {cap}"""
            far = sql(query, events=numbered, many=many)["number"].combine_chunks()
            left_out[f"most.{name}"] = len(far)
            events = events.filter(pc.invert(pc.is_in(numbered["number"], far)))
    return Counted(events, left_out)


def undone(events: pa.Table) -> pa.Table:
    """Purchases that were cancelled or returned: ``number`` of the purchase and of its ``undoing``, as rows of ``events``, and
    ``known``, the moment of that. ``events`` has the columns of :data:`PURCHASES`.

    An undoing that names an order undoes a purchase of the item in that order; if it names none, or no such order is known, the visitor's
    last purchase of the item before it. Each purchase is undone once, and each undoing undoes one.
    """
    undoings = pc.is_in(events["event"], pa.array(UNDOING))
    found: list[tuple[int, int, int]] = []
    if pc.any(undoings).as_py():
        log = _Log.of(events)
        for row in log.undoings:
            if (purchase := log.take(row)) is not None:
                found.append((purchase["number"], row["number"], max(row["time"], purchase["time"])))
    columns = list(zip(*found, strict=True)) or [(), (), ()]
    numbers = [pa.array(column, pa.int64()) for column in columns]
    return pa.table({"number": numbers[0], "undoing": numbers[1], "known": numbers[2].cast(STAMP)})


class _Log:
    """Undoings in time order, and the purchases that they may mean, by order and by visitor, each in time order."""

    def __init__(self, undoings: list[dict[str, Any]], purchases: list[dict[str, Any]]) -> None:
        self.undoings, self.gone = undoings, set[int]()
        self.by_order: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        self.by_visitor: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in purchases:
            if row["order_id"] is not None:
                self.by_order.setdefault((row["order_id"], row["item_id"]), []).append(row)
            if row["visitor"] is not None:
                self.by_visitor.setdefault((row["visitor"], row["item_id"]), []).append(row)

    @classmethod
    def of(cls, events: pa.Table) -> _Log:
        """Of purchases only those of which the item and the visitor, or the order, have an undoing."""
        numbered = events.select(list(PURCHASES)).append_column("number", pa.array(np.arange(events.num_rows)))
        query = f"""
        WITH log AS (SELECT number, epoch_us(event_timestamp) AS time, {VISITOR} AS visitor, item_id, order_id, event FROM events),
        undoing AS (SELECT * FROM log WHERE event IN {UNDOING}), bought AS (SELECT * FROM log WHERE event = 'purchase')
        SELECT * FROM undoing UNION ALL SELECT * FROM bought b WHERE EXISTS (SELECT 1 FROM undoing u WHERE u.item_id = b.item_id
            AND u.visitor = b.visitor) OR EXISTS (SELECT 1 FROM undoing u WHERE u.item_id = b.item_id AND u.order_id = b.order_id)
        ORDER BY time, number"""
        rows = sql(query, events=numbered).to_pylist()
        return cls([row for row in rows if row["event"] in UNDOING], [row for row in rows if row["event"] == "purchase"])

    def take(self, undoing: Mapping[str, Any]) -> dict[str, Any] | None:
        """The purchase that is undone, which then is there no more; None if there is none."""
        time, order = undoing["time"], undoing["order_id"]
        in_order = self.by_order.get((order, undoing["item_id"])) if order is not None else None
        if in_order is not None:
            left = [row for row in in_order if row["number"] not in self.gone]
            found = next((row for row in reversed(left) if row["time"] <= time), left[0] if left else None)
        else:
            found = self._last(self.by_visitor.get((undoing["visitor"], undoing["item_id"]), []), time, any_order=order is None)
        if found is not None:
            self.gone.add(found["number"])
        return found

    def _last(self, bought: list[dict[str, Any]], time: int, *, any_order: bool) -> dict[str, Any] | None:
        usable = (r for r in reversed(bought) if r["time"] <= time and r["number"] not in self.gone)
        return next((row for row in usable if any_order or row["order_id"] is None), None)


def standing(events: pa.Table) -> pa.Table:
    """The events without purchases that were undone, and without the undoings; :data:`PURCHASES` says which columns they have."""
    undoings = pc.is_in(events["event"], pa.array(UNDOING))
    if not pc.any(undoings).as_py():
        return events
    gone = pc.is_in(pa.array(np.arange(events.num_rows)), undone(events)["number"].combine_chunks())
    return events.filter(pc.invert(pc.or_(undoings, gone)))
