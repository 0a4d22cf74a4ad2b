"""The quarantine as a tool: what was set aside, how much of it for which reason, and as CSV to mend and bring again."""

from __future__ import annotations

import csv
import datetime as dt
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from moon_ops.errors import InputError
from moon_ops.lake import ids, tombstones
from moon_ops.lake.lake import Lake
from moon_ops.lake.reading.files import STEM, TABLES

REASON = "_reason"  # a column of the CSV, which an ingest leaves out
KEYS = {"items": "item_id", "queries": "query_id", "events": "event_id", "users": "user_id"}  # what tells that a row came in later
TORN = re.compile(r"has \d+ cells, and the header has \d+")
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


def refused(lake: Lake, table: str | None = None, *, mended: bool = False) -> list[Refused]:
    """What is in quarantine, the newest first and then as it stands in the files, of one ``table`` if it is named; with those that are
    ``mended`` only if asked: the lake has taken in a row of the same id since. An event without an event_id has none.
    """
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
    return found if mended else _left(lake, found)


def _left(lake: Lake, rows: list[Refused]) -> list[Refused]:
    """The rows of whose id nothing was taken in after they were refused."""
    gone = set[int]()
    for table, key in KEYS.items():
        named = {n: _keys(row.row.get(key), key) for n, row in enumerate(rows) if row.table == table and row.row.get(key) is not None}
        if not any(named.values()) or not lake.exists(table) or key not in lake.open(table).schema.names:
            continue
        wanted = pa.array({one for keys in named.values() for one in keys}, pa.string() if key == "event_id" else pa.int64())
        came = ids.matching(lake, table, key, wanted, ("created",)).group_by(key).aggregate([("created", "max")])
        last = dict(zip(came[key].to_pylist(), came["created_max"].to_pylist(), strict=True))
        for n, keys in named.items():
            since = dt.datetime.fromisoformat(rows[n].created)
            if any(one in last and last[one] > since for one in keys):
                gone.add(n)
    return [row for n, row in enumerate(rows) if n not in gone]


def _keys(cell: Any, name: str) -> set[Any]:
    """What the id in a refused row may be in the lake."""
    if name != "event_id":
        return tombstones.keys_of(cell)
    try:
        return {str(ids.clean(cell))}
    except ValueError:
        return set()


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
    table. A row that was set aside for several reasons, or several times, stands there once, with its last reason in the last column. A
    row that had another number of cells than its header has one too many here, too, so that it is refused until it is mended. What was
    erased is left out: nothing of it was kept.
    """
    if path.is_dir():
        raise InputError(f"--csv {path} is a directory", action=f"name a file, e.g. {path / 'refused.csv'}")
    rows = [row for row in rows if row.row]
    tables = list(dict.fromkeys(row.table for row in rows))
    made = []
    path.parent.mkdir(parents=True, exist_ok=True)
    for table in tables:
        file = path if len(tables) == 1 else path.with_name(f"{path.stem}-{table}{path.suffix}")
        with file.open("w", encoding="utf-8-sig", newline="") as stream:
            _write(stream, [row for row in rows if row.table == table])
        made.append(file)
    return made


def _write(stream: TextIO, rows: list[Refused]) -> None:
    once: dict[str, Refused] = {}
    for row in rows:
        cells = {name: cell for name, cell in row.row.items() if name not in ("", REASON) and cell not in (None, "")}
        once.setdefault(json.dumps([cells, _too_many(row)], sort_keys=True), row)
    names = [name for name in dict.fromkeys(name for row in once.values() for name in row.row) if name not in ("", REASON)]
    writer = csv.writer(stream)
    writer.writerow([*names, REASON])
    for row in once.values():
        written = [_cell(name, row.row.get(name)) for name in names]
        writer.writerow([*written, *_too_many(row), row.reason])


def _too_many(row: Refused) -> list[Any]:
    """The cells that a row has beyond its header; an empty one where it had too few. None of a row that is whole."""
    more: list[Any] = list(row.row.get("") or [])
    if more and REASON in row.row:  # it was written here before: the reason stands behind them
        return [row.row[REASON], *more[:-1]]
    return more or ([""] if TORN.fullmatch(row.reason) else [])


def _cell(name: str, cell: Any) -> Any:
    """A cell as the ingest reads it from a CSV: an object for a map, parts of a column of the shop's own between ``|``."""
    if name == "attributes" and isinstance(cell, list):
        cell = dict(cell)
    if isinstance(cell, list) and name not in ("category", "images") and _plain(cell):
        return "|".join(map(str, cell))
    return json.dumps(cell, ensure_ascii=False) if isinstance(cell, (dict, list)) else cell


def _plain(cell: Sequence[Any]) -> bool:
    return all(isinstance(part, str | int | float) and "|" not in str(part) for part in cell)


def report(rows: list[Refused]) -> dict[str, Any]:
    """All of it as one JSON object: the counts, and every row."""
    listed = [
        {"table": r.table, "source": r.source, "column": r.column, "reason": r.reason, "row": r.row, "created": r.created} for r in rows
    ]
    return {"rows": len(rows), "counts": counts(rows), "refused": listed}
