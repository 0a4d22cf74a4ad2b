"""The ingest layout: a directory with ``items``, ``queries``, ``events`` and ``users`` files and pictures, read into typed columns.

A file-level fault (no such file, a missing column) is an :class:`~moon_ops.errors.InputError`. A row-level fault (a cell that is no
number, a timestamp that is no time) refuses that row alone: refused rows are collected with the column and the reason, and the
good ones go on. The three formats mean the same: CSV cells are read as text and typed here, as JSON and Parquet cells are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from moon_ops.errors import InputError
from moon_ops.lake.schemas import STAMP

ROW = "_row"  # the row's number in its file, from 1
Column: TypeAlias = "pa.ChunkedArray[Any] | pa.Array[Any]"


@dataclass
class Refusals:
    """Rows that were not taken: where from, which column, why. Each becomes one row of the ``quarantine`` table.

    A refusal quotes the row as it stands in its file, whatever has been made of it since.
    """

    rows: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, tuple[Path, pa.Table]] = field(default_factory=dict)  # table → its file and content

    def bring(self, name: str, path: Path, content: pa.Table) -> None:
        """Say what the file of table ``name`` holds, before anything in it is refused."""
        self.files[name] = (path, content)

    def add(self, name: str, number: int, column: str, reason: str) -> None:
        """Refuse row ``number`` of table ``name``; the row is kept as JSON so that it can be mended and brought again."""
        path, content = self.files[name]
        self._add(f"{path.name}:{number}", content.slice(number - 1, 1).to_pylist()[0], column, reason)

    def split(self, table: pa.Table, bad: Column, name: str, column: str, reason: str, *, silent: bool = False) -> pa.Table:
        """Refuse the rows where ``bad`` is true or null, quoting the cell (``silent``: nothing of the row), and return the others."""
        path, content = self.files[name]
        bad = filled(bad, True)
        numbers = [number or 0 for number in table.filter(bad)[ROW].to_pylist()]
        if silent:
            self.rows += [{"source": f"{path.name}:{n}", "row": "{}", "column": column, "reason": f"{column} {reason}"} for n in numbers]
            return table.filter(pc.invert(bad))
        for number, row in zip(numbers, content.take(pa.array([n - 1 for n in numbers], pa.int64())).to_pylist(), strict=True):
            self._add(f"{path.name}:{number}", row, column, f"{column} = {row.get(column)!r} {reason}")
        return table.filter(pc.invert(bad))

    def _add(self, source: str, row: dict[str, Any], column: str, reason: str) -> None:
        kept = json.dumps({name: cell for name, cell in row.items() if name != ROW}, default=str, sort_keys=True)
        self.rows.append({"source": source, "row": kept, "column": column, "reason": reason})

    def summary(self) -> dict[str, int]:
        """How many rows were refused, per ``file column``."""
        counts: dict[str, int] = {}
        for row in self.rows:
            key = f"{row['source'].rpartition(':')[0]} {row['column']}"
            counts[key] = counts.get(key, 0) + 1
        return counts


def find(directory: Path, name: str) -> Path | None:
    """The file ``name``.parquet, .jsonl or .csv in the directory; an :class:`InputError` if there are two of them."""
    found = [path for ending in READERS if (path := directory / f"{name}{ending}").is_file()]
    if len(found) > 1:
        raise InputError(
            f"{directory} holds {' and '.join(p.name for p in found)}: it is not clear which one counts",
            action="remove all but one",
        )
    return found[0] if found else None


def read(path: Path, required: tuple[str, ...]) -> pa.Table:
    """The file's columns as they are, with the row's number in ``_row``; a missing column is an error that names it."""
    try:
        table = READERS[path.suffix](path) if path.stat().st_size else empty(required)
        table = table if table.num_columns else empty(required)  # only blank lines
        table.validate(full=True)  # the JSON reader lets bytes through that are no UTF-8
    except (pa.ArrowException, OSError, ValueError) as unreadable:
        raise InputError(f"{path} cannot be read ({unreadable}); nothing was ingested", action="write the file again") from unreadable
    names = table.column_names
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path} has the column '{twice[0]}' twice; nothing was ingested", action="keep one of them")
    missing = [name for name in required if name not in names]
    if missing:
        raise InputError(
            f"{path} has no column '{missing[0]}' (it has {', '.join(names)}); nothing was ingested",
            action=f"add the column {missing[0]}",
        )
    table = table.drop_columns(ROW) if ROW in names else table
    return table.append_column(ROW, pa.array(range(1, table.num_rows + 1), pa.int64()))


def empty(names: tuple[str, ...]) -> pa.Table:
    """A table of texts without rows: what a file says that is not there or has no content."""
    return pa.schema([(name, pa.string()) for name in names]).empty_table()


def _read_csv(path: Path) -> pa.Table:
    """Every cell as text, an empty one as null: a reader that guesses types would make ``007`` a 7."""
    return pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            default_column_type=pa.string(),  # type: ignore[call-arg, unused-ignore]  # not in the stubs yet
            strings_can_be_null=True,
            null_values=[""],
        ),
    )


def _read_jsonl(path: Path) -> pa.Table:
    """One object a line; a column whose cells differ in type (a price that is a word) is read as text, so that only its row is refused."""
    try:
        table = pyarrow.json.read_json(path)
        if any(_rounds(table[name]) for name in table.column_names if name.endswith("_id")):
            raise pa.ArrowInvalid("an id of 2^63 or more, which Arrow makes a float of")
        asread = pa.schema([f.with_type(_untimed(f.type)) for f in table.schema])
        if asread.equals(table.schema):
            return table
        return pyarrow.json.read_json(path, parse_options=pyarrow.json.ParseOptions(explicit_schema=asread))
    except pa.ArrowInvalid:
        rows = [_object(number, line) for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), 1) if line.strip()]
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _cells([row.get(name) for row in rows]) for name in names})


def _rounds(column: Column) -> bool:
    """Whether a column of floats holds a number so large that its last digits may be lost."""
    return pa.types.is_floating(column.type) and bool((pc.max(column).as_py() or 0) >= 2**53)


def _untimed(kind: pa.DataType) -> pa.DataType:
    """The type with texts for times: the reader takes any text that looks like one for a time, an id or an attribute too."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_untimed(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_untimed(f.type)) for f in kind.fields])
    return kind


