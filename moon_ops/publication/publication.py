"""Hand an encoder's vectors over to their readers: statistics, Feast, representation tables, index.

What a publication has handed over stands in ``MOON_HOME/tables/handed``, a file a view, written last. The next one reads what changed
since, so it costs in proportion to that; a killed one is done again, and nobody sees the difference. Publications at the same time take
turns view by view: a new item waits for the view that the nightly refresh is handing over, not for all of it.
"""

from __future__ import annotations

import datetime as dt
import errno
import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from feast import FeatureStore
from numpy.typing import NDArray

from moon_ops.columns import Feature
from moon_ops.embeddings import features, handover, index_shards, online_store, vector_tables
from moon_ops.embeddings.generations import turn
from moon_ops.embeddings.index import HEADER, IndexHeader
from moon_ops.embeddings.prefixes import served
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import MoonError, StageError
from moon_ops.files import write_text
from moon_ops.lake import changes, clocks, statistics
from moon_ops.lake.schemas import VALIDITY
from moon_ops.lake.tables import active_as_of, items_as_of
from moon_ops.publication import item_cards, narrow, sharing, shop_ids
from moon_ops.publication.marks import ITEMS, SHARED, lake_versions, not_before, published_versions, remember, since_of
from moon_ops.publication.places import handed, index_name, index_place, published_place, table_place
from moon_ops.recipes.caps import Caps
from moon_ops.recipes.reading import caps, own_features
from moon_ops.registry.registry import ENCODER, Registry
from moon_ops.settings import Settings
from moon_ops.telemetry.stages import stage

log = logging.getLogger(__name__)
DAMAGED = (ValueError, OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile)  # what reading a file says that is not what was written
NO_DAMAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE)  # nor would all of it be written then


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
    left_out: int = 0  # events of the lake that are beyond a cap and count in no statistic


@stage("publish")
def publish(settings: Settings, encoder: int, *, now: dt.datetime, behaviour: bool = True, full: bool = False) -> Published:
    """Hand over what has changed under the encoder; everything with ``full``, or where nothing was handed over before.

    Without ``behaviour`` the statistics of users and items stay as they are: new items have none yet. What the lake has learned is there,
    even if ``now`` lies before (:mod:`moon_ops.lake.clocks`). Of several machines one publishes at a time (:mod:`.sharing`).
    """
    with sharing.turn(settings):
        sharing.fetch_in_turn(settings, encoder)
        done = _publish(settings, encoder, now, behaviour=behaviour, full=full)
        sharing.share(settings, encoder, now)
    return done


def _publish(settings: Settings, encoder: int, now: dt.datetime, *, behaviour: bool, full: bool) -> Published:
    lake, contract = settings.lake, vector_tables.contract_of(settings.lake, encoder)
    now = clocks.present(lake, now)
    versions = lake_versions(settings, encoder)  # as they are before anything is read
    if not behaviour:  # these events are yet to be counted
        versions["events"] = (published_versions(settings, encoder) or {}).get("events", changes.NOTHING)
    derived = statistics.derive(lake, behaviour=behaviour, own=_declared(settings), caps=_caps(settings), deal=settings.deal)
    store = features.open_store(settings)
    features.apply(store, settings.home, definitions(settings, [encoder]))
    changed = 0
    for view in (*_shared(settings, store, behaviour=behaviour), f"item_embedding_v{encoder}"):
        with turn(handed(settings, view)):
            changed += online_view(settings, store, view, now, full=full)
    shop_ids.publish(settings, now, full=full)  # before the index: what is found has a name
    _table(settings, encoder, "items", now, contract, full=full)
    queries = _table(settings, encoder, "queries", now, contract, full=full)
    item_cards.publish(settings, encoder, now, full=full)  # before the index, likewise
    header = _fresh_index(settings, encoder, now, contract, full=full, anew=behaviour)
    for dimensions in narrow.kept(settings, encoder):
        _fresh_index(settings, encoder, now, contract, full=full, anew=behaviour, dimensions=dimensions)
    place = published_place(settings, encoder)
    write_text(place, json.dumps(versions))  # last: a killed publication is published again
    return Published(
        encoder, contract, header.items, queries, f"{header.kind}: {header.reason}", changed, settings.behaviors, derived.left_out
    )


def _fresh_index(
    settings: Settings, encoder: int, now: dt.datetime, contract: str, *, full: bool, anew: bool, dimensions: int = 0
) -> IndexHeader:
    """The index brought up to date, or made anew where it is damaged; with ``anew`` also where it has another number of shards than is
    wanted: a service that takes one item in must not build all of it.
    """
    with turn(handed(settings, f"index-{index_name(encoder, dimensions)}")):
        try:
            other = anew and not full and _shards(index_place(settings, encoder, dimensions)) not in (None, settings.index_shards)
            return _index(settings, encoder, now, contract, full=full or other, dimensions=dimensions)
        except DAMAGED as fault:
            if full or _of_the_machine(fault):
                raise
            log.warning("%s cannot be read (%s): it is made anew", index_place(settings, encoder, dimensions), fault)
            return _index(settings, encoder, now, contract, full=True, dimensions=dimensions)


def _shards(place: Path) -> int | None:
    """How many shards the index there has; None if there is none."""
    return IndexHeader.read(place).shards if (place / HEADER).is_file() else None


def _of_the_machine(fault: BaseException) -> bool:
    """Whether it says nothing of what was read: a full disk, a place that may not be written."""
    return isinstance(fault, OSError) and fault.errno in NO_DAMAGE


def _declared(settings: Settings) -> tuple[Feature, ...]:
    """The columns of the shop's own that recipes declare. A recipe that is being written must not stop the night's publication."""
    try:
        return own_features(settings.models)
    except MoonError as fault:
        log.warning("no column is added to Feast's views: %s", fault)
        return ()


