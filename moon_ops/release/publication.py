"""Hand an encoder's vectors over to their readers: statistics, Feast, representation tables, index.

What a publication has handed over stands in ``MOON_HOME/tables/handed``, a file a view, written last. The next one reads what changed
since, so it costs in proportion to that; a killed one is done again, and nobody sees the difference. Publications at the same time take
turns view by view: a new item waits for the view that the nightly refresh is handing over, not for all of it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from feast import FeatureStore
from numpy.typing import NDArray

from moon_ops.ctr.dataset import Tables
from moon_ops.embeddings import features, handover, index, online_store, vector_tables
from moon_ops.embeddings.generations import turn
from moon_ops.embeddings.handover import Since
from moon_ops.embeddings.index import IndexHeader
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import StageError
from moon_ops.lake import changes, statistics
from moon_ops.lake.tables import VALIDITY, active_as_of, items_as_of
from moon_ops.release.places import index_place, table, table_place
from moon_ops.release.registry import ENCODER, Registry
from moon_ops.settings import Settings

log = logging.getLogger(__name__)
DAMAGED = (ValueError, OSError, EOFError, KeyError, TypeError)  # what reading a file says that is not what was written
ITEMS = ("item_profile",)  # what a new item has before anybody has seen it
SHARED = (*ITEMS, "item_stats", "user_behavior")  # views that all encoders have in common


@dataclass(frozen=True)
class Published:
    """What one publication handed over; ``items`` are searchable afterwards."""

    encoder: int
    contract_id: str
    items: int
    queries: int
    index: str
    changed: int  # rows handed to the online store
    behaviors: int  # clicks of a user that it shows


def publish(settings: Settings, encoder: int, *, now: dt.datetime, behaviour: bool = True, full: bool = False) -> Published:
    """Hand over what has changed under the encoder; everything with ``full``, or where nothing was handed over before.

    Without ``behaviour`` the statistics of users and items stay as they are: new items have none yet.
    """
    lake, contract = settings.lake, vector_tables.contract_of(settings.lake, encoder)
    versions = lake_versions(settings, encoder)  # as they are before anything is read
    if not behaviour:  # these events are yet to be counted
        versions["events"] = (published_versions(settings, encoder) or {}).get("events", changes.NOTHING)
    statistics.derive(lake, behaviour=behaviour)
    store = features.open_store(settings.home, settings.redis)
    features.apply(store, settings.home, definitions(settings, [encoder]))
    changed = 0
    for view in (*_shared(settings, store, behaviour=behaviour), f"item_embedding_v{encoder}"):
        with turn(_handed(settings, view)):
            changed += _online_view(settings, store, view, now, full=full)
    _table(settings, encoder, "items", now, contract, full=full)
    queries = _table(settings, encoder, "queries", now, contract, full=full)
    with turn(_handed(settings, f"index-v{encoder}")):
        try:
            header = _index(settings, encoder, now, contract, full=full)
        except DAMAGED as fault:
            if full:
                raise
            log.warning("%s cannot be read (%s): it is made anew", index_place(settings, encoder), fault)
            header = _index(settings, encoder, now, contract, full=True)
    place = _place(settings, encoder)
    _write(place, json.dumps(versions))  # last: a killed publication is published again
    return Published(encoder, contract, header.items, queries, f"{header.kind}: {header.reason}", changed, settings.behaviors)


def definitions(settings: Settings, encoders: Sequence[int]) -> list[features.Thing]:
    """All that Feast is told of these encoders."""
    until = {encoder: found for encoder in encoders if (found := _trained_until(settings, encoder))}
    return features.definitions(settings.lake, encoders, until, settings.behaviors)


def _trained_until(settings: Settings, encoder: int) -> str:
    """From when on the encoder has seen no behaviour; empty for vectors that no registered encoder made."""
    try:
        return Registry(settings).tags(ENCODER, encoder)["trained_until"]
    except StageError:
        return ""


def _shared(settings: Settings, store: FeatureStore, *, behaviour: bool) -> list[str]:
    """The shared views to hand over: those of items always, the others with ``behaviour``, or if the online store has never had them."""
    names = {view: _online_name(store, view) for view in SHARED}
    return [v for v, name in names.items() if behaviour or v in ITEMS or _since(settings, v, full=False, online=name).when is None]


def _online_name(store: FeatureStore, view: str) -> str:
    """The online store, and how many clicks a view shows there: with another number all of it is handed over again."""
    clicks, name = features.clicks_of(store.get_feature_view(view)), online_store.identity(store)
    return name if clicks is None else f"{name}, {clicks.length} clicks"


def views(settings: Settings, encoders: list[int]) -> list[contextlib.AbstractContextManager[None]]:
    """The turns of all views of the online store, in one order: who holds them knows that nobody hands anything over to it."""
    return [turn(_handed(settings, view)) for view in (*SHARED, *(f"item_embedding_v{encoder}" for encoder in encoders))]


def _online_view(settings: Settings, store: FeatureStore, view: str, now: dt.datetime, *, full: bool) -> int:
    """Hand what changed in a view to the online store; how many rows."""
    source, online = store.get_feature_view(view), _online_name(store, view)
    dataset = features.dataset_of(source)
    since = _since(settings, view, full=full, online=online)
    when, mark = _not_before(since, now), changes.newest(dataset)
    if since.when is None:  # killed in the middle, it holds neither what was there before nor this
        _handed(settings, view).unlink(missing_ok=True)
    count = handover.online(store, source, dataset, since, when)
    remember(settings, view, mark, when, online)
    return count


def _table(settings: Settings, encoder: int, kind: str, now: dt.datetime, contract: str, *, full: bool) -> int:
    """Refresh a representation table by the vectors that are new; how many it holds."""
    place, view = table_place(settings, kind, encoder), f"table-{kind}-v{encoder}"
    with turn(_handed(settings, view)):
        try:
            return _refreshed_table(settings, encoder, kind, now, contract, full=full)
        except DAMAGED as fault:
            if full:
                raise
            log.warning("%s cannot be read (%s): it is made anew", place, fault)
            return _refreshed_table(settings, encoder, kind, now, contract, full=True)


def _refreshed_table(settings: Settings, encoder: int, kind: str, now: dt.datetime, contract: str, *, full: bool) -> int:
    name, key = (vector_tables.table_name(encoder), "item_id") if kind == "items" else (vector_tables.query_table_name(encoder), "query_id")
    place, view = table_place(settings, kind, encoder), f"table-{kind}-v{encoder}"
    dataset, since = settings.lake.open(name), _since(settings, view, full=full or not (place / "table.json").is_file())
    now = _not_before(since, now)
    ids, mark, dim = handover.touched(dataset, key, since, now), changes.newest(dataset), vector_tables.dim_of(dataset)
    if since.when is None:
        count = RepresentationTable.fill(place, handover.vectors(dataset, key, ids, now), dim, contract)
    elif len(ids):
        count = RepresentationTable.update(place, *_joined(list(handover.vectors(dataset, key, ids, now)), dim), contract)
    else:
        count = len(RepresentationTable.open(place))
    remember(settings, view, mark, now)
    return count


def _index(settings: Settings, encoder: int, now: dt.datetime, contract: str, *, full: bool) -> IndexHeader:
    """Refresh the index by items that are new, changed, or gone; compacted when its rule says so."""
    place, lake = index_place(settings, encoder), settings.lake
    made, sold = lake.open(vector_tables.table_name(encoder)), lake.open("items")
    absent = full or not (place / "index.json").is_file()
    views = {f"index-v{encoder}": (made, changes.newest(made)), f"index-items-v{encoder}": (sold, changes.newest(sold))}
    since = {view: _since(settings, view, full=absent) for view in views}
    now = max(_not_before(s, now) for s in since.values())
    header = None if absent or any(s.when is None for s in since.values()) else IndexHeader.read(place)
    if header is not None:
        ids = np.unique(np.concatenate([handover.touched(d, "item_id", since[v], now).to_numpy() for v, (d, _) in views.items()]))
        if len(ids):
            known, rows = _joined(list(handover.vectors(made, "item_id", pa.array(ids), now)), header.dim)
            active = active_as_of(changes.rows_of(sold, "item_id", pa.array(ids), VALIDITY), now)["item_id"].to_numpy()
            keep = np.isin(known, active)
            header = index.update(place, known[keep], rows[keep], np.setdiff1d(ids, known[keep]), contract)
    if header is not None and index.compaction_due(header):
        header = index.compact(place)
    if header is None:
        in_table = _since(settings, f"table-items-v{encoder}", full=False).mark  # before it is opened: it holds at least this much
        views[f"index-v{encoder}"] = (made, in_table)
        known, rows = RepresentationTable.open(table_place(settings, "items", encoder)).all()
        keep = np.isin(known, items_as_of(lake, now, ["item_id"])["item_id"].to_numpy())  # behaviours name deleted items, searches do not
        header = index.build(place, *((known, rows) if keep.all() else (known[keep], rows[keep])), contract)  # all: they stay on disk
    for view, (_, mark) in views.items():
        remember(settings, view, mark, now)
    return header


def _joined(chunks: list[tuple[NDArray[np.int64], NDArray[np.float32]]], dim: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if not chunks:
        return np.zeros(0, np.int64), np.zeros((0, dim), np.float32)
    return np.concatenate([ids for ids, _ in chunks]), np.concatenate([rows for _, rows in chunks])


def lake_versions(settings: Settings, encoder: int) -> dict[str, int]:
    """The newest fragment of every lake table that a publication reads."""
    names = ("items", "events", vector_tables.table_name(encoder), vector_tables.query_table_name(encoder))
    return {name: changes.newest(settings.lake.open(name)) if settings.lake.exists(name) else changes.NOTHING for name in names}


def lake_state(settings: Settings, encoder: int) -> str:
    """A short hash of the tables that models on this encoder are trained and judged on: ingestion, embedding and erasure change it."""
    found = [(name, newest, settings.lake.count(name)) for name, newest in lake_versions(settings, encoder).items()]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:10]


def published_versions(settings: Settings, encoder: int) -> dict[str, int] | None:
    """What the encoder's last complete publication read, None if there was none."""
    place = _place(settings, encoder)
    return json.loads(place.read_text()) if place.is_file() else None


