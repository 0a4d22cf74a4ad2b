"""What has been handed over to each reader, and how far: files in ``MOON_HOME/tables``, written last."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import logging

from moon_ops.columns import ITEM_VIEW, STATS_VIEW, USER_VIEW
from moon_ops.embeddings import handover, vector_tables
from moon_ops.embeddings.generations import turn
from moon_ops.embeddings.handover import Since
from moon_ops.files import remembered, write_text
from moon_ops.lake import changes
from moon_ops.publication.places import NARROW, handed, published_place
from moon_ops.settings import Settings

log = logging.getLogger(__name__)


ITEMS = (ITEM_VIEW,)  # what a new item has before anybody has seen it
SHARED = (*ITEMS, STATS_VIEW, USER_VIEW, "user_behavior")  # views that all encoders have in common


def views(settings: Settings, encoders: list[int]) -> list[contextlib.AbstractContextManager[None]]:
    """The turns of all views of the online store, in one order: who holds them knows that nobody hands anything over to it."""
    return [turn(handed(settings, view)) for view in (*SHARED, *(f"item_embedding_v{encoder}" for encoder in encoders))]


def lake_versions(settings: Settings, encoder: int) -> dict[str, int]:
    """The newest fragment of every lake table that a publication reads."""
    users = ("users",) if settings.lake.exists("users") else ()  # most shops tell nothing of them
    names = ("items", "events", *users, vector_tables.table_name(encoder), vector_tables.query_table_name(encoder))
    return {name: changes.newest(settings.lake.open(name)) if settings.lake.exists(name) else changes.NOTHING for name in names}


def lake_state(settings: Settings, encoder: int) -> str:
    """A short hash of the tables that models on this encoder are trained and judged on: ingestion, embedding and erasure change it."""
    found = [(name, newest, settings.lake.count(name)) for name, newest in lake_versions(settings, encoder).items()]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:10]


def published_versions(settings: Settings, encoder: int) -> dict[str, int] | None:
    """What the encoder's last complete publication read, None if there was none, or if the file that says so was cut."""
    return remembered(published_place(settings, encoder), "the encoder counts as not published, until it is published again")


def is_current(settings: Settings, encoder: int, now: dt.datetime) -> bool:
    """Whether no item or query has been written, embedded, or become valid since the last complete publication, to this online store."""
    from moon_ops.embeddings import features, online_store  # Feast: a command in a hurry needs only marks from here

    before, versions = published_versions(settings, encoder), lake_versions(settings, encoder)
    if before is None or any(before.get(name) != version for name, version in versions.items() if name not in ("events", "users")):
        return False
    since = since_of(settings, f"index-items-v{encoder}", full=False)
    if since.when is None or len(handover.touched(settings.lake.open("items"), "item_id", since, now)):
        return False
    name = online_store.identity(features.open_store(settings))
    return since_of(settings, f"item_embedding_v{encoder}", full=False, online=name).when is not None


def not_before(since: Since, now: dt.datetime) -> dt.datetime:
    """The time as of which to hand over: a nightly run whose time lies before a new item's does not take the item away again."""
    return now if since.when is None else max(now, since.when)


def since_of(settings: Settings, view: str, *, full: bool, online: str = "") -> Since:
    """What was handed over to a view; nothing if all of it is wanted again, or for another online store."""
    place = handed(settings, view)
    if full or not place.is_file():
        return Since()
    try:
        known = json.loads(place.read_text())
        same = known["online"] == online
        return Since(known["mark"], dt.datetime.fromisoformat(known["when"])) if same else Since()
    except (ValueError, KeyError, TypeError) as damaged:
        log.warning("%s cannot be read (%s): all of it is handed over again", place, damaged)
        return Since()


def remember(settings: Settings, view: str, mark: int, now: dt.datetime, online: str = "") -> None:
    """Note that a view, of the store ``online`` if it is one of Feast's, has everything up to ``mark``, as of ``now``."""
    place = handed(settings, view)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(place, json.dumps({"mark": mark, "when": now.isoformat(), "online": online}))


def move_marks(settings: Settings, name: str, before: int, after: int) -> None:
    """After a compaction of a table: what had seen all of it, has."""
    encoder = name.rpartition("v")[2]
    views = {
        "items": [p.stem for of in ("index-items", "cards") for p in handed(settings, "").parent.glob(f"{of}-v*.json")] + ["shop-ids"],
        f"embeddings/v{encoder}": [f"item_embedding_v{encoder}", f"table-items-v{encoder}", f"index-v{encoder}"]
        + [place.stem for place in handed(settings, "").parent.glob(f"index-v{encoder}{NARROW}*.json")],
        f"query_embeddings/v{encoder}": [f"table-queries-v{encoder}"],
        **{f"features/{view}": [view] for view in SHARED},
    }
    for view in views.get(name, []):
        place = handed(settings, view)
        known = remembered(place, "all of it is handed over again") or {}
        if known.get("mark") == before:
            write_text(place, json.dumps({**known, "mark": after}))
    for place in (settings.home / "tables").glob("published-v*.json"):
        read = remembered(place, "the encoder counts as not published, until it is published again") or {}
        if read.get(name) == before:
            write_text(place, json.dumps({**read, name: after}))
