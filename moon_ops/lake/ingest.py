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

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.errors import InputError
from moon_ops.lake import clocks, layout, naming, rows, tombstones
from moon_ops.lake.intake import Intake
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import ROW, Refusals
from moon_ops.lake.naming import Names
from moon_ops.lake.query import newest, sql
from moon_ops.lake.schemas import SCHEMAS, STAMP

FILES = ("items", "queries", "events", "users")
FUTURE = dt.timedelta(days=1)  # clocks differ, and so do zones
TIMED = {"queries": "timestamp", "events": "timestamp", "users": "timestamp"}  # of what has happened; `available_from` may lie ahead
COPIED = ("item_id", "source_id", "title", "brand", "description", "seller_id", "price", "status")
VERSION = ("content_hash", "spu_id", "seller_id", "price", "status", "extra")  # an item of which any of these changed is a new version


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
    users: int = 0  # new ones, and known ones of whom something else is told
    warning: str = ""  # that this clock, or the one of an earlier ingest, is wrong


def ingest(source: Path, lake: Lake, *, now: dt.datetime, workers: int = 2, patience: float | None = None) -> IngestReport:
    """Ingest the directory ``source``; ``now`` is the time at which its rows become known.

    Raises :class:`~moon_ops.errors.InputError` for a directory that cannot be used as a whole (no items, a missing column, an
    empty catalogue), :class:`~moon_ops.errors.ServiceError` if others have been writing for ``patience`` seconds; without it, it waits.
    Rows that cannot be used go to the ``quarantine`` table, and the rest goes on.
    """
    if not source.is_dir():
        raise InputError(f"DIRECTORY = {source} is not a directory", action="name a directory that holds an items file")
    refusals, names = Refusals(), Names()
    raw = {name: rows.read(source, name, refusals, names) for name in FILES}  # all checked before anything is written
    for name, column in TIMED.items():
        late = layout.filled(pc.greater(raw[name][column], pa.scalar(now + FUTURE, STAMP)), False)
        raw[name] = refusals.split(raw[name], late, name, column, f"is in the future (it is {now:%Y-%m-%dT%H:%MZ})")
    with lake.one_writer(patience):  # two ingests at once would each find the other's rows missing
        return _write(source, lake, raw, names, refusals, now=now, workers=workers)


def _write(
    source: Path, lake: Lake, raw: dict[str, pa.Table], names: Names, refusals: Refusals, *, now: dt.datetime, workers: int
) -> IngestReport:
    """Commit pictures, ids, items, users, queries, events and refusals, in this order."""
    for name in FILES:
        lake.evolve(name)
    raw, texts = names.settle(lake, tombstones.refuse(lake, raw, refusals), refusals)
    warning = clocks.warning(lake, now)
    intake = Intake(source, lake, refusals, now=now, workers=workers)
    images = intake.store([*_references(raw["items"], "images"), *_references(raw["queries"], "image")])
    items = _items(raw["items"], intake, _pictures_kept(lake, raw["items"], intake))
    if not items.num_rows and not lake.count("items"):
        _quarantine(lake, refusals, now)
        raise InputError(f"{source}: no item could be used ({_first(refusals)}); the catalogue is empty", action="mend the items file")
    naming.commit(lake, texts, raw, now)
    fresh, updated = _new_versions(lake, items, raw["events"], now)
    _commit(lake, "items", fresh, now)
    users = _commit(lake, "users", _new_users(lake, raw["users"], raw["events"], now), now) if raw["users"].num_rows else 0
    queries = _commit(lake, "queries", _new_queries(lake, _queries(raw["queries"], intake), refusals), now)
    good = _referential(lake, raw["events"], refusals)
    events = _commit(lake, "events", _new_events(lake, good), now)
    _quarantine(lake, refusals, now)
    return IngestReport(
        source=str(source),
        images=images,
        items=fresh.num_rows - updated,
        updated=updated,
        queries=queries,
        events=events,
        known=items.num_rows - fresh.num_rows + good.num_rows - events,
        users=users,
        refused=refusals.summary(),
        first_refusal=_first(refusals),
        warning=warning,
    )


def _references(table: pa.Table, column: str) -> list[str]:
    """Every picture that the rows name, in order, each once."""
    cells = table[column].to_pylist()
    return list(dict.fromkeys(path for cell in cells for path in layout.words(cell, "|" if column == "images" else "\0")))


