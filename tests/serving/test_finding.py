"""Searches: with filters the same as a comparison with each item, page after page, and no item that was withdrawn since the publication."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from moon_ops.embeddings.cards import Wanted
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.lake.tables import items_as_of
from moon_ops.publication import places, publication
from moon_ops.serving import follower, withdrawals
from moon_ops.serving.app import create_app
from moon_ops.settings import Settings


@pytest.fixture
def home(copied: Settings, now: dt.datetime, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(withdrawals, "EVERY_SECONDS", 0.05)
    publication.publish(copied, 1, now=now)
    return copied


@pytest.fixture
def client(home: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(home)) as opened:
        yield opened


def eventually(holds: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def found(client: TestClient, **asked: Any) -> list[int]:
    answer = client.post("/v1/search", data={"text": "mug", "k": 200, **asked})
    assert answer.status_code == 200, answer.text
    return [hit["item_id"] for hit in answer.json()["items"]]


def again(settings: Settings, items: list[int], **changed: Any) -> None:
    """A new version of items, valid and known now."""
    now = dt.datetime.now(dt.UTC)
    rows = [row for row in settings.lake.read("items").to_pylist() if row["item_id"] in items]
    newest = {row["item_id"]: row | {"event_timestamp": now, "created": now} | changed for row in rows}
    settings.lake.append("items", pa.Table.from_pylist(list(newest.values()), schema=SCHEMAS["items"]))


def test_filters_leave_what_a_comparison_with_each_item_leaves(client: TestClient, home: Settings, now: dt.datetime) -> None:
    every = found(client)
    rows = {row["item_id"]: row for row in items_as_of(home.lake, now).to_pylist()}
    assert set(every) == set(rows)
    one = rows[every[3]]
    price, deep = sorted(row["price"] for row in rows.values()), one["category"]
    filters: list[tuple[dict[str, Any], Callable[[dict[str, Any]], bool]]] = [
        ({"category": deep[0]}, lambda row: row["category"][0] == deep[0]),
        ({"category": deep[-1].upper()}, lambda row: deep[-1] in row["category"]),
        ({"category": " > ".join(deep)}, lambda row: row["category"] == deep),
        ({"brand": one["brand"]}, lambda row: row["brand"] == one["brand"]),
        ({"seller_id": one["seller_id"]}, lambda row: row["seller_id"] == one["seller_id"]),
        ({"price_min": price[20], "price_max": price[60]}, lambda row: price[20] <= row["price"] <= price[60]),
        ({"price_max": price[30], "category": deep[0]}, lambda row: row["price"] <= price[30] and row["category"][0] == deep[0]),
        ({"status": "active"}, lambda _: True),
        ({"status": "deleted"}, lambda _: False),
        ({"brand": "nobody's"}, lambda _: False),
    ]
    for asked, fits in filters:
        wanted = [item for item in every if fits(rows[item])]
        assert found(client, **asked) == wanted, asked
        assert found(client, **asked, k=2, offset=1) == wanted[1:3], asked
    assert 0 < len(found(client, **filters[0][0])) < len(every)


def test_pages_follow_one_another(client: TestClient) -> None:
    every = found(client)
    assert [item for page in range(0, 12, 4) for item in found(client, k=4, offset=page)] == every[:12]
    assert found(client, k=10, offset=1000) == []
    products = [hit["spu_id"] for hit in client.post("/v1/search", data={"text": "mug", "k": 9, "group": "product"}).json()["items"]]
    paged = client.post("/v1/search", data={"text": "mug", "k": 4, "offset": 5, "group": "product"}).json()["items"]
    assert [hit["spu_id"] for hit in paged] == products[5:9]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"price_min": "nan"}, "price_min"),
        ({"price_max": "-1"}, "price_max"),
        ({"status": "sold"}, "status"),
        ({"offset": "-1"}, "offset"),
        ({"offset": "1001"}, "offset"),
        ({"seller_id": "-5"}, "seller_id"),
        ({"category": "x" * 1001}, "category"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(client: TestClient, asked: dict[str, str], field: str) -> None:
    answer = client.post("/v1/search", data={"text": "mug", **asked})
    assert answer.status_code == 422
    assert field in answer.json()["error"]


def test_an_item_withdrawn_since_the_publication_is_left_out_and_comes_back(client: TestClient, home: Settings) -> None:
    every = found(client)
    top, second = every[:2]
    again(home, [top, second], status="deleted")
    assert eventually(lambda: not {top, second} & set(found(client, k=5)))
    assert found(client, k=5) == every[2:7], "others take their place"
    assert found(client, k=200) == every[2:]
    assert found(client, k=3, group="product")[0] == every[2]
    again(home, [top], status="active")
    assert eventually(lambda: found(client, k=1) == [top])
    answer = client.post("/v1/search", data={"text": "mug", "k": 200}).json()
    assert all(hit["title"] and "withdrawn" not in hit for hit in answer["items"])


def test_an_item_whose_end_has_come_is_left_out(client: TestClient, home: Settings) -> None:
    top = found(client)[0]
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)
    rows = [row for row in home.lake.read("items").to_pylist() if row["item_id"] == top][-1:]
    end = rows[0] | {"event_timestamp": soon, "available_until": soon, "created": dt.datetime.now(dt.UTC), "status": "deleted"}
    home.lake.append("items", pa.Table.from_pylist([end], schema=SCHEMAS["items"]))
    assert found(client)[0] == top
    assert eventually(lambda: found(client)[0] != top)


def test_an_older_publication_is_served_without_cards_until_the_next(home: Settings, now: dt.datetime) -> None:
    with TestClient(create_app(home), raise_server_exceptions=False) as client:
        before = client.post("/v1/search", data={"text": "mug"}).json()
    places.cards_place(home, 1).unlink()
    with TestClient(create_app(home), raise_server_exceptions=False) as client:
        assert client.post("/v1/search", data={"text": "mug"}).json() == before
        answer = client.post("/v1/search", data={"text": "mug", "brand": "x"})
        assert (answer.status_code, "there are no item cards to filter by" in answer.json()["error"]) == (503, True)
        publication.publish(home, 1, now=now)
        assert eventually(lambda: client.post("/v1/search", data={"text": "mug", "brand": "x"}).status_code == 200)


def test_a_card_that_is_gone_before_its_item_leaves_the_index_is_not_shown(client: TestClient, home: Settings) -> None:
    """Cards are published first: between the two the item is withdrawn."""
    every = found(client)
    champion = client.app.state.follower.current  # type: ignore[attr-defined]
    known = champion.cards.get
    champion.cards.get = lambda items: {item: card for item, card in known(items).items() if item not in every[:2]}
    assert found(client, k=4) == every[2:6]
    assert len(champion.cards.matching(Wanted())) == len(every)


def test_a_lake_that_hangs_is_told_before_it_fails(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen with a frozen object store: searches went on, and nobody was told for minutes."""
    hangs, asked = threading.Event(), threading.Event()

    def look(*_: object) -> None:
        asked.set()
        hangs.wait(60)

    with TestClient(create_app(home)) as client:
        monkeypatch.setattr(follower, "PATIENCE_SECONDS", 0.2)
        monkeypatch.setattr(client.app.state.follower.withdrawals, "look", look)  # type: ignore[attr-defined]
        assert asked.wait(30)
        assert eventually(lambda: "the lake has not answered for" in client.get("/ready").json()["refused"])
        assert client.get("/ready").json()["status"] == "degraded"
        assert client.post("/v1/search", data={"text": "mug"}).status_code == 200
        hangs.set()
