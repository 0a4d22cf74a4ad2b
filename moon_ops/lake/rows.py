"""The rows of a shop's files, typed: what each column must be, and which rows are refused for it. Knows nothing of the lake."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.errors import InputError
from moon_ops.lake import continuing, ids, layout, refusal_order
from moon_ops.lake.layout import ROW, Refusals
from moon_ops.lake.meanings import PLAIN, STATES, Meanings
from moon_ops.lake.naming import Names
from moon_ops.lake.reading import content, files, markup, missing, numbers, times
from moon_ops.lake.reading.content import Content
from moon_ops.lake.reading.delimited import bare
from moon_ops.lake.schemas import EVENTS, STAMP

FILES = files.TABLES
FUTURE = dt.timedelta(days=1)  # clocks differ, and so do zones
TIMED = {"queries": "timestamp", "events": "timestamp", "users": "timestamp"}  # of what has happened; `available_from` may lie ahead

REQUIRED = {
    "items": ("item_id", "title"),
    "queries": ("query_id", "timestamp"),
    "events": ("timestamp", "item_id", "event"),
    "users": ("user_id",),
}
KEYS = {"items": "item_id", "queries": "query_id", "events": "item_id", "users": "user_id"}
IDS = {"items": ("spu_id", "seller_id"), "queries": (), "events": ("user_id", "query_id", "session_id"), "users": ()}
TEXTS = {"items": ("title", "brand", "description", "status"), "queries": ("text", "image"), "events": ("event",), "users": ()}
OTHERS = {
    "items": ("price", "available_from", "available_until", "category", "images", "attributes"),
    "queries": (),
    "events": ("position", "event_id", "order_id"),
    "users": ("timestamp",),
}
NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
SEEN = ("title", "brand", "description", "category")  # of an item: what people read, which may come as HTML
Log: TypeAlias = "Callable[[], Content | None]"  # what the files of a long log hold
WHY = "_why"  # a row is refused
TOLD = ("event_id", "order_id")  # ids that nothing is joined by: kept as the shop's texts
QUANTITY = "_quantity"  # of a shop's own column of this name: below zero it takes a purchase back
LONGEST = 1_000_000  # a position in a list


def read_all(
    source: Path,
    refusals: Refusals,
    meanings: Meanings = PLAIN,
    names: Names | None = None,
    *,
    now: dt.datetime,
    sold: bool = False,
    log: Log | None = None,
) -> dict[str, pa.Table]:
    """The tables of a directory, typed, with ids as keys (``names`` takes down the shop's).

    An event, a query and what is told of a user lie between 1995 and tomorrow. Where items are ``sold`` already, a directory may bring
    other tables alone, as rows that were mended. ``log`` reads events if these are too many to be in memory: then there is none among the
    rows. Raises :class:`InputError` for a directory that cannot be used as a whole, before anything is written.
    """
    if not source.is_dir():
        raise InputError(f"DIRECTORY = {source} is not a directory", action="name a directory that holds an items file")
    others = sold and any(files.find(source, name) for name in FILES if name != "items")
    raw = dict[str, pa.Table]()
    for name in FILES:
        refusals.order.begin(refusal_order.READ, name)
        raw[name] = read(source, name, refusals, meanings, names, others, log() if log and name == "events" else None)
    _note_columns(refusals, meanings)
    for name in FILES:
        refusals.order.begin(refusal_order.TIMED, name)
        raw[name] = timed(raw[name], name, refusals, now) if name in TIMED else raw[name]
    return raw


def timed(table: pa.Table, name: str, refusals: Refusals, now: dt.datetime) -> pa.Table:
    """The rows of what has happened since 1995 and until tomorrow; the others are refused."""
    column = TIMED[name]
    early = layout.filled(pc.less(table[column], pa.scalar(times.FIRST, STAMP)), False)
    table = refusals.split(table, early, name, column, f"lies before {times.FIRST:%Y}: a program has filled a gap")
    late = layout.filled(pc.greater(table[column], pa.scalar(now + FUTURE, STAMP)), False)
    return refusals.split(table, late, name, column, f"is in the future (it is {times.text(now)})")


def _note_columns(refusals: Refusals, meanings: Meanings) -> None:
    """Note the columns that ``moon.toml`` names and no file has, and those that it calls what no table knows."""
    there = {one for asread in refusals.contents.values() for one in asread.names}
    ours = {one for name in FILES for one in known(name)}
    for theirs, meant in meanings.columns.items():
        if bare(theirs) not in there:
            refusals.note("items", f"moon.toml names the column {theirs!r}, which no file has")
        elif meant not in ours:
            refusals.note(
                "items", f"moon.toml calls the column {theirs!r} {meant!r}, which means nothing here: it is kept as one of your own"
            )


def read(
    source: Path,
    name: str,
    refusals: Refusals,
    meanings: Meanings = PLAIN,
    names: Names | None = None,
    optional: bool = False,
    log: Content | None = None,
) -> pa.Table:
    """One table's files with their columns typed; one that is not there is empty, items only where they are ``optional``, and so is one of
    which a ``log`` says what its files hold.
    """
    found = files.find(source, name)
    if found is None and name == "items" and not optional:
        lies, action = files.instead(source, name)
        there = f" (there is {lies}, which is not read)" if lies else ""
        raise InputError(
            f"{source} has no items.parquet, items.jsonl or items.csv{there}: nothing to ingest", action=action or "add the items file"
        )
    if found is None or log is not None:
        table = content.empty(name, REQUIRED[name]).table
        refusals.bring(name, source / (log.label if log else name), table, log)
    else:
        required = REQUIRED[name] if name != "items" else (KEYS[name],)  # who only withdraws items need not name titles
        asread = content.read(found, required, known(name), given=meanings.encoding, renamed=meanings.columns)
        if name == "items" and not asread.rows:
            raise InputError(
                f"{source / found.label} has no rows: the catalogue is empty and nothing was ingested", action="bring at least one item"
            )
        table = asread.table
        refusals.bring(name, source / found.label, table, asread)
        if name == "items" and "title" not in table.column_names and not _withdraws(table, refusals, meanings):
            has = ", ".join(n for n in table.column_names if n != ROW) + f"; it was read as {', '.join(asread.said)}"
            raise InputError(
                f"{source / found.label} has no column 'title' (it has {has}); nothing was ingested",
                action="add the column title, or name it in moon.toml",
            )
    return typed(table, name, refusals, meanings, names or Names())


def known(name: str) -> tuple[str, ...]:
    """The columns of a table that mean something."""
    return (*REQUIRED[name], *IDS[name], *TEXTS[name], *OTHERS[name])


def typed(table: pa.Table, name: str, refusals: Refusals, meanings: Meanings, names: Names) -> pa.Table:
    """Rows with their columns typed, as they stand in the files of ``refusals``."""
    table = _columns(missing.emptied(table), name, refusals, names)
    refusals.named[name] = table[KEYS[name]].combine_chunks()
    table = {"items": _items, "queries": _queries, "events": _events, "users": _users}[name](table, refusals, meanings)
    return table if name == "events" else layout.unique(table, REQUIRED[name][0], refusals, name)  # of the rows that are good


def _withdraws(table: pa.Table, refusals: Refusals, meanings: Meanings) -> bool:
    """Whether every row of an items file says that its item is deleted."""
    if "status" not in table.column_names:
        return False
    states = layout.texts(table, "status", refusals, "items")["status"]
    return {*meanings.meant(states, meanings.status).to_pylist()} <= {"deleted"}


def _columns(table: pa.Table, name: str, refusals: Refusals, names: Names) -> pa.Table:
    """The columns that mean something, with ids as keys and texts as texts, and all others together in ``extra``."""
    wanted = dict.fromkeys(known(name))
    for column in wanted:
        table = layout.optional(table, column)
    own = [n for n in table.column_names if n not in (*wanted, ROW)]
    extra, quantity = layout.extras(table, own), [table[n] for n in own if bare(n) == "quantity"]
    table = table.select([*wanted, ROW]).append_column("extra", extra)
    if name == "events" and quantity:
        table = table.append_column(QUANTITY, quantity[0])
    for column in TEXTS[name]:
        table = layout.texts(table, column, refusals, name)
    for column in TOLD if name == "events" else ():
        table = _told(table, column, refusals, name)
    for column in IDS[name]:
        table = keyed(table, column, refusals, name, names)
    return keyed(table, KEYS[name], refusals, name, names, required=True, spelled=name in ("items", "queries"))


def keyed(
    table: pa.Table, name: str, refusals: Refusals, source: str, names: Names, *, required: bool = False, spelled: bool = False
) -> pa.Table:
    """Replace an id column by its keys (:mod:`moon_ops.lake.ids`), and refuse what is no id; ``spelled``: with a column ``source_id``."""
    table = _trimmed(table, name, refusals, source)
    cells = ids.read(table[name], refusals.habits.ids(name) if refusals.habits else None)
    names.saw(name, cells)
    whys = pc.coalesce(cells.why, pc.if_else(pc.is_null(cells.keys), ids.NO_ID, pa.scalar(None, pa.string()))) if required else cells.why
    table = layout.replace(table, name, cells.keys)
    table = table.append_column("source_id", cells.shop_ids()) if spelled else table
    return _without(table, whys, refusals, source, name)


def _told(table: pa.Table, name: str, refusals: Refusals, source: str) -> pa.Table:
    """Replace an id column by the shop's ids as texts, and refuse what is no id."""
    table = _trimmed(table, name, refusals, source)
    found, whys = ids.as_texts(table[name], refusals.habits.ids(name) if refusals.habits else None)
    return _without(layout.replace(table, name, found), whys, refusals, source, name)


def _trimmed(table: pa.Table, name: str, refusals: Refusals, source: str) -> pa.Table:
    """The table with an id column as numbers, or as texts without the space around them."""
    if any(is_kind(table[name].type) for is_kind in NUMBERS):
        return table
    return layout.texts(layout.replace(table, name, ids.spelled(table[name])), name, refusals, source)


def _without(table: pa.Table, whys: pa.Array, refusals: Refusals, source: str, name: str) -> pa.Table:
    """The rows that nothing is said against; the others are refused for the column ``name``."""
    refusals.order.check()
    if whys.null_count == len(whys):
        return table
    table = table.append_column(WHY, whys)
    for why in pc.unique(whys).drop_null().to_pylist():
        table = refusals.split(table, layout.filled(pc.equal(table[WHY], pa.scalar(why)), False), source, name, why, again=why)
    return table.drop_columns(WHY)


def _items(table: pa.Table, refusals: Refusals, meanings: Meanings) -> pa.Table:
    for column in SEEN:
        if pa.types.is_string(table[column].type):
            table = layout.replace(table, column, markup.plain(table[column]))
    table = layout.stamps(table, "available_from", refusals, "items", required=False)
    table = layout.stamps(table, "available_until", refusals, "items", required=False)
    table = layout.numbers(table, "price", refusals, "items")
    below = layout.filled(pc.less(table["price"], pa.scalar(0.0)), False)
    table = refusals.split(table, below, "items", "price", "is below zero")
    table = layout.replace(table, "status", meanings.meant(table["status"], meanings.status))
    unknown = pc.and_(pc.is_valid(table["status"]), pc.invert(pc.is_in(table["status"], pa.array(STATES))))
    table = refusals.split(table, unknown, "items", "status", "is neither active nor deleted (moon.toml may say which of them it means)")
    table = continuing.merged(table, refusals)
    table = layout.replace(table, "status", layout.filled(table["status"], "active"))
    nameless = pc.and_(pc.is_null(table["title"]), pc.equal(table["status"], pa.scalar("active")))
    return refusals.split(table, nameless, "items", "title", "is empty")  # who withdraws an item need not describe it


def _queries(table: pa.Table, refusals: Refusals, meanings: Meanings) -> pa.Table:  # noqa: ARG001 - the readers are called alike
    table = layout.stamps(table, "timestamp", refusals, "queries", required=True)
    nothing = pc.and_(pc.is_null(table["text"]), pc.is_null(table["image"]))
    return refusals.split(table, nothing, "queries", "text", "and no image either: the query asks for nothing")


def _events(table: pa.Table, refusals: Refusals, meanings: Meanings) -> pa.Table:
    table = layout.numbers(table, "position", refusals, "events", whole=True)
    below = layout.filled(pc.less(table["position"], pa.scalar(0)), False)
    table = refusals.split(table, below, "events", "position", "is below zero: leave it empty where it is not known")
    far = layout.filled(pc.greater(table["position"], pa.scalar(LONGEST)), False)
    table = refusals.split(table, far, "events", "position", "is no place in a list")
    table = layout.stamps(table, "timestamp", refusals, "events", required=True)
    table = layout.replace(table, "event", meanings.meant(table["event"], meanings.events))
    unknown = pc.invert(pc.is_in(table["event"], pa.array(EVENTS)))
    table = refusals.split(
        table, unknown, "events", "event", f"is not one of {', '.join(EVENTS)} (moon.toml may say which of them it means)"
    )
    return _taken_back(table, refusals) if QUANTITY in table.column_names else table


def _taken_back(table: pa.Table, refusals: Refusals) -> pa.Table:
    """Purchases of fewer than none as the returns that they are; a cart that something is taken out of is no cart."""
    amounts = numbers.parsed(table[QUANTITY].combine_chunks(), refusals.habits.numbers(QUANTITY) if refusals.habits else None).values
    back = layout.filled(pc.less(amounts, pa.scalar(0.0)), False)
    bought = pc.and_(back, pc.equal(table["event"], pa.scalar("purchase")))
    table = layout.replace(table, "event", pc.if_else(bought, pa.scalar("return"), table["event"]))
    out = pc.and_(back, pc.equal(table["event"], pa.scalar("cart")))
    reason = "with a quantity below zero: something was taken out of it"
    return refusals.split(table, out, "events", "event", reason).drop_columns(QUANTITY)


def _users(table: pa.Table, refusals: Refusals, meanings: Meanings) -> pa.Table:  # noqa: ARG001 - the readers are called alike
    return layout.stamps(table, "timestamp", refusals, "users", required=False)