def is_current(settings: Settings, encoder: int, now: dt.datetime) -> bool:
    """Whether no item or query has been written, embedded, or become valid since the last complete publication, to this online store."""
    before, versions = published_versions(settings, encoder), lake_versions(settings, encoder)
    if before is None or any(before[name] != version for name, version in versions.items() if name != "events"):
        return False
    since = _since(settings, f"index-items-v{encoder}", full=False)
    if since.when is None or len(handover.touched(settings.lake.open("items"), "item_id", since, now)):
        return False
    name = online_store.identity(features.open_store(settings.home, settings.redis))
    return _since(settings, f"item_embedding_v{encoder}", full=False, online=name).when is not None


def _not_before(since: Since, now: dt.datetime) -> dt.datetime:
    """The time as of which to hand over: a nightly run whose time lies before a new item's does not take the item away again."""
    return now if since.when is None else max(now, since.when)


def _since(settings: Settings, view: str, *, full: bool, online: str = "") -> Since:
    """What was handed over to a view; nothing if all of it is wanted again, or for another online store."""
    place = _handed(settings, view)
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
    place = _handed(settings, view)
    place.parent.mkdir(parents=True, exist_ok=True)
    _write(place, json.dumps({"mark": mark, "when": now.isoformat(), "online": online}))


