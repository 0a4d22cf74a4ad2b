"""Forget an item or a user everywhere: lake, vectors, online store, index, tables, and old versions of each; with a receipt of the places.

Deleting is an entry in the ledger and keeps history; erasing rewrites it. It may be killed and run again: what the killed run found is
noted before it is removed, so that the receipt of the run that completes it names it, too. A tombstone keeps it from coming back.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import html
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from moon_ops.embeddings import features, index_shards, online_store
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import InputError
from moon_ops.files import TakenError, locked, remembered, write_text
from moon_ops.lake import changes, lookups, statistics, tombstones
from moon_ops.lake.ids import ShopId
from moon_ops.lake.lake import Lake
from moon_ops.publication import item_cards, maintenance, marks, places, publication, sharing, shop_ids, traces
from moon_ops.publication.traces import Target
from moon_ops.settings import Settings

LOCK = "erase.lock"  # one erasure at a time
ANEW = "what the killed run had found is counted anew"
ALWAYS = dt.timedelta(days=36_500)  # that versions are kept
LONGEST = 100  # characters of an id in a file's name
Note = Callable[[str, int], int]  # takes down how many rows a place holds; with what a killed run has found there
target = traces.target


@dataclass(frozen=True)
class Receipt:
    """How many rows each place held and holds no more. ``elsewhere``: files of the home that show it still and nobody rewrites, reports
    of releases in MLflow; they have to be deleted by hand.
    """

    kind: str  # item or user
    shop_id: ShopId
    erased_at: str  # ISO 8601
    places: dict[str, int]
    elsewhere: list[str] = field(default_factory=list)


def erase(settings: Settings, who: Target | int, *, now: dt.datetime) -> Receipt:
    """Remove every trace of an item (or the number of one) or a user; pictures that other items or queries use stay.

    Behaviour that names the item goes with it, and users' sequences are derived anew; with a user go the queries that nobody else has
    asked. Raises :class:`InputError` for one that no place knows. The receipt is also written to ``MOON_HOME/receipts``.
    """
    who = Target("item", who, who) if isinstance(who, int) else who
    if not settings.lake.exists("items"):
        raise InputError(f"{who.kind.upper()}_ID = {who.shop_id} is in no place: the lake is empty", action="check MOON_HOME and MOON_LAKE")
    place = settings.home / "receipts"
    place.mkdir(parents=True, exist_ok=True)
    with locked(settings.home / LOCK), settings.lake.turn("erasure"):  # whoever finishes a killed erasure does not meet one that runs
        return _erased(settings, who, now, place)


def restore(settings: Settings, kind: str, shop_id: str) -> bool:
    """Let what was erased come back with the next file that names it; whether it was erased."""
    who = traces.target(settings.lake, kind, shop_id)
    with settings.lake.one_writer():
        return tombstones.remove(settings.lake, kind, who.key)


def unfinished(settings: Settings) -> list[Target]:
    """Whose erasures were begun and not completed: killed, or running now."""
    return sorted((_target_of(place) for place in (settings.home / "receipts").glob("*.begun.json")), key=lambda who: (who.kind, who.key))


def _target_of(place: Path) -> Target:
    """Whose erasure a file says was begun."""
    kind, _, key = place.name.partition(".")[0].rpartition("-")
    return Target(kind or "item", int(key), (remembered(place, ANEW) or {}).get("shop_id", int(key)))


def finish(settings: Settings, *, now: dt.datetime) -> list[Receipt]:
    """Complete the erasures that were killed; those that run now are left to whoever runs them."""
    if not unfinished(settings):
        return []
    with contextlib.suppress(TakenError), locked(settings.home / LOCK, patience=0), settings.lake.turn("erasure", patience=0):
        return [_erased(settings, who, now, settings.home / "receipts") for who in unfinished(settings)]
    return []


def _erased(settings: Settings, who: Target, now: dt.datetime, place: Path) -> Receipt:
    prefix = "user-" if who.kind == "user" else ""
    begun = Begun(place / f"{prefix}{who.key}.begun.json", who)
    called = quote(str(who.shop_id), safe="") if len(quote(str(who.shop_id), safe="")) <= LONGEST else str(who.key)
    titles = _titles(settings.lake, who) | begun.titles
    begun.titles = titles
    _erase(settings, who, now, begun)
    if not any(begun.places.values()):
        begun.path.unlink(missing_ok=True)
        before = sorted(receipt for receipt in place.glob("*.json") if receipt.name.startswith(f"{prefix}{called}-2"))
        action = f"it was erased before: {before[-1]}" if before else "check the id"
        raise InputError(f"{who.kind.upper()}_ID = {who.shop_id} is in no place", action=action)
    begun.first = dict(begun.places)
    _erase(settings, who, now, begun, again=True)
    begun.note("pixels of trainings", _pixels(settings))
    with sharing.turn(settings):  # else the files of a publication that is being shared would go, too
        begun.note("publications", sharing.tidy(settings.lake, dt.timedelta(0), now))
    receipt = Receipt(who.kind, who.shop_id, now.isoformat(), begun.places, _shown(settings, titles))
    _write(place / f"{prefix}{called}-{now:%Y%m%dT%H%M%S}.json", asdict(receipt))
    begun.path.unlink()
    return receipt


def _titles(lake: Lake, who: Target) -> set[str]:
    """What reports call the item."""
    if who.kind != "item" or not lake.exists("items"):
        return set()
    return set(lake.read("items", ["title"], f"item_id = {who.key}")["title"].to_pylist())


def _pixels(settings: Settings) -> int:
    """Remove the decoded pictures of trainings that are not over, what their processes share of the lake, and the rows that click models
    were trained on; how many are pictures' files.

    Whoever goes on with such a training makes them anew, of what the lake has then.
    """
    trainings = settings.home / "checkpoints"
    found = list(trainings.glob("*/pixels-*.u8"))
    for file in (*found, *trainings.glob("*/pixels-*")):
        file.unlink(missing_ok=True)
    for folder in trainings.glob("*/material*"):
        shutil.rmtree(folder, ignore_errors=True)
    places.prepared(settings).forget()
    return len(found)


def _shown(settings: Settings, titles: set[str]) -> list[str]:
    """The reports that name the item."""
    pages = [*(settings.home / "report").glob("*.html"), *(settings.home / "mlartifacts").glob("**/*.html")]
    wanted = [html.escape(title).encode() for title in titles]
    return sorted(str(page.relative_to(settings.home)) for page in pages if any(title in page.read_bytes() for title in wanted))


class Begun:
    """What an erasure has found, on disk before it is removed: the run that completes a killed one knows it, too."""

    def __init__(self, path: Path, who: Target) -> None:
        known: dict[str, Any] = remembered(path, ANEW) or {}
        self.path, self.who, self.places = path, who, dict[str, int](known.get("places", {}))
        self.users, self.titles = set[int](known.get("users", [])), set[str](known.get("titles", []))
        self.first: dict[str, int] | None = None  # what the first pass has found, once it is over

    def note(self, name: str, count: int) -> int:
        """Take down how many rows a place holds; with what a killed run or the pass before has found there."""
        self.places[name] = max(self.places.get(name, 0), count) if self.first is None else self.first.get(name, 0) + count
        self._keep()
        return self.places[name]

    def seen_by(self, users: Iterable[int]) -> None:
        """Take down whose behaviour is derived anew."""
        self.users |= set(users)
        self._keep()

    def _keep(self) -> None:
        kept = {"places": self.places, "users": sorted(self.users), "titles": sorted(self.titles)}
        _write(self.path, {"kind": self.who.kind, "shop_id": self.who.shop_id, **kept})


def _write(place: Path, content: dict[str, Any]) -> None:
    write_text(place, json.dumps(content, indent=2) + "\n")


def _erase(settings: Settings, who: Target, now: dt.datetime, begun: Begun, *, again: bool = False) -> None:
    """One pass over all places. ``again``: for what others were writing meanwhile; table and index stay if nothing was found."""
    lake, found = settings.lake, 0
    with lake.one_writer(), lake.erasing():
        begun.seen_by(traces.users_of(lake, who))  # in here: nobody derives or ingests meanwhile
        rows = traces.rows_of(lake, who)
        counts = {name: lake.open(name).count_rows(filter=where) for name, where in rows.items()}
        if any(counts.values()) or any(begun.places.values()):
            _bury(lake, who, now)  # first: if this is killed, no file brings it back meanwhile
        alone = who.kind == "item" and lake.exists("items") and traces.product_is_alone(lake, who.key)
        for name, where in rows.items():
            found += _forget(settings, who, name, where, counts[name], begun)
    statistics.derive(lake)
    if who.kind == "item":
        begun.note("tables/shop_ids", shop_ids.forget(settings, who.key, product=alone))
    store = features.open_store(settings)
    with sharing.turn(settings), contextlib.ExitStack() as turns:  # whoever hands a view over now read it before, and may still bring it
        for view in marks.views(settings, features.versions(lake)):
            turns.enter_context(view)
        known = online_store.forget(store, "user_id", sorted(begun.users))
        known += online_store.forget(store, "item_id", [who.key]) if who.kind == "item" else 0
    begun.note("online store", known)
    for encoder in features.versions(lake):
        sharing.fetch(settings, encoder)
        made = places.table_place(settings, "items", encoder).exists()  # a first publication may have been killed after it
        if made and (found + known or not again):  # the users' other behaviour goes back to the online store, too
            _withdraw(settings, encoder, who, now, begun.note)


def _bury(lake: Lake, who: Target, now: dt.datetime) -> None:
    """Keep it, and a user's own queries and sessions, from coming back."""
    sessions = traces.sessions_of(lake, who.key) if who.kind == "user" else []
    tombstones.add(lake, who.kind, [who.key], now)
    if sessions:  # with the time of the user, also where a killed run has noted that: by it they are allowed again together
        tombstones.add(lake, "session", sessions, tombstones.known(lake, "user", [who.key])[who.key])
    if who.kind == "user" and (queries := traces.queries_of(lake, who.key)):
        tombstones.add(lake, "query", queries, now)


