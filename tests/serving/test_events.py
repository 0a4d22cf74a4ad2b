"""Behaviour over HTTP: checked as in a file, known by its event id, and in a user's online sequence within seconds."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from moon_ops.cli.trial import running
from moon_ops.embeddings import as_of, features
from moon_ops.lake.schemas import STAMP
from moon_ops.publication import publication
from moon_ops.settings import Settings

TOKEN = {"authorization": "Bearer a-secret"}
USER = 987_001


@pytest.fixture(scope="module")
def home(released: Settings, moved: Any, tmp_path_factory: pytest.TempPathFactory, now: dt.datetime) -> Settings:
    settings = moved(released, tmp_path_factory.mktemp("events") / "home").replace(items_token="a-secret")
    publication.publish(settings, 1, now=now)
    return settings


@pytest.fixture(scope="module")
def client(home: Settings) -> Iterator[httpx.Client]:
    with running(home) as opened:
        opened.headers.update(TOKEN)
        yield opened


def click(item: int, number: int, **more: Any) -> dict[str, Any]:
    minute = f"2026-06-02T12:{number:02}:00Z"
    return {"timestamp": minute, "user_id": USER, "item_id": item, "event": "click", "event_id": f"click-{number}", **more}


def sequence(settings: Settings, user: int = USER) -> list[int]:
    item = settings.lake.read("items", ["item_id"])["item_id"].to_pylist()[0]
    return list(features.online(features.open_store(settings), 1, [item], user)["item_ids"][0] or [])


def test_clicks_are_in_the_users_sequence_within_seconds_and_known_the_second_time(client: httpx.Client, home: Settings) -> None:
    items = home.lake.read("items", ["item_id"])["item_id"].to_pylist()[:3]
    sent = {"events": [click(item, number) for number, item in enumerate(items)]}
    began, before = time.monotonic(), home.lake.count("features/item_stats")
    body = client.post("/v1/events", json=sent).json()
    assert (body["new"], body["known"], body["refused"]) == (3, 0, {})
    while sequence(home) != items and time.monotonic() - began < 60:
        time.sleep(0.2)
    assert sequence(home) == items
    again = client.post("/v1/events", json=sent).json()
    assert (again["new"], again["known"]) == (0, 3)
    assert home.lake.count("events") == len(set(home.lake.read("events", ["event_id"])["event_id"].to_pylist()) - {None}) + len(
        home.lake.read("events", ["event_id"], "event_id IS NULL")
    )
    assert home.lake.count("features/item_stats") == before, "counts wait for the night"
    asked = {"user_id": USER, "item_ids": items, "text": "dress"}
    scores = [row["score"] for row in client.post("/v1/score", json=asked).json()["scores"]]
    nobody = client.post("/v1/score", json={**asked, "user_id": USER + 1}).json()["scores"]
    assert scores != [row["score"] for row in nobody], "the service reads the fresh sequence"


def test_online_and_offline_a_sequence_is_the_same(client: httpx.Client, home: Settings) -> None:
    """What is handed over at once is what training joins, and the night changes nothing about it."""
    import pyarrow as pa

    user, items = USER + 7, home.lake.read("items", ["item_id"])["item_id"].to_pylist()[3:6]
    events = [click(item, 30 + number, user_id=user, event_id=f"same-{number}") for number, item in enumerate(items)]
    client.post("/v1/events", json={"events": events}).raise_for_status()
    end = time.monotonic() + 60
    while sequence(home, user) != items and time.monotonic() < end:
        time.sleep(0.2)
    store, when = features.open_store(home), dt.datetime(2026, 6, 3, tzinfo=dt.UTC)
    rows: dict[str, Any] = {"user_id": [user], "item_id": [items[0]], "query_id": [-1], "session_id": [-1], "label": [0]}
    rows |= {"event_timestamp": pa.array([when], STAMP), "text": [""], "is_image": [False]}
    joined = as_of.join(store, pa.table(rows), features.service(store, 1))
    assert joined.column("item_ids").to_pylist() == [items] == [sequence(home, user)]
    publication.publish(home, 1, now=dt.datetime.now(dt.UTC))
    assert sequence(home, user) == items


def test_a_query_comes_with_its_events(client: httpx.Client, home: Settings) -> None:
    item = home.lake.read("items", ["item_id"])["item_id"].to_pylist()[0]
    query = {"query_id": "q/1", "timestamp": "2026-06-02T12:00:00Z", "text": "red lamp"}
    shown = {"timestamp": "2026-06-02T12:00:01Z", "item_id": item, "event": "impression", "query_id": "q/1", "position": 3}
    body = client.post("/v1/events", json={"events": [shown], "queries": [query]}).json()
    assert (body["new"], body["queries"]) == (1, 1)
    (row,) = home.lake.read("queries", ["source_id", "text"], "source_id = 'q/1'").to_pylist()
    assert row["text"] == "red lamp"


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ({"item_id": 424_242}, "is no item of the catalogue"),
        ({"event": "bought it"}, "event"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"timestamp": "2999-01-01"}, "is in the future"),
        ({"query_id": 424_242}, "is no known query"),
        ({"position": -1}, "position"),
        ({"usr": 1}, "usr"),
        ({"extra": {"user_id": "1"}}, "events[0].extra.user_id is a standard column"),
    ],
)
def test_what_an_ingest_refuses_is_refused(client: httpx.Client, home: Settings, event: dict[str, Any], says: str) -> None:
    rows = home.lake.count("events")
    item = home.lake.read("items", ["item_id"])["item_id"].to_pylist()[0]
    answer = client.post("/v1/events", json={"events": [{**click(item, 50), "event_id": "refused", **event}]})
    assert answer.status_code == 422
    assert says in answer.json()["error"]
    assert home.lake.count("events") == rows


def test_of_many_the_good_ones_are_taken_and_the_others_counted(client: httpx.Client, home: Settings) -> None:
    item = home.lake.read("items", ["item_id"])["item_id"].to_pylist()[0]
    body = client.post("/v1/events", json={"events": [click(item, 55), click(424_242, 56)]}).json()
    assert (body["new"], sum(body["refused"].values())) == (1, 1)
    assert "is no item of the catalogue" in body["first_refusal"]
    assert client.post("/v1/events", json={"events": [click(item, 1)] * 1001}).status_code == 422
