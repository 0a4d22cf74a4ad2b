"""Where an item or a user is written in the lake: table → which of its rows. What belongs to nobody else belongs to them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.embeddings.vector_tables import excused_table_name, query_table_name, table_name
from moon_ops.errors import InputError
from moon_ops.lake import fetches, ids, statistics, tombstones
from moon_ops.lake.ids import ShopId
from moon_ops.lake.lake import Lake
from moon_ops.lake.reading.pictures import references


@dataclass(frozen=True)
class Target:
    """Whom to forget: ``kind`` is item or user. As a text it is what stands behind ``moon erase``."""

    kind: str
    key: int
    shop_id: ShopId

    def __str__(self) -> str:
        return f"{'--user ' if self.kind == 'user' else ''}{self.shop_id}"


def target(lake: Lake, kind: str, given: str) -> Target:
    """Whom the shop's id names; :class:`InputError` for what is no id."""
    try:
        shop_id = ids.clean(given)
    except ValueError as odd:
        raise InputError(f"{kind.upper()}_ID = {odd}", action="give the id as the shop has it") from odd
    if kind == "item" and lake.exists("items"):  # a lake of an older version may know it by another number
        found = lake.read("items", ["item_id"], f"source_id = '{_quoted(str(shop_id))}'")["item_id"].unique().to_pylist()
        return Target(kind, int(found[0]) if found else ids.key(shop_id), shop_id)
    return Target(kind, ids.key(shop_id), shop_id)


def rows_of(lake: Lake, who: Target) -> dict[str, str]:
    """Table → its rows. Pictures come first, and queries before events: whose they are is read from the tables after them."""
    found = _of_item(lake, who) if who.kind == "item" else _of_user(lake, who)
    return {name: where for name, where in found.items() if lake.exists(name)}


def users_of(lake: Lake, who: Target) -> list[int]:
    """Whose behaviour names the item: some may have done nothing else, and get no newer row."""
    if who.kind == "user":
        return [who.key]
    named = _behaviours(lake, who.key) | {"events": f"item_id = {who.key} AND user_id IS NOT NULL"}
    rows = [lake.read(name, ["user_id"], where)["user_id"].to_pylist() for name, where in named.items()]
    return sorted({user for some in rows for user in some})


def queries_of(lake: Lake, user: int) -> list[int]:
    """The queries that this user alone has asked, by all that is known."""
    return _theirs(lake, "query_id", user, sessions_of(lake, user))


def product_is_alone(lake: Lake, item: int) -> bool:
    """Whether no other item is a variant of the product that has the item's key."""
    return not lake.read("items", ["item_id"], f"spu_id = {item} AND item_id != {item}").num_rows


def _encoders(lake: Lake) -> list[int]:
    from moon_ops.embeddings import features  # Feast: a command in a hurry asks this file for something else

    return features.versions(lake)


def _of_item(lake: Lake, who: Target) -> dict[str, str]:
    own = f"item_id = {who.key}"
    kinds = "kind IN ('item', 'product')" if lake.exists("items") and product_is_alone(lake, who.key) else "kind = 'item'"
    encoders = [make(v) for v in _encoders(lake) for make in (table_name, excused_table_name)]
    tables = {"images": _pictures(lake, who.key)} if lake.exists("images") else {}
    tables |= {fetches.TABLE: _fetched(lake, who)} if lake.exists(fetches.TABLE) else {}
    tables |= {"quarantine": _refused(lake, who)} if lake.exists("quarantine") else {}
    tables |= {"ids": f"{kinds} AND key = {who.key}"}
    return tables | dict.fromkeys(("items", "events", statistics.PROFILE, statistics.STATS, *encoders), own) | _behaviours(lake, who.key)


def _of_user(lake: Lake, who: Target) -> dict[str, str]:
    queries, sessions = queries_of(lake, who.key), sessions_of(lake, who.key)
    asked, own = f"query_id IN {_listed(queries)}", f"user_id = {who.key}"
    named = (("user", [who.key]), ("query", queries), ("session", sessions))
    shown = dict.fromkeys(("images", fetches.TABLE), _asked_pictures(lake, queries)) if queries else {}
    tables = {name: where for name, where in shown.items() if lake.exists(name)}
    tables |= {"quarantine": _refused(lake, who)} if lake.exists("quarantine") else {}
    tables |= {"ids": " OR ".join(f"(kind = '{kind}' AND key IN {_listed(keys)})" for kind, keys in named)}
    tables |= dict.fromkeys(("queries", *(query_table_name(v) for v in _encoders(lake))), asked)
    return tables | {"events": _did(who.key, sessions)} | dict.fromkeys(("users", statistics.USERS, statistics.BEHAVIOR), own)


def sessions_of(lake: Lake, user: int) -> list[int]:
    """The sessions in which no other user is named."""
    return _theirs(lake, "session_id", user)


def _did(user: int, sessions: Sequence[int]) -> str:
    """A user's events, also those before they signed in, in a session of theirs."""
    return f"(user_id = {user} OR (user_id IS NULL AND session_id IN {_listed(sessions)}))"


