"""Forget an item everywhere: lake, vectors, online store, index, tables, and old versions of each; with a receipt that lists the places.

Deleting is an entry in the ledger and keeps history; erasing rewrites it. It may be killed and run again: what the killed run found is
noted before it is removed, so that the receipt of the run that completes it names it, too.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from moon_ops.embeddings import features, online_store
from moon_ops.embeddings.index import ItemIndex
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.embeddings.vector_tables import excused_table_name, table_name
from moon_ops.errors import InputError
from moon_ops.files import TakenError, locked, write_text
from moon_ops.lake import changes, fetches, statistics
from moon_ops.lake.lake import Lake
from moon_ops.lake.reading.pictures import references
from moon_ops.publication import maintenance, marks, places, publication
from moon_ops.settings import Settings

LOCK = "erase.lock"  # one erasure at a time
Note = Callable[[str, int], int]  # takes down how many rows of the item a place holds; with what a killed run has found there


@dataclass(frozen=True)
class Receipt:
    """How many rows of the item each place held and holds no more."""

    item_id: int
    erased_at: str  # ISO 8601
    places: dict[str, int]


def number_of(lake: Lake, item: str) -> int:
    """The item's number in the lake, from that number or from the shop's own id; :class:`InputError` for neither."""
    quoted = item.replace("'", "''")
    found = lake.read("items", ["item_id"], f"source_id = '{quoted}'")["item_id"].unique().to_pylist()
    if found:
        return int(found[0])
    if not item.removeprefix("-").isdecimal() or abs(int(item)) >= 2**63:
        raise InputError(f"ITEM_ID = {item!r} is neither a number nor an id that the lake knows", action="check the id")
    return int(item)


def erase(settings: Settings, item_id: int, *, now: dt.datetime) -> Receipt:
    """Remove every trace of the item; pictures that other items or queries use stay.

    Behaviour that names the item goes with it, and users' sequences are derived anew. Raises :class:`InputError` for an item that no place
    knows. The receipt is also written to ``MOON_HOME/receipts``.
    """
    place = settings.home / "receipts"
    place.mkdir(parents=True, exist_ok=True)
    with locked(settings.home / LOCK):  # whoever finishes a killed erasure does not meet one that runs
        return _erased(settings, item_id, now, place)


def unfinished(settings: Settings) -> list[int]:
    """The items of erasures that were begun and not completed: killed, or running now."""
    return sorted(int(place.name.partition(".")[0]) for place in (settings.home / "receipts").glob("*.begun.json"))


def finish(settings: Settings, *, now: dt.datetime) -> list[Receipt]:
    """Complete the erasures that were killed; those that run now are left to whoever runs them."""
    if not unfinished(settings):
        return []
    with contextlib.suppress(TakenError), locked(settings.home / LOCK, patience=0):
        return [_erased(settings, item_id, now, settings.home / "receipts") for item_id in unfinished(settings)]
    return []


def _erased(settings: Settings, item_id: int, now: dt.datetime, place: Path) -> Receipt:
    begun = Begun(place / f"{item_id}.begun.json")
    _erase(settings, item_id, now, begun)
    if not any(begun.places.values()):
        begun.path.unlink(missing_ok=True)
        before = sorted(receipt.name for receipt in place.glob(f"{item_id}-*.json"))
        action = f"it was erased before: {place / before[-1]}" if before else "check the id"
        raise InputError(f"ITEM_ID = {item_id} is in no place", action=action)
    begun.first = dict(begun.places)
    _erase(settings, item_id, now, begun, again=True)
    receipt = Receipt(item_id, now.isoformat(), begun.places)
    _write(place / f"{item_id}-{now:%Y%m%dT%H%M%S}.json", asdict(receipt))
    begun.path.unlink()
    return receipt


class Begun:
    """What an erasure has found, on disk before it is removed: the run that completes a killed one knows it, too."""

    def __init__(self, path: Path) -> None:
        known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        self.path, self.places, self.users = path, dict[str, int](known.get("places", {})), set[int](known.get("users", []))
        self.first: dict[str, int] | None = None  # what the first pass has found, once it is over

    def note(self, name: str, count: int) -> int:
        """Take down how many rows of the item a place holds; with what a killed run or the pass before has found there."""
        self.places[name] = max(self.places.get(name, 0), count) if self.first is None else self.first.get(name, 0) + count
        self._keep()
        return self.places[name]

    def seen_by(self, users: Iterable[int]) -> None:
        """Take down whose behaviour names the item."""
        self.users |= set(users)
        self._keep()

    def _keep(self) -> None:
        _write(self.path, {"places": self.places, "users": sorted(self.users)})


def _write(place: Path, content: dict[str, Any]) -> None:
    write_text(place, json.dumps(content, indent=2) + "\n")


def _erase(settings: Settings, item_id: int, now: dt.datetime, begun: Begun, *, again: bool = False) -> None:
    """One pass over all places. ``again``: for what others were writing meanwhile; table and index stay if nothing was found."""
    lake, found = settings.lake, 0
    with lake.one_writer(), lake.erasing():
        begun.seen_by(_users(lake, item_id))  # in here: nobody derives or ingests meanwhile
        for name, where in _rows(lake, item_id).items():
            found += _forget(settings, name, where, begun.note)
    statistics.derive(lake)
    store = features.open_store(settings)
    with contextlib.ExitStack() as turns:  # whoever hands a view over now read it before, and may still bring the item
        for view in marks.views(settings, features.versions(lake)):
            turns.enter_context(view)
        known = online_store.forget(store, "item_id", [item_id]) + online_store.forget(store, "user_id", sorted(begun.users))
    begun.note("online store", known)
    for encoder in features.versions(lake):
        made = places.table_place(settings, "items", encoder).exists()  # a first publication may have been killed after it
        if made and (found + known or not again):  # the users' other behaviour goes back to the online store, too
            _withdraw(settings, encoder, item_id, now, begun.note)


def _users(lake: Lake, item_id: int) -> list[int]:
    """Whose behaviour names the item: some may have done nothing else, and get no newer row."""
    named = _behaviours(lake, item_id) | {"events": f"item_id = {item_id} AND user_id IS NOT NULL"}
    rows = [lake.read(name, ["user_id"], where)["user_id"].to_pylist() for name, where in named.items()]
    return sorted({user for some in rows for user in some})


def _rows(lake: Lake, item_id: int) -> dict[str, str]:
    """Table → which of its rows are the item's. Pictures come first: which are its own is read from the items."""
    own = f"item_id = {item_id}"
    tables = {"images": _pictures(lake, item_id)} if lake.exists("images") else {}
    tables |= {fetches.TABLE: _fetched(lake, item_id)} if lake.exists(fetches.TABLE) else {}
    tables |= {"quarantine": _refused(lake, item_id)} if lake.exists("quarantine") else {}
    per_encoder = [make(v) for v in features.versions(lake) for make in (table_name, excused_table_name)]
    names = ("items", "events", statistics.PROFILE, statistics.STATS, *per_encoder)
    return tables | {name: own for name in names if lake.exists(name)} | _behaviours(lake, item_id)


