"""CSV as people and programs write it: the delimiter, the quote and how a quote is escaped are recognised, and every cell is a text.

A file that is wrong about its quotes is refused whole, with the row in which the quote opens: nobody can know which rows it has swallowed.
"""

from __future__ import annotations

import csv
import itertools
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.errors import counted
from moon_ops.lake import spills
from moon_ops.lake.reading import encoding as encodings
from moon_ops.lake.reading.parts import ROW, Keep, Part, Refused, WholeError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "'|'", "\x01": "'\\x01'"}
BATCH = 20_000  # rows that are Python's at once, before they are Arrow's
LONGEST = 2**24  # characters of a cell
SNIFFED = 2**16  # characters of a file that its dialect is told from
ESCAPED = re.compile(r'\\(["\\])')


@dataclass(frozen=True)
class Dialect:
    """How cells are written; ``skip`` lines stand before the header. Without ``quote`` a quotation mark is a sign like any other."""

    delimiter: str
    quote: str | None = '"'
    backslash: bool = False  # a quote inside quotes is \" instead of ""
    skip: int = 0

    def __str__(self) -> str:
        said = [f"{DELIMITERS.get(self.delimiter, repr(self.delimiter))} between cells"]
        said += ["no quotes"] if self.quote is None else ["single quotes"] if self.quote == "'" else []
        return ", ".join([*said, *(["quotes escaped by a backslash"] if self.backslash else [])])


class QuoteError(ValueError):
    """A quote that is not closed, or has text behind it; ``backslash``: a backslash before a quote may be why."""

    def __init__(self, row: int, line: int, backslash: bool) -> None:
        what = "a quote that opens there is not closed, or text follows where it closes"
        super().__init__(f"row {row}, which begins in line {line}: {what}, or a cell is longer than {LONGEST:,} characters")
        self.backslash = backslash


def sniff(path: Path, encoding: str, names: Collection[str]) -> Dialect:
    """The delimiter that makes most known ``names`` of the header, and the quote that these have; by DuckDB's sniffer if they do not tell.

    Quotes are taken to be doubled inside quotes, until the file turns out to be wrong by that (:func:`read`).
    """
    with encodings.text(path, encoding) as stream:
        sample = stream.read(SNIFFED).encode("utf-8", "replace").decode()
    first = re.split(r"[\r\n]", sample.lstrip("\r\n"), maxsplit=1)[0]
    if told := re.fullmatch(r"\"?sep=(.)\"?", first):  # a line that Excel reads and people do not see
        return Dialect(told[1], skip=1)
    quote = "'" if any(f"'{name}'" in first.lower() for name in names) else '"'
    known = {d: sum(bare(name) in names for name in next(csv.reader([first], delimiter=d, quotechar=quote), [])) for d in DELIMITERS}
    best = [d for d, count in known.items() if count == max(known.values())]
    return Dialect(best[0] if len(best) == 1 else _delimiter(sample), quote)


def bare(name: str) -> str:
    """A column's name without the space, the case and the marks that do not count."""
    return re.sub(r"[\s-]+", "_", name.strip().strip('"').strip("\ufeff").lower())


def _delimiter(sample: str) -> str:
    """DuckDB's verdict over whole rows; a comma if it has none."""
    import duckdb

    with spills.aside(), tempfile.NamedTemporaryFile("w", suffix=".csv", encoding="utf-8", newline="") as file:
        file.write(sample if len(sample) < SNIFFED else sample[: sample.rfind("\n") + 1])
        file.flush()
        try:
            with duckdb.connect() as connection:
                found = connection.execute("SELECT Delimiter FROM sniff_csv(?, header = true, all_varchar = true)", [file.name]).fetchone()
        except duckdb.Error:
            found = None
    return str(found[0]) if found and found[0] in DELIMITERS else ","


def read(path: Path, label: str, encoding: str, names: Collection[str], keep: Keep | None = None) -> Part:
    """The file's cells as texts, an empty one as null; rows with too few or too many cells, or half a character, are refused. If it is
    long, its rows are given to ``keep``.
    """
    dialect = sniff(path, encoding, names)
    try:
        return _part(path, label, encoding, dialect, keep)
    except QuoteError as wrong:
        for other in _others(dialect, wrong):
            try:
                part = _part(path, label, encoding, other, keep)
            except QuoteError:
                continue
            if not part.refused:  # else it is a worse guess
                return part
        raise


