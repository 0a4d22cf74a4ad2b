"""What users did before a time, and what they were shown: read some days at a time, so that memory holds what is learned from alone.

Caps look at one day, so a span of days is a part that anybody may work on (:mod:`moon_ops.dealing`). Only purchases and what takes them
back are looked at together, in shops that have cancellations. R acts, K items.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.dealing import Deal, here
from moon_ops.lake import counting, event_log
from moon_ops.lake.event_log import ADDRESS, EventLog, Span
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS, UNDOING
from moon_ops.recipes.caps import Caps
from moon_ops.recipes.encoder import EVENTS

Rows = NDArray[np.int64]
Times = tuple[dt.datetime, dt.datetime]  # [start, end)
NONE = np.zeros(0, np.int64)
PURCHASES = (*counting.COLUMNS, "order_id")


@dataclass(frozen=True)
class Acts:
    """Clicks, carts and purchases that count, with the columns of :data:`.counting.COLUMNS`; and how often items were shown."""

    rows: pa.Table  # R acts after a query, day by day, of a span as they were written
    shown: Rows = field(default_factory=lambda: NONE)  # [K], items that were shown, ascending
    times: Rows = field(default_factory=lambda: NONE)  # [K], how often each was
    left_out: dict[str, int] = field(default_factory=dict)  # events by cap, and in except_between; undone: purchases


def acts(lake: Lake, until: dt.datetime, caps: Caps, excepted: Times | None = None, deal: Deal = here) -> Acts:
    """The acts before ``until``, but not those in ``excepted``, without purchases that were undone by then."""
    if not lake.exists("events"):
        return Acts(SCHEMAS["events"].empty_table().select(list(counting.COLUMNS)))
    log, before = EventLog(lake.open("events")), f"event_timestamp < {event_log.literal(until)}"
    where, left_out = before, Counter[str]()
    if excepted is not None:
        start, end = map(event_log.literal, excepted)
        left_out["except_between"] = log.count(f"{before} AND event_timestamp >= {start} AND event_timestamp < {end}")
        where = f"{before} AND (event_timestamp < {start} OR event_timestamp >= {end})"
    gone = _undone(log, where, caps)
    left_out["undone"] = len(gone)
    rows, shown, times = [], NONE, NONE
    for found, (items, counts), beyond in deal(partial(_of, log, where, caps, gone), log.spans(where=where)):
        rows.append(found.take(np.arange(found.num_rows)))  # of its own: what a worker made lies in the memory of the cluster
        shown, times = _added(shown, times, items, counts)
        left_out.update(beyond)
    empty = SCHEMAS["events"].empty_table().select(list(counting.COLUMNS))
    return Acts(pa.concat_tables([empty, *rows]), shown, times, {name: count for name, count in left_out.items() if count})


def _undone(log: EventLog, where: str, caps: Caps) -> Rows:
    """The addresses of purchases within the caps that were taken back, ascending; purchases are capped among themselves."""
    if not log.count(f"event IN {UNDOING} AND {where}"):
        return NONE
    bought = counting.within(log.read(PURCHASES, f"{counting.BOUGHT} AND {where}"), caps).events
    return np.sort(bought[ADDRESS].to_numpy()[counting.undone(bought)["number"].to_numpy()])


def _of(log: EventLog, where: str, caps: Caps, gone: Rows, span: Span) -> tuple[pa.Table, tuple[Rows, Rows], dict[str, int]]:
    """Of the days of a span: the acts, the items that were shown and how often, and the events beyond each cap."""
    found = counting.within(log.read(counting.COLUMNS, f"{event_log.within(span)} AND {where}"), caps)
    shown = found.events.filter(pc.equal(found.events["event"], "impression"))["item_id"].to_numpy()
    events = found.events.filter(pc.and_(pc.is_in(found.events["event"], pa.array(EVENTS)), pc.is_valid(found.events["query_id"])))
    if len(gone):
        events = events.filter(pa.array(~np.isin(events[ADDRESS].to_numpy(), gone)))
    return events.select(list(counting.COLUMNS)), np.unique(shown, return_counts=True), found.left_out


def _added(ids: Rows, counts: Rows, more: Rows, theirs: Rows) -> tuple[Rows, Rows]:
    """Two counts of things, whose ids ascend, as one."""
    every, place = np.unique(np.concatenate([ids, more]), return_inverse=True)
    total = np.zeros(len(every), np.int64)
    np.add.at(total, place, np.concatenate([counts, theirs]))
    return every, total
