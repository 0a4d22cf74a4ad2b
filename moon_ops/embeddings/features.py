"""Vectors and statistics as Feast features: one view per live encoder, keyed by item id, the same offline and online.

Entities: item, user, query. Views: ``item_embedding_v<N>`` and ``query_embedding_v<N>`` (tagged with the contract), ``item_profile``,
``item_stats``, ``user_behavior``. Service ``ctr_v<N>`` names exactly what a click model on encoder N uses.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import yaml
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, RepoConfig, ValueType
from feast.errors import FeastObjectNotFoundException
from feast.infra.data_sources.contrib.lance.lance_source import LanceSource
from feast.types import Array, Float32, Float64, Int64, String
from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError

from moon_ops.columns import ITEM_VIEW, ROWS, STATS_VIEW, USER_VIEW, Feature, by_view
from moon_ops.embeddings.sequences import STORED, ClickSequences
from moon_ops.embeddings.vector_tables import contract_of, query_table_name, table_name
from moon_ops.errors import InputError, ServiceError, StageError, in_a_line
from moon_ops.files import locked, write_text
from moon_ops.lake import statistics
from moon_ops.lake.lake import Lake
from moon_ops.settings import BEHAVIORS, ROOT, Settings, shown
from moon_ops.telemetry import lineage

REPO = ROOT / "feature_repo"
PATIENCE = {"socket_connect_timeout": 10, "socket_timeout": 60}  # seconds: a Redis that does not answer must not hold everybody's turn
FOREVER = dt.timedelta(0)  # Feast's spelling
ITEM = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
USER = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
QUERY = Entity(name="query", join_keys=["query_id"], value_type=ValueType.INT64)
VECTORS = "_embedding_"  # in the names of the views of vectors
VECTOR = {"embedding": Array(Float32)}
TIMES: dict[str, Any] = {"timestamp_field": "event_timestamp", "created_timestamp_column": "created"}

Thing = Entity | FeatureView | FeatureService


def configuration(settings: Settings) -> dict[str, Any]:
    """``feature_store.yaml`` with what the settings say: registry and online store are SQLite in ``home`` where nothing else is named."""
    place = settings.home / "feature_store"
    filled: dict[str, Any] = yaml.safe_load((REPO / "feature_store.yaml").read_text())
    filled["registry"]["path"] = settings.feast_registry.get_secret_value() or f"sqlite:///{place / 'registry.db'}"
    redis = settings.redis.get_secret_value()
    redis += "".join(f",{name}={seconds}" for name, seconds in PATIENCE.items() if redis and name not in redis)
    # Feast would skip a row of the same time as the one there, and drop every correction; ours come once each, the newest last.
    remote = {"type": "redis", "skip_dedup": True, "connection_string": redis}
    filled["online_store"] = remote if redis else {"type": "sqlite", "path": str(place / "online.db")}
    return filled


def _write(settings: Settings, filled: dict[str, Any]) -> None:
    """The configuration as a file: ``FeatureStore("MOON_HOME/feature_store")`` opens the same store in any notebook, without a variable
    set, and with Feast's MLflow integration, which knows the features of a registered model; our own stages ask MLflow themselves.
    """
    place = settings.home / "feature_store"
    mlflow = {"enabled": True, "tracking_uri": settings.tracking_uri.get_secret_value(), "auto_log": False}
    content, written = yaml.safe_dump({**filled, "mlflow": mlflow}, sort_keys=False), place / "feature_store.yaml"
    secret = any("***" in shown(address) for address in (settings.tracking_uri, settings.feast_registry, settings.redis))
    closed = not secret and written.is_file() and bool(place.stat().st_mode & ~written.stat().st_mode & 0o044)  # by an older version
    if closed or not written.is_file() or written.read_text() != content:
        write_text(written, content, mode=0o600 if secret else 0o666)


def open_store(settings: Settings) -> FeatureStore:
    """The feature store of the settings; opening it writes its configuration, and creates an empty registry when there is none."""
    filled = configuration(settings)
    with _alone(settings.home), settings.lake.turn("features"), answering(filled["registry"]["path"]):
        _write(settings, filled)
        store = FeatureStore(repo_path=str(REPO), config=RepoConfig(**filled, **lineage.of_feast(), repo_path=REPO))
        if elsewhere(settings):
            _settle(store, settings.lake)
        return store


def elsewhere(settings: Settings) -> bool:
    """Whether a view in the home's own registry reads another lake: the home was moved or copied, or the lake was."""
    registry = settings.home / "feature_store" / "registry.db"
    if settings.feast_registry.get_secret_value() or not registry.is_file():
        return False
    ours = json.dumps({"uri": settings.lake.address("")})[1 : -len('.lance"}')].encode()  # as a source is written in the registry
    with contextlib.closing(sqlite3.connect(registry, timeout=60)) as tables:
        if not tables.execute("SELECT 1 FROM sqlite_master WHERE name = 'data_sources'").fetchone():
            return False  # a new one, before Feast has made its tables
        return bool(tables.execute("SELECT 1 FROM data_sources WHERE instr(data_source_proto, ?) = 0", (ours,)).fetchone())


