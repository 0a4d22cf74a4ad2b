"""The events of a lake, some days at a time, and which of them are new: what counts read, so that memory does not grow with the log."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.lake import changes
from moon_ops.lake.lake import completed
from moon_ops.lake.schemas import STAMP

if TYPE_CHECKING:
    import lance

DAY = 86_400_000_000  # µs
AT_ONCE = 1_000_000  # events that are read together; more, where one day has more
ADDRESS = "_rowaddr"  # of a row: its upper half is the number of its fragment
Span = tuple[int, int]  # days since 1970: from the first on, and before the second


class EventLog:
    """A version of the table of events, of which a reader has seen what lies up to the mark ``since``."""

    def __init__(self, events: lance.LanceDataset, since: int = changes.NOTHING) -> None:
        self.events = events
        self.since = changes.NOTHING if since > changes.newest(events) else since  # made anew: the numbers mean other rows

    @property
    def _new(self) -> list[Any]:
        return [fragment for fragment in self.events.get_fragments() if fragment.fragment_id > self.since]

    @property
    def is_seen(self) -> bool:
        """Whether the reader has seen some of it."""
        return self.since != changes.NOTHING

    def count(self, where: str | None = None, *, new: bool = False) -> int:
        """Events, or those of them that are ``new``."""
        return sum(part.count_rows(filter=where) for part in self._new) if new else self.events.count_rows(filter=where)

    def read(self, columns: Sequence[str], where: str | None = None) -> pa.Table:
        """Columns of the events in the order they were written, null where a lake of before does not have one; for :meth:`seen` with
        the address of each row.
        """
        there = [name for name in columns if name in self.events.schema.names]
        found = self.events.scanner(columns=there, filter=where, with_row_address=True, scan_in_order=True).to_table()
        return completed(found, "events", [*columns, ADDRESS])

    def seen(self, rows: pa.Table) -> pa.Table:
        """Those that the reader has seen."""
        return rows.filter(pa.array(rows[ADDRESS].to_numpy() >> 32 <= self.since))

    def first_new(self) -> int | None:
        """The day of the earliest event that is new; None if there is none."""
        found = [day for days in self._days(fragments=self._new) for day in days]
        return min(found, default=None)

    def spans(self, first: int | None = None, *, where: str | None = None) -> list[Span]:
        """Days with events, from the ``first`` on or of those ``where`` lets through, in order and in groups that can be read together."""
        counts: Counter[int] = Counter()
        for days in self._days(filter=where if first is None else f"event_timestamp >= {moment(first)}"):
            counts.update(days)
        found: list[tuple[int, int, int]] = []  # from, before, events
        for day in sorted(counts):
            if found and found[-1][2] + counts[day] <= AT_ONCE:
                found[-1] = (found[-1][0], day + 1, found[-1][2] + counts[day])
            else:
                found.append((day, day + 1, counts[day]))
        return [span[:2] for span in found]

    def _days(self, **of: Any) -> Iterator[dict[int, int]]:
        """Days and how many events each has, batch by batch."""
        for batch in self.events.scanner(columns=["event_timestamp"], **of).to_batches():
            days, counts = np.unique(batch["event_timestamp"].cast(pa.int64()).to_numpy() // DAY, return_counts=True)
            yield dict(zip(days.tolist(), counts.tolist(), strict=True))


def within(span: Span, column: str = "event_timestamp") -> str:
    """The filter of Lance's that lets the days of a span through."""
    return f"{column} >= {moment(span[0])} AND {column} < {moment(span[1])}"


def moment(day: int) -> str:
    """The midnight with which a day begins, as Lance's filters spell it."""
    return f"timestamp '{pa.scalar(day * DAY).cast(pa.timestamp('us')).as_py().isoformat(sep=' ')}'"


def literal(when: dt.datetime) -> str:
    """A moment as Lance's filters spell it."""
    return f"timestamp '{when.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S.%f}'"


def of_span(rows: pa.Table, span: Span) -> pa.Table:
    """The rows whose time lies in a span."""
    low, high = (pa.scalar(day * DAY).cast(STAMP) for day in span)
    return rows.filter(pc.and_(pc.greater_equal(rows["event_timestamp"], low), pc.less(rows["event_timestamp"], high)))