def _items(raw: pa.Table, intake: Intake, kept: dict[int, list[str]]) -> pa.Table:
    """The rows of the ``items`` table, without ``created``; a picture that was refused is left out of its item."""
    made = []
    for row in raw.to_pylist():
        try:
            attributes = layout.pairs(row["attributes"])
        except ValueError:
            reason = f"attributes = {row['attributes']!r} is not an object"
            intake.refusals.add("items", row[ROW], "attributes", reason)
            continue
        had = kept.get(row["item_id"], [])
        pictures = intake.ids(layout.words(row["images"], "|"), "items", row[ROW], "images")
        item = {
            **{name: row[name] for name in (*COPIED, "extra")},
            "spu_id": row["item_id"] if row["spu_id"] is None else row["spu_id"],
            "category": layout.words(row["category"], ">"),
            "attributes": attributes,
            "image_ids": [*had, *(picture for picture in pictures if picture not in had)],
            "event_timestamp": row["available_from"],
        }
        made.append({**item, "content_hash": content_hash(item)})
    kind = pa.schema([f.with_nullable(True) for f in SCHEMAS["items"] if f.name != "created"])
    return pa.Table.from_pylist(made, schema=kind)


def _pictures_kept(lake: Lake, raw: pa.Table, intake: Intake) -> dict[int, list[str]]:
    """The pictures that known items have, for those of which one cannot be read now: a host that is down takes no picture away."""
    cells = zip(raw["item_id"].to_pylist(), raw["images"].to_pylist(), strict=True)
    without = [item for item, cell in cells if any(r in intake.faults for r in layout.words(cell, "|"))]
    if not without:
        return {}
    known = _current(lake, ["image_ids"])
    known = known.filter(pc.is_in(known["item_id"], pa.array(without, pa.int64())))
    return {row["item_id"]: row["image_ids"] for row in known.select(["item_id", "image_ids"]).to_pylist()}


def content_hash(item: dict[str, object]) -> str:
    """A short hash of what an encoder reads of an item: if it is unchanged, so is the item's vector."""
    read = [item[name] for name in ("title", "category", "brand", "description", "attributes", "image_ids")]
    return hashlib.blake2b(json.dumps(read).encode(), digest_size=12).hexdigest()


def _current(lake: Lake, columns: list[str]) -> pa.Table:
    """The newest version of every item in the lake: the one valid last, of those the one learned last, of those the one written last."""
    return newest(lake.read("items", ["item_id", "event_timestamp", "created", *columns]), "item_id")


def _new_versions(lake: Lake, items: pa.Table, events: pa.Table, now: dt.datetime) -> tuple[pa.Table, int]:
    """The items that the lake does not have as they are, and how many of them are new versions of known ones.

    A new item without ``available_from`` is valid from its first event, which shows that it was there, or else from ``now``.
    A new version of a known item is valid from ``now``: its ``available_from`` tells when the item came, not when it changed. One
    that is to come is replaced where it comes, so that a change brings no item forward. Where the clock lies before the moment at which
    the last version was learned, the new one is learned right after that: what is brought last is what holds.
    """
    same = " AND ".join(f"k.{name} IS NOT DISTINCT FROM i.{name}" for name in VERSION)
    found = sql(
        f"""SELECT i.item_id, k.event_timestamp AS since, k.created AS learned FROM items i LEFT JOIN k USING (item_id)
        WHERE k.item_id IS NULL OR NOT ({same})""",
        items=items.select(["item_id", *VERSION]),
        k=_current(lake, list(VERSION)),
    )
    last = {row["item_id"]: (row["since"], row["learned"]) for row in found.to_pylist()}  # None: not in the lake
    fresh = items.filter(pc.is_in(items["item_id"], found["item_id"].combine_chunks()))
    seen = events.group_by("item_id").aggregate([("timestamp", "min")])
    first = dict(zip(seen["item_id"].to_pylist(), seen["timestamp_min"].to_pylist(), strict=True))
    since, learned = [], []
    for item, available in zip(fresh["item_id"].to_pylist(), fresh["event_timestamp"].to_pylist(), strict=True):
        known, known_since = last[item]
        learned.append(clocks.after(known_since, now))
        since.append(max(learned[-1], known) if known else available or first.get(item, now))
    fresh = layout.replace(fresh, "event_timestamp", pa.array(since, STAMP)).append_column("created", pa.array(learned, STAMP))
    return fresh, len(last) - found["since"].null_count


def _new_users(lake: Lake, users: pa.Table, events: pa.Table, now: dt.datetime) -> pa.Table:
    """The users of whom something else is told than the lake knows, valid from ``timestamp``; without one a new user's row is valid from
    the user's first event, which shows that there was one, and a changed row from ``now``, or right after the row that it changes.
    """
    query = """
    WITH first AS (SELECT user_id, min(timestamp) AS seen FROM events GROUP BY 1)
    SELECT u.user_id, u.extra, coalesce(u.timestamp, CASE WHEN k.user_id IS NULL THEN first.seen END,
        CASE WHEN k.event_timestamp > $now THEN k.event_timestamp + INTERVAL 1 MICROSECOND END, $now) AS event_timestamp
    FROM users u LEFT JOIN known k USING (user_id) LEFT JOIN first USING (user_id)
    WHERE k.user_id IS NULL OR k.extra IS DISTINCT FROM u.extra ORDER BY u.user_id"""
    known = newest(lake.read("users", ["user_id", "event_timestamp", "created", "extra"]), "user_id")
    return sql(query, {"now": now}, users=users, known=known, events=events.select(["user_id", "timestamp"]))


