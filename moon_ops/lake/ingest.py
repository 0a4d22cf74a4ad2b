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
from moon_ops.lake import (
    arrivals,
    asked,
    clocks,
    long_log,
    lookups,
    meanings,
    naming,
    rows,
    seen,
    told_items,
    told_users,
    tombstones,
    versions,
)
from moon_ops.lake.intake import Intake
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import Refusals
from moon_ops.lake.long_log import LongLog
from moon_ops.lake.meanings import Meanings
from moon_ops.lake.naming import Names
from moon_ops.lake.query import sql
from moon_ops.lake.reading import files
from moon_ops.lake.reading.content import Content
from moon_ops.lake.schemas import SCHEMAS, STAMP
from moon_ops.lake.seen import Taken
from moon_ops.telemetry.stages import stage


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
    read = _read(source, lake, words, now, feed)  # all checked before anything is written
    with lake.one_writer(patience):  # two ingests at once would each find the other's rows missing
        report = _write(source, lake, read, (now, workers, feed))
        changed = {"items": report.items + report.updated + report.withdrawn, "images": report.images, "fetches": report.images}
        changed |= {"users": report.users, "queries": report.queries, "events": report.events, "ids": report.items}
        for name in (table for table, count in changed.items() if count):
            lookups.tend(lake, name)
    return report


@dataclass
class Read:
    """A directory's rows, what was refused of them, the shop's ids among them, and the log of events if that is read in pieces."""

    raw: dict[str, pa.Table] = field(default_factory=dict)
    refusals: Refusals = field(default_factory=Refusals)
    names: Names = field(default_factory=Names)
    log: LongLog | None = None

    def settled(self, lake: Lake) -> tuple[dict[str, pa.Table], dict[str, pa.Table]]:
        """The rows without those that were erased or whose ids clash, and the ids that are new; here nothing is kept of them."""
        allowed = tombstones.refuse(lake, self.raw, self.refusals)
        found = self.names.settle(lake, allowed, self.refusals)
        self.raw.clear()
        self.names.forget()
        return found


def _read(source: Path, lake: Lake, words: Meanings, now: dt.datetime, feed: Feed) -> Read:
    """Read the directory, events in pieces if they are many."""
    found, sold = Read(), not feed.full and lake.count("items") > 0

    def log() -> Content | None:
        found.log = long_log.of(source, words, now)
        return found.log.content if found.log else None

    found.raw.update(rows.read_all(source, found.refusals, words, found.names, now=now, sold=sold, log=log))
    if found.log:
        found.refusals.join(found.log.refusals)
        found.names.join(found.log.habits.names, naming.OWN)
        found.log.habits.names.forget()
    return found


def _write(source: Path, lake: Lake, read: Read, how: How) -> IngestReport:
    """Commit pictures, ids, items, users, queries, events and refusals, in this order. What is in the lake is not kept in memory."""
    (now, workers, feed), refusals = how, read.refusals
    for name in rows.FILES:
        lake.evolve(name)
    raw, texts = read.settled(lake)
    of_items, of_users = raw["events"], raw["events"]
    if read.log:
        first = read.log.first_seen(lake, read.names, texts)
        of_items, of_users, raw = first.items, first.users, raw | first.used
    warning, taken = clocks.warning(lake, now), seen.taken(lake, refusals, now, once=feed.once)
    intake = Intake(source, lake, refusals, now=now, workers=workers, keeps=feed.pictures)
    items = _take_items(lake, raw, intake, feed, texts, of_items, taken)
    users, told, late = _take_users(lake, raw, of_users, taken, refusals, now)
    queries, repeated = _take_queries(lake, raw, intake, now)
    events, again = _events(lake, read, raw.pop("events"), now)
    _quarantine(lake, refusals, now)
    taken.remember(lake)
    return IngestReport(
        source=str(source),
        images=items.images,
        items=items.new,
        updated=items.updated,
        queries=queries,
        events=events,
        known=items.known + again + repeated + told - users,
        users=users,
        refused=refusals.summary(),
        erased=refusals.erased,
        first_refusal=_first(refusals),
        warning=warning,
        unread=refusals.pictures,
        merged=refusals.merged.get("items", 0),
        withdrawn=items.withdrawn,
        read={content.label: ", ".join(content.said) for content in refusals.contents.values()},
        notes=_notes(source, refusals, intake, {"items": items.older, "users": late}),
    )


