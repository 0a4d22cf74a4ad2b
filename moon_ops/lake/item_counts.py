"""Counts of items: what had happened to each by the end of each of its days. They are brought up to date from the first day on which
something is new; what was counted before stays as it is written.

Caps look at one day alone (:mod:`moon_ops.lake.counting`), so some days of events are in memory at a time, and never all; only purchases
and their undoings are looked at together, in shops that have undoings. All is committed at once: a reader sees the counts of before or
those of after, and who is killed has changed nothing. K items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.dealing import Deal, here
from moon_ops.lake import changes, counting, event_log, fragments
from moon_ops.lake.event_log import DAY, EventLog, Span
from moon_ops.lake.lake import Lake
from moon_ops.lake.query import sql
from moon_ops.lake.schemas import STAMP, UNDOING
from moon_ops.recipes.caps import Caps

Ints = NDArray[np.int64]
COUNTS = ("impressions", "clicks", "purchases")
SCHEMA = pa.schema([*((name, pa.int64()) for name in ("item_id", *COUNTS)), ("event_timestamp", STAMP), ("created", STAMP)])
UNDONE = pa.schema([("event_timestamp", STAMP), ("item_id", pa.int64()), ("event", pa.string())])
BEFORE = 1_000_000  # days, so that whole division rounds moments before 1970 down, too
DAYS_SQL = f"""
SELECT item_id, (epoch_us(event_timestamp) + {BEFORE * DAY}) // {DAY} - {BEFORE - 1} AS known,
       count(*) FILTER (event = 'impression') AS impressions, count(*) FILTER (event = 'click') AS clicks,
       count(*) FILTER (event = 'purchase') - count(*) FILTER (event = 'undone') AS purchases
