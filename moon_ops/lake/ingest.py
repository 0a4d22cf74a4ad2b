"""Take a shop's directory into the lake: check it, store each picture once, set bad rows aside, add what is new.

The same directory twice changes nothing. A run that is killed between two commits is finished by running it again: pictures,
items, queries and events are committed in this order, so nothing in the lake ever refers to what is not there.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.errors import InputError
from moon_ops.lake import layout
from moon_ops.lake.intake import Intake
from moon_ops.lake.layout import ROW, Refusals
from moon_ops.lake.tables import EVENTS, SCHEMAS, STAMP, Lake

VERSION = (
    "content_hash",
    "spu_id",
    "seller_id",
    "price",
    "status",
)  # an item whose any of these changed is a new version


@dataclass(frozen=True)
class IngestReport:
    """What one ingest added; ``known`` rows were in the lake already. ``refused`` counts rows per file and column."""

    source: str
    images: int
    items: int
    updated: int
    queries: int
    events: int
    known: int
    refused: dict[str, int] = field(default_factory=dict)
    first_refusal: str = ""


def ingest(source: Path, lake: Lake, *, now: dt.datetime, workers: int = 2) -> IngestReport:
    """Ingest the directory ``source``; ``now`` is the time at which its rows become known.

    Raises :class:`~moon_ops.errors.InputError` for a directory that cannot be used as a whole (no items, a missing column, an
    empty catalogue). Rows that cannot be used go to the ``quarantine`` table, and the rest goes on.
    """
    if not source.is_dir():
        raise InputError(f"DIRECTORY = {source} is not a directory", action="name a directory that holds an items file")
    refusals = Refusals()
    raw = {name: _read(source, name, refusals) for name in ("items", "queries", "events")}  # all checked before anything is written
    intake = Intake(source, lake, refusals, now=now, workers=workers)
    images = intake.store([*_references(raw["items"], "images"), *_references(raw["queries"], "image")])
    items = _items(raw["items"], intake)
    if not items.num_rows and not lake.count("items"):
        _quarantine(lake, refusals, now)
        raise InputError(
            f"{source}: no item could be used ({_first(refusals)}); the catalogue is empty",
            action="mend the items file",
        )
    fresh, updated = _new_versions(lake, items, now)
    lake.append("items", _stamped(fresh, "items", now))
    queries = _new_queries(lake, _queries(raw["queries"], intake), refusals)
    lake.append("queries", _stamped(queries, "queries", now))
    good = _referential(lake, raw["events"], refusals)
    events = _new_events(lake, good)
    lake.append("events", _stamped(events, "events", now))
    _quarantine(lake, refusals, now)
    known = items.num_rows - fresh.num_rows + good.num_rows - events.num_rows
    return IngestReport(
        str(source),
        images,
        fresh.num_rows - updated,
        updated,
        queries.num_rows,
        events.num_rows,
        known,
        refusals.summary(),
        _first(refusals),
    )


REQUIRED = {
    "items": ("item_id", "title"),
    "queries": ("query_id", "timestamp"),
    "events": ("timestamp", "item_id", "event"),
}
IDS = {"items": ("spu_id", "seller_id"), "queries": (), "events": ("user_id", "query_id", "session_id")}


def _read(source: Path, name: str, refusals: Refusals) -> pa.Table:
    """One file with its columns typed; an optional file that is not there is an empty table."""
    path = layout.find(source, name)
    if path is None:
        if name == "items":
            raise InputError(
                f"{source} has no items.parquet, items.jsonl or items.csv: nothing to ingest",
                action="add the items file",
            )
        return pa.table({column: pa.array([], pa.string()) for column in (*REQUIRED[name], ROW)}).slice(0, 0)
    table = layout.read(path, REQUIRED[name])
    if name == "items" and not table.num_rows:
        raise InputError(f"{path} has no rows: the catalogue is empty and nothing was ingested", action="bring at least one item")
    key = REQUIRED[name][0] if name != "events" else "item_id"
    if name != "events":
        table = table.append_column("source_id", table[key].cast(pa.string()))
    table = layout.ids(table, key, refusals, path.name, required=True)
    for column in IDS[name]:
        table = layout.ids(layout.optional(table, column, pa.int64()), column, refusals, path.name, required=False)
    return {"items": _typed_items, "queries": _typed_queries, "events": _typed_events}[name](table, refusals, path.name)


def _typed_items(table: pa.Table, refusals: Refusals, file: str) -> pa.Table:
    for name, kind in (
        ("price", pa.float64()),
        ("available_from", STAMP),
        *((n, pa.string()) for n in ("brand", "description", "status")),
    ):
        table = layout.optional(table, name, kind)
    for name in ("category", "images", "attributes"):
        table = layout.optional(table, name, pa.string())
    table = layout.unique(table, "item_id", refusals, file)
    table = layout.stamps(table, "available_from", refusals, file, required=False)
    table = layout.numbers(table, "price", pa.float64(), refusals, file)
    table = refusals.split(table, pc.less(pc.fill_null(table["price"], 0), 0), file, "price", "is below zero")
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(table["title"].cast(pa.string()))), 0)
    table = refusals.split(table, blank, file, "title", "is empty")
    status = pc.fill_null(table["status"].cast(pa.string()), "active")
    known = pc.is_in(status, pa.array(["active", "deleted"]))
    table = table.set_column(table.schema.get_field_index("status"), "status", status)
    return refusals.split(table, pc.invert(known), file, "status", "is neither active nor deleted")


def _typed_queries(table: pa.Table, refusals: Refusals, file: str) -> pa.Table:
    for name in ("text", "image"):
        table = layout.optional(table, name, pa.string())
    table = layout.unique(table, "query_id", refusals, file)
    table = layout.stamps(table, "timestamp", refusals, file, required=True)
    nothing = pc.and_(pc.is_null(table["text"]), pc.is_null(table["image"]))
    return refusals.split(table, nothing, file, "text", "and no image either: the query asks for nothing")


def _typed_events(table: pa.Table, refusals: Refusals, file: str) -> pa.Table:
    table = layout.numbers(layout.optional(table, "position", pa.int32()), "position", pa.int32(), refusals, file)
    table = layout.stamps(table, "timestamp", refusals, file, required=True)
    known = pc.is_in(table["event"].cast(pa.string()), pa.array(EVENTS))
    return refusals.split(table, pc.invert(known), file, "event", f"is not one of {', '.join(EVENTS)}")


def _references(table: pa.Table, column: str) -> list[str]:
    """Every picture that the rows name, in order, each once."""
    cells = table[column].to_pylist() if column in table.column_names else []
    return list(dict.fromkeys(path for cell in cells for path in layout.words(cell, "|" if column == "images" else "\0")))


def _items(raw: pa.Table, intake: Intake) -> pa.Table:
    """The rows of the ``items`` table, without ``created``; a picture that was refused is left out of its item."""
    rows = []
    for row in raw.to_pylist():
        try:
            attributes = layout.pairs(row["attributes"])
        except ValueError:
            intake.refusals.add(f"items:{row[ROW]}", row, "attributes", f"attributes = {row['attributes']!r} is not an object")
            continue
        item = {
            **{name: row[name] for name in ("item_id", "source_id", "brand", "description", "seller_id", "price", "status")},
            "spu_id": row["item_id"] if row["spu_id"] is None else row["spu_id"],
            "title": str(row["title"]).strip(),
            "category": layout.words(row["category"], ">"),
            "attributes": attributes,
            "image_ids": intake.ids(layout.words(row["images"], "|"), f"items:{row[ROW]}", "images"),
            "event_timestamp": row["available_from"],
        }
        rows.append({**item, "content_hash": content_hash(item)})
    kind = pa.schema([f.with_nullable(True) for f in SCHEMAS["items"] if f.name != "created"])
    return pa.Table.from_pylist(rows, schema=kind)


def content_hash(item: dict[str, object]) -> str:
    """A short hash of what an encoder reads of an item: if it is unchanged, so is the item's vector."""
    read = [item[name] for name in ("title", "category", "brand", "description", "attributes", "image_ids")]
    return hashlib.blake2b(json.dumps(read).encode(), digest_size=12).hexdigest()