def _caps(settings: Settings) -> Caps | None:
    """The caps that the shop's recipe sets; those of before while it is being written."""
    try:
        return caps(settings.models)
    except MoonError as fault:
        log.warning("events are counted by the caps of before: %s", fault)
        return None


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
    known = {view.name for view in store.list_feature_views()}
    names = {view: _online_name(store, view) for view in SHARED if view in known}
    return [v for v, name in names.items() if behaviour or v in ITEMS or since_of(settings, v, full=False, online=name).when is None]


def _online_name(store: FeatureStore, view: str) -> str:
    """The online store, and how many clicks a view shows there: with another number all of it is handed over again."""
    clicks, name = features.clicks_of(store.get_feature_view(view)), online_store.identity(store)
    return name if clicks is None else f"{name}, {clicks.length} clicks"


def online_view(settings: Settings, store: FeatureStore, view: str, now: dt.datetime, *, full: bool) -> int:
    """Hand what changed in a view to the online store; how many rows."""
    source, online = store.get_feature_view(view), _online_name(store, view)
    dataset = features.dataset_of(source)
    since = since_of(settings, view, full=full, online=online)
    when, mark = not_before(since, now), changes.newest(dataset)
    if since.when is None:  # killed in the middle, it holds neither what was there before nor this
        handed(settings, view).unlink(missing_ok=True)
    count = handover.online(store, source, dataset, since, when)
    remember(settings, view, mark, when, online)
    return count


def _table(settings: Settings, encoder: int, kind: str, now: dt.datetime, contract: str, *, full: bool) -> int:
    """Refresh a representation table by the vectors that are new; how many it holds."""
    place, view = table_place(settings, kind, encoder), f"table-{kind}-v{encoder}"
    with turn(handed(settings, view)):
        try:
            return _refreshed_table(settings, encoder, kind, now, contract, full=full)
        except DAMAGED as fault:
            if full or _of_the_machine(fault):
                raise
            log.warning("%s cannot be read (%s): it is made anew", place, fault)
            return _refreshed_table(settings, encoder, kind, now, contract, full=True)


def _refreshed_table(settings: Settings, encoder: int, kind: str, now: dt.datetime, contract: str, *, full: bool) -> int:
    name, key = (vector_tables.table_name(encoder), "item_id") if kind == "items" else (vector_tables.query_table_name(encoder), "query_id")
    place, view = table_place(settings, kind, encoder), f"table-{kind}-v{encoder}"
    dataset, since = settings.lake.open(name), since_of(settings, view, full=full or not (place / "table.json").is_file())
    now = not_before(since, now)
    mark, dim = changes.newest(dataset), vector_tables.dim_of(dataset)
    if since.when is None:
        count = RepresentationTable.fill(place, vector_tables.all_at(dataset, key, now), dim, contract)
    elif len(ids := handover.touched(dataset, key, since, now)):
        count = RepresentationTable.update(place, *_joined(list(handover.vectors(dataset, key, ids, now)), dim), contract)
    else:
        count = len(RepresentationTable.open(place))
    remember(settings, view, mark, now)
    return count


def _index(settings: Settings, encoder: int, now: dt.datetime, contract: str, *, full: bool, dimensions: int) -> IndexHeader:
    """Refresh the index by items that are new, changed, or gone; compacted when its rule says so."""
    place, lake, name = index_place(settings, encoder, dimensions), settings.lake, index_name(encoder, dimensions)
    made, sold = lake.open(vector_tables.table_name(encoder)), lake.open("items")
    absent = full or not (place / HEADER).is_file()
    views = {f"index-{name}": (made, changes.newest(made)), f"index-items-{name}": (sold, changes.newest(sold))}
    since = {view: since_of(settings, view, full=absent) for view in views}
    now = max(not_before(s, now) for s in since.values())
    header = None if absent or any(s.when is None for s in since.values()) else IndexHeader.read(place)
    if header is not None:
        ids = np.unique(np.concatenate([handover.touched(d, "item_id", since[v], now).to_numpy() for v, (d, _) in views.items()]))
        if len(ids):
            known, rows = _joined(list(handover.vectors(made, "item_id", pa.array(ids), now)), vector_tables.dim_of(made))
            rows = served(rows, dimensions)
            active = active_as_of(changes.rows_of(sold, "item_id", pa.array(ids), VALIDITY), now)["item_id"].to_numpy()
            keep = np.isin(known, active)
            gone = np.setdiff1d(ids, known[keep])
            index_shards.update(place, known[keep], rows[keep], gone, contract, memory=settings.index_bytes)
        header = index_shards.tend(place, memory=settings.index_bytes)
    else:
        in_table = since_of(settings, f"table-items-v{encoder}", full=False).mark  # before it is opened: it holds at least this much
        views[f"index-{name}"] = (made, in_table)
        on_sale = items_as_of(lake, now, ["item_id"])["item_id"].to_numpy()  # behaviours name deleted items, searches do not
        known, rows = RepresentationTable.open(table_place(settings, "items", encoder)).of(on_sale)
        kept = {"shards": settings.index_shards, "memory": settings.index_bytes}
        header = index_shards.build(place, known, served(rows, dimensions), contract, **kept)
    for view, (_, mark) in views.items():
        remember(settings, view, mark, now)
    return header


def _joined(chunks: list[tuple[NDArray[np.int64], NDArray[np.float32]]], dim: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if not chunks:
        return np.zeros(0, np.int64), np.zeros((0, dim), np.float32)
    return np.concatenate([ids for ids, _ in chunks]), np.concatenate([rows for _, rows in chunks])