def move_marks(settings: Settings, name: str, before: int, after: int) -> None:
    """After a compaction of a table: what had seen all of it, has."""
    encoder = name.rpartition("v")[2]
    views = {
        "items": [place.stem for place in (settings.home / "tables" / "handed").glob("index-items-v*.json")],
        f"embeddings/v{encoder}": [f"item_embedding_v{encoder}", f"table-items-v{encoder}", f"index-v{encoder}"],
        f"query_embeddings/v{encoder}": [f"table-queries-v{encoder}"],
        **{f"features/{view}": [view] for view in SHARED},
    }
    for view in views.get(name, []):
        place = _handed(settings, view)
        known = json.loads(place.read_text()) if place.is_file() else {}
        if known.get("mark") == before:
            _write(place, json.dumps({**known, "mark": after}))
    for place in (settings.home / "tables").glob("published-v*.json"):
        read = json.loads(place.read_text())
        if read.get(name) == before:
            _write(place, json.dumps({**read, name: after}))


def _write(place: Path, content: str) -> None:
    """Replace the file in one step."""
    scratch = place.with_name(f".{place.name}-{os.getpid()}")
    scratch.write_text(content + "\n")
    scratch.replace(place)


def _handed(settings: Settings, view: str) -> Path:
    return settings.home / "tables" / "handed" / f"{view}.json"


def _place(settings: Settings, encoder: int) -> Path:
    return settings.home / "tables" / f"published-v{encoder}.json"


def tables(settings: Settings, encoder: int) -> Tables:
    """Both representation tables of an encoder; :class:`StageError` before the first publication."""
    return Tables(*(table(settings, kind, encoder) for kind in ("items", "queries")))