@dataclass(frozen=True)
class ItemsTaken:
    """How many items are new, updated, withdrawn, known, or older than what the lake has; and pictures."""

    new: int
    updated: int
    withdrawn: int
    known: int
    older: int
    images: int


def _take_items(
    lake: Lake, raw: dict[str, pa.Table], intake: Intake, feed: Feed, texts: dict[str, pa.Table], events: pa.Table, taken: Taken
) -> ItemsTaken:
    """Commit pictures, the ``texts`` of ids, and items."""
    told, gone, images = _told(lake, raw, intake, feed)
    naming.commit(lake, texts, raw, intake.now)
    said = _said(taken, raw.pop("items"), gone)
    intake.refusals.forget("items")
    made = versions.made(lake, pa.concat_tables([told, gone]), events, said, intake.now)
    withdrawn = pc.sum(pc.is_in(made.fresh["item_id"], gone["item_id"].combine_chunks())).as_py() or 0
    _commit(lake, "items", pa.concat_tables([made.fresh, made.ends]), intake.now)
    new, known = made.fresh.num_rows - made.updated, told.num_rows - made.fresh.num_rows + withdrawn
    return ItemsTaken(new, made.updated - withdrawn, withdrawn, known, made.older, images)


def _take_users(
    lake: Lake, raw: dict[str, pa.Table], events: pa.Table, taken: Taken, refusals: Refusals, now: dt.datetime
) -> tuple[int, int, int]:
    """Commit what is told of users; how many rows are new, how many there are, and how many say what is not true any more."""
    told = raw.pop("users")
    if not told.num_rows:
        return 0, 0, 0
    new, late = told_users.new(lake, told, events, taken, now)
    refusals.forget("users")
    return _commit(lake, "users", new, now), told.num_rows, late


def _take_queries(lake: Lake, raw: dict[str, pa.Table], intake: Intake, now: dt.datetime) -> tuple[int, int]:
    """Commit what was asked; how many queries are new, and how many known."""
    new, repeated = asked.new(lake, asked.described(raw.pop("queries"), intake), intake.refusals)
    intake.refusals.forget("queries")
    return _commit(lake, "queries", new, now), repeated


def _told(lake: Lake, raw: dict[str, pa.Table], intake: Intake, feed: Feed) -> tuple[pa.Table, pa.Table, int]:
    """What the rows say of items, what withdraws those that a full feed does not have, and how many pictures were new."""
    refusals = intake.refusals
    gone = versions.missing(lake, refusals, feed.most, intake.now) if feed.full else versions.DESCRIBED.empty_table()
    described, bare = versions.bare(lake, raw["items"], refusals)
    images = intake.store([*told_items.references(described, "images"), *told_items.references(raw["queries"], "image")])
    told = pa.concat_tables([told_items.described(described, intake, told_items.pictures_kept(lake, described, intake)), bare])
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


def _events(lake: Lake, read: Read, raw: pa.Table, now: dt.datetime) -> tuple[int, int]:
    """Commit the events, of a long log span by span; how many are new, and how many the lake has, or came again. Killed, it is done again:
    an event that was committed is known.
    """
    new, known, named, before = 0, 0, arrivals.Named(lake), lake.frozen("events")
    again = read.log.again(lake, read.names, named) if read.log else None
    for part in read.log.parts(lake, read.names, read.refusals) if read.log else [raw]:
        fresh, old = arrivals.fresh(before, named.referential(part, read.refusals), read.refusals, again)
        new, known = new + _commit(lake, "events", fresh, now), known + old
        del part, fresh  # before the next one is in memory
    read.refusals.put_in_order()
    if read.log:
        _commit(lake, "events", SCHEMAS["events"].empty_table(), now)  # so that there is the table, if no event was good
    return new, known


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
    found = sorted(range(len(refusals.rows)), key=lambda number: refusals.counted[number][0] is refusals.erased)[:1]  # of others, if any
    return f"{refusals.rows[found[0]]['source']}: {refusals.rows[found[0]]['reason']}" if found else ""


def _commit(lake: Lake, table: str, new: pa.Table, now: dt.datetime) -> int:
    """Append the rows, known since ``now`` if they do not say otherwise, in exactly the table's schema."""
    stamped = new if "created" in new.column_names else new.append_column("created", pa.array([now] * new.num_rows, STAMP))
    return lake.append(table, stamped.select(SCHEMAS[table].names).cast(SCHEMAS[table]))