def _others(dialect: Dialect, wrong: QuoteError) -> Iterator[Dialect]:
    """What the file may be, since its quotes are not what they seemed."""
    if wrong.backslash and dialect.quote and not dialect.backslash:
        yield replace(dialect, backslash=True)
    if dialect.delimiter == "\t":  # feeds write these without any quoting, and inches with a quotation mark
        yield replace(dialect, quote=None, backslash=False)


def _part(path: Path, label: str, encoding: str, dialect: Dialect, keep: Keep | None) -> Part:
    part = Part(label, path, f"CSV, {dialect}, {encodings.NAMES.get(encoding, encoding)}")
    passed = {"repeat the header": 0, "have no content": 0}
    cells: list[int] = []  # that hold lines like rows
    found = _tables(part, encoding, dialect, passed, cells)
    if keep is not None:
        part.table, part.held = keep(found)
    elif tables := list(found):
        part.table = pa.concat_tables(tables)
    _without_blanks(part)
    part.notes += [f"{label}: {count} rows {what} and were passed over" for what, count in passed.items() if count]
    if part.rows > 1 and not encodings.ended(path):
        part.notes.append(f"{label}: the last row has no line end, and may be cut")
    if spanning := sum(cells):
        hold = counted(spanning, "cell holds", "cells hold")
        part.notes.append(f"{label}: {hold} lines that look like rows: if a quote opened there by mistake, rows are lost")
    return part


def _tables(part: Part, encoding: str, dialect: Dialect, passed: dict[str, int], cells: list[int]) -> Iterator[pa.Table]:
    """The good rows, some at a time; what else is seen is noted."""
    header: list[str] = []
    for batch, line, over_lines in _batches(part.path, encoding, dialect):
        rows = _passed_over(batch if header else _without_header(batch, header), header, passed)
        numbers: Sequence[int] = range(part.rows + 1, part.rows + 1 + len(rows))
        if {*map(len, rows)} - {len(header)}:
            try:
                rows, numbers = _regular(rows, header, part)
            except _OverLinesError as torn:
                above = batch[: len(batch) - len(rows) + torn.place]
                raise QuoteError(part.rows, line + sum(map(_lines, above)), _escapes(part.path, encoding)) from torn
        else:
            part.rows += len(rows)
        cells.append(_like_rows(rows, dialect.delimiter) if over_lines else 0)
        yield _good(header, rows, numbers, part)


def _without_blanks(part: Part) -> None:
    """Drop columns without a name and without content, as spreadsheets write at the right, if there are several."""
    blank = [place for place, name in enumerate(part.table.column_names) if not name.strip()]
    if part.held and len(blank) > 1:
        raise WholeError
    empty = {place for place in blank if part.table.column(place).null_count == part.table.num_rows}
    if len(blank) > 1 and empty:
        part.table = part.table.select([place for place in range(part.table.num_columns) if place not in empty])
        part.notes.append(f"{part.label}: {len(empty)} columns without a name and without content were left out")


