"""Take a shop's directory into the lake: check it, store each picture once, set bad rows aside, add what is new.

The same directory twice changes nothing. A run that is killed between two commits is finished by running it again: pictures,
items, queries and events are committed in this order, so nothing in the lake ever refers to what is not there.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.errors import InputError, counted
from moon_ops.lake import (
    arrivals,
    asked,
    clocks,
    ids,
    layout,
    long_log,
    lookups,
    meanings,
    naming,
    rows,
    seen,
    told_users,
    tombstones,
    versions,
)
from moon_ops.lake.intake import Intake
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import ROW, Refusals
from moon_ops.lake.long_log import LongLog
from moon_ops.lake.meanings import Meanings
from moon_ops.lake.naming import Names
from moon_ops.lake.query import sql
from moon_ops.lake.reading import files, markup, pictures
from moon_ops.lake.schemas import SCHEMAS, STAMP
from moon_ops.lake.seen import Taken
from moon_ops.telemetry.stages import stage

FEW = 10_000  # rows that are Python's objects at a time
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
    words = words or meanings.of(source)
    read = _read(source, lake, words, now, feed, long_log.of(source, words, now))  # all checked before anything is written
    with lake.one_writer(patience):  # two ingests at once would each find the other's rows missing
        first = read.log.first_seen(lake) if read.log else None
        read = read if first or not read.log else _read(source, lake, words, now, feed, None)
        report = _write(source, lake, read, first or (read.raw["events"], read.raw["events"]), (now, workers, feed))
        changed = {"items": report.items + report.updated + report.withdrawn, "images": report.images, "fetches": report.images}
        changed |= {"users": report.users, "queries": report.queries, "events": report.events, "ids": report.items}
        for name in (table for table, count in changed.items() if count):
            lookups.tend(lake, name)
    return report


@dataclass(frozen=True)
class Read:
    """A directory's rows, what was refused of them, the shop's ids among them, and the log of events if that is read in pieces."""

    raw: dict[str, pa.Table]
    refusals: Refusals
    names: Names
    log: LongLog | None


def _read(source: Path, lake: Lake, words: Meanings, now: dt.datetime, feed: Feed, log: LongLog | None) -> Read:
    """Read the directory; ids that are texts may clash with any other, so that a log beside them is read whole."""
    found, sold = Read({}, Refusals(), Names(), log), not feed.full and lake.count("items") > 0
    content = log.content if log else None
    found.raw.update(rows.read_all(source, found.refusals, words, found.names, now=now, sold=sold, log=content))
    return _read(source, lake, words, now, feed, None) if log and (found.names.texts or lake.exists(ids.TABLE)) else found


def _write(source: Path, lake: Lake, read: Read, first: tuple[pa.Table, pa.Table], how: How) -> IngestReport:
    """Commit pictures, ids, items, users, queries, events and refusals, in this order; ``first`` says when items and users were seen."""
    (now, workers, feed), raw, refusals, names = how, read.raw, read.refusals, read.names
    for name in rows.FILES:
        lake.evolve(name)
    raw, texts = names.settle(lake, tombstones.refuse(lake, raw, refusals), refusals)
    of_items, of_users = first if read.log else (raw["events"], raw["events"])
    warning, taken = clocks.warning(lake, now), seen.taken(lake, refusals, now, once=feed.once)
    intake = Intake(source, lake, refusals, now=now, workers=workers, keeps=feed.pictures)
    told, gone, images = _told(lake, raw, intake, feed)
    naming.commit(lake, texts, raw, now)
    made = versions.made(lake, pa.concat_tables([told, gone]), of_items, _said(taken, raw["items"], gone), now)
    withdrawn = pc.sum(pc.is_in(made.fresh["item_id"], gone["item_id"].combine_chunks())).as_py() or 0
    _commit(lake, "items", pa.concat_tables([made.fresh, made.ends]), now)
    told_of, late = told_users.new(lake, raw["users"], of_users, taken, now)
    users = _commit(lake, "users", told_of, now) if raw["users"].num_rows else 0
    new, repeated = asked.new(lake, asked.described(raw["queries"], intake), refusals)
    queries = _commit(lake, "queries", new, now)
    events, again = _events(lake, read.log.pieces(lake, refusals) if read.log else [raw["events"]], refusals, now)
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
    cells = table[column].drop_null()
    return list(dict.fromkeys(path for cell in cells.to_pylist() for path in _named(cell, column)))


def _named(cell: object, column: str) -> list[str]:
    """The pictures that a cell names; a query has one."""
    return pictures.references(cell if column == "images" or cell is None else [cell])


def _items(raw: pa.Table, intake: Intake, kept: dict[int, list[str]]) -> pa.Table:
    """The rows of the ``items`` table, without ``created``; few at a time are Python's objects, which are large."""
    parts = (_some_items(raw.slice(start, FEW), intake, kept) for start in range(0, raw.num_rows, FEW))
    return pa.concat_tables([versions.DESCRIBED.empty_table(), *parts])


def _some_items(raw: pa.Table, intake: Intake, kept: dict[int, list[str]]) -> pa.Table:
    """A picture that was refused is left out of its item."""
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
    if not intake.faults:
        return {}
    cells = zip(raw["item_id"].to_pylist(), raw["images"].to_pylist(), strict=True)
    without = [item for item, cell in cells if any(r in intake.faults for r in _named(cell, "images"))]
    if not without:
        return {}
    known = versions.current(lake, ["image_ids"], pa.array(without, pa.int64()))
    return {row["item_id"]: row["image_ids"] for row in known.select(["item_id", "image_ids"]).to_pylist()}


def _events(lake: Lake, pieces: Iterable[pa.Table], refusals: Refusals, now: dt.datetime) -> tuple[int, int]:
    """Commit the events piece by piece; how many are new, and how many the lake has, or the pieces before. Killed, it is done again: an
    event that was committed is known.
    """
    new, again, named = 0, 0, arrivals.Named(lake)
    for piece in pieces:
        fresh, known = arrivals.fresh(lake, named.referential(piece, refusals), refusals)
        new, again = new + _commit(lake, "events", fresh, now), again + known
    return new, again


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
