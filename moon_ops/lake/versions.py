"""Versions of items: which are new, what an older file may not undo, and how an item is withdrawn.

A version says what holds from ``event_timestamp`` on. An item that ends (``available_until``) has two: what it is, and its end, a version
with the status ``deleted`` at that moment, so that whoever asks as of a time needs no other rule. The end is marked by ``available_until``
being its own ``event_timestamp``. If an end is taken back before it comes, a version of the same mark goes on there with what holds then.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.errors import InputError, counted
from moon_ops.lake import changes, ids, layout
from moon_ops.lake.lake import Lake, completed
from moon_ops.lake.layout import Refusals
from moon_ops.lake.query import newest, sql
from moon_ops.lake.schemas import SCHEMAS, STAMP

VERSION = ("content_hash", "spu_id", "seller_id", "price", "status", "extra", "available_until")  # one changed: a new version
DESCRIBED = pa.schema([f.with_nullable(True) for f in SCHEMAS["items"] if f.name not in ("created", "stated")])
ALWAYS = 1  # item that a full feed may withdraw, however few there are


@dataclass(frozen=True)
class Made:
    """New versions, of which ``updated`` are of known items; beside them their ``ends``. ``older`` rows say what is not true any more."""

    fresh: pa.Table
    ends: pa.Table
    updated: int
    older: int


def content_hash(item: dict[str, object]) -> str:
    """A short hash of what an encoder reads of an item: if it is unchanged, so is the item's vector."""
    read = [item[name] for name in ("title", "category", "brand", "description", "attributes", "image_ids")]
    return hashlib.blake2b(json.dumps(read).encode(), digest_size=12).hexdigest()


def _ending(table: pa.Table) -> pa.ChunkedArray:
    """Which versions are there only to end the one before, or to go on after an end that was taken back."""
    return layout.filled(pc.equal(table["available_until"], table["event_timestamp"]), False)


def current(lake: Lake, columns: list[str], ids: pa.Array | None = None) -> pa.Table:
    """The newest version of every item in the lake, or of ``ids``: valid last, of those learned last, of those written last; no ends."""
    names = list(dict.fromkeys(["item_id", "event_timestamp", "created", "available_until", *columns]))
    table = _of(lake, names, ids)
    return newest(table.filter(pc.invert(_ending(table))), "item_id")


def _of(lake: Lake, names: list[str], ids: pa.Array | None) -> pa.Table:
    """All versions of all items in the lake, or of ``ids``."""
    if ids is None or not lake.exists("items"):
        return lake.read("items", names)
    there = lake.open("items")
    return completed(changes.rows_of(there, "item_id", ids, [name for name in names if name in there.schema.names]), "items", names)


def made(lake: Lake, items: pa.Table, events: pa.Table, said: pa.Table, now: dt.datetime) -> Made:
    """The items that the lake does not have as they are, as files say that were taken in first at ``said`` (with ``item_id``, ``again``).

    A new item without ``available_from`` is valid from its first event, which shows that it was there, or else from ``now``.
    A new version of a known item is valid from ``now``: its ``available_from`` tells when the item came, not when it changed. One
    that is to come is replaced where it comes, so that a change brings no item forward. Where the clock lies before the moment at which
    the last version was learned, the new one is learned right after that: what is brought last is what holds, unless the file was taken in
    before and is older than what the lake has the item from (:mod:`~moon_ops.lake.seen`).
    """
    same = " AND ".join(f"k.{name} IS NOT DISTINCT FROM i.{name}" for name in VERSION if name != "status")
    same += " AND (k.status = i.status OR coalesce(i.available_until <= $now, false))"  # what is over is over
    found = sql(
        f"""SELECT i.item_id, k.event_timestamp AS since, k.created AS learned,
            coalesce(s.again AND k.stated > s.said, false) AS older,
            CASE WHEN k.stated >= s.said THEN k.stated + INTERVAL 1 MICROSECOND ELSE s.said END AS stated
        FROM items i JOIN said s USING (item_id) LEFT JOIN k USING (item_id) WHERE k.item_id IS NULL OR NOT ({same})""",
        {"now": now},
        said=said,
        items=items.select(["item_id", *VERSION]),
        k=current(lake, [*VERSION, "stated"], items["item_id"].combine_chunks().unique()),
    )
    older = pc.sum(found["older"]).as_py() or 0
    found = found.filter(pc.invert(found["older"]))
    query = """
    WITH first AS (SELECT item_id, min(timestamp) AS seen FROM events GROUP BY 1),
    f AS (SELECT *, CASE WHEN learned > $now THEN learned + INTERVAL 1 MICROSECOND ELSE $now END AS created FROM found)
    SELECT i.number, f.stated, f.created,
        CASE WHEN f.since IS NULL THEN coalesce(i.event_timestamp, first.seen, $now) ELSE greatest(f.since, f.created) END AS since
    FROM i JOIN f USING (item_id) LEFT JOIN first USING (item_id) ORDER BY i.number"""
    numbered = items.select(["item_id", "event_timestamp"]).append_column("number", pa.array(range(items.num_rows), pa.int64()))
    times = sql(query, {"now": now}, i=numbered, found=found, events=events.select(["item_id", "timestamp"]))
    fresh = items.take(times["number"])
    fresh = layout.replace(fresh, "event_timestamp", times["since"]).append_column("created", times["created"])
    over = layout.filled(pc.less_equal(fresh["available_until"], fresh["event_timestamp"]), False)
    fresh = layout.replace(fresh, "status", pc.if_else(over, pa.scalar("deleted"), fresh["status"]))
    fresh = fresh.append_column("stated", times["stated"])
    return Made(fresh, _ends(lake, fresh), found.num_rows - found["since"].null_count, older)