def _forget(settings: Settings, who: Target, name: str, where: str, count: int, begun: Begun) -> int:
    """Delete rows, and write anew every file and remove every version that held them; how many there were.

    What a killed writer has left goes, too: Lance keeps files of no version for a week. Nobody writes meanwhile.
    """
    if not begun.note(f"lake/{name}", count):  # older versions stay: a mistyped id must not cost the table its history
        if any(begun.places.values()):
            settings.lake.open(name).cleanup_old_versions(older_than=ALWAYS, delete_unverified=True)
        return 0
    if count and name == "items":
        changes.mark(settings.lake, name, erasures=changes.erasures(settings.lake) + 1)  # first: who embeds meanwhile looks what is left
    counted = name == statistics.STATS or (who.kind == "user" and name == "events" and settings.lake.exists(statistics.STATS))
    if count and counted:
        changes.mark(
            settings.lake, statistics.STATS, events=changes.NOTHING
        )  # first: if this is killed, they are derived anew all the same
    if count:
        settings.lake.open(name).delete(where)
        maintenance.compact(settings, name, deletions=True)
        lookups.tend(settings.lake, name, anew=True)  # an index holds the ids of its rows
    newest = settings.lake.open(name)
    for tag in newest.tags.list():  # a release reads the table without the item from now on
        newest.tags.update(tag, newest.version)
    newest.cleanup_old_versions(older_than=dt.timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False)
    return count


def _withdraw(settings: Settings, encoder: int, who: Target, now: dt.datetime, note: Note) -> None:
    """Make tables and index anew from the lake, which knows it no more."""
    if who.kind == "item":
        table = places.table_place(settings, "items", encoder)
        note(f"tables/items-v{encoder}", int(RepresentationTable.open(table).rows(np.array([who.key]))[0] >= 0))
        for dimensions in (0, *places.narrow_lengths(settings, encoder)):
            index = places.index_place(settings, encoder, dimensions)
            note(f"index/{index.name}", int(index.exists() and index_shards.holds(index, who.key)))
        if (cards := item_cards.opened(settings, encoder)) is not None:
            note(f"tables/cards-v{encoder}", len(cards.get([who.key])))
    publication.publish(settings, encoder, now=now, full=True)
