"""A log of events that is too long to be in memory: Parquet files that are read twice, a piece at a time.

What a cell means may not depend on the other cells of its column, so columns have types: keys are whole numbers, times are times. All other
logs are read whole, as are short ones: of them nothing is different. The first time all of the files is read and checked, so that a file
that is cut is noticed before anything is written, and it is noted when each item and each user was first seen.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moon_ops.errors import InputError
from moon_ops.lake import rows, tombstones
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import Refusals
from moon_ops.lake.meanings import Meanings
from moon_ops.lake.naming import Names
from moon_ops.lake.reading import content, files, json_lines
from moon_ops.lake.reading.content import Content
from moon_ops.lake.reading.delimited import bare
from moon_ops.lake.reading.files import Found
from moon_ops.lake.reading.parts import ROW, Part
from moon_ops.lake.rows import IDS, KEYS, QUANTITY, REQUIRED, TOLD

AT_ONCE = 1_000_000  # events of a piece; shorter logs are read whole
EVENTS = "events"
FIRSTS = 4  # pieces whose first sights are kept before they are put together


@dataclass(frozen=True)
class LongLog:
    """The files of a log, what is said of them, and what their words mean as of ``now``."""

    found: Found
    content: Content
    meanings: Meanings
    now: dt.datetime

    def pieces(self, lake: Lake, refusals: Refusals) -> Iterator[pa.Table]:
        """The events, typed, in the order of the files, without those that name what was erased; what is refused quotes its file."""
        for table in self._read():
            refusals.files[EVENTS] = (self.found.place / self.content.label, table)
            events = rows.timed(rows.typed(table, EVENTS, refusals, self.meanings, Names()), EVENTS, refusals, self.now)
            yield tombstones.refuse(lake, {EVENTS: events}, refusals)[EVENTS]

    def first_seen(self, lake: Lake) -> tuple[pa.Table, pa.Table] | None:
        """When each item and each user was first seen: ``item_id`` or ``user_id``, and ``timestamp``. None for a log that must be read
        whole: where some events have an id or an order, and others have none. :class:`InputError` for a file that cannot be read.
        """
        seen: dict[str, list[pa.Table]] = {"item_id": [], "user_id": []}
        given: dict[str, set[bool]] = {name: set() for name in TOLD}
        for events in self.pieces(lake, Refusals()):
            for key, parts in seen.items():
                parts.append(_first(events, key))
                if len(parts) > FIRSTS:
                    parts[:] = [_first(pa.concat_tables(parts), key)]
            for name, found in given.items():
                found.update(pc.unique(pc.is_valid(events[name])).to_pylist())
        if any(len(found) > 1 for found in given.values()):
            return None
        items, users = (_first(pa.concat_tables(parts), key) for key, parts in seen.items())
        return items, users

    def _read(self) -> Iterator[pa.Table]:
        """The rows as they stand in the files, with their numbers, a piece at a time."""
        waiting: list[pa.Table] = []
        for (before, label), path in zip(self.content.starts, self.content.paths, strict=True):
            for table in self._batches(path, label, before):
                waiting.append(table)
                if sum(part.num_rows for part in waiting) >= AT_ONCE:
                    yield pa.concat_tables(waiting)
                    waiting = []
        if waiting:
            yield pa.concat_tables(waiting)

    def _batches(self, path: Path, label: str, before: int) -> Iterator[pa.Table]:
        try:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches(batch_size=AT_ONCE):
                    table = json_lines.numbered(pa.Table.from_batches([batch]))
                    table.validate(full=True)
                    table = pa.table({name: content.plain(table[name]) for name in table.column_names})
                    table = table.set_column(table.num_columns - 1, ROW, pc.add(table[ROW], before))
                    before += table.num_rows
                    yield content.named(_part(label, path, table), rows.known(EVENTS), self.meanings.columns, REQUIRED[EVENTS]).table
        except (pa.ArrowException, OSError, ValueError, EOFError) as unreadable:
            raise InputError(f"{path} cannot be read ({unreadable}); nothing was ingested", action="write the file again") from unreadable


def of(source: Path, meanings: Meanings, now: dt.datetime) -> LongLog | None:
    """The log of a directory, if it is long and may be read in pieces."""
    found = files.find(source, EVENTS) if source.is_dir() else None
    if found is None or any(files.kind(path) != "Parquet" or found.partition(path) for path in found.paths):
        return None
    said, schemas = Content(found.label, pa.table({}), paths=found.paths), []
    for path in found.paths:
        try:
            footer = pq.read_metadata(path)
        except (pa.ArrowException, OSError):
            return None  # whoever reads it whole says what is wrong
        said.starts.append((said.rows, found.called(path)))
        said.rows += footer.num_rows
        schemas.append(footer.schema.to_arrow_schema().remove_metadata())
    if said.rows <= AT_ONCE or any(not schema.equals(schemas[0]) for schema in schemas) or len({*schemas[0].names}) < len(schemas[0]):
        return None
    empty = json_lines.numbered(pa.table({name: content.plain(column) for name, column in _columns(schemas[0])}))
    part = content.named(_part(found.label, found.paths[0], empty), rows.known(EVENTS), meanings.columns, REQUIRED[EVENTS])
    if not _typed(part.table.schema):
        return None
    said.names = {bare(name) for name in schemas[0].names}
    said.said = [part.how, *([f"{len(schemas)} files"] if len(schemas) > 1 else [])]
    return LongLog(found, said, meanings, now)


def _columns(schema: pa.Schema) -> Iterator[tuple[str, pa.ChunkedArray]]:
    table = schema.empty_table()
    return ((name, table[name]) for name in schema.names)


def _part(label: str, path: Path, table: pa.Table) -> Part:
    return Part(label, path, "Parquet", table.num_rows, table)


def _typed(schema: pa.Schema) -> bool:
    """Whether each cell of the columns says by itself what it means."""
    whole = [pa.types.is_integer, pa.types.is_null]
    kinds = dict.fromkeys((*IDS[EVENTS], KEYS[EVENTS], *TOLD), whole) | {"timestamp": [pa.types.is_timestamp, pa.types.is_date]}
    kinds |= {"event": [pa.types.is_string], "position": [*whole, pa.types.is_floating], QUANTITY[1:]: [*whole, pa.types.is_floating]}
    return all(any(is_kind(field.type) for is_kind in kinds.get(bare(field.name), [lambda _: True])) for field in schema)


def _first(events: pa.Table, key: str) -> pa.Table:
    """The first moment of each key."""
    found = events.select([key, "timestamp"]).group_by(key).aggregate([("timestamp", "min")])
    return found.rename_columns([{"timestamp_min": "timestamp"}.get(name, name) for name in found.column_names]).select([key, "timestamp"])
