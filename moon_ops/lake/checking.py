"""What an ingest of a directory would do, said without a lake: the same readers and the same reasons, and nothing is written."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.errors import InputError
from moon_ops.inputs import images
from moon_ops.lake import arrivals, counting, fetch, layout, meanings, rows
from moon_ops.lake.intake import content_of
from moon_ops.lake.layout import ROW, Refusals
from moon_ops.lake.meanings import Meanings
from moon_ops.lake.query import sql
from moon_ops.lake.reading import files, pictures
from moon_ops.lake.schemas import UNDOING
from moon_ops.recipes.caps import Caps

LEARNED = ("click", "cart", "purchase")  # events that say what was meant by a query
FATES = """
WITH logged AS (SELECT *, coalesce(user_id, -1 - session_id) AS visitor FROM events),
shown AS (SELECT visitor, session_id, item_id, min(timestamp) AS first FROM logged WHERE event = 'impression' GROUP BY ALL)
SELECT count(*) FILTER (l.user_id IS NULL) AS of_no_user, count(*) FILTER (l.visitor IS NULL) AS of_no_session_either,
       count(*) FILTER (l.event = 'click' AND shown.first > l.timestamp) AS clicks_before_impression,
       count(*) FILTER (l.event = 'click' AND l.visitor IS NOT NULL AND shown.first IS NULL) AS clicks_without_impression
