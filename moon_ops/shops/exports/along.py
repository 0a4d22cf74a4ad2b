"""What lies beside an export in the ingest layout already: a log of queries, events or users, with its pictures, which the shop keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moon_ops.lake.meanings import FILE, Meanings
from moon_ops.lake.reading import content, files, pictures
from moon_ops.lake.reading.content import Content
from moon_ops.lake.reading.files import Found
from moon_ops.lake.reading.parts import ROW
from moon_ops.shops.exports.export import Export
from moon_ops.shops.exports.orders import hidden

ORDERS = "events/orders.parquet"  # the purchases of the export's own orders
TABLES = ("queries", "events", "users")
PEOPLE = ("user_id", "session_id", "query_id", "event_id", "order_id")  # ids that an address may stand in: a hash of it does as well
PLAIN = ("item_id", "image", "timestamp", "event", "position")  # must stay as they are, and are no addresses of people
KNOWN = (*PEOPLE, *PLAIN, "text")
ADDRESS = re.compile(r"[^\s@<>\"',;:=?&()]+(?:@|%40)[^\s@<>\"',;:&()]+\.\w{2,}")


def find(source: Path) -> dict[str, Found]:
    """The tables that the directory has in the ingest layout, but for items."""
    return {name: found for name in TABLES if (found := files.find(source, name))}


def bring(beside: dict[str, Found], export: Export, words: Meanings, work: Path) -> tuple[str, ...]:
    """Bring the tables into the shop's directory, a directory for each, and what they need; the names of their files.

    A file goes as it is. One that holds an e-mail address is written anew: an id has the hash of it, as of who orders; a query's text goes
    on without it; any other column that holds one is left out and counted.
    """
    brought = []
    for name in TABLES:
        found, place = beside.get(name), export.out / name
        written = {_one(path, found, export, words, work) for path in found.paths} if found else set()
        for old in [*files.under(place)] if place.is_dir() else []:
            if old not in written and old != export.out / ORDERS:  # of an import before
                old.unlink()
        brought += [path.relative_to(export.out).as_posix() for path in sorted(written)]
    if (export.source / FILE).is_file():
        export.bring(export.source / FILE, FILE)
    else:
        (export.out / FILE).unlink(missing_ok=True)
    return tuple(brought)


def _one(path: Path, found: Found, export: Export, words: Meanings, work: Path) -> Path:
    """Bring one file, and the pictures that it names; where it is now."""
    asread = content.read(Found(found.name, found.label, (path,), found.place), (), KNOWN, given=words.encoding, renamed=words.columns)
    table, target = asread.table, export.out / found.name / found.called(path)
    if "image" in table.column_names:
        export.pictures(one for cell in table["image"].to_pylist() if cell for one in pictures.references([cell]))
    if not _tells(asread):
        export.bring(path, target.relative_to(export.out).as_posix())
        return target
    export.log_refused += [(asread.place(one.number), one.reason) for one in asread.refused]  # nobody knows where in it addresses stand
    pq.write_table(_hushed(table.drop_columns(ROW), found.called(path), export), work / "along.parquet")
    target = target.with_name(f"{target.name.split('.')[0]}.parquet")
    target.parent.mkdir(parents=True, exist_ok=True)
    (work / "along.parquet").replace(target)
    return target


def _tells(asread: Content) -> bool:
    """Whether an e-mail address stands anywhere in the file, also in rows that cannot be read."""
    table = asread.table
    columns = (table[name] for name in table.column_names if name not in (*PLAIN, ROW))
    marked = any("@" in str(cell) for name in PEOPLE[:2] if name in table.column_names for cell in table[name].unique().to_pylist())
    return marked or any(_addresses(column) for column in columns) or any(ADDRESS.search(str(one.row)) for one in asread.refused)


def _addresses(cells: Iterable[Any] | pa.ChunkedArray) -> int:
    """How many of the cells hold an e-mail address."""
    if isinstance(cells, pa.ChunkedArray):
        kind = cells.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
            return 0
        cells = cells.to_pylist()
    return sum(cell is not None and ADDRESS.search(str(cell)) is not None for cell in cells)


def _hushed(table: pa.Table, label: str, export: Export) -> pa.Table:
    """The table without e-mail addresses."""
    for name in [name for name in table.column_names if name not in PLAIN]:
        column, place = table[name], table.schema.get_field_index(name)
        is_text = pa.types.is_string(column.type)
        if name in PEOPLE and is_text:
            sign = re.compile("@") if name in PEOPLE[:2] else ADDRESS
            cells = [hidden(cell, export.chosen.secret) if cell and sign.search(cell) else cell for cell in column.to_pylist()]
            table = table.set_column(place, name, pa.array(cells, pa.string()))
        elif count := _addresses(column):
            if name == "text" and is_text:
                cells = [cell and ADDRESS.sub(" ", cell).strip() for cell in column.to_pylist()]
                table = table.set_column(place, name, pa.array(cells, pa.string()))
                export.notes.append(f"{label}: {count} texts hold an e-mail address, which was taken out of them")
                continue
            table = table.drop_columns(name)
            export.left_out[f"{label} {name}"] += count
            export.notes.append(f"{label}: {count} cells of the column {name!r} hold e-mail addresses: the column is left out")
    return table
