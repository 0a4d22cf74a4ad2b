"""Which time each model may learn from, and on which time it is judged: derived from the lake's events, never overlapping."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.errors import InputError, StageError, counted
from moon_ops.lake import lookups
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import STAMP

RECALL_SHARE, RECALL_MOST = 0.25, dt.timedelta(days=28)  # held out for image search
CTR_SHARE, CTR_MOST = 0.15, dt.timedelta(days=14)  # held out for click models


@dataclass(frozen=True)
class Windows:
    """Encoders learn from ``start`` to ``trained_until`` and are judged from there to ``end``; click models likewise, at ``ctr_until``.

    An encoder that has seen nothing of the shop, e.g. of vectors that were brought, is judged from ``start`` on.
    """

    start: dt.datetime
    trained_until: dt.datetime
    ctr_until: dt.datetime
    end: dt.datetime

    def __post_init__(self) -> None:
        if not self.start <= self.trained_until <= self.ctr_until < self.end:
            raise _outside(self.trained_until, self.start, self.end)


def _outside(cut: dt.datetime, start: dt.datetime, end: dt.datetime) -> InputError:
    at, first, last = (f"{when:%Y-%m-%dT%H:%MZ}" for when in (cut, start, end))
    problem = f"{at} must lie between the first event ({first}) and the last ({last})"
    return InputError(f"{problem}: what comes before it is learned from, what comes after it judges", action="choose a time between them")


def _ends(lake: Lake, end: dt.datetime | None) -> tuple[dt.datetime | None, dt.datetime | None, int]:
    """The first event and the last one before ``end``, and how many there are; a batch of them is in memory."""
    before = None if end is None else f"event_timestamp < {lookups.moment(end)}"
    events, parts = lake.open("events", needs="moon ingest DIRECTORY"), []
    for batch in events.to_batches(columns=["event_timestamp"], filter=before):
        parts.append({**pc.min_max(batch["event_timestamp"]).as_py(), "count": len(batch)})
    of = pa.Table.from_pylist(parts, schema=pa.schema([("min", STAMP), ("max", STAMP), ("count", pa.int64())]))
    return pc.min(of["min"]).as_py(), pc.max(of["max"]).as_py(), pc.sum(of["count"]).as_py() or 0


def windows(
    lake: Lake, *, end: dt.datetime | None = None, trained_until: dt.datetime | None = None, seen_until: dt.datetime | None = None
) -> Windows:
    """The windows for the events before ``end`` (default: all): the last quarter of the time, but no more than four weeks, judges the
    encoder, and the last 15 %, but no more than two weeks, the click models.

    ``trained_until`` overrides the first, and so does ``seen_until``, until when an encoder that is there has seen behaviour: it may lie
    before the first event. Raises :class:`InputError` for a time that leaves nothing to learn from or to judge.
    """
    first, last, count = _ends(lake, end)
    if count < 2 or first is None or last is None:
        what = "one is learned from and a later one judges" if count else "there is nothing to learn from"
        raise StageError(f"the lake has {counted(count, 'event', 'events')}: {what}", action="ingest a directory with more events")
    last += dt.timedelta(microseconds=1)  # the windows are half open, and the last event belongs to them
    span = last - first
    if trained_until is not None and trained_until <= first:
        raise _outside(trained_until, first, last)
    given = trained_until or (seen_until and max(seen_until, first))
    cut = given or last - min(RECALL_SHARE * span, RECALL_MOST)
    return Windows(first, cut, max(cut, last - min(CTR_SHARE * span, CTR_MOST)), last)
