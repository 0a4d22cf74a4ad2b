"""Samples as columns: texts and names of pictures in Arrow's buffers, from which the object of one is made when a batch asks for it.

As Python's objects an item with its query takes half a kilobyte in every process. Columns take their bytes, and those of a mapped file are
the same memory for all processes of a machine. Everything has 64-bit offsets: a shop's texts are more than 2 GB. N samples, P pictures.
"""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moon_ops.inputs.contract import Sample

AT_ONCE = 10_000  # rows that are Python's objects at the same time
TEXT, NAMES = pa.large_string(), pa.large_list(pa.large_string())
SCHEMA = pa.schema([("text", TEXT), ("image_ids", NAMES)])
Rows = NDArray[np.int64]
Row = dict[str, Any]  # of a table
T = TypeVar("T")


class Made(Sequence[T]):
    """Values that are made when they are asked for; a subclass says how that of one row is made, and how many there are."""

    @overload
    def __getitem__(self, row: int) -> T: ...
    @overload
    def __getitem__(self, row: slice) -> list[T]: ...
    def __getitem__(self, row: int | slice) -> T | list[T]:
        if isinstance(row, slice):
            return [self._of(n) for n in range(*row.indices(len(self)))]
        return self._of(row)

    @abstractmethod
    def _of(self, row: int) -> T: ...


class Column(Made[T]):
    """N values between N + 1 ``edges``; a subclass says how one of them is made."""

    def __init__(self, column: pa.Array) -> None:
        self.column, self._count = column, len(column)
        at = column.buffers()[1]
        edges = np.frombuffer(at, np.int64) if at is not None and at.size else np.zeros(column.offset + 1, np.int64)
        self.edges: Rows = edges[column.offset : column.offset + self._count + 1]
        self._at: memoryview[int] = memoryview(self.edges)  # type: ignore[arg-type] # whose single numbers are read quicker than an array's

    def __len__(self) -> int:
        return self._count

    def _of(self, row: int) -> T:
        if row < 0:
            row += self._count
        if not 0 <= row < self._count:
            raise IndexError(row)
        return self._made(self._at[row], self._at[row + 1])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Column) and bool(self.column.equals(other.column))

    def counts(self) -> Rows:
        """How long each value is [N]: bytes of a text, names of a sample."""
        return np.diff(self.edges)

    def _made(self, start: int, stop: int) -> T:
        raise NotImplementedError


class Texts(Column[str]):
    """N texts, UTF-8."""

    def __init__(self, column: pa.Array) -> None:
        super().__init__(column)
        self._bytes = memoryview(column.buffers()[2] or b"")

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Columns of ``texts``, few of which are objects at a time."""
        return cls(together([pa.array(some, TEXT) for some in some_at_a_time(texts)], TEXT))

    def distinct(self, *others: Texts) -> Texts:
        """Each text of all of them once, in the order of their first appearance."""
        return Texts(pa.chunked_array([part.column for part in (self, *others)], TEXT).unique())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), AT_ONCE):
            yield from self.column.slice(start, AT_ONCE).to_pylist()

    def _made(self, start: int, stop: int) -> str:
        return str(self._bytes[start:stop], "utf-8")


class Names(Column[tuple[str, ...]]):
    """The names of N samples' pictures, P in all: ``flat``."""

    def __init__(self, column: pa.Array) -> None:
        super().__init__(column)
        every = Texts(column.values)
        self._names, self._bytes = every._at, every._bytes

    @property
    def flat(self) -> Texts:
        """The names one after another [P]."""
        return Texts(self.column.flatten())

    def _made(self, start: int, stop: int) -> tuple[str, ...]:
        at, content = self._names, self._bytes
        return tuple([str(content[at[n] : at[n + 1]], "utf-8") for n in range(start, stop)])


class Samples(Made[Sample]):
    """N samples: a list of them that takes no objects."""

    def __init__(self, table: pa.Table) -> None:
        self.texts, self.names = Texts(whole(table["text"])), Names(whole(table["image_ids"]))

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Samples:
        """Columns of ``samples``, few of which are objects at a time; as they are, if they are columns."""
        if isinstance(samples, Samples):
            return samples
        texts, names = [], []
        for some in some_at_a_time(samples):
            texts.append(pa.array([sample.text for sample in some], TEXT))
            names.append(pa.array([sample.image_ids for sample in some], NAMES))
        return cls(pa.table([together(texts, TEXT), together(names, NAMES)], schema=SCHEMA))

    @classmethod
    def read(cls, place: Path) -> Samples:
        """What :meth:`write` wrote, mapped."""
        return cls(read(place))

    @property
    def table(self) -> pa.Table:
        """Both columns, each in one piece."""
        return pa.table([self.texts.column, self.names.column], schema=SCHEMA)

    def write(self, place: Path) -> None:
        """To a file."""
        write(place, self.table)

    def __len__(self) -> int:
        return len(self.texts)

    def _of(self, row: int) -> Sample:
        return Sample(self.texts[row], self.names[row])

    def __iter__(self) -> Iterator[Sample]:
        return map(Sample, self.texts, self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Samples) and self.texts == other.texts and self.names == other.names

    def take(self, rows: Rows) -> Samples:
        """Those rows, in that order."""
        return Samples(self.table.take(pa.array(rows)))


class Firsts(Made[str]):
    """The first picture of those ``rows`` [N] of ``names`` that have any; the others are left out."""

    def __init__(self, names: Names, rows: Rows) -> None:
        there = rows[names.counts()[rows] > 0]
        self.names, self.rows = names, there.astype(np.int32 if len(names) < 2**31 else np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def _of(self, row: int) -> str:
        return self.names[self.rows[row]][0]


def together(arrays: Sequence[pa.Array], kind: pa.DataType) -> pa.Array:
    """One array of several; a single one is not copied."""
    return arrays[0] if len(arrays) == 1 else pa.concat_arrays([pa.array([], kind), *arrays])


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A table's column in one piece; of a single one it is that."""
    return together(column.chunks, column.type)


def some_at_a_time(rows: Iterable[T]) -> Iterator[list[T]]:
    """``rows`` in order, in lists of :data:`AT_ONCE`."""
    rest = iter(rows)
    while some := list(islice(rest, AT_ONCE)):
        yield some


def rows_of(table: pa.Table) -> Iterator[Row]:
    """The rows of a table, few of which are objects at a time."""
    for batch in table.to_batches(max_chunksize=AT_ONCE):
        yield from batch.to_pylist()


def write(place: Path, table: pa.Table) -> None:
    """A table to a file that can be mapped."""
    place.unlink(missing_ok=True)  # a process may still have the old one mapped
    with pa.OSFile(str(place), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read(place: Path) -> pa.Table:
    """What :func:`write` wrote; it stays on the disk until it is looked at, and is the same memory for all processes.

    Raises :class:`FileNotFoundError` with the file's name, which Arrow's own lacks.
    """
    if not place.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))
    return pa.ipc.open_file(pa.memory_map(str(place))).read_all()