def _ends(lake: Lake, fresh: pa.Table) -> pa.Table:
    """The ends of new versions, and versions that go on where an end of before would come that is none any more."""
    before = _of(lake, ["item_id", "event_timestamp", "available_until"], fresh["item_id"].combine_chunks().unique())
    before = before.filter(_ending(before))
    if not before.num_rows and fresh["available_until"].null_count == fresh.num_rows:
        return fresh.slice(0, 0)
    query = """
    SELECT item_id, available_until AS at, true AS over FROM fresh WHERE available_until > event_timestamp AND status = 'active'
    UNION SELECT b.item_id, b.event_timestamp, f.status <> 'active' OR coalesce(f.available_until <= b.event_timestamp, false)
    FROM before b JOIN fresh f USING (item_id)
    WHERE b.event_timestamp > f.event_timestamp AND f.available_until IS DISTINCT FROM b.event_timestamp"""
    found = sql(query, fresh=fresh, before=before)
    place = {item: n for n, item in enumerate(fresh["item_id"].to_pylist())}
    ends = fresh.take(pa.array([place[item] for item in found["item_id"].to_pylist()], pa.int64()))
    status = pc.if_else(found["over"], pa.scalar("deleted"), pa.scalar("active"))
    for name, column in (("event_timestamp", found["at"]), ("available_until", found["at"]), ("status", status)):
        ends = layout.replace(ends, name, column.cast(ends.schema.field(name).type))
    return ends


def bare(lake: Lake, raw: pa.Table, refusals: Refusals) -> tuple[pa.Table, pa.Table]:
    """The rows that describe their item, and what becomes of those that only withdraw a known one; of an unknown one the row is refused."""
    nameless = pc.is_null(raw["title"])
    if not pc.any(nameless).as_py():
        return raw, DESCRIBED.empty_table()
    rows = raw.filter(nameless)
    given = rows["item_id"].combine_chunks()
    known = pc.is_in(given, current(lake, [], given.unique())["item_id"].combine_chunks())
    rows = refusals.split(rows, pc.invert(known), "items", "title", "is empty, and no such item is known that could be withdrawn")
    return raw.filter(pc.invert(nameless)), withdrawn(lake, rows["item_id"].combine_chunks())


def withdrawn(lake: Lake, ids: pa.Array) -> pa.Table:
    """The newest versions of known items with the status ``deleted``."""
    names = [f.name for f in DESCRIBED if f.name not in ("event_timestamp", "status", "available_until")]
    table = current(lake, names, ids).select(names)
    for name, kind in (("event_timestamp", STAMP), ("available_until", STAMP)):
        table = table.append_column(name, pa.nulls(table.num_rows, kind))
    table = table.append_column("status", pa.array(["deleted"] * table.num_rows, pa.string()))
    return table.select(DESCRIBED.names).cast(DESCRIBED)


def missing(lake: Lake, refusals: Refusals, most: float, now: dt.datetime) -> pa.Table:
    """What withdraws the items in sale that the full feed does not name; :class:`InputError`, before anything is written, if these are more
    than the share ``most`` of them (one may always go), or if rows are unreadable, so that their items might be taken for missing ones.
    """
    feed, named = refusals.contents["items"], refusals.named["items"]
    if unreadable := feed.rows - len(named):
        nameless = counted(unreadable, "of its rows names", "of its rows name")
        raise InputError(
            f"{feed.label} is to be the full feed, but {nameless} no item that can be read"
            f" ({refusals.rows[0]['reason']}); nothing was ingested",
            action="mend them, or ingest it without --full-feed",
        )
    sold = current(lake, ["status"])
    over = layout.filled(pc.less_equal(sold["available_until"], pa.scalar(now, STAMP)), False)
    sold = sold.filter(pc.and_(pc.equal(sold["status"], pa.scalar("active")), pc.invert(over)))["item_id"]
    gone = sold.filter(pc.invert(pc.is_in(sold, named))).combine_chunks()
    if len(gone) > max(ALWAYS, most * len(sold)):  # more than one
        (first,) = ids.named(lake, "item", [gone[0].as_py()])
        raise InputError(
            f"{feed.label} is to be the full feed, but {len(gone)} of {len(sold)} items in sale are not in it, e.g. {first}: more than"
            f" {most:.0%}, so it may be cut; nothing was ingested",
            action=f"bring the whole feed, or pass --withdraw-at-most {len(gone) / len(sold) + 0.005:.2f}",
        )
    return withdrawn(lake, gone)