def _theirs(lake: Lake, column: str, user: int, sessions: Sequence[int] | None = None) -> list[int]:
    """The values of a column of events that stand beside this user and no other; given their ``sessions``, nor beside anybody unknown."""
    own, other = f"user_id = {user}", f"user_id IS NOT NULL AND user_id != {user}"
    if sessions is not None:
        own = _did(user, sessions)
        strange = f"session_id NOT IN {_listed(sessions)}" if sessions else "true"  # nothing is outside a list of NULL, in SQL
        other = f"({other}) OR (user_id IS NULL AND (session_id IS NULL OR {strange}))"
    mine = pc.unique(lake.read("events", [column], f"{own} AND {column} IS NOT NULL")[column])
    if not len(mine):
        return []
    others = ids.matching(lake, "events", column, mine, (), other)[column].combine_chunks()
    return [int(key) for key in mine.filter(pc.invert(pc.is_in(mine, others))).to_pylist()]


def _behaviours(lake: Lake, item_id: int) -> dict[str, str]:
    name = statistics.BEHAVIOR
    if not lake.exists(name):
        return {}
    return {name: f"item_id = {item_id}" if statistics.usable(lake, name) else f"array_has(item_ids, {item_id})"}


def _refused(lake: Lake, who: Target) -> str:
    """Rows of files that named them and could not be used, e.g. for one of its pictures."""
    if who.kind == "user":
        return _refused_of_user(lake, who)
    names = {str(who.key), str(who.shop_id)}
    names |= set(lake.read("items", ["source_id"], f"item_id = {who.key}")["source_id"].to_pylist())
    rows = lake.read("quarantine", ["row"])["row"].unique().to_pylist()
    its = [row for row in rows if str(json.loads(row).get("item_id")) in names]
    return f"row IN ({', '.join(f'{chr(39)}{_quoted(row)}{chr(39)}' for row in its) or 'NULL'})"


def _refused_of_user(lake: Lake, who: Target) -> str:
    """Refused rows that name the user, and those of queries that this user alone has asked, by good rows and refused ones."""
    every = [(row, json.loads(row)) for row in lake.read("quarantine", ["row"])["row"].unique().to_pylist()]
    asked = [(tombstones.keys_of(cells.get("user_id")), tombstones.keys_of(cells.get("query_id"))) for _, cells in every]
    theirs = {key for users, queries in asked if who.key in users for key in queries}
    others = {key for users, queries in asked if users and who.key not in users for key in queries}
    known = ids.matching(lake, "events", "query_id", pa.array(theirs, pa.int64()), (), f"user_id IS NOT NULL AND user_id != {who.key}")
    theirs = (theirs - others - set(known["query_id"].to_pylist())) | (set(queries_of(lake, who.key)) - others)
    its = [row for (row, _), (users, queries) in zip(every, asked, strict=True) if who.key in users or (not users and queries & theirs)]
    return f"row IN ({', '.join(f'{chr(39)}{_quoted(row)}{chr(39)}' for row in its) or 'NULL'})"


def _fetched(lake: Lake, who: Target) -> str:
    """Addresses of the pictures that the item alone shows, and those of its refused rows."""
    rows = lake.read("quarantine", ["row"], _refused(lake, who))["row"].to_pylist() if lake.exists("quarantine") else []
    cells = [json.loads(row).get("images") for row in rows]
    addresses = sorted({address for cell in cells for address in references(cell)})
    return f"{_pictures(lake, who.key)} OR address IN ({', '.join(f'{chr(39)}{_quoted(a)}{chr(39)}' for a in addresses) or 'NULL'})"


def _pictures(lake: Lake, item_id: int) -> str:
    """The pictures that this item alone shows."""
    items = lake.read("items", ["item_id", "image_ids"])
    mine = pc.equal(items["item_id"], item_id)
    its, others = (set(pc.list_flatten(items.filter(rows)["image_ids"]).to_pylist()) for rows in (mine, pc.invert(mine)))
    return _named(its - others - set(lake.read("queries", ["image_id"])["image_id"].to_pylist()))


def _asked_pictures(lake: Lake, queries: list[int]) -> str:
    """The pictures that these queries alone show."""
    asked = lake.read("queries", ["query_id", "image_id"])
    mine = pc.is_in(asked["query_id"], pa.array(queries, pa.int64()))
    its, others = (set(asked.filter(rows)["image_id"].to_pylist()) for rows in (mine, pc.invert(mine)))
    return _named(its - others - {None} - set(pc.list_flatten(lake.read("items", ["image_ids"])["image_ids"]).to_pylist()))


def _named(pictures: set[str]) -> str:
    return f"image_id IN ({', '.join(repr(i) for i in sorted(pictures)) or 'NULL'})"


def _listed(keys: Iterable[int]) -> str:
    return f"({', '.join(map(str, keys)) or 'NULL'})"


def _quoted(text: str) -> str:
    return text.replace("'", "''")