def _new_versions(lake: Lake, items: pa.Table, now: dt.datetime) -> tuple[pa.Table, int]:
    """The items that the lake does not have as they are, and how many of them are new versions of known ones.

    A new version of a known item is valid from ``now``: its ``available_from`` tells when the item came, not when it changed.
    """
    known = lake.read("items", ["item_id", "event_timestamp", "created", *VERSION])
    same = " AND ".join(f"k.{name} IS NOT DISTINCT FROM i.{name}" for name in VERSION)
    current = "SELECT * FROM known QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY event_timestamp DESC, created DESC) = 1"
    found = _sql(
        f"""WITH k AS ({current})
        SELECT i.item_id, k.item_id IS NOT NULL AS known FROM items i LEFT JOIN k USING (item_id)
        WHERE k.item_id IS NULL OR NOT ({same})""",
        items=items.select(["item_id", *VERSION]),
        known=known,
    )
    update = dict(zip(found["item_id"].to_pylist(), found["known"].to_pylist(), strict=True))
    fresh = items.filter(pc.is_in(items["item_id"], found["item_id"].combine_chunks()))
    since = [
        now if update[i] or stamp is None else stamp
        for i, stamp in zip(*(fresh[c].to_pylist() for c in ("item_id", "event_timestamp")), strict=True)
    ]
    at = fresh.schema.get_field_index("event_timestamp")
    return fresh.set_column(at, "event_timestamp", pa.array(since, STAMP)), sum(update.values())


