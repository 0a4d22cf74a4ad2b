"""The rows of a table whose files are too long to be in memory: the same rows, refusals and words as of one that is read whole.

A Parquet file is read again each time. A text is read once, as all of it tells how it is written, and its cells are kept in a temporary
file. Where only the whole of a file tells what its rows are, :class:`~moon_ops.lake.reading.parts.WholeError` is raised.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moon_ops.lake.reading import content, encoding, files
from moon_ops.lake.reading.content import Content
from moon_ops.lake.reading.delimited import bare
from moon_ops.lake.reading.files import Found
from moon_ops.lake.reading.parts import ROW, Held, Part, WholeError
from moon_ops.lake.spills import Spool

SHORTEST, PACKING = 64, 6  # bytes of a row as text, about; how many times shorter a packed one is


@dataclass(frozen=True)
class Stream:
    """A table's files: ``content`` says of them what it would of a table that is read whole, without its rows."""

    content: Content
    parts: tuple[Part, ...]
    found: Found
    required: tuple[str, ...]
    known: tuple[str, ...]
    renamed: Mapping[str, str]

    def pieces(self, at_once: int, size: int) -> Iterator[pa.Table]:
        """The rows, numbered through all files, about so many at a time, or so many bytes of them."""
        waiting: list[pa.Table] = []
        for table in self._tables():
            waiting.append(table)
            if sum(part.num_rows for part in waiting) >= at_once or sum(part.nbytes for part in waiting) >= size:
                yield pa.concat_tables(waiting)
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting)

    def _tables(self) -> Iterator[pa.Table]:
        schema, odd = self.content.table.schema, content.disagreeing([part.table.schema for part in self.parts])
        for (before, _), part in zip(self.content.starts, self.parts, strict=True):
            for table in part.held() if part.held else ():
                one = content.partitioned(Part(part.label, part.path, part.how, table.num_rows, table), self.found)
                table = content.named(one, self.known, dict(self.renamed), self.required).table
                table = table.set_column(table.schema.get_field_index(ROW), ROW, pc.add(table[ROW], before))
                try:
                    parts = [schema.empty_table(), content.as_texts(table, odd)]
                    table = pa.concat_tables(parts, promote_options="permissive").cast(schema)
                except pa.ArrowException as odd_types:
                    raise WholeError from odd_types
                yield table


def of(
    found: Found, required: Sequence[str], known: Collection[str], *, given: str | None = None, renamed: dict[str, str] | None = None
) -> Stream:
    """As :func:`moon_ops.lake.reading.content.read`, whose errors are raised."""
    names = (*known, *map(bare, renamed or ()))
    said, parts = content.empty(found.label, required), list[Part]()
    for path in found.paths:
        part = content.partitioned(content.read_part(path, found, names, given, _kept), found)
        said.names |= {bare(name) for name in part.table.column_names}
        parts.append(content.named(part, known, renamed or {}, required))
    for part in parts:
        said.add(part)
    said.table = content.together([part.table for part in parts])
    said.finish(parts, found)
    return Stream(said, tuple(parts), found, tuple(required), tuple(known), renamed or {})


def rows(found: Found) -> int:
    """How many rows the files may have: those of Parquet are known, those of a text are told by its bytes."""
    return sum(_rows(path) for path in found.paths)


def _rows(path: Path) -> int:
    try:
        if files.kind(path) == "Parquet":
            return int(pq.read_metadata(path).num_rows)
        return path.stat().st_size * (PACKING if encoding.packed(path) else 1) // SHORTEST
    except (pa.ArrowException, OSError):
        return 0  # whoever reads it says what is wrong


def _kept(tables: Iterable[pa.Table]) -> tuple[pa.Table, Held]:
    """The tables in a temporary file."""
    spool, schema = Spool(), pa.schema([])
    for table in tables:
        spool.add(table)
        schema = table.schema
    spool.close()
    return schema.empty_table(), spool.batches
