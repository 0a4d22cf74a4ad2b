"""The cells of a shop's files, typed: what a text, a time and a number may be, and which rows are refused for it.

A file-level fault (no such file, a missing column) is an :class:`~moon_ops.errors.InputError`. A row-level fault (a cell that is no
number, a timestamp that is no time) refuses that row alone: refused rows are collected with the column and the reason, and the
good ones go on. The three formats mean the same: CSV cells are read as text and typed here, as JSON and Parquet cells are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.errors import InputError
from moon_ops.lake.reading import numbers as amounts
from moon_ops.lake.reading import times
from moon_ops.lake.reading.content import Content
from moon_ops.lake.reading.parts import ROW
from moon_ops.lake.refusal_order import Order

if TYPE_CHECKING:
    from moon_ops.lake.ids import Spelling

TWICE = "is there twice: the first row counts"
Column: TypeAlias = "pa.ChunkedArray[Any] | pa.Array[Any]"


class Told(Protocol):
    """What is known of the columns of a table whose rows are not there at once: see :mod:`moon_ops.lake.habits`."""

    def ids(self, column: str) -> Spelling:
        """How the ids of a column are written."""

    def numbers(self, column: str) -> amounts.Writing:
        """How the numbers of a column are written."""


@dataclass
class Refusals:
    """Rows that were not taken: where from, which column, why. Each becomes one row of the ``quarantine`` table.

    A refusal quotes the row as it stands in its file, whatever has been made of it since. Pictures that cannot be read are kept here, too,
    but counted by themselves: their rows go on without them.
    """

    rows: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, tuple[Path, pa.Table]] = field(default_factory=dict)  # table → its file and content
    contents: dict[str, Content] = field(default_factory=dict)  # table → where its rows stand, and what was recognised
    counts: dict[str, int] = field(default_factory=dict)  # rows, per file and column
    pictures: dict[str, int] = field(default_factory=dict)  # pictures, per file and column
    erased: dict[str, int] = field(default_factory=dict)  # rows that name what was erased: not taken in, as the shop wanted
    counted: list[tuple[dict[str, int], str]] = field(default_factory=list)  # where each of `rows` is counted, and as what
    named: dict[str, pa.Array] = field(default_factory=dict)  # table → the keys of its rows, of most that were refused, too
    merged: dict[str, int] = field(default_factory=dict)  # table → rows that went into another row of their item
    brought: dict[tuple[int, str], int] = field(default_factory=dict)  # row of an item and a picture → the row that names the picture
    habits: Told | None = None  # of the columns of a log that is read in pieces
    order: Order = field(default_factory=Order)

    def bring(self, name: str, path: Path, content: pa.Table, read: Content | None = None) -> None:
        """Say what the file of table ``name`` holds, before anything in it is refused; what could not be read of it is refused now."""
        self.files[name] = (path, content)
        if read is not None:
            self.contents[name] = read
            for one in read.refused:
                self._add(name, one.number, one.row, one.column, one.reason)

    def add(self, name: str, number: int, column: str, reason: str, *, picture: bool = False) -> None:
        """Refuse row ``number`` of table ``name``, or only a ``picture`` of it; the row is kept as JSON, to be mended and brought again."""
        self._add(name, number, self.quoted(name, [number])[0], column, reason, picture=picture)

    def split(
        self, table: pa.Table, bad: Column, name: str, column: str, reason: str, *, silent: bool = False, again: str = ""
    ) -> pa.Table:
        """Refuse the rows where ``bad`` is true or null, quoting the cell (``silent``: nothing of the row), and return the others.
        ``again`` names one of several reasons of the check that has begun.
        """
        if not again:
            self.order.check()
        self.order.group = again
        bad = filled(bad, True)
        if not pc.any(bad).as_py():
            return table
        numbers = [number or 0 for number in table.filter(bad)[ROW].to_pylist()]
        if silent:
            for number in numbers:
                self._add(name, number, {}, column, f"{column} {reason}")
                self.hush(len(self.rows) - 1, self.rows[-1]["reason"])
            return table.filter(pc.invert(bad))
        for number, row in zip(numbers, self.quoted(name, numbers), strict=True):
            self._add(name, number, row, column, f"{column} = {row.get(column)!r} {reason}")
        return table.filter(pc.invert(bad))

    def forget(self, name: str) -> None:
        """Keep nothing of the file's content: no more of its rows will be refused."""
        path, content = self.files[name]
        self.files[name] = (path, content.schema.empty_table())
        self.named.pop(name, None)

    def bring_picture(self, head: int, number: int, references: Sequence[str]) -> None:
        """Say that an item's row ``head`` has pictures that row ``number`` names."""
        self.brought |= {(head, reference): number for reference in references}

    def names_picture(self, name: str, number: int, reference: str) -> int:
        """The row of the file that names a picture of row ``number``."""
        return self.brought.get((number, reference), number) if name == "items" else number

    def quoted(self, name: str, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of table ``name`` as they stand in their file."""
        _, content = self.files[name]
        return content.take(pa.array(np.searchsorted(content[ROW].to_numpy(), numbers), pa.int64())).to_pylist()

    def _add(self, name: str, number: int, row: dict[str, Any], column: str, reason: str, *, picture: bool = False) -> None:
        kept = json.dumps({name: cell for name, cell in row.items() if name != ROW}, default=str)  # in the order of the file
        read = self.contents.get(name)
        source = read.place(number) if read else f"{self.files[name][0].name}:{number}"
        self.rows.append({"source": source, "row": kept, "column": column, "reason": reason})
        counts = self.pictures if picture else self.counts
        key = f"{read.label if read else self.files[name][0].name} {column}".strip()
        counts[key] = counts.get(key, 0) + 1
        self.counted.append((counts, key))
        self.order.refused(number)

    def join(self, log: Refusals) -> None:
        """Take over what was refused of a log that is read in pieces."""
        self.rows += log.rows
        self.counted += [(self.counts, key) for _, key in log.counted]
        for key, count in log.counts.items():
            self.counts[key] = self.counts.get(key, 0) + count
        self.order.places += log.order.places

    def put_in_order(self) -> None:
        """Bring refusals of pieces into the order in which those of one table would be."""
        order = self.order.of_all()
        self.rows[:] = [self.rows[n] for n in order]
        self.counted[:] = [self.counted[n] for n in order]
        for counts in (self.counts, self.pictures, self.erased):
            names = dict.fromkeys(key for where, key in self.counted if where is counts)
            ordered = {key: counts[key] for key in names}
            counts.clear()
            counts.update(ordered)

    def hush(self, number: int, reason: str) -> None:
        """Take the content from a refused row: it names what was erased, and is counted as that."""
        (counts, key), row = self.counted[number], self.rows[number]
        row |= {"row": "{}", "reason": reason}
        counts[key] -= 1
        if not counts[key]:
            del counts[key]
        self.erased[key] = self.erased.get(key, 0) + (counts is not self.pictures)
        self.counted[number] = (self.erased, key)

    def note(self, name: str, what: str) -> None:
        """Note what may be wrong with table ``name``."""
        if name in self.contents:
            self.contents[name].notes.append(f"{self.contents[name].label}: {what}")

    def say(self, name: str, what: str) -> None:
        """Note what was recognised of the cells of table ``name``."""
        if name in self.contents and what not in self.contents[name].said:
            self.contents[name].said.append(what)

    def summary(self) -> dict[str, int]:
        """How many rows were refused, per ``file column``."""
        return dict(self.counts)


def optional(table: pa.Table, name: str) -> pa.Table:
    """The table with column ``name``, all null when the file does not have it."""
    return table if name in table.column_names else table.append_column(name, pa.nulls(table.num_rows))


def replace(table: pa.Table, name: str, column: Column) -> pa.Table:
    """The table with another column under the same name."""
    return table.set_column(table.schema.get_field_index(name), name, column)


def filled(column: Column, value: bool | float | str) -> Column:
    """The column with ``value`` where it is null."""
    return cast(Column, pc.fill_null(column, pa.scalar(value)))


def texts(table: pa.Table, name: str, refusals: Refusals, source: str) -> pa.Table:
    """Replace the column by texts without the space around them; a blank one is null. Numbers are written out."""
    try:
        column = pc.utf8_trim_whitespace(table[name].cast(pa.string()))
    except pa.ArrowException as unfit:
        path, _ = refusals.files[source]
        what = f"{path}: column '{name}' holds {table[name].type}, not texts"
        raise InputError(f"{what}; nothing was ingested", action=f"write {name} as text") from unfit
    return replace(table, name, pc.if_else(pc.equal(column, pa.scalar("")), pa.scalar(None, pa.string()), column))


def stamps(table: pa.Table, name: str, refusals: Refusals, source: str, *, required: bool) -> pa.Table:
    """Replace the column by UTC timestamps (see :mod:`~moon_ops.lake.reading.times`); one that is no time refuses its row."""
    column = table[name].combine_chunks()
    parsed = times.parsed(column)
    bad = pc.is_null(parsed) if required else pc.and_(pc.is_null(parsed), pc.is_valid(column))
    table = refusals.split(table, bad, source, name, f"is not a time ({times.FORMS})")
    return replace(table, name, parsed.filter(pc.invert(bad)))


def numbers(table: pa.Table, name: str, refusals: Refusals, source: str, *, whole: bool = False) -> pa.Table:
    """Replace the optional column by finite float64, or ``whole`` numbers as int32; a cell that is none refuses its row."""
    column = table[name].combine_chunks()
    found = amounts.parsed(column, refusals.habits.numbers(name) if refusals.habits else None)
    for what in found.said:
        refusals.say(source, what)
    refusals.order.check()
    for cell, why in found.reasons.items():
        bad = filled(pc.equal(table[name], pa.scalar(cell)), False)
        found.values = found.values.filter(pc.invert(bad).combine_chunks())
        table = refusals.split(table, bad, source, name, why, again=f"{cell}: {why}")
    column, values = table[name].combine_chunks(), found.values
    bad = pc.and_(pc.is_null(values), pc.is_valid(column))
    if whole:
        fits = pc.and_(pc.less(pc.abs(values), float(2**31)), pc.equal(values, pc.round(values)))
        bad = pc.or_(bad, pc.invert(filled(fits, True)))
    table = refusals.split(table, bad, source, name, "is not a whole number" if whole else "is not a number")
    return replace(table, name, values.filter(pc.invert(bad)).cast(pa.int32() if whole else pa.float64()))


def unique(table: pa.Table, name: str, refusals: Refusals, source: str) -> pa.Table:
    """Keep the first row of each id and refuse the later ones; if the first stands in another file of the table, with that file's name."""
    values = table[name].to_numpy()
    _, firsts, of = np.unique(values, return_index=True, return_inverse=True)
    first = firsts[of.ravel()]  # the place of each row's first one
    again = np.flatnonzero(first != np.arange(len(values)))
    if not len(again):
        return table
    why: list[str | None] = [None] * len(values)
    read, numbers = refusals.contents.get(source), table[ROW].to_numpy()
    for row in again.tolist():
        why[row] = TWICE
        if read is not None and len(read.starts) > 1:
            here, there = (read.place(int(number)).rpartition(":")[0] for number in (numbers[row], numbers[first[row]]))
            why[row] = TWICE if here == there else f"{TWICE}, which stands in {there} (if {here} is the newer file, bring it alone)"
    table = table.append_column(TWICE, pa.array(why, pa.string()))
    for reason in dict.fromkeys(one for one in why if one):
        table = refusals.split(table, filled(pc.equal(table[TWICE], pa.scalar(reason)), False), source, name, reason)
    return table.drop_columns(TWICE)


def words(value: Any, separator: str) -> list[str]:
    """A list cell, also written as JSON, or a text cell split at ``separator``, e.g. ``"A > B"`` → ``["A", "B"]``."""
    if isinstance(value, str):
        value = _listed(value) or value.split(separator)
    elif not isinstance(value, list):
        value = [value]
    return [str(part).strip() for part in value if part is not None and str(part).strip()]


def _listed(value: str) -> list[Any] | None:
    """The JSON list that a text is; None for any other text."""
    try:
        found = json.loads(value) if value.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def pairs(value: Any) -> list[tuple[str, str]]:
    """An attributes cell (an object, a map, or a JSON object as text) as sorted ``(name, value)`` texts."""
    if isinstance(value, str):
        value = json.loads(value) if value.strip() else {}
    if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):
        value = dict(value)  # an Arrow map
    if value is not None and not isinstance(value, dict):
        raise ValueError("not an object")
    plain = ((str(name), cell if isinstance(cell, str) else _plain(cell)) for name, cell in (value or {}).items())
    return sorted((name, str(cell)) for name, cell in plain if cell is not None)


def extras(table: pa.Table, names: Sequence[str]) -> pa.Array:
    """The cells of the columns ``names`` as one JSON object a row, by name in order; null for a row in which all of them are empty."""
    if not names:
        return pa.nulls(table.num_rows, pa.string())
    rows = ({name: plain for name, cell in row.items() if (plain := _plain(cell)) is not None} for row in table.select(names).to_pylist())
    return pa.array([json.dumps(row, default=str, sort_keys=True) if row else None for row in rows], pa.string())


def _plain(cell: Any) -> Any:
    """A cell as every format would have it: what was left empty is None, and 3.0 is 3, as a writer makes floats of ids with gaps."""
    if isinstance(cell, float):
        return None if not math.isfinite(cell) else int(cell) if cell.is_integer() else cell
    if isinstance(cell, list):
        return [plain for part in cell if (plain := _plain(part)) is not None] or None
    return (cell.strip() or None) if isinstance(cell, str) else cell
