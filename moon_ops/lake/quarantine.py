"""The quarantine as a tool: what was set aside, how much of it for which reason, and as CSV to mend and bring again."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from moon_ops.errors import InputError
from moon_ops.lake.lake import Lake
from moon_ops.lake.reading.files import STEM, TABLES

REASON = "_reason"  # a column of the CSV, which an ingest leaves out
QUOTED = re.compile(r"^\S* = (?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\[[^\]]*\]|\{[^}]*\}|[^\s:]+):? ")


@dataclass(frozen=True)
class Refused:
    """A row that was set aside: its table, where it stood, the column to blame, why, and the row itself."""

    table: str
    source: str
    column: str
    reason: str
    row: dict[str, Any]
    created: str

    @property
    def kind(self) -> str:
        """The reason without the cell that it quotes, so that those that are alike can be counted."""
        return QUOTED.sub("", self.reason)


def refused(lake: Lake, table: str | None = None) -> list[Refused]:
    """What is in quarantine, the newest first and then as it stands in the files, of one ``table`` if it is named."""
    if table is not None and table not in TABLES:
        raise InputError(f"--table {table!r} is no table of a shop", action=f"name one of {', '.join(TABLES)}")
    if not lake.exists("quarantine"):
        return []
    found = []
    for row in sorted(lake.read("quarantine").to_pylist(), key=lambda row: (-row["created"].timestamp(), *_place(row["source"]))):
        name = table_of(row["source"])
        if table in (None, name):
            cells = json.loads(row["row"])
            found.append(Refused(name, row["source"], row["column"] or "", row["reason"], cells, row["created"].isoformat()))
    return found


def table_of(source: str) -> str:
    """The table of ``events.parquet/part-0.parquet:7``, by the name of its file."""
    match = STEM.match(source.partition("/")[0].lower())
    return match[1] if match else ""


def _place(source: str) -> tuple[str, int]:
    file, _, number = source.rpartition(":")
    return file, int(number) if number.isdecimal() else 0


def counts(rows: list[Refused]) -> list[dict[str, Any]]:
    """How many there are per table, column and reason, the most first, with an example each."""
    found: dict[tuple[str, str, str], list[Refused]] = {}
    for row in rows:
        found.setdefault((row.table, row.column, row.kind), []).append(row)
    listed = sorted(found.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    return [
        {"table": table, "column": column, "reason": reason, "rows": len(those), "example": f"{those[0].source}: {those[0].reason}"}
        for (table, column, reason), those in listed
    ]


def write_csv(rows: list[Refused], path: Path) -> list[Path]:
    """The rows as a CSV of each table that has some, ``path`` with the table's name before its ending, or ``path`` itself if there is one
    table. A row that was set aside for several reasons, or several times, stands there once, with its last reason in the last column. What
    was erased is left out: nothing of it was kept.
    """
    rows = [row for row in rows if row.row]
    tables = list(dict.fromkeys(row.table for row in rows))
    made = []
    for table in tables:
        file = path if len(tables) == 1 else path.with_name(f"{path.stem}-{table}{path.suffix}")
        with file.open("w", encoding="utf-8", newline="") as stream:
            _write(stream, [row for row in rows if row.table == table])
        made.append(file)
    return made


def _write(stream: TextIO, rows: list[Refused]) -> None:
    once: dict[str, Refused] = {}
    for row in rows:
        once.setdefault(json.dumps(row.row, sort_keys=True), row)
    names = dict.fromkeys(name for row in once.values() for name in row.row if name)
    writer = csv.DictWriter(stream, [*names, REASON], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(_cells(once.values()))


def _cells(rows: Any) -> Iterator[dict[str, Any]]:
    for row in rows:
        cells = {name: json.dumps(cell) if isinstance(cell, (dict, list)) else cell for name, cell in row.row.items()}
        yield {**cells, REASON: row.reason}


def report(rows: list[Refused]) -> dict[str, Any]:
    """All of it as one JSON object: the counts, and every row."""
    listed = [
        {"table": r.table, "source": r.source, "column": r.column, "reason": r.reason, "row": r.row, "created": r.created} for r in rows
    ]
    return {"rows": len(rows), "counts": counts(rows), "refused": listed}
