"""Redis as online store: the same rows, only what changed, noticed when it is emptied, and an item forgotten. A real server."""

from __future__ import annotations

import contextlib
import datetime as dt
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import redis
from feast import FeatureStore

from moon_ops.cli import stores
from moon_ops.embeddings import features, vector_tables
from moon_ops.errors import ServiceError
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.lake.tables import items_as_of
from moon_ops.publication import marks, publication
from moon_ops.publication.erasure import erase
from moon_ops.release import stages
from moon_ops.settings import Settings

HOUR = dt.timedelta(hours=1)
PASSWORD = "moonlight"

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--port", str(port), "--requirepass", PASSWORD, "--save", "", "--dir", str(place)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port, password=PASSWORD)
    for _ in range(200):
        with contextlib.suppress(redis.exceptions.ConnectionError):
            client.ping()
            break
        time.sleep(0.05)
    yield client
    process.kill()
    process.wait()


@pytest.fixture
def shop(server: redis.Redis, copied: Settings, now: dt.datetime) -> Settings:
    """The released home, published to an empty Redis."""
    server.flushall()
    port = server.connection_pool.connection_kwargs["port"]
    settings = copied.replace(redis=f"127.0.0.1:{port},password={PASSWORD}")
    publication.publish(settings, 1, now=now)
    return settings


def opened(settings: Settings) -> FeatureStore:
    return features.open_store(settings)


def agree(settings: Settings, now: dt.datetime) -> None:
    """Redis answers with the lake's vector of every item."""
    ids, vectors = vector_tables.vectors_as_of(settings.lake, 1, now)
    found = opened(settings).get_online_features(["item_embedding_v1:embedding"], [{"item_id": int(i)} for i in ids]).to_dict()
    np.testing.assert_allclose(np.array(found["embedding"], np.float32), vectors, atol=1e-6)


def test_only_what_changed_goes_to_redis(shop: Settings, now: dt.datetime) -> None:
    agree(shop, now)
    assert publication.publish(shop, 1, now=now + HOUR).changed == 0
    row = items_as_of(shop.lake, now).to_pylist()[0]
    later = {"title": "one green umbrella", "content_hash": "another", "event_timestamp": now + HOUR, "created": now + HOUR}
    shop.lake.append("items", pa.Table.from_pylist([row | later], schema=SCHEMAS["items"]))
    stages.embed(shop, 1, now=now + HOUR)
    assert publication.publish(shop, 1, now=now + 2 * HOUR).changed == 2, "a profile and a vector"
    agree(shop, now + 2 * HOUR)


def test_a_correction_of_the_same_time_reaches_redis(shop: Settings, now: dt.datetime) -> None:
    """A click that comes late changes the sequence of a moment that is known already."""
    last = shop.lake.read("events", where="event = 'click' AND user_id IS NOT NULL").sort_by("event_timestamp").to_pylist()[-1]
    late = {"event_timestamp": last["event_timestamp"] - dt.timedelta(seconds=1), "created": now}
    shop.lake.append("events", pa.Table.from_pylist([last | late], schema=SCHEMAS["events"]))
    publication.publish(shop, 1, now=now + HOUR)
    found = opened(shop).get_online_features(["user_behavior:item_ids"], [{"user_id": last["user_id"]}]).to_dict()
    assert found["item_ids"][0][-2:] == [last["item_id"]] * 2


def test_all_features_of_a_click_model_come_from_redis(shop: Settings, copied: Settings, now: dt.datetime) -> None:
    publication.publish(copied, 1, now=now)
    events = copied.lake.read("events", ["user_id", "item_id"], "query_id IS NOT NULL").slice(0, 5).to_pylist()
    queries = copied.lake.read("query_embeddings/v1", ["query_id"])["query_id"].to_pylist()
    rows = [{**row, "query_id": query} for row, query in zip(events, queries, strict=False)]
    answers = []
    for settings in (copied, shop):
        store = opened(settings)
        views = ["item_profile:price", "item_stats:clicks", "user_behavior:item_ids", "item_embedding_v1:embedding"]
        answers.append(store.get_online_features(views, rows).to_dict())
    assert answers[0] == answers[1]


def test_an_emptied_redis_is_filled_again(shop: Settings, server: redis.Redis, now: dt.datetime) -> None:
    server.flushall()
    assert publication.publish(shop, 1, now=now + HOUR).changed > 115
    agree(shop, now + HOUR)


def test_new_items_notice_an_emptied_redis_too(shop: Settings, server: redis.Redis, now: dt.datetime) -> None:
    """They come between two nights, without behaviour: click models need all of it at once."""
    names = ["user_behavior:item_ids", "item_stats:clicks"]
    event = shop.lake.read("events", ["user_id", "item_id"], "event = 'click' AND user_id IS NOT NULL").to_pylist()[-1]
    before = opened(shop).get_online_features(names, [event]).to_dict()
    assert marks.is_current(shop, 1, now)
    server.flushall()
    assert not marks.is_current(shop, 1, now)
    publication.publish(shop, 1, now=now + HOUR, behaviour=False)
    agree(shop, now + HOUR)
    assert opened(shop).get_online_features(names, [event]).to_dict() == before
    assert marks.is_current(shop, 1, now + HOUR)


def test_an_item_is_forgotten_by_redis_too(shop: Settings, server: redis.Redis, now: dt.datetime) -> None:
    ids = items_as_of(shop.lake, now, ["item_id"])["item_id"].to_pylist()
    before = server.dbsize()
    receipt = erase(shop, ids[0], now=now)
    assert receipt.places["online store"] >= 2, "profile and vector"
    assert server.dbsize() == before - 1
    found = opened(shop).get_online_features(["item_embedding_v1:embedding", "item_profile:price"], [{"item_id": ids[0]}]).to_dict()
    assert (found["embedding"], found["price"]) == ([None], [None])
    agree(shop, now)


def test_with_the_setting_that_the_doctor_names_an_item_takes_less_memory(
    shop: Settings, copied: Settings, server: redis.Redis, now: dt.datetime
) -> None:
    def told() -> str:
        return next(detail for name, _, detail in stores.examine(shop, now) if name == "online")

    def size() -> int:
        return sum(server.memory_usage(key) for key in server.scan_iter())

    assert "with `hash-max-listpack-value 8192` (now 64) it would take less memory" in told()
    before = size()
    server.config_set("hash-max-listpack-value", 8192)
    try:
        assert told().endswith("answers")
        server.flushall()
        publication.publish(shop, 1, now=now)
        agree(shop, now)
        assert size() < 0.8 * before
    finally:
        server.config_set("hash-max-listpack-value", 64)


def test_a_server_that_does_not_answer_is_named(copied: Settings, now: dt.datetime) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = copied.replace(redis=f"127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(ServiceError, match=r"the online store does not answer .* check MOON_REDIS"):
            publication.publish(away, 1, now=now)
    assert Path(copied.home / "index").is_dir()