def _behaviours(lake: Lake, item_id: int) -> dict[str, str]:
    name = statistics.BEHAVIOR
    if not lake.exists(name):
        return {}
    return {name: f"item_id = {item_id}" if statistics.usable(lake, name) else f"array_has(item_ids, {item_id})"}


def _refused(lake: Lake, item_id: int) -> str:
    """Rows of files that named the item and could not be used, e.g. for one of its pictures."""
    names = {str(item_id), *lake.read("items", ["source_id"], f"item_id = {item_id}")["source_id"].to_pylist()}
    rows = lake.read("quarantine", ["row"])["row"].unique().to_pylist()
    its = [row.replace("'", "''") for row in rows if str(json.loads(row).get("item_id")) in names]
    return f"row IN ({', '.join(f'{chr(39)}{row}{chr(39)}' for row in its) or 'NULL'})"


def _fetched(lake: Lake, item_id: int) -> str:
    """Addresses of the pictures that it alone shows, and those of its refused rows."""
    rows = lake.read("quarantine", ["row"], _refused(lake, item_id))["row"].to_pylist() if lake.exists("quarantine") else []
    cells = [json.loads(row).get("images") for row in rows]
    named = {word for cell in cells if cell is not None for word in references(cell)}
    quoted = sorted("'" + word.replace("'", "''") + "'" for word in named)
    return f"{_pictures(lake, item_id)} OR address IN ({', '.join(quoted) or 'NULL'})"


def _pictures(lake: Lake, item_id: int) -> str:
    """The pictures that this item alone shows."""
    items = lake.read("items", ["item_id", "image_ids"])
    mine = pc.equal(items["item_id"], item_id)
    its, others = (set(pc.list_flatten(items.filter(rows)["image_ids"]).to_pylist()) for rows in (mine, pc.invert(mine)))
    asked = set(lake.read("queries", ["image_id"])["image_id"].to_pylist())
    return f"image_id IN ({', '.join(repr(i) for i in sorted(its - others - asked)) or 'NULL'})"


def _forget(settings: Settings, name: str, where: str, note: Note) -> int:
    """Delete rows, and write anew every file and remove every version that held them; how many there were."""
    table = settings.lake.open(name)
    count = table.count_rows(filter=where)
    if not note(f"lake/{name}", count):
        return 0  # and older versions stay: a mistyped id must not cost the table its history
    if count and name == "items":
        changes.mark(settings.lake, name, erasures=changes.erasures(settings.lake) + 1)  # first: who embeds meanwhile looks what is left
        table = settings.lake.open(name)
    if count and name == statistics.STATS:
        changes.mark(settings.lake, name, events=changes.NOTHING)  # first: if this is killed, they are derived anew all the same
        table = settings.lake.open(name)
    if count:
        table.delete(where)
        maintenance.compact(settings, name, deletions=True)
    newest = settings.lake.open(name)
    for tag in newest.tags.list():  # a release reads the table without the item from now on
        newest.tags.update(tag, newest.version)
    newest.cleanup_old_versions(older_than=dt.timedelta(0), error_if_tagged_old_versions=False)
    return count


def _withdraw(settings: Settings, encoder: int, item_id: int, now: dt.datetime, note: Note) -> None:
    """Make table and index anew from the lake, which knows the item no more."""
    table, index = places.table_place(settings, "items", encoder), places.index_place(settings, encoder)
    note(f"tables/items-v{encoder}", int(RepresentationTable.open(table).rows(np.array([item_id]))[0] >= 0))
    note(f"index/v{encoder}", int(index.exists() and ItemIndex.open(index).holds(item_id)))
    publication.publish(settings, encoder, now=now, full=True)