def _settle(store: FeatureStore, lake: Lake) -> None:
    """Let every view read the tables of this lake, under the names that they had in the one before."""
    views, services = store.list_feature_views(), store.list_feature_services()
    shown = [projection for service in services for projection in service.feature_view_projections]
    for source in (*(view.batch_source for view in views), *(projection.batch_source for projection in shown)):
        if isinstance(source, LanceSource) and source.uri is not None:
            source.uri = lake.address("/".join(Path(source.uri).parts[-2:]).removesuffix(".lance"))
    store.apply([*store.list_entities(), *views, *services])


def versions(lake: Lake) -> list[int]:
    """The encoders that have an embeddings table, oldest first."""
    return sorted(int(name[1:]) for name in lake.under("embeddings") if name[:1] == "v" and name[1:].isdigit())


def definitions(lake: Lake, live: Sequence[int], trained_until: Mapping[int, str] | None = None, behaviors: int = BEHAVIORS) -> list[Thing]:
    """All entities, views and services for the ``live`` encoders; services say until when the encoder was trained, where that is known.

    Of users' behaviour the last ``behaviors`` clicks are shown.
    """
    features = by_view(statistics.own(lake))
    views = {view: {f.column_joined: _TYPES[f.kind] for f in found} for view, found in features.items() if view != ROWS}
    profile = _view(ITEM_VIEW, ITEM, FOREVER, views[ITEM_VIEW], _source(ITEM_VIEW, lake.address(statistics.PROFILE)))
    day = _source(STATS_VIEW, lake.address(statistics.STATS))
    stats = _view(STATS_VIEW, ITEM, FOREVER, views[STATS_VIEW], day)
    shared = [profile, stats]
    if USER_VIEW in views:
        shared.append(_view(USER_VIEW, USER, FOREVER, views[USER_VIEW], _source(USER_VIEW, lake.address(statistics.USERS))))
    clicks = ClickSequences(length=behaviors, name="user_behavior", uri=lake.address(statistics.BEHAVIOR), **TIMES)
    shared.append(_view("user_behavior", USER, FOREVER, _BEHAVIOR, clicks))
    things: list[Thing] = [ITEM, USER, QUERY, *shared]
    for version in live:
        tags = {"contract_id": contract_of(lake, version), "encoder": str(version)}
        if until := (trained_until or {}).get(version):
            tags["trained_until"] = until
        items, queries = f"item_embedding_v{version}", f"query_embedding_v{version}"
        item = _view(items, ITEM, FOREVER, VECTOR, _source(items, lake.address(table_name(version))), tags)
        query = _view(queries, QUERY, FOREVER, VECTOR, _source(queries, lake.address(query_table_name(version))), tags)
        things += [item, query, FeatureService(name=service_name(version), features=[*shared, item, query], tags=tags)]
    return things


