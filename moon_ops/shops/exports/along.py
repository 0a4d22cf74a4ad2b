"""What lies beside an export in the ingest layout already: a log of queries, events or users, with its pictures, which the shop keeps."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moon_ops.errors import counted
from moon_ops.lake.meanings import FILE, Meanings
from moon_ops.lake.reading import content, files, pictures
from moon_ops.lake.reading.files import Found
from moon_ops.lake.reading.parts import ROW
from moon_ops.shops.exports.export import Export
from moon_ops.shops.exports.orders import hidden

ORDERS = "events/orders.parquet"  # the purchases of the export's own orders
TABLES = ("queries", "events", "users")
KNOWN = ("user_id", "image", "query_id", "item_id", "timestamp", "event", "text")


def find(source: Path) -> dict[str, Found]:
    """The tables that the directory has in the ingest layout, but for items."""
    return {name: found for name in TABLES if (found := files.find(source, name))}


def bring(beside: dict[str, Found], export: Export, words: Meanings, work: Path) -> tuple[str, ...]:
    """Bring the tables into the shop's directory, a directory for each, and what they need; the names of their files.

    A file goes as it is. One whose ``user_id`` is an e-mail address is written anew with the hash of it, as of who orders.
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
    users = table["user_id"] if "user_id" in table.column_names else None
    if users is None or not pa.types.is_string(users.type) or not pc.any(pc.match_substring(users, "@")).as_py():
        export.bring(path, target.relative_to(export.out).as_posix())
        return target
    if asread.refused:
        first = asread.refused[0]
        export.notes.append(
            f"{counted(len(asread.refused), 'row', 'rows')} of {found.called(path)} cannot be read, e.g. {first.number}: {first.reason}"
        )
    encoded = users.combine_chunks().dictionary_encode()
    named = [hidden(user, export.chosen.secret) if "@" in user else user for user in encoded.dictionary.to_pylist()]
    table = table.set_column(table.schema.get_field_index("user_id"), "user_id", pa.array(named, pa.string()).take(encoded.indices))
    pq.write_table(table.drop_columns(ROW), work / "along.parquet")
    target = target.with_name(f"{target.name.split('.')[0]}.parquet")
    target.parent.mkdir(parents=True, exist_ok=True)
    (work / "along.parquet").replace(target)
    return target