class _OverLinesError(ValueError):
    """A row, at a place of its batch, that spans lines and is none: a quote was not closed."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place


def _regular(rows: list[list[str]], header: list[str], part: Part) -> tuple[list[list[str]], list[int]]:
    """The rows that have as many cells as the header, and their numbers; the others are refused. Blank lines are none."""
    numbers: list[int] = []
    good: list[list[str]] = []
    for place, row in enumerate(rows):
        part.rows += bool(row)
        if len(row) == len(header):
            good.append(row)
            numbers.append(part.rows)
        elif row:
            if _lines(row) > 1:
                raise _OverLinesError(place)
            part.refused.append(Refused(part.rows, _kept(header, row), "", f"has {len(row)} cells, and the header has {len(header)}"))
    return good, numbers


def _passed_over(rows: list[list[str]], header: list[str], passed: dict[str, int]) -> list[list[str]]:
    """The rows, with blank ones for those that are no rows: the header again, as where files were joined, and cells that are all empty."""
    first = header[0].lstrip("\ufeff") if header else ""
    for place, row in enumerate(rows):
        if row and not any(row):
            what = "have no content"
        elif row and row[0].lstrip("\ufeff") == first and row[1:] == header[1:]:
            what = "repeat the header"
        else:
            continue
        passed[what] += 1
        rows[place] = []
    return rows


def _without_header(batch: list[list[str]], header: list[str]) -> list[list[str]]:
    """The rows after the first that is not blank, which is put into ``header``."""
    first = next((n for n, row in enumerate(batch) if row), len(batch))
    header += batch[first] if first < len(batch) else []
    return batch[first + 1 :]


def _lines(row: Sequence[str]) -> int:
    """Lines that a row spans."""
    return 1 + sum(max(cell.count("\n"), cell.count("\r")) for cell in row)


def _like_rows(rows: list[list[str]], delimiter: str) -> int:
    """Cells over several lines that hold as many delimiters as a row."""
    found = 0
    for row in rows:
        for cell in row:
            if "\n" in cell and cell.count(delimiter) >= len(row) > 1:
                found += 1
    return found


def _batches(path: Path, encoding: str, dialect: Dialect) -> Iterator[tuple[list[list[str]], int, bool]]:
    """The rows, :data:`BATCH` at a time, a blank line as an empty one; the line that they begin in; whether one spans several. The header
    is the first.
    """
    with encodings.text(path, encoding) as stream:
        for _ in range(dialect.skip):
            stream.readline()
        how: Any = {"quoting": csv.QUOTE_NONE} if dialect.quote is None else {"quotechar": dialect.quote}
        lines = (ESCAPED.sub(_doubled, line) if '\\"' in line else line for line in stream) if dialect.backslash else stream
        csv.field_size_limit(LONGEST)  # Python's own is 131,072, less than some descriptions have
        reader = csv.reader(lines, delimiter=dialect.delimiter, strict=True, **how)
        row = -1  # of the header
        while True:
            batch: list[list[str]] = []
            first = reader.line_num
            try:
                batch.extend(itertools.islice(reader, BATCH))
            except csv.Error as wrong:  # the rows before it are there
                line = first + sum(map(_lines, batch)) + dialect.skip + 1
                raise QuoteError(row + 1 + sum(map(bool, batch)), line, _escapes(path, encoding)) from wrong
            if not batch:
                return
            yield batch, first + dialect.skip + 1, reader.line_num - first != len(batch)
            row += sum(map(bool, batch))


def _doubled(escape: re.Match[str]) -> str:
    return '""' if escape[1] == '"' else "\\"


def _escapes(path: Path, encoding: str) -> bool:
    """Whether a backslash stands before a quote somewhere."""
    with encodings.text(path, encoding) as stream:
        return any('\\"' in line for line in stream)


def _good(header: list[str], batch: list[list[str]], numbers: Sequence[int], part: Part) -> pa.Table:
    """The rows as a table; those with half a character are refused instead."""
    try:
        return _table(header, batch, numbers)
    except UnicodeEncodeError:
        good = [all(map(encodings.whole, row)) for row in batch]
    for row, number, is_good in zip(batch, numbers, good, strict=True):
        if not is_good:
            part.refuse_half(number, _kept(header, row))
    keep = [n for n, is_good in enumerate(good) if is_good]
    return _table(header, [batch[n] for n in keep], [numbers[n] for n in keep])


def _table(header: list[str], rows: list[list[str]], numbers: Sequence[int]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    named = [(name, _cells(column)) for name, column in zip(header, columns, strict=True) if name != ROW]
    return pa.Table.from_arrays([*(cells for _, cells in named), pa.array(numbers, pa.int64())], names=[*(name for name, _ in named), ROW])


def _cells(column: Sequence[str]) -> pa.Array[Any]:
    """Texts, null where a cell is empty."""
    array = pa.array(column, pa.string())
    empty = pc.equal(array, pa.scalar(""))
    return pc.if_else(empty, pa.scalar(None, pa.string()), array) if pc.any(empty).as_py() else array


def _kept(header: list[str], row: list[str]) -> dict[str, object]:
    """A row that is no row, by the names of the header as far as they go."""
    named: dict[str, object] = dict(zip(header, row, strict=False))
    return named | ({"": row[len(header) :]} if len(row) > len(header) else {})