def _object(number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as broken:
        raise ValueError(f"line {number} is not JSON: {broken}") from broken
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is not a JSON object")
    return row


def _cells(values: list[Any]) -> pa.Array[Any]:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in values], pa.string())


READERS: dict[str, Callable[[Path], pa.Table]] = {".parquet": pq.read_table, ".jsonl": _read_jsonl, ".csv": _read_csv}


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
    """Replace the column by UTC timestamps; one without a zone is read as UTC, one that is no time refuses its row."""
    column = table[name].combine_chunks()
    if pa.types.is_timestamp(column.type):  # a zone, if it has one, only says how to show it: what is stored is UTC
        parsed = column.cast(pa.timestamp("us"), safe=False).cast(STAMP)
    else:
        times = pd.to_datetime(pd.Series(column.to_pylist(), dtype="object"), utc=True, errors="coerce", format="ISO8601")
        parsed = pa.array(times.dt.tz_convert("UTC").dt.floor("us"), STAMP)
    bad = pc.is_null(parsed) if required else pc.and_(pc.is_null(parsed), pc.is_valid(column))
    table = refusals.split(table, bad, source, name, "is not a time (ISO 8601, e.g. 2026-01-31T12:00:00Z)")
    return replace(table, name, parsed.filter(pc.invert(bad)))


def numbers(table: pa.Table, name: str, refusals: Refusals, source: str, *, whole: bool = False) -> pa.Table:
    """Replace the optional column by finite float64, or ``whole`` numbers as int32; a cell that is none refuses its row."""
    column = table[name].combine_chunks()
    values = pd.to_numeric(pd.Series(column.to_pylist(), dtype="object"), errors="coerce").astype("float64")
    good = values.abs() < (2**31 if whole else float("inf"))
    if whole:
        good &= values == values.round()
    bad = pc.and_(pa.array(~good), pc.is_valid(column))
    table = refusals.split(table, bad, source, name, "is not a whole number" if whole else "is not a number")
    parsed = pa.array(values, pa.float64(), from_pandas=True).filter(pc.invert(bad))
    return replace(table, name, parsed.cast(pa.int32() if whole else pa.float64()))


def unique(table: pa.Table, name: str, refusals: Refusals, source: str) -> pa.Table:
    """Keep the first row of each id and refuse the later ones."""
    again = pa.array(table[name].to_pandas().duplicated())
    return refusals.split(table, again, source, name, "is there twice: the first row counts")


def words(value: Any, separator: str) -> list[str]:
    """A list cell, or a text cell split at ``separator``, e.g. ``"A > B"`` → ``["A", "B"]``."""
    if isinstance(value, str):
        value = value.split(separator)
    elif not isinstance(value, list):
        value = [value]
    return [str(part).strip() for part in value if part is not None and str(part).strip()]


def pairs(value: Any) -> list[tuple[str, str]]:
    """An attributes cell (an object, a map, or a JSON object as text) as sorted ``(name, value)`` texts."""
    if isinstance(value, str):
        value = json.loads(value) if value.strip() else {}
    if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):
        value = dict(value)  # an Arrow map
    if value is not None and not isinstance(value, dict):
        raise ValueError("not an object")
    return sorted((str(name), str(content)) for name, content in (value or {}).items() if content is not None)


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
