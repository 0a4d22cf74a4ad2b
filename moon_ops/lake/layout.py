"""The ingest layout: a directory with ``items``, ``queries`` and ``events`` files and pictures, read into typed columns.

A file-level fault (no such file, a missing column) is an :class:`~moon_ops.errors.InputError`. A row-level fault (a cell that is no
number, a timestamp that is no time) refuses that row alone: refused rows are collected with the column and the reason, and the
good ones go on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from moon_ops.errors import InputError
from moon_ops.lake.tables import STAMP

READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".parquet": pq.read_table,
    ".jsonl": pyarrow.json.read_json,
    ".csv": pyarrow.csv.read_csv,
}
ROW = "_row"  # the row's number in its file, from 1


@dataclass
class Refusals:
    """Rows that were not taken: where from, which column, why. Each becomes one row of the ``quarantine`` table."""

    rows: list[dict[str, str]] = field(default_factory=list)

    def add(self, source: str, row: object, column: str, reason: str) -> None:
        """Refuse one row; ``row`` is kept as JSON so that it can be mended and brought again."""
        self.rows.append({"source": source, "row": json.dumps(row, default=str, sort_keys=True), "column": column, "reason": reason})

    def split(self, table: pa.Table, bad: pa.ChunkedArray | pa.Array, source: str, column: str, reason: str) -> pa.Table:
        """Refuse the rows where ``bad`` is true, quoting the cell, and return the others."""
        bad = pc.fill_null(bad, True)
        for row in table.filter(bad).to_pylist():
            number = row.pop(ROW)
            self.add(f"{source}:{number}", row, column, f"{column} = {row.get(column)!r} {reason}")
        return table.filter(pc.invert(bad))

    def summary(self) -> dict[str, int]:
        """How many rows were refused, per ``file column``."""
        counts: dict[str, int] = {}
        for row in self.rows:
            key = f"{row['source'].split(':')[0]} {row['column']}"
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
        table = READERS[path.suffix](path)
    except (pa.ArrowException, OSError, ValueError) as unreadable:
        raise InputError(f"{path} cannot be read ({unreadable}); nothing was ingested", action="write the file again") from unreadable
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise InputError(
            f"{path} has no column '{missing[0]}' (it has {', '.join(table.column_names)}); nothing was ingested",
            action=f"add the column {missing[0]}",
        )
    return table.append_column(ROW, pa.array(range(1, table.num_rows + 1), pa.int64()))


def optional(table: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    """The table with column ``name``, all null when the file does not have it."""
    return table if name in table.column_names else table.append_column(name, pa.nulls(table.num_rows, kind))


def stable_id(value: str) -> int:
    """The 63-bit integer that a string id becomes, the same on every machine and for ever."""
    if value.isdecimal() and len(value) <= 18 and str(int(value)) == value:
        return int(value)  # a CSV reader makes 1001 a number, a parquet writer may have kept "1001": they are one item
    return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "big") >> 1


def ids(table: pa.Table, name: str, refusals: Refusals, source: str, *, required: bool) -> pa.Table:
    """Replace the id column by int64; strings are hashed (see :func:`stable_id`), anything else refuses its row."""
    column = table[name].combine_chunks()
    if pa.types.is_integer(column.type):
        table = table.set_column(table.schema.get_field_index(name), name, column.cast(pa.int64()))
    else:
        text = column.cast(pa.string())
        unique = text.unique().to_pylist()
        known = {value: stable_id(value) for value in unique if value}
        hashed = pa.array([known.get(value) for value in text.to_pylist()], pa.int64())
        table = table.set_column(table.schema.get_field_index(name), name, hashed)
    bad = pc.less(table[name], 0)
    bad = pc.fill_null(bad, True) if required else pc.fill_null(bad, False)
    return refusals.split(table, bad, source, name, "is not an id (a whole number from 0, or a text)")


def stamps(table: pa.Table, name: str, refusals: Refusals, source: str, *, required: bool) -> pa.Table:
    """Replace the column by UTC timestamps; one without a zone is read as UTC, one that is no time refuses its row."""
    column = table[name].combine_chunks()
    if pa.types.is_timestamp(column.type):
        parsed = column.cast(STAMP) if column.type.tz else pc.assume_timezone(column.cast(pa.timestamp("us")), "UTC")
    else:
        times = pd.to_datetime(pd.Series(column.to_pylist(), dtype="object"), utc=True, errors="coerce", format="ISO8601")
        parsed = pa.array(times.dt.tz_convert("UTC"), STAMP)
    bad = pc.is_null(parsed) if required else pc.and_(pc.is_null(parsed), pc.is_valid(column))
    table = refusals.split(table, bad, source, name, "is not a time (ISO 8601, e.g. 2026-01-31T12:00:00Z)")
    return table.set_column(table.schema.get_field_index(name), name, parsed.filter(pc.invert(bad)))


def numbers(table: pa.Table, name: str, kind: pa.DataType, refusals: Refusals, source: str) -> pa.Table:
    """Replace the optional column by numbers of ``kind``; a cell that is none refuses its row."""
    column = table[name].combine_chunks()
    values = pd.to_numeric(pd.Series(column.to_pylist(), dtype="object"), errors="coerce").astype("float64")
    bad = pc.and_(pa.array(values.isna()), pc.is_valid(column))
    table = refusals.split(table, bad, source, name, "is not a number")
    parsed = pa.array(values[~bad.to_numpy(zero_copy_only=False)], pa.float64(), from_pandas=True)
    return table.set_column(table.schema.get_field_index(name), name, parsed.cast(kind, safe=False))


def unique(table: pa.Table, name: str, refusals: Refusals, source: str) -> pa.Table:
    """Keep the first row of each id and refuse the later ones."""
    values = table[name].to_pandas()
    return refusals.split(table, pa.array(values.duplicated()), source, name, "is there twice: the first row counts")


def words(value: Any, separators: str) -> list[str]:
    """A list cell, or a text cell split at any of ``separators``, e.g. ``"A > B"`` → ``["A", "B"]``."""
    if value is None:
        return []
    if isinstance(value, str):
        for separator in separators[1:]:
            value = value.replace(separator, separators[0])
        value = value.split(separators[0])
    return [str(part).strip() for part in value if part is not None and str(part).strip()]


def pairs(value: Any) -> list[tuple[str, str]]:
    """An attributes cell (an object, a map, or a JSON object as text) as sorted ``(name, value)`` texts."""
    if isinstance(value, str):
        value = json.loads(value) if value.strip() else {}
    if isinstance(value, list):
        value = dict(value)
    if value is not None and not isinstance(value, dict):
        raise ValueError("not an object")
    return sorted((str(name), str(content)) for name, content in (value or {}).items() if content is not None)