def _queries(raw: pa.Table, intake: Intake) -> pa.Table:
    """The rows of the ``queries`` table, without ``created``; one whose only content was a refused picture is left out."""
    if not raw.num_rows:
        return _empty("queries")
    images, keep = [], []
    for number, path, text in zip(*(raw[name].to_pylist() for name in (ROW, "image", "text")), strict=True):
        found = intake.ids([path], f"queries:{number}", "image") if path else []
        images.append(found[0] if found else None)
        keep.append(bool(found) or text is not None)
    table = pa.table(
        {
            "query_id": raw["query_id"],
            "source_id": raw["source_id"],
            "text": raw["text"].cast(pa.string()),
            "image_id": pa.array(images, pa.string()),
            "event_timestamp": raw["timestamp"],
        }
    )
    return table.filter(pa.array(keep))


def _new_queries(lake: Lake, queries: pa.Table, refusals: Refusals) -> pa.Table:
    """The queries whose id the lake does not know; a known id with another content is refused, never overwritten."""
    known = lake.read("queries", ["query_id", "text", "image_id"])
    found = _sql(
        """SELECT q.query_id, k.text IS NOT DISTINCT FROM q.text AND k.image_id IS NOT DISTINCT FROM q.image_id AS same
        FROM queries q JOIN known k USING (query_id)""",
        queries=queries.select(["query_id", "text", "image_id"]),
        known=known,
    )
    for query_id in found.filter(pc.invert(found["same"]))["query_id"].to_pylist():
        refusals.add("queries", {"query_id": query_id}, "query_id", f"query_id = {query_id} is in the lake with another content")
    return queries.filter(pc.invert(pc.is_in(queries["query_id"], found["query_id"].combine_chunks())))


def _referential(lake: Lake, raw: pa.Table, refusals: Refusals) -> pa.Table:
    """The rows of the ``events`` table, without ``created``; an event must name an item and a query that the lake has."""
    if not raw.num_rows:
        return _empty("events")
    items = lake.read("items", ["item_id"])["item_id"].combine_chunks()
    queries = lake.read("queries", ["query_id"])["query_id"].combine_chunks()
    raw = refusals.split(raw, pc.invert(pc.is_in(raw["item_id"], items)), "events", "item_id", "is no item of the catalogue")
    lost = pc.and_(pc.is_valid(raw["query_id"]), pc.invert(pc.is_in(raw["query_id"], queries)))
    raw = refusals.split(raw, lost, "events", "query_id", "is no known query")
    raw = raw.rename_columns(["event_timestamp" if n == "timestamp" else n for n in raw.column_names])
    return raw.select([n for n in SCHEMAS["events"].names if n != "created"])


def _new_events(lake: Lake, events: pa.Table) -> pa.Table:
    """The events that the lake does not have yet: events have no id, so a row is known by all its columns."""
    names = events.column_names
    if not events.num_rows or not lake.count("events"):
        return _sql(f"SELECT DISTINCT {', '.join(names)} FROM events ORDER BY ALL", events=events)
    span = pc.min_max(events["event_timestamp"]).as_py()
    low, high = (span[end].strftime("%Y-%m-%d %H:%M:%S.%f") for end in ("min", "max"))
    known = lake.read("events", names, f"event_timestamp >= timestamp '{low}' AND event_timestamp <= timestamp '{high}'")
    return _sql(
        f"SELECT {', '.join(names)} FROM events EXCEPT SELECT {', '.join(names)} FROM known ORDER BY ALL",
        events=events,
        known=known,
    )


def _quarantine(lake: Lake, refusals: Refusals, now: dt.datetime) -> None:
    """Append the refusals that are not there from an earlier run of the same directory."""
    kind = pa.schema([f for f in SCHEMAS["quarantine"] if f.name != "created"])
    rows = pa.Table.from_pylist(refusals.rows, schema=kind)
    names = ", ".join(f'"{name}"' for name in kind.names)
    fresh = _sql(
        f"SELECT {names} FROM rows EXCEPT SELECT {names} FROM known",
        rows=rows,
        known=lake.read("quarantine", kind.names),
    )
    lake.append("quarantine", _stamped(fresh, "quarantine", now))


def _first(refusals: Refusals) -> str:
    return f"{refusals.rows[0]['source']}: {refusals.rows[0]['reason']}" if refusals.rows else ""


def _empty(table: str) -> pa.Table:
    return pa.schema([f for f in SCHEMAS[table] if f.name != "created"]).empty_table()


def _stamped(rows: pa.Table, table: str, now: dt.datetime) -> pa.Table:
    """The rows with ``created``, in exactly the table's schema."""
    stamped = rows.append_column("created", pa.array([now] * rows.num_rows, STAMP))
    return stamped.select(SCHEMAS[table].names).cast(SCHEMAS[table])


def _sql(query: str, **tables: pa.Table) -> pa.Table:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name, table in tables.items():
            connection.register(name, table)
        return connection.sql(query).to_arrow_table()
