"""Take a shop's directory into the lake: check it, store each picture once, set bad rows aside, add what is new.

The same directory twice changes nothing. A run that is killed between two commits is finished by running it again: pictures,
items, queries and events are committed in this order, so nothing in the lake ever refers to what is not there.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.errors import InputError, counted
from moon_ops.lake import arrivals, changes, clocks, layout, lookups, meanings, naming, rows, seen, tombstones, versions
from moon_ops.lake.intake import Intake
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import ROW, Refusals
from moon_ops.lake.meanings import Meanings
from moon_ops.lake.naming import Names
from moon_ops.lake.query import newest, sql
from moon_ops.lake.reading import files, markup, pictures
from moon_ops.lake.schemas import SCHEMAS, STAMP
from moon_ops.lake.seen import Taken
from moon_ops.telemetry.stages import stage

COPIED = ("item_id", "source_id", "title", "brand", "description", "seller_id", "price", "status", "available_until")


@dataclass(frozen=True)
class IngestReport:
    """What one ingest added; ``known`` rows were in the lake already. ``refused`` counts rows per file and column.

    Of every table the rows in its files are those that are new, changed, known, merged or refused. Pictures that could not be read are
    counted in ``unread``; their rows went in without them.
    """

    source: str
    images: int
    items: int
    updated: int
    queries: int
    events: int
    known: int
    refused: dict[str, int] = field(default_factory=dict)
    erased: dict[str, int] = field(default_factory=dict)  # rows per file and column that name what was erased: not taken in
    first_refusal: str = ""
    users: int = 0  # new ones, and known ones of whom something else is told
    warning: str = ""  # that this clock, or the one of an earlier ingest, is wrong
    unread: dict[str, int] = field(default_factory=dict)  # pictures, per file and column
    merged: int = 0  # rows that continue an item and went into its first one
    withdrawn: int = 0  # items that a full feed does not have any more
    read: dict[str, str] = field(default_factory=dict, compare=False)  # how each table's file is written
    notes: tuple[str, ...] = ()  # what was passed over, and why


@dataclass(frozen=True)
class Feed:
    """Whether the items file is the whole catalogue, and how large a share of the items in sale it may withdraw; ``once``: the directory
    will not be there again; ``pictures``: they are kept. :class:`InputError` for what is no share.
    """

    full: bool = False
    most: float = 0.2
    once: bool = False
    pictures: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.most <= 1:
            raise InputError(f"withdraw at most {self.most:g}: this is no share", action="give a number from 0 to 1")


WHAT_CHANGED = Feed()
How: TypeAlias = tuple[dt.datetime, int, Feed]  # now, workers and the kind of feed


@stage("ingest")
def ingest(
    source: Path,
    lake: Lake,
    *,
    now: dt.datetime,
    workers: int = 2,
    patience: float | None = None,
    words: Meanings | None = None,
    feed: Feed = WHAT_CHANGED,
) -> IngestReport:
    """Ingest the directory ``source``; ``now`` is the time at which its rows become known.

    ``words`` says what the shop's own words mean, without it the directory's ``moon.toml`` does. Raises
    :class:`~moon_ops.errors.InputError` for a directory that cannot be used as a whole (no items, a missing column, an
    empty catalogue, half a feed), :class:`~moon_ops.errors.ServiceError` if others have been writing for ``patience`` seconds; without it,
    it waits. Rows that cannot be used go to the ``quarantine`` table, and the rest goes on.
    """
    refusals, names = Refusals(), Names()
    sold = not feed.full and lake.count("items") > 0
    raw = rows.read_all(source, refusals, words or meanings.of(source), names, now=now, sold=sold)  # all checked before anything is written
    with lake.one_writer(patience):  # two ingests at once would each find the other's rows missing
        report = _write(source, lake, raw, names, refusals, (now, workers, feed))
        changed = {"items": report.items + report.updated + report.withdrawn, "images": report.images, "fetches": report.images}
        changed |= {"users": report.users, "queries": report.queries, "events": report.events, "ids": report.items}
        for name in (table for table, count in changed.items() if count):
            lookups.tend(lake, name)
    return report


def _write(source: Path, lake: Lake, raw: dict[str, pa.Table], names: Names, refusals: Refusals, how: How) -> IngestReport:
    """Commit pictures, ids, items, users, queries, events and refusals, in this order."""
    now, workers, feed = how
    for name in rows.FILES:
        lake.evolve(name)
    raw, texts = names.settle(lake, tombstones.refuse(lake, raw, refusals), refusals)
    warning, taken = clocks.warning(lake, now), seen.taken(lake, refusals, now, once=feed.once)
    intake = Intake(source, lake, refusals, now=now, workers=workers, keeps=feed.pictures)
    told, gone, images = _told(lake, raw, intake, feed)
    naming.commit(lake, texts, raw, now)
    made = versions.made(lake, pa.concat_tables([told, gone]), raw["events"], _said(taken, raw["items"], gone), now)
    withdrawn = pc.sum(pc.is_in(made.fresh["item_id"], gone["item_id"].combine_chunks())).as_py() or 0
    _commit(lake, "items", pa.concat_tables([made.fresh, made.ends]), now)
    users, late = _users(lake, raw, taken, now)
    new, repeated = _new_queries(lake, _queries(raw["queries"], intake), refusals)
    queries = _commit(lake, "queries", new, now)
    fresh, again = arrivals.fresh(lake, _referential(lake, raw["events"], refusals), refusals)
    events = _commit(lake, "events", fresh, now)
    _quarantine(lake, refusals, now)
    taken.remember(lake)
    return IngestReport(
        source=str(source),
        images=images,
        items=made.fresh.num_rows - made.updated,
        updated=made.updated - withdrawn,
        queries=queries,
        events=events,
        known=told.num_rows - made.fresh.num_rows + withdrawn + again + repeated + raw["users"].num_rows - users,
        users=users,
        refused=refusals.summary(),
        erased=refusals.erased,
        first_refusal=_first(refusals),
        warning=warning,
        unread=refusals.pictures,
        merged=refusals.merged.get("items", 0),
        withdrawn=withdrawn,
        read={content.label: ", ".join(content.said) for content in refusals.contents.values()},
        notes=_notes(source, refusals, intake, {"items": made.older, "users": late}),
    )


def _told(lake: Lake, raw: dict[str, pa.Table], intake: Intake, feed: Feed) -> tuple[pa.Table, pa.Table, int]:
    """What the rows say of items, what withdraws those that a full feed does not have, and how many pictures were new."""
    refusals = intake.refusals
    gone = versions.missing(lake, refusals, feed.most, intake.now) if feed.full else versions.DESCRIBED.empty_table()
    described, bare = versions.bare(lake, raw["items"], refusals)
    images = intake.store([*_references(described, "images"), *_references(raw["queries"], "image")])
    told = pa.concat_tables([_items(described, intake, _pictures_kept(lake, described, intake)), bare])
    if not told.num_rows and not lake.count("items"):
        _quarantine(lake, refusals, intake.now)
        what = f"no item could be used ({_first(refusals)}); the catalogue is empty"
        raise InputError(f"{intake.source}: {what}", action="mend the items file")
    return told, gone, images


def _said(taken: Taken, items: pa.Table, gone: pa.Table) -> pa.Table:
    """When it was said first what the items are: by the file of each, and by all of them that others are not there any more."""
    at, again = taken.whole("items")
    missing = pa.table(
        {"item_id": gone["item_id"], "said": pa.array([at] * len(gone), STAMP), "again": pa.array([again] * len(gone), pa.bool_())}
    )
    return pa.concat_tables([taken.said("items", items, "item_id"), missing])


def _notes(source: Path, refusals: Refusals, intake: Intake, older: dict[str, int]) -> tuple[str, ...]:
    """What the ingest has passed over, each in a sentence."""
    found = [note for content in refusals.contents.values() for note in content.notes]
    for name, count in older.items():
        if count:
            file, anew = f"of the {name} file, which was taken in before as it is,", "write the file anew to bring"
            one = f"row {file} is older than what the lake has: this {name[:-1]} stays as it is ({anew} it all the same)"
            many = f"rows {file} are older than what the lake has: these {name} stay as they are ({anew} them all the same)"
            found.append(counted(count, one, many))
    used = {path.resolve() for content in refusals.contents.values() for path in content.paths} | intake.paths
    return tuple(note for note in (*found, files.passed_over(source.resolve(), used)) if note)


def _references(table: pa.Table, column: str) -> list[str]:
    """Every picture that the rows name, in order, each once."""
    return list(dict.fromkeys(path for cell in table[column].to_pylist() for path in _named(cell, column)))


def _named(cell: object, column: str) -> list[str]:
    """The pictures that a cell names; a query has one."""
    return pictures.references(cell if column == "images" or cell is None else [cell])


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
        shown = intake.ids(_named(row["images"], "images"), "items", row[ROW], "images")
        item = {
            **{name: row[name] for name in (*COPIED, "extra")},
            "spu_id": row["item_id"] if row["spu_id"] is None else row["spu_id"],
            "category": [markup.text(word) for word in layout.words(row["category"], ">")],
            "attributes": [(name, markup.text(value)) for name, value in attributes],
            "image_ids": [*had, *(picture for picture in shown if picture not in had)],
            "event_timestamp": row["available_from"],
        }
        made.append({**item, "content_hash": versions.content_hash(item)})
    return pa.Table.from_pylist(made, schema=versions.DESCRIBED)


def _pictures_kept(lake: Lake, raw: pa.Table, intake: Intake) -> dict[int, list[str]]:
    """The pictures that known items have, for those of which one cannot be read now: a host that is down takes no picture away."""
    cells = zip(raw["item_id"].to_pylist(), raw["images"].to_pylist(), strict=True)
    without = [item for item, cell in cells if any(r in intake.faults for r in _named(cell, "images"))]
    if not without:
        return {}
    known = versions.current(lake, ["image_ids"], pa.array(without, pa.int64()))
    return {row["item_id"]: row["image_ids"] for row in known.select(["item_id", "image_ids"]).to_pylist()}


def _users(lake: Lake, raw: dict[str, pa.Table], taken: Taken, now: dt.datetime) -> tuple[int, int]:
    """Commit what is told of users; how many rows are new, and how many say what is not true any more."""
    if not raw["users"].num_rows:
        return 0, 0
    found = _new_users(lake, raw["users"], raw["events"], taken.said("users", raw["users"], "user_id"), now)
    new = found.filter(pc.invert(found["older"])).drop_columns("older")
    return _commit(lake, "users", new, now), found.num_rows - new.num_rows


def _new_users(lake: Lake, users: pa.Table, events: pa.Table, said: pa.Table, now: dt.datetime) -> pa.Table:
    """The users of whom something else is told than the lake knows, valid from ``timestamp``; without one a new user's row is valid from
    the user's first event, which shows that there was one, and a changed row from ``now``, or right after the row that it changes.
    ``older`` rows stand in a file that was taken in before the lake learned what it has.
    """
    query = """
    WITH first AS (SELECT user_id, min(timestamp) AS seen FROM events GROUP BY 1)
    SELECT u.user_id, u.extra, coalesce(s.again AND k.created > s.said, false) AS older,
        greatest($now, s.said, k.created + INTERVAL 1 MICROSECOND) AS created,
        coalesce(u.timestamp, CASE WHEN k.user_id IS NULL THEN first.seen END,
        CASE WHEN k.event_timestamp > $now THEN k.event_timestamp + INTERVAL 1 MICROSECOND END, $now) AS event_timestamp
    FROM users u JOIN said s USING (user_id) LEFT JOIN known k USING (user_id) LEFT JOIN first USING (user_id)
    WHERE k.user_id IS NULL OR k.extra IS DISTINCT FROM u.extra ORDER BY u.user_id"""
    known = newest(changes.known(lake, "users", users["user_id"], ["user_id", "event_timestamp", "created", "extra"]), "user_id")
    return sql(query, {"now": now}, users=users, said=said, known=known, events=events.select(["user_id", "timestamp"]))


def _queries(raw: pa.Table, intake: Intake) -> pa.Table:
    """The rows of the ``queries`` table, without ``created``; one whose only content was a refused picture is left out."""
    cells = raw.select([ROW, "image"]).to_pylist()
    found = [intake.ids(_named(cell["image"], "image"), "queries", cell[ROW], "image") for cell in cells]
    table = raw.append_column("image_id", pa.array([ids[0] if ids else None for ids in found], pa.string()))
    table = table.rename_columns(["event_timestamp" if n == "timestamp" else n for n in table.column_names])
    nothing = pc.and_(pc.is_null(table["image_id"]), pc.is_null(table["text"]))
    return intake.refusals.split(table, nothing, "queries", "image", "cannot be read, and the query has no text")


def _new_queries(lake: Lake, queries: pa.Table, refusals: Refusals) -> tuple[pa.Table, int]:
    """The queries whose id the lake does not know, and how many it has as they are; a known id with another content is refused."""
    if not queries.num_rows:
        return queries, 0
    names = ["query_id", "text", "image_id"]
    found = sql(
        """SELECT q.query_id, k.text IS NOT DISTINCT FROM q.text AND k.image_id IS NOT DISTINCT FROM q.image_id AS same
        FROM queries q JOIN known k USING (query_id)""",
        queries=queries.select(names),
        known=changes.known(lake, "queries", queries["query_id"], names),
    )
    other = found.filter(pc.invert(found["same"]))["query_id"].combine_chunks()
    queries = refusals.split(queries, pc.is_in(queries["query_id"], other), "queries", "query_id", "is in the lake with another content")
    known = pc.is_in(queries["query_id"], found["query_id"].combine_chunks())
    return queries.filter(pc.invert(known)), pc.sum(known).as_py() or 0


def _referential(lake: Lake, raw: pa.Table, refusals: Refusals) -> pa.Table:
    """The rows of the ``events`` table, without ``created``; an event must name an item and a query that the lake has."""
    named = (("items", "item_id"), ("queries", "query_id"))
    items, queries = (changes.known(lake, table, raw[key], [key])[key].combine_chunks() for table, key in named)
    raw = refusals.split(raw, pc.invert(pc.is_in(raw["item_id"], items)), "events", "item_id", "is no item of the catalogue")
    lost = pc.and_(pc.is_valid(raw["query_id"]), pc.invert(pc.is_in(raw["query_id"], queries)))
    raw = refusals.split(raw, lost, "events", "query_id", "is no known query")
    raw = raw.rename_columns(["event_timestamp" if n == "timestamp" else n for n in raw.column_names])
    return raw.select([*(n for n in SCHEMAS["events"].names if n != "created"), ROW])


def _quarantine(lake: Lake, refusals: Refusals, now: dt.datetime) -> None:
    """Append the refusals that are not there from an earlier run of the same directory."""
    if not refusals.rows and lake.exists("quarantine"):
        return
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
    found = sorted(range(len(refusals.rows)), key=lambda number: refusals.counted[number][0] is refusals.erased)[
        :1
    ]  # of the others, if any
    return f"{refusals.rows[found[0]]['source']}: {refusals.rows[found[0]]['reason']}" if found else ""


def _commit(lake: Lake, table: str, new: pa.Table, now: dt.datetime) -> int:
    """Append the rows, known since ``now`` if they do not say otherwise, in exactly the table's schema."""
    stamped = new if "created" in new.column_names else new.append_column("created", pa.array([now] * new.num_rows, STAMP))
    return lake.append(table, stamped.select(SCHEMAS[table].names).cast(SCHEMAS[table]))
