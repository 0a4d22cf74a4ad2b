"""A log of events that is too long to be in memory: read in pieces, and taken in by spans of time, whatever the order of its files.

All of it is read and checked before anything is written, so that a file that is cut is noticed, and so that what its columns say together
is known (:mod:`~moon_ops.lake.habits`). Typed events lie in a temporary file meanwhile, each piece of it in the order of time, with the
rows of the files, which refusals quote. Events that are alike have the same time, so a span is compared with the lake of before alone. What
comes of a log in pieces is what comes of one that is read whole: rows, counts, reasons, and their order.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.lake import arrivals, layout, refusal_order, rows, tombstones
from moon_ops.lake.arrivals import Again, Named
from moon_ops.lake.habits import Habits
from moon_ops.lake.ids import KINDS
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import Column, Refusals
from moon_ops.lake.meanings import Meanings
from moon_ops.lake.naming import Names
from moon_ops.lake.reading import files, streams
from moon_ops.lake.reading.content import Content
from moon_ops.lake.reading.parts import ROW, WholeError
from moon_ops.lake.reading.streams import Stream
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.lake.spills import Spool

AT_ONCE = 1_000_000  # events that are taken in together; shorter logs are read whole
BYTES = 2**29  # of them and of their rows of the files, in memory: of long rows fewer are taken in together
PIECES = 4  # in which so many are read
EVENTS = "events"
RAW, HOUR = "_raw", 3_600_000_000  # µs
FIRSTS = 4  # pieces whose first sights are kept before they are put together
TRIES = 12  # readings, each with what the one before it has told: more than there are columns
NAMED = ("timestamp", "item_id", "user_id", "query_id", "session_id")


class Unsaid(Refusals):
    """Refusals of which nothing is kept: the same rows are refused once more later."""

    def split(self, table: pa.Table, bad: Column, *_: Any, **__: Any) -> pa.Table:
        """The rows where ``bad`` is false."""
        return table.filter(pc.invert(layout.filled(bad, True)))


@dataclass(frozen=True)
class Seen:
    """When each item and each user was first seen: ``item_id`` or ``user_id``, and ``timestamp``; and the keys of other columns that are
    ``used``, by a name of the table's.
    """

    items: pa.Table
    users: pa.Table
    used: dict[str, pa.Table]


@dataclass
class LongLog:
    """Typed events in a temporary file, and what was refused of them; ``hours`` says how many there are in each since 1970."""

    place: Path
    content: Content
    habits: Habits
    refusals: Refusals
    spool: Spool = field(default_factory=Spool)
    hours: Counter[int] = field(default_factory=Counter)
    spans: list[tuple[int, int]] = field(default_factory=list)  # of the batches: first and last µs
    named: int = 0  # events with an id
    size: int = 0  # bytes of all, in memory

    def keep(self, events: pa.Table, raw: pa.Table) -> None:
        """Write events, in the order of time, and the rows of the file that they are."""
        if not events.num_rows:
            return
        times = events["timestamp"].cast(pa.int64()).to_numpy()
        if len(times) > 1 and (np.diff(times) < 0).any():
            order = np.argsort(times, kind="stable")
            events, times = events.take(pa.array(order)), times[order]
        raw = raw.take(pa.array(np.searchsorted(raw[ROW].to_numpy(), events[ROW].to_numpy())))
        cells = [column.combine_chunks() for column in raw.columns]
        events = events.append_column(RAW, pa.StructArray.from_arrays(cells, fields=list(raw.schema)))
        ends = np.cumsum(self.spool.add(events), dtype=np.int64)
        self.spans += [(int(times[start]), int(times[end - 1])) for start, end in zip(np.append(0, ends[:-1]), ends, strict=True)]
        hours, counts = np.unique(times // HOUR, return_counts=True)
        self.hours.update(dict(zip(hours.tolist(), counts.tolist(), strict=True)))
        self.named += len(events) - events["event_id"].null_count
        self.size += events.nbytes

    def first_seen(self, lake: Lake, names: Names, kinds: Collection[str]) -> Seen:
        """Who was seen when, without what was erased and ids that clash; of ``kinds`` the keys."""
        seen: dict[str, list[pa.Table]] = {"item_id": [], "user_id": []}
        used: dict[str, list[Column]] = {column: [] for column in NAMED if KINDS.get(column) in kinds}
        for events in self._allowed(lake, names, NAMED):
            for key, parts in seen.items():
                parts.append(_first(events, key))
                if len(parts) > FIRSTS:
                    parts[:] = [_first(pa.concat_tables(parts), key)]
            for column, keys in used.items():
                keys[:] = [pc.unique(pa.chunked_array([*keys, *events[column].chunks], pa.int64()))]
        items, users = (_first(pa.concat_tables(parts), key) if parts else _nobody(key) for key, parts in seen.items())
        return Seen(items, users, {f"events {column}": pa.table({column: keys[0]}) for column, keys in used.items() if keys})

    def again(self, lake: Lake, names: Names, known: Named) -> Again | None:
        """Which events have the id of another one, of those that name what is ``known``."""
        if not self.named:
            return None
        columns = [*NAMED, "event", "position", "event_id", "order_id", ROW]
        events = (layout.optional(some, "extra") for some in self._allowed(lake, names, columns))  # which tells no events apart
        return arrivals.again((known.referential(some, Unsaid()) for some in events), self.named)

    def parts(self, lake: Lake, names: Names, refusals: Refusals) -> Iterator[pa.Table]:
        """The events by spans of time, in order, without those that name what was erased or whose id clashes."""
        refusals.order.pieces = True
        for table in self._in_time():
            events = table.drop_columns(RAW)
            refusals.files[EVENTS] = (self.place, pa.Table.from_struct_array(table[RAW]))
            events = tombstones.refuse(lake, {EVENTS: events}, refusals, others=False)[EVENTS]
            events = names.without_clashing(EVENTS, events, refusals)
            refusals.order.begin(refusal_order.TAKEN)
            del table
            yield events
            del events
            refusals.forget(EVENTS)  # before the next span is in memory

    def _allowed(self, lake: Lake, names: Names, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of the events that :meth:`parts` will have, in the order of the files."""
        for table in _together(self.spool.batches(columns)):
            yield names.without_clashing(EVENTS, tombstones.refuse(lake, {EVENTS: table}, Unsaid())[EVENTS], Unsaid())

    def _in_time(self) -> Iterator[pa.Table]:
        """The events by spans of hours, within each in the order of the files: at most :data:`AT_ONCE` and some :data:`BYTES` of them,
        unless one hour has more.
        """
        first, last = (np.array([span[end] for span in self.spans], np.int64) for end in (0, 1))
        for low, high in _spans(self.hours, min(AT_ONCE, 1 + BYTES * self.hours.total() // max(self.size, 1))):
            yield self._span(low, high, (first < high) & (last >= low))

    def _span(self, low: int, high: int, here: NDArray[np.bool_]) -> pa.Table:
        """The events from ``low`` and before ``high`` [µs], which are in the batches that are ``here``."""
        found = []
        for batch in self.spool.batches(wanted=here.__getitem__):
            times = batch["timestamp"].cast(pa.int64()).to_numpy()
            within = (times >= low) & (times < high)
            found.append(batch if within.all() else batch.filter(pa.array(within)))
        table = pa.concat_tables(found)
        numbers = table[ROW].to_numpy()
        return table.take(pa.array(np.argsort(numbers))) if (np.diff(numbers) < 0).any() else table


def of(source: Path, meanings: Meanings, now: dt.datetime) -> LongLog | None:
    """The log of a directory, if it is long; None for one that is to be read whole: it is short, or only all of it tells what its rows are.
    :class:`~moon_ops.errors.InputError` for files that cannot be read.
    """
    found = files.find(source, EVENTS)
    if found is None or streams.rows(found) <= AT_ONCE:
        return None
    try:
        stream = streams.of(found, rows.REQUIRED[EVENTS], rows.known(EVENTS), given=meanings.encoding, renamed=meanings.columns)
        habits = Habits()
        for _ in range(TRIES):
            log = _typed(stream, habits, found.place / stream.content.label, meanings, now)
            better = habits.better()
            if better is None:
                return log
            habits = better
    except WholeError:
        pass
    return None


def _typed(stream: Stream, habits: Habits, place: Path, meanings: Meanings, now: dt.datetime) -> LongLog:
    """The log, read once: as far as it is known what its columns say."""
    refusals = Refusals(contents={EVENTS: stream.content}, habits=habits)
    refusals.order.pieces = True
    log = LongLog(place, stream.content, habits, refusals)
    for table in stream.pieces(-(-AT_ONCE // PIECES), BYTES // PIECES):
        refusals.files[EVENTS] = (place, table)
        refusals.order.begin(refusal_order.READ, EVENTS)
        events = rows.typed(table, EVENTS, refusals, meanings, habits.names)
        refusals.order.begin(refusal_order.TIMED, EVENTS)
        log.keep(rows.timed(events, EVENTS, refusals, now), table)
        habits.names.compact()
    refusals.files.clear()
    return log


def _spans(hours: Counter[int], most: int) -> Iterator[tuple[int, int]]:
    """From and before which µs; ``most`` events in each."""
    begins, before, count = 0, 0, 0
    for hour in sorted(hours):
        if count and count + hours[hour] > most:
            yield begins * HOUR, before * HOUR
            count = 0
        begins = begins if count else hour
        before, count = hour + 1, count + hours[hour]
    if count:
        yield begins * HOUR, before * HOUR


def _together(batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= AT_ONCE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _first(events: pa.Table, key: str) -> pa.Table:
    """The first moment of each key."""
    found = events.select([key, "timestamp"]).group_by(key).aggregate([("timestamp", "min")])
    return found.rename_columns([{"timestamp_min": "timestamp"}.get(name, name) for name in found.column_names]).select([key, "timestamp"])


def _nobody(key: str) -> pa.Table:
    return pa.schema([(key, pa.int64()), ("timestamp", SCHEMAS[EVENTS].field("event_timestamp").type)]).empty_table()