_TYPES = {"id": Int64, "category": String, "bucket": Float64, "statistic": Int64, "number": Float64, "list": Array(String)}
_BEHAVIOR = {"item_ids": Array(Int64), "query_ids": Array(Int64), "times": Array(Int64)}


def service_name(version: int) -> str:
    """The feature service of the click models on encoder ``version``."""
    return f"ctr_v{version}"


def _view(
    name: str, entity: Entity, ttl: dt.timedelta, fields: dict[str, Any], source: LanceSource, tags: dict[str, str] | None = None
) -> FeatureView:
    schema = [Field(name=field, dtype=kind) for field, kind in fields.items()]
    return FeatureView(name=name, entities=[entity], ttl=ttl, schema=schema, source=source, tags=tags or {})


def _source(name: str, uri: str) -> LanceSource:
    return LanceSource(name=name, uri=uri, **TIMES)


def apply(store: FeatureStore, home: Path, things: Sequence[Thing]) -> None:
    """Register the objects; what is registered and not named stays as it is."""
    with _alone(home), answering(str(store.config.registry.path)):
        store.refresh_registry()
        store.apply(list(things))


def dataset_of(view: FeatureView) -> lance.LanceDataset:
    """The lake's table behind a view."""
    source = view.batch_source
    assert isinstance(source, LanceSource), "every view here reads a table of the lake"
    return lance.dataset(source.uri)


def lake_of(store: FeatureStore) -> Lake:
    """The lake that the views read: ``ids.named(lake_of(store), "item", keys)`` gives the shop's ids of what Feast shows."""
    found = [view.batch_source.uri for view in store.list_feature_views() if isinstance(view.batch_source, LanceSource)]
    if not found or found[0] is None:
        raise StageError("Feast has no view of a lake", action="run `moon publish` first")
    return Lake(found[0].rsplit("/", 2)[0])


def clicks_of(view: FeatureView) -> ClickSequences | None:
    """The source of a view whose rows are made of clicks when they are read; None for one that shows its table as it is."""
    return view.batch_source if isinstance(view.batch_source, ClickSequences) else None


def rows(view: FeatureView, columns: Iterable[str], read: Callable[[list[str]], pa.Table]) -> pa.Table:
    """Rows of a view with ``columns``, made of what ``read`` finds of the stored columns that it is given."""
    clicks = clicks_of(view)
    return read(list(columns)) if clicks is None else clicks.of(read(list(STORED))).select(list(columns))


def online(store: FeatureStore, version: int, item_ids: Sequence[int], user_id: int) -> dict[str, list[Any]]:
    """The online values of ``ctr_v<version>``'s features but the vectors, by name: of items one each, of the user one in all.

    What the features are is read from Feast's memory of its registry, which may be away; it looks there itself every ten minutes.
    """
    return Online(store, version).values(item_ids, user_id)


class Online:
    """What :func:`online` gives, many times: what the features are is read again once Feast has read its registry again, else remembered.

    To read it is more than half of a look-up. May be used from many threads.
    """

    def __init__(self, store: FeatureStore, version: int) -> None:
        self.store, self.version = store, version
        self._read: tuple[Any, dict[str, list[str]]] | None = None  # of which state of Feast's memory, and the names by key

    def values(self, item_ids: Sequence[int], user_id: int) -> dict[str, list[Any]]:
        """The features of the items and the user, by name."""
        rows = {"item_id": [{"item_id": i} for i in item_ids], "user_id": [{"user_id": user_id}]}
        found: dict[str, list[Any]] = {}
        for key, names in self._references().items():
            found |= self.store.get_online_features(features=names, entity_rows=rows[key]).to_dict()
        return found

    def _references(self) -> dict[str, list[str]]:
        """The names of features by the key that they are asked with: a sequence of 1,000 is read once, not once an item."""
        memory, read = getattr(self.store.registry, "cached_registry_proto", None), self._read
        if read is not None and memory is not None and read[0] is memory:
            return read[1]
        names: dict[str, list[str]] = {}
        for projection in service(self.store, self.version, known=True).feature_view_projections:
            if VECTORS not in projection.name:
                key = self.store.get_feature_view(projection.name, allow_registry_cache=True).join_keys[0]
                names.setdefault(key, []).extend(f"{projection.name}:{feature.name}" for feature in projection.features)
        self._read = (getattr(self.store.registry, "cached_registry_proto", None), names)
        return names


