"""What Feast's online store does not offer: telling one store from another that has taken its place, its order, and forgetting an item.

All ask the store as Feast lays it out, through Feast's own connection, so that its addresses, passwords and clusters work here, too.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureStore
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from numpy.typing import NDArray
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from moon_ops.errors import ServiceError

HURRY = 2  # seconds of each of two attempts
NAME = "moon_ops:online_store"  # the Redis key under which a store's name lies; it goes when the store is emptied


def hurried(store: FeatureStore) -> FeatureStore:
    """The same for who answers people: a Redis that is away, or hangs, is given up after some four seconds. A publication waits longer."""
    online = store.config.online_store
    if isinstance(online, RedisOnlineStoreConfig):
        for name in ("socket_connect_timeout", "socket_timeout"):
            online.connection_string = re.sub(rf"\b{name}=[^,]*", f"{name}={HURRY}", online.connection_string)
        if isinstance(client := _redis(store), Redis):  # a cluster's client tries again in its own way
            client.set_retry(Retry(NoBackoff(), 1))
    return store


def identity(store: FeatureStore) -> str:
    """Which store it is: one that was emptied or made anew is another, and holds nothing. :class:`ServiceError` if it does not answer."""
    client = _redis(store)
    if client is None:
        return _sqlite_name(_file(store)) if _file(store).is_file() else "sqlite"
    try:
        client.set(NAME, uuid.uuid4().hex, nx=True)
        return f"redis {client.get(NAME).decode()}"
    except RedisError as fault:
        raise _unreachable(fault) from fault


def _sqlite_name(file: Path) -> str:
    """The name in the file, given to it now if it has none. Not its inode: a file made anew may get the old one's."""
    with contextlib.closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS online_store_name (name TEXT)")
        fresh = (
            "INSERT INTO online_store_name SELECT ? WHERE NOT EXISTS (SELECT 1 FROM online_store_name)"  # one statement, one transaction
        )
        connection.execute(fresh, (uuid.uuid4().hex,))
        (name,) = connection.execute("SELECT name FROM online_store_name").fetchone()
    return f"sqlite {name}"


def order(ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """The places [N] of whole numbers in the order of Feast's keys, which begin with a number's lowest byte."""
    return np.argsort(np.asarray(ids, "<i8").view(">u8"), kind="stable")


def forget(store: FeatureStore, key: str, ids: Sequence[int]) -> int:
    """Remove these entities' rows of all views; how many entries there were. Feast itself can only overwrite."""
    version = store.config.entity_key_serialization_version
    keys = [EntityKey(join_keys=[key], entity_values=[Value(int64_val=number)]) for number in ids]
    encoded = [serialize_entity_key(entity, entity_key_serialization_version=version) for entity in keys]
    client = _redis(store)
    if client is not None:
        try:
            return sum(_forget_entry(client, entity + store.project.encode()) for entity in encoded)
        except RedisError as fault:
            raise _unreachable(fault) from fault
    if not _file(store).is_file():
        return 0
    with sqlite3.connect(_file(store)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        names = [name for (name,) in tables if name.startswith(f"{store.project}_")]
        rows = [(entity,) for entity in encoded]
        return sum(connection.executemany(f'DELETE FROM "{name}" WHERE entity_key = ?', rows).rowcount for name in names if rows)


def _forget_entry(client: Any, entry: bytes) -> int:
    views = sum(name.startswith(b"_ts:") for name in client.hkeys(entry))  # a time a view
    return views if client.delete(entry) else 0


def _redis(store: FeatureStore) -> Any:
    """Feast's client, None for another kind of store."""
    online = store._get_provider().online_store
    return online._get_client(store.config.online_store) if isinstance(online, RedisOnlineStore) else None


def _file(store: FeatureStore) -> Path:
    return Path(store.config.online_store.path)


def _unreachable(fault: RedisError) -> ServiceError:
    return ServiceError(f"the online store does not answer ({fault})", action="check MOON_REDIS and the server")
