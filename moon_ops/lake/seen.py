"""Files that were taken in before: one that has not been written since says nothing new, so it undoes nothing that came after it.

An inbox is taken in every few minutes, and what a request has corrected meanwhile must stay. A file is known by where it lies, when it was
written and how large it is; of these a hash is kept. Of several part files each is known by itself. What is said for the first time is said
after everything before, whatever the clock says now.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.lake import clocks
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import ROW, Refusals
from moon_ops.lake.schemas import STAMP

TABLE = "taken"
SCHEMA = pa.schema([pa.field("state", pa.string(), nullable=False), pa.field("created", STAMP, nullable=False)])


def state(path: Path) -> str:
    """What names a file as it is now."""
    known = [(str(path.resolve()), (at := path.stat()).st_mtime_ns, at.st_size)]
    return hashlib.blake2b(repr(known).encode(), digest_size=16).hexdigest()


@dataclass
class Taken:
    """When the files of a directory were taken in for the first time as they are; those that never were, are now."""

    fresh: dt.datetime
    before: dict[str, dt.datetime] = field(default_factory=dict)  # state → when, of those that were taken in before
    files: dict[str, list[tuple[int, str]]] = field(default_factory=dict)  # table → rows that lie before a file, and its state

    def said(self, name: str, rows: pa.Table, key: str) -> pa.Table:
        """Of numbered rows: ``key``, when the row's file was taken in first (``said``), and whether that was before (``again``)."""
        files = self.files.get(name, [])
        starts = np.array([start for start, _ in files], np.int64)
        which = np.searchsorted(starts, rows[ROW].to_numpy(), side="left") - 1
        times, again = self._times(files)
        at = np.where(which < 0, len(files), which)
        columns = {"said": times.take(pa.array(at, pa.int64())), "again": again.take(pa.array(at, pa.int64()))}
        return pa.table({key: rows[key], **columns})

    def whole(self, name: str) -> tuple[dt.datetime, bool]:
        """The same of all the table's files together, for what they do not have."""
        times, again = self._times(self.files.get(name, []))
        known = len(times) > 1 and all(again.to_pylist()[:-1])
        return (max(times.to_pylist()[:-1]) if known else self.fresh), known

    def _times(self, files: list[tuple[int, str]]) -> tuple[pa.Array, pa.Array]:
        """Of each file, and of none, which comes last."""
        states = [found for _, found in files]
        times = [*(self.before.get(found, self.fresh) for found in states), self.fresh]
        return pa.array(times, STAMP), pa.array([*(found in self.before for found in states), False], pa.bool_())

    def remember(self, lake: Lake) -> None:
        """Note that all of the files is in the lake."""
        new = sorted({found for files in self.files.values() for _, found in files} - self.before.keys())
        if new:
            lake.append(TABLE, pa.table({"state": new, "created": pa.array([self.fresh] * len(new), STAMP)}, schema=SCHEMA))


def taken(lake: Lake, refusals: Refusals, now: dt.datetime, *, once: bool) -> Taken:
    """What is known of the directory's files of items and users; ``once``: they will not be there again."""
    known = lake.read(TABLE) if lake.exists(TABLE) else SCHEMA.empty_table()
    found = Taken(clocks.after(pc.max(known["created"]).as_py(), now))
    for name in () if once else ("items", "users"):
        if (content := refusals.contents.get(name)) is not None:
            starts = [start for start, _ in content.starts]
            found.files[name] = list(zip(starts, map(state, content.paths), strict=True))
    wanted = pa.array([each for files in found.files.values() for _, each in files], pa.string())
    first = known.filter(pc.is_in(known["state"], wanted)).group_by("state").aggregate([("created", "min")])
    found.before = dict(zip(first["state"].to_pylist(), first["created_min"].to_pylist(), strict=True))
    return found