def service(store: FeatureStore, version: int, *, known: bool = False) -> FeatureService:
    """The feature service of an encoder; :class:`StageError` if it was never published. ``known``: as Feast remembers it, if it does."""
    if known:
        with contextlib.suppress(FeastObjectNotFoundException):
            return store.get_feature_service(service_name(version), allow_cache=True)
    try:
        with answering(str(store.config.registry.path)):
            return store.get_feature_service(service_name(version))
    except FeastObjectNotFoundException as missing:
        raise StageError(
            f"Feast has no feature service {service_name(version)}", action=f"run `moon publish --encoder {version}`"
        ) from missing


@contextlib.contextmanager
def answering(address: str) -> Iterator[None]:
    """:class:`ServiceError` where Feast's registry, the database at ``address``, does not answer, or its file is broken."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as fault:
        file = address.startswith("sqlite:")
        said = in_a_line(getattr(fault, "orig", None) or fault)
        if file and re.search("locked|full|readonly", said):
            raise  # a fault of the machine, which is told as one
        where = address.removeprefix("sqlite:///") if file else shown(SecretStr(address))
        problem = f"Feast's registry ({where}) {'cannot be read' if file else 'does not answer'}: {shown(SecretStr(said))}"
        mend = "`moon doctor` says what is wrong with it" if file else "start it, or correct MOON_FEAST_REGISTRY"
        raise ServiceError(problem, action=mend) from fault


def require_behaviors(store: FeatureStore, service: FeatureService, wanted: int) -> None:
    """:class:`InputError` if ``service`` shows fewer than ``wanted`` clicks of a user: the others would always be missing."""
    shown = behaviors_of(store, service, wanted)
    if shown < wanted:
        problem = f"behaviors = {wanted}, but {service.name} shows the last {shown} clicks of a user"
        raise InputError(problem, action=f"ask for no more, or set MOON_BEHAVIORS={wanted} and run `moon publish`")


def require_columns(service: FeatureService, wanted: Sequence[Feature]) -> None:
    """:class:`StageError` if ``service`` does not show a column of the shop's own that a recipe declares."""
    shown = {(p.name, feature.name) for p in service.feature_view_projections for feature in p.features}
    for feature in wanted:
        if feature.view != ROWS and (feature.view, feature.name) not in shown:
            problem = f"features.{feature.name}: {service.name} has no such column in {feature.view}"
            action = f"keep the recipe in MOON_MODELS and run `moon publish --encoder {service.name.rpartition('_v')[2]}`"
            raise StageError(problem, action=action)


def behaviors_of(store: FeatureStore, service: FeatureService, otherwise: int) -> int:
    """How many clicks of a user ``service`` shows; ``otherwise`` where it shows no clicks at all."""
    views = [store.get_feature_view(projection.name) for projection in service.feature_view_projections]
    return min((clicks.length for clicks in map(clicks_of, views) if clicks is not None), default=otherwise)


def _alone(home: Path) -> contextlib.AbstractContextManager[None]:
    """One process at a time: creating and changing the registry's tables is not safe otherwise."""
    place = home / "feature_store"
    place.mkdir(parents=True, exist_ok=True)
    return locked(place / "apply.lock")
