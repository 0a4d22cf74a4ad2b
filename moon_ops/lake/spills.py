"""Tables that memory does not hold, in files of ``TMPDIR`` that end with the process: parts to read one by one, and one that is mapped.

This file does not know what a table is of.
"""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops import pieces
from moon_ops.errors import ServiceError

BATCH = 8192  # rows of a spool that are read at once
FULL = (errno.ENOSPC, errno.EDQUOT)
MEANWHILE = "rows that memory does not hold lie there; this run did not end, what was finished before is kept, nothing is lost"


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Write a temporary file; :class:`ServiceError` that names its place if that is full, or if there is none. Other faults stay."""
    try:
        yield
    except OSError as fault:
        if fault.errno in FULL:
            problem = f"TMPDIR = {tempfile.gettempdir()} is full: {MEANWHILE}"
            raise ServiceError(problem, action="make room there, or set TMPDIR to a directory with more, and run it again") from fault
        if fault.errno == errno.ENOENT and tempfile.tempdir is None:  # Python has looked everywhere
            problem = f"TMPDIR = {os.environ.get('TMPDIR', '')} cannot be written, nor can /tmp, /var/tmp and this directory: {MEANWHILE}"
            raise ServiceError(problem, action="set TMPDIR to a directory that can be written, and run it again") from fault
        raise


def _file() -> BinaryIO:
    with aside():
        return tempfile.TemporaryFile(prefix="moon-")


class Parts:
    """Rows of one schema in ``count`` parts, each a file of its own; within a part rows stay in the order in which they came."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._files: list[BinaryIO] = []
        self._writers: list[Any] = []

    def add(self, table: pa.Table, part: NDArray[np.integer[Any]]) -> None:
        """Write each row into its ``part`` [R]."""
        if not self._writers:
            self._files = [_file() for _ in range(self.count)]
            self._writers = [pa.ipc.new_stream(file, table.schema) for file in self._files]
        order = np.argsort(part, kind="stable")
        ends = np.cumsum(np.bincount(part, minlength=self.count))
        rows = table.take(pa.array(order))
        with aside():
            for writer, start, end in zip(self._writers, np.append(0, ends[:-1]).tolist(), ends.tolist(), strict=True):
                if end > start:
                    writer.write_table(rows.slice(start, end - start))

    def __iter__(self) -> Iterator[pa.Table]:
        """The parts in order, those without rows too; each file is gone when it has been read."""
        for file, writer in zip(self._files, self._writers, strict=True):
            with aside():
                writer.close()
                file.seek(0)
            table = pa.ipc.open_stream(file).read_all()
            file.close()
            yield table


class Spool:
    """Tables in the order in which they came, in one file, batch by batch; read as often as one likes, also some of their columns alone."""

    def __init__(self) -> None:
        self._file = _file()  # ends with this object
        self._writer: Any = None
        self._schema = pa.schema([])
        self._segments: list[tuple[pa.Schema, int, int]] = []  # of one schema each: from, to
        self._begins = 0

    def add(self, table: pa.Table) -> list[int]:
        """Write rows behind those that are there; how many each batch has."""
        batches = table.combine_chunks().to_batches(BATCH)
        with aside():
            if self._writer is None or not table.schema.equals(self._schema):
                self.close()
                self._begins, self._schema = self._file.tell(), table.schema
                options = pa.ipc.IpcWriteOptions(compression="lz4", unify_dictionaries=False)
                self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), table.schema, options=options)
            for batch in batches:
                self._writer.write_batch(batch)
        return [batch.num_rows for batch in batches]

    def close(self) -> None:
        """Nothing is added any more to what has one schema."""
        if self._writer is not None:
            with aside():
                self._writer.close()
                self._file.flush()  # whoever reads does so past its buffer
            self._segments.append((self._schema, self._begins, self._file.tell()))
            self._writer = None

    def batches(self, columns: Sequence[str] = (), wanted: Callable[[int], bool] | None = None) -> Iterator[pa.Table]:
        """The rows, at most :data:`BATCH` at a time: all columns, or some, of those batches whose number is ``wanted``."""
        self.close()
        first = 0
        for schema, begin, end in self._segments:
            fields = [schema.get_field_index(name) for name in columns]
            reader = pa.ipc.open_file(_Part(self._file, begin, end), options=pa.ipc.IpcReadOptions(included_fields=fields))
            for number in range(reader.num_record_batches):
                if wanted is None or wanted(first + number):
                    yield pa.Table.from_batches([reader.get_batch(number)])
            first += reader.num_record_batches


class _Part(io.RawIOBase):
    """The bytes of a file from one place to another, as a file of their own; others may read the file meanwhile."""

    def __init__(self, file: BinaryIO, begin: int, end: int) -> None:
        self._number, self._begin, self._end, self._at = file.fileno(), begin, end, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._end - self._begin)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = self._end - self._begin - self._at
        found = os.pread(self._number, left if size < 0 else min(size, left), self._begin + self._at)
        self._at += len(found)
        return found


def mapped(tables: Iterable[pa.Table], texts: Mapping[str, pa.Array] | None = None) -> pa.Table:
    """The rows of ``tables`` as one, in a mapped file; columns that ``texts`` names hold row numbers of its values, and become these."""
    with _file() as file:
        writer = None
        for table in tables:
            with aside():
                writer = writer or pa.ipc.new_file(file, table.schema)
                writer.write_table(table, max_chunksize=pieces.AT_ONCE)
        if writer is None:
            raise ValueError("no table, so that nobody knows the columns")
        with aside():
            writer.close()
            file.flush()
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    found: pa.Table = pa.ipc.open_file(pa.py_buffer(mapping)).read_all()
    pieces.remember(mapping)
    for name, values in (texts or {}).items():
        named = [pa.DictionaryArray.from_arrays(chunk, values) for chunk in found[name].chunks]
        place = found.column_names.index(name)
        found = found.set_column(place, name, pa.chunked_array(named, pa.dictionary(pa.int32(), values.type)))
    return found


def numbered(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.Array]:
    """The row number of each text among the different ones, null for null, and these; without a copy for a column of :func:`mapped`."""
    if not pa.types.is_dictionary(column.type):
        coded = column.combine_chunks().dictionary_encode()
        return pa.chunked_array([coded.indices]), coded.dictionary
    values = column.chunk(0).dictionary if column.num_chunks else pa.array([], column.type.value_type)
    return pa.chunked_array([chunk.indices for chunk in column.chunks], column.type.index_type), values


def different(column: pa.ChunkedArray) -> list[str | None]:
    """The texts that occur."""
    numbers, values = numbered(column)
    return values.take(pc.unique(numbers)).to_pylist() if len(values) else [None] * bool(len(column))