def _queries(raw: pa.Table, intake: Intake) -> pa.Table:
    """The rows of the ``queries`` table, without ``created``; one whose only content was a refused picture is left out."""
    cells = raw.select([ROW, "image"]).to_pylist()
    found = [intake.ids([cell["image"]], "queries", cell[ROW], "image") if cell["image"] else [] for cell in cells]
    table = raw.append_column("image_id", pa.array([ids[0] if ids else None for ids in found], pa.string()))
    table = table.rename_columns(["event_timestamp" if n == "timestamp" else n for n in table.column_names])
    return table.filter(pc.or_(pc.is_valid(table["image_id"]), pc.is_valid(table["text"])))


def _new_queries(lake: Lake, queries: pa.Table, refusals: Refusals) -> pa.Table:
    """The queries whose id the lake does not know; a known id with another content is refused, never overwritten."""
    found = sql(
        """SELECT q.query_id, k.text IS NOT DISTINCT FROM q.text AND k.image_id IS NOT DISTINCT FROM q.image_id AS same
        FROM queries q JOIN known k USING (query_id)""",
        queries=queries.select(["query_id", "text", "image_id"]),
        known=lake.read("queries", ["query_id", "text", "image_id"]),
    )
    other = found.filter(pc.invert(found["same"]))["query_id"].combine_chunks()
    queries = refusals.split(queries, pc.is_in(queries["query_id"], other), "queries", "query_id", "is in the lake with another content")
    return queries.filter(pc.invert(pc.is_in(queries["query_id"], found["query_id"].combine_chunks())))


def _referential(lake: Lake, raw: pa.Table, refusals: Refusals) -> pa.Table:
    """The rows of the ``events`` table, without ``created``; an event must name an item and a query that the lake has."""
    items = lake.read("items", ["item_id"])["item_id"].combine_chunks()
    queries = lake.read("queries", ["query_id"])["query_id"].combine_chunks()
    raw = refusals.split(raw, pc.invert(pc.is_in(raw["item_id"], items)), "events", "item_id", "is no item of the catalogue")
    lost = pc.and_(pc.is_valid(raw["query_id"]), pc.invert(pc.is_in(raw["query_id"], queries)))
    raw = refusals.split(raw, lost, "events", "query_id", "is no known query")
    raw = raw.rename_columns(["event_timestamp" if n == "timestamp" else n for n in raw.column_names])
    return raw.select([n for n in SCHEMAS["events"].names if n != "created"])


def _new_events(lake: Lake, events: pa.Table) -> pa.Table:
    """The events that the lake does not have yet: events have no id, so a row is known by all its standard columns.

    The shop's own columns do not count: an event that is sent again with another column more is no second event.
    """
    names = [name for name in events.column_names if name != "extra"]
    events = sql(f"SELECT DISTINCT ON ({', '.join(names)}) * FROM events ORDER BY ALL", events=events)
    if not events.num_rows or not lake.count("events"):
        return events
    low, high = (f"{end(events['event_timestamp']).as_py():%Y-%m-%d %H:%M:%S.%f}" for end in (pc.min, pc.max))
    known = lake.read("events", names, f"event_timestamp >= timestamp '{low}' AND event_timestamp <= timestamp '{high}'")
    same = " AND ".join(f"e.{name} IS NOT DISTINCT FROM k.{name}" for name in names)
    return sql(f"SELECT * FROM events e WHERE NOT EXISTS (SELECT 1 FROM known k WHERE {same}) ORDER BY ALL", events=events, known=known)


def _quarantine(lake: Lake, refusals: Refusals, now: dt.datetime) -> None:
    """Append the refusals that are not there from an earlier run of the same directory."""
    kind = pa.schema([f for f in SCHEMAS["quarantine"] if f.name != "created"])
    refused = pa.Table.from_pylist(refusals.rows, schema=kind)
    names = ", ".join(f'"{name}"' for name in kind.names)
    fresh = sql(
        f"SELECT {names} FROM refused EXCEPT SELECT {names} FROM known",
        refused=refused,
        known=lake.read("quarantine", kind.names),
    )
    _commit(lake, "quarantine", fresh, now)


def _first(refusals: Refusals) -> str:
    return f"{refusals.rows[0]['source']}: {refusals.rows[0]['reason']}" if refusals.rows else ""


def _commit(lake: Lake, table: str, new: pa.Table, now: dt.datetime) -> int:
    """Append the rows, known since ``now`` if they do not say otherwise, in exactly the table's schema."""
    stamped = new if "created" in new.column_names else new.append_column("created", pa.array([now] * new.num_rows, STAMP))
    return lake.append(table, stamped.select(SCHEMAS[table].names).cast(SCHEMAS[table]))