FROM logged l LEFT JOIN shown ON shown.visitor = l.visitor AND shown.item_id = l.item_id
    AND shown.session_id IS NOT DISTINCT FROM l.session_id"""
SHOWN = 10  # reasons that are told
PLAIN = Caps()


@dataclass
class Check:
    """What would become of a directory.

    ``tables`` has the rows by their fate; ``pictures`` the files found and missing, and the addresses, which are not asked; ``lacking``
    what a stage needs and the directory does not have.
    """

    source: str
    read: dict[str, str] = field(default_factory=dict)
    tables: dict[str, dict[str, int]] = field(default_factory=dict)
    pictures: dict[str, int] = field(default_factory=dict)
    pairs: int = 0  # of query and item that the encoder could learn from
    behaviour: dict[str, int] = field(default_factory=dict)  # events that are used in part, by why: see behaviour_of
    reasons: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lacking: dict[str, str] = field(default_factory=dict)
    unread_rows: dict[str, int] = field(default_factory=dict)  # pictures that would not be read, per file and column
    unread: dict[str, str] = field(default_factory=dict, repr=False)  # picture → why it is not used; empty for one that is


def check(source: Path, *, now: dt.datetime, words: Meanings | None = None, caps: Caps = PLAIN) -> Check:
    """Read the directory as an ingest would; :class:`~moon_ops.errors.InputError` where the ingest would end with one.

    Without a lake each row counts as new, and an event or a withdrawal must name an item and a query of this directory.
    ``caps`` are the shop's.
    """
    refusals = Refusals()
    raw = rows.read_all(source, refusals, words or meanings.of(source), now=now)
    found = Check(str(source), pictures={"found": 0, "missing": 0, "addresses": 0})
    described = _described(raw["items"], refusals)
    used = _looked_at(source.resolve(), raw | {"items": described}, found)
    items = _items(described, refusals)
    _refuse_pictures(raw | {"items": items}, refusals, found)
    if not items.num_rows:
        first = f" ({refusals.rows[0]['source']}: {refusals.rows[0]['reason']})" if refusals.rows else ""
        raise InputError(f"{source}: no item could be used{first}; the catalogue is empty", action="mend the items file")
    raw["queries"] = _queries(raw["queries"], found, refusals)
    events, twice = arrivals.distinct(_events(raw["events"], items, raw["queries"], refusals), refusals)
    tables = raw | {"items": items, "events": events}
    for name, content in refusals.contents.items():
        found.read[content.label] = ", ".join(content.said)
        again, new, merged = twice if name == "events" else 0, tables[name].num_rows, refusals.merged.get(name, 0)
        counts = {"rows": content.rows, "new": new, "twice": again, "refused": content.rows - new - again - merged}
        found.tables[name] = counts | ({"merged": merged} if merged else {})
        found.notes += content.notes
        used |= {path.resolve() for path in content.paths}
    found.behaviour, standing = behaviour_of(events, caps)
    found.pairs = _pairs(standing)
    found.unread_rows = dict(refusals.pictures)
    found.refused, found.reasons = refusals.summary(), [f"{r['source']}: {r['reason']}" for r in refusals.rows[:SHOWN]]
    found.notes += [over] if (over := files.passed_over(source.resolve(), used)) else []
    found.unread = {name: why for name, why in found.unread.items() if why}
    found.lacking = lacking(standing, raw["queries"], items, found)
    return found


def _described(table: pa.Table, refusals: Refusals) -> pa.Table:
    nameless = pc.is_null(table["title"])
    return refusals.split(table, nameless, "items", "title", "is empty, and no such item is known that could be withdrawn")


def _items(table: pa.Table, refusals: Refusals) -> pa.Table:
    odd = []
    for row in table.select(["attributes", ROW]).to_pylist():
        try:
            layout.pairs(row["attributes"])
        except ValueError:
            refusals.add("items", row[ROW], "attributes", f"attributes = {row['attributes']!r} is not an object")
            odd.append(row[ROW])
    return table.filter(pc.invert(pc.is_in(table[ROW], pa.array(odd, pa.int64()))))


def _named(tables: dict[str, pa.Table]) -> Iterator[tuple[str, int, str, str]]:
    """Table, row, column and picture, wherever a row names one."""
    for name, column in (("items", "images"), ("queries", "image")):
        for number, cell in zip(tables[name][ROW].to_pylist(), tables[name][column].to_pylist(), strict=True):
            for reference in pictures.references(cell if column == "images" or cell is None else [cell]):
                yield name, number, column, reference


def _looked_at(source: Path, tables: dict[str, pa.Table], found: Check) -> set[Path]:
    """Count the pictures that rows name, each once, and say why one is not used; the files among them."""
    used: set[Path] = set()
    for reference in dict.fromkeys(reference for *_, reference in _named(tables)):
        fate, found.unread[reference] = _fate(source, reference, used)
        found.pictures[fate] = found.pictures.get(fate, 0) + 1
    return used


def _refuse_pictures(tables: dict[str, pa.Table], refusals: Refusals, found: Check) -> None:
    """Refuse those that are not used, at each row that names one."""
    for name, number, column, reference in _named(tables):
        if why := found.unread[reference]:
            place = refusals.names_picture(name, number, reference)
            refusals.add(name, place, column, f"{column} = {reference!r}: {why}", picture=True)


def _queries(table: pa.Table, found: Check, refusals: Refusals) -> pa.Table:
    """The queries that ask for something: a text, or a picture that can be read."""
    shown = [any(not found.unread[r] for r in pictures.references(cell if cell is None else [cell])) for cell in table["image"].to_pylist()]
    nothing = pc.and_(pc.is_null(table["text"]), pc.invert(pa.array(shown, pa.bool_())))
    return refusals.split(table, nothing, "queries", "image", "cannot be read, and the query has no text")


def _fate(source: Path, reference: str, used: set[Path]) -> tuple[str, str]:
    """What becomes of a picture, and why it is not used, if it is not."""
    if fetch.is_address(reference):
        return "addresses", ""
    try:
        content = content_of(source, reference, used)
    except InputError as fault:
        return "unread" if isinstance(fault.__cause__, PermissionError) else "missing", fault.problem
    try:
        images.inspect(content, source=reference)
    except InputError as fault:
        return "unread", fault.problem
    return "found", ""


def _events(table: pa.Table, items: pa.Table, queries: pa.Table, refusals: Refusals) -> pa.Table:
    strange = pc.invert(pc.is_in(table["item_id"], items["item_id"].combine_chunks()))
    table = refusals.split(table, strange, "events", "item_id", "is no item of this directory")
    asked = queries["query_id"].combine_chunks()
    lost = pc.and_(pc.is_valid(table["query_id"]), pc.invert(pc.is_in(table["query_id"], asked)))
    return refusals.split(table, lost, "events", "query_id", "is no query of this directory")


def behaviour_of(events: pa.Table, caps: Caps) -> tuple[dict[str, int], pa.Table]:
    """How many events are used in part, and those that train.

    of_no_user: they count for items, and make pairs, but no sequence and no row of a click model; of_no_session_either: among these;
    clicks_before_impression, clicks_without_impression: of the same visitor and session; beyond_*: what is beyond a cap; undone: purchases
    that were cancelled or returned; undoing_nothing: cancellations and returns of no purchase that is here.
    """
    if not events.num_rows:
        return {}, events
    found = dict(sql(FATES, events=events).to_pylist()[0])
    timed = events.rename_columns(["event_timestamp" if n == "timestamp" else n for n in events.column_names])
    within = counting.within(timed, caps)
    gone = counting.undone(within.events)
    found |= {f"beyond_{name}": count for name, count in within.left_out.items()} | {"undone": gone.num_rows}
    undoings = pc.sum(pc.is_in(within.events["event"], pa.array(UNDOING))).as_py() or 0
    found["undoing_nothing"] = undoings - gone.num_rows
    return {name: int(count) for name, count in found.items() if count}, counting.standing(within.events)


def _pairs(events: pa.Table) -> int:
    learned = events.filter(pc.and_(pc.is_valid(events["query_id"]), pc.is_in(events["event"], pa.array(LEARNED))))
    return learned.group_by(["query_id", "item_id"]).aggregate([]).num_rows


def lacking(events: pa.Table, queries: pa.Table, items: pa.Table, found: Check) -> dict[str, str]:
    """Stage → what it needs and does not find here. What the lake has already may make up for it."""
    said = {}
    kinds = set(events["event"].unique().to_pylist())
    users = len(events["user_id"].drop_null().unique())
    if not queries.num_rows:
        said["train"] = "no queries: an encoder learns from what was asked and then clicked"
    elif not found.pairs:
        said["train"] = "no click, cart or purchase with the query_id of a known query"
    if not users:
        said["ctr"] = "no event has a user_id: no click model is trained"
    elif missing := sorted({"impression", "click"} - kinds):
        said["ctr"] = f"no event is of the kind {' or '.join(missing)}: a click model needs both"
    if "purchase" not in kinds and events.num_rows:
        said["gates"] = "no purchases: the encoder is judged by clicks and carts"
    if not found.pictures["found"] + found.pictures["addresses"]:
        said["images"] = "no item has a picture: the vectors are of texts alone"
    if not pc.any(pc.is_valid(items["price"])).as_py():
        said["features"] = "no item has a price"
    return said