FROM events GROUP BY ALL ORDER BY known, item_id"""
UNTIL_SQL = f"""
SELECT item_id, {", ".join(f"max_by({name}, event_timestamp) AS {name}" for name in COUNTS)}
FROM counts SEMI JOIN wanted USING (item_id) GROUP BY item_id"""
MOVED_SQL = """
SELECT min(event_timestamp) AS at
FROM ((SELECT * FROM a EXCEPT ALL SELECT * FROM b) UNION ALL (SELECT * FROM b EXCEPT ALL SELECT * FROM a))"""


@dataclass(frozen=True)
class Counted:
    """What counts were made of: ``left_out`` events are beyond a cap, and there are so many ``undoings``."""

    left_out: int = 0
    undoings: int = 0


class Totals:
    """Counts [K, 3] of items whose ``ids`` [K] ascend; ``before`` says those of an item that comes in."""

    def __init__(self, before: Callable[[Ints], Ints] = lambda ids: np.zeros((len(ids), len(COUNTS)), np.int64)) -> None:
        self.ids, self.counts, self._before = np.zeros(0, np.int64), np.zeros((0, len(COUNTS)), np.int64), before

    def take_in(self, ids: Ints) -> None:
        """Look up those of the ascending ``ids`` that are not there."""
        new = np.setdiff1d(ids, self.ids, assume_unique=True)
        if len(new):
            every = np.concatenate([self.ids, new])
            order = np.argsort(every, kind="stable")
            self.ids, self.counts = every[order], np.concatenate([self.counts, self._before(new)])[order]

    def running(self, days: pa.Table) -> pa.Table:
        """What had happened to each item by the end of each of its ``days``, which are in order of time; kept for those after them."""
        items = days["item_id"].to_numpy()
        self.take_in(np.unique(items))
        order = np.argsort(items, kind="stable")
        first = np.flatnonzero(np.append(True, items[order][1:] != items[order][:-1])[: len(items)])
        lengths, at = np.diff(first, append=len(items)), np.searchsorted(self.ids, items[order][first])
        columns = {}
        for place, name in enumerate(COUNTS):
            sums = np.append(0, np.cumsum(days[name].to_numpy()[order]))
            counts = sums[1:] + np.repeat(self.counts[at, place] - sums[first], lengths)
            self.counts[at, place] = counts[first + lengths - 1]
            columns[name] = np.empty(len(items), np.int64)
            columns[name][order] = counts
        known = pa.array(days["known"].to_numpy() * DAY).cast(STAMP)
        return pa.table({"item_id": days["item_id"], **columns, "event_timestamp": known, "created": known}).cast(SCHEMA)


class _Days:
    """Days of items, counted from events; what of these was counted ``before``, the log's reader has seen."""

    def __init__(self, log: EventLog, caps: Caps, before: Counted) -> None:
        self.log, self.caps, self.before, seen = log, caps, before.left_out * log.is_seen, log.is_seen
        self.undoings = before.undoings * seen + log.count(f"event IN {UNDOING}", new=seen)
        bought = log.read(counting.PURCHASES, counting.BOUGHT) if self.undoings else None
        self.undone = _undone(bought, caps)
        self.undone_before = _undone(log.seen(bought) if bought is not None and seen else None, caps)

    def first(self) -> int | None:
        """The first day on which an event is new, or a purchase is undone that was not before; None if there is none."""
        moved = sql(MOVED_SQL, a=self.undone, b=self.undone_before)["at"].cast(pa.int64())[0].as_py()
        days = [self.log.first_new(), None if moved is None else moved // DAY]
        return min((day for day in days if day is not None), default=None)

    def of(self, span: Span) -> tuple[pa.Table, int]:
        """Of each item and day of the span: how often each thing has happened; and how many more events are left out than before."""
        read = self.log.read(counting.PURCHASES, event_log.within(span))
        found = counting.within(_asked(read), self.caps)
        left_out = sum(found.left_out.values())
        if self.log.is_seen:
            left_out -= sum(counting.within(_asked(self.log.seen(read)), self.caps).left_out.values())
        events = found.events.select(UNDONE.names)
        events = events.filter(pc.invert(pc.is_in(events["event"], pa.array(UNDOING))))  # those that undo nothing make no row
        return sql(DAYS_SQL, events=pa.concat_tables([events, event_log.of_span(self.undone, span).cast(events.schema)])), left_out


def _asked(events: pa.Table) -> pa.Table:
    """Events with what caps ask for; which query they are of tells no counts apart."""
    return events.append_column("query_id", pa.nulls(events.num_rows, pa.int64()))


def _undone(bought: pa.Table | None, caps: Caps) -> pa.Table:
    """Purchases within the caps that were undone, each as an event of its own at the moment from which that is known."""
    if bought is None:
        return UNDONE.empty_table()
    events = counting.within(_asked(bought), caps).events  # purchases are capped among themselves
    gone = counting.undone(events)
    kinds = pa.array(["undone"] * gone.num_rows, pa.string())
    return pa.table([gone["known"], events["item_id"].take(gone["number"]), kinds], schema=UNDONE)


def bring(
    lake: Lake, name: str, events: lance.LanceDataset | None, caps: Caps, since: int, before: Counted, *, deal: Deal = here
) -> Counted:
    """Bring a table of counts up to date with a version of the ``events``; it was made of ``before``, up to the mark ``since`` of theirs.

    All of it is made anew where the mark is :data:`~moon_ops.lake.changes.NOTHING`, and where most events are new. Spans of days are
    counted wherever ``deal`` has it done; sums, which each span needs of those before it, are made and written here.
    """
    found = Counted()

    def brought() -> None:  # from the beginning, if somebody else has committed meanwhile
        nonlocal found
        went_on = None
        if events is not None and since != changes.NOTHING:
            log = EventLog(events, since)
            if log.is_seen and 2 * log.count(new=True) <= log.count():
                went_on = _go_on(lake.open(name), _Days(log, caps, before), deal)
        found = went_on or _anew(lake, name, events, caps, deal)

    changes.patiently(brought)
    return found


def _anew(lake: Lake, name: str, events: lance.LanceDataset | None, caps: Caps, deal: Deal) -> Counted:
    """Make the table anew."""
    days = None if events is None else _Days(EventLog(events), caps, Counted())
    running = _Running(days, Totals(), deal, None) if days else None
    with fragments.reader(SCHEMA, running or ()) as reader:
        lance.write_dataset(reader, lake.address(name), mode="overwrite" if lake.exists(name) else "create")
    return running.counted() if running else Counted()


class _Running:
    """What had happened to each item by the end of each of its days, span after span, from the day ``first`` on."""

    def __init__(self, days: _Days, totals: Totals, deal: Deal, first: int | None) -> None:
        self.totals, self.left_out, self.undoings = totals, days.before, days.undoings
        self._counts = deal(days.of, days.log.spans(first))

    def __iter__(self) -> Iterator[pa.Table]:
        for made, left_out in self._counts:
            self.left_out += left_out
            yield self.totals.running(made)

    def counted(self) -> Counted:
        """What all was made of, after the last span."""
        return Counted(self.left_out, self.undoings)


def _until(table: lance.LanceDataset, first: int, ids: Ints) -> Ints:
    """What a table says had happened before the day ``first`` to the items ``ids`` [K], which ascend: counts [K, 3]. One scan."""
    earlier = f"event_timestamp <= {event_log.moment(first)}"
    scanned = table.scanner(columns=["item_id", *COUNTS, "event_timestamp"], filter=earlier).to_reader()
    rows = sql(UNTIL_SQL, counts=scanned, wanted=pa.table({"item_id": ids}))
    found = np.zeros((len(ids), len(COUNTS)), np.int64)
    found[np.searchsorted(ids, rows["item_id"].to_numpy())] = np.stack([rows[name].to_numpy() for name in COUNTS], axis=1)
    return found


def _go_on(table: lance.LanceDataset, days: _Days, deal: Deal) -> Counted | None:
    """Put the counts from the first new day on in the place of those that there are; None where all must be made anew: where an item has
    lost a day, and would not be among the new rows, by which readers know what has changed.
    """
    from lance.fragment import write_fragments

    first = days.first()
    if first is None:
        return Counted(days.before, days.undoings)
    later, running = f"event_timestamp > {event_log.moment(first)}", _Running(days, Totals(partial(_until, table, first)), deal, first)
    with fragments.reader(SCHEMA, running) as reader:
        written = write_fragments(reader, table, schema=SCHEMA, mode="append")
    removed, updated = [], []
    for fragment in (f for f in table.get_fragments() if f.count_rows(filter=later)):
        gone = fragment.to_table(columns=["item_id"], filter=later)["item_id"].to_numpy()
        if len(np.setdiff1d(gone, running.totals.ids)):
            return None
        left = fragment.delete(later)
        if left is None:
            removed.append(fragment.fragment_id)
        else:
            updated.append(left)
    change = lance.LanceOperation.Update(removed_fragment_ids=removed, updated_fragments=updated, new_fragments=written)
    lance.LanceDataset.commit(table, change, read_version=table.version)
    return running.counted()
