"""Items changed in part and withdrawn over HTTP: on the disk before it is acknowledged, and never undone by a file of before."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from moon_ops.lake import durable
from moon_ops.lake.ingest import ingest
from moon_ops.serving.app import create_app
from moon_ops.settings import Settings

TOKEN = {"authorization": "Bearer a-secret"}
LAMP = {"item_id": "SKU/1", "spu_id": "P 1", "title": "lamp", "category": ["Home", "Lamps"], "price": 9.5, "attributes": {"colour": "red"}}
LAMP |= {"seller_id": "S 1", "images": ["a.png", "b.png"], "warranty": "2 years", "available_until": "2099-01-01T00:00:00Z"}
Shop = Callable[..., Path]


@pytest.fixture
def shop(make_shop: Shop) -> Path:
    items: list[dict[str, Any]] = [LAMP, {"item_id": 2, "title": "mug"}]
    return make_shop(items=items, pictures={"a.png": "red", "b.png": "blue"})


@pytest.fixture
def home(shop: Path, tmp_path: Path) -> Settings:
    """A home with two items, and no release: what is pushed need not be searchable for these tests."""
    settings = Settings(home=tmp_path / "home", items_token="a-secret", workers=1)
    ingest(shop, settings.lake, now=dt.datetime.now(dt.UTC))
    return settings


@pytest.fixture
def client(home: Settings) -> Iterator[TestClient]:
    """Without its lifespan: nothing is embedded beside the requests."""
    client = TestClient(create_app(home), headers=TOKEN)
    yield client
    client.close()


def last(settings: Settings, source_id: str) -> dict[str, Any]:
    rows = [row for row in settings.lake.read("items").to_pylist() if row["source_id"] == source_id]
    return [row for row in rows if row["available_until"] != row["event_timestamp"]][-1]


def test_a_part_is_replaced_and_the_rest_stays(client: TestClient, home: Settings) -> None:
    before = last(home, "SKU/1")
    answer = client.patch("/v1/items/SKU%2F1", json={"price": 12.5, "brand": "Lux"})
    assert (answer.status_code, answer.json()) == (200, {"item_id": "SKU/1", "changed": True, "first_refusal": ""})
    after = last(home, "SKU/1")
    told = ("event_timestamp", "created", "stated", "content_hash")
    assert {n: v for n, v in after.items() if n not in told} == {
        **{n: v for n, v in before.items() if n not in told},
        **{"price": 12.5, "brand": "Lux"},
    }
    assert client.patch("/v1/items/SKU%2F1", json={"price": 12.5}).json()["changed"] is False
    unread = client.patch("/v1/items/SKU%2F1", json={"images": ["AAAA"]}).json()
    assert (unread["changed"], "is not a JPEG" in unread["first_refusal"]) == (False, True)
    assert last(home, "SKU/1")["image_ids"] == before["image_ids"]
    assert home.lake.count("images") == 2, "its pictures are those that were there"


def test_null_empties_a_field_and_names_in_objects_are_changed_one_by_one(client: TestClient, home: Settings) -> None:
    part = {"price": None, "attributes": {"colour": None, "size": "L"}, "extra": {"warranty": None, "energy": "A"}, "images": []}
    assert client.patch("/v1/items/SKU%2F1", json=part).json()["changed"] is True
    after = last(home, "SKU/1")
    assert (after["price"], after["attributes"], after["extra"], after["image_ids"]) == (None, [("size", "L")], '{"energy": "A"}', [])
    answer = client.patch("/v1/items/SKU%2F1", json={"title": None})
    assert (answer.status_code, "title" in answer.json()["error"]) == (422, True)
    assert client.patch("/v1/items/SKU%2F1", json={"extra": {"price": "x"}}).status_code == 422
    assert client.patch("/v1/items/SKU%2F1", json={"prize": 1}).status_code == 422
    assert last(home, "SKU/1") == after


def test_what_is_withdrawn_stays_so_whatever_file_of_before_says(client: TestClient, home: Settings, shop: Path) -> None:
    assert client.delete("/v1/items/SKU%2F1").json() == {"item_id": "SKU/1", "changed": True, "first_refusal": ""}
    assert client.delete("/v1/items/SKU%2F1").json()["changed"] is False
    assert last(home, "SKU/1")["status"] == "deleted"
    for _ in range(2):
        assert ingest(shop, home.lake, now=dt.datetime.now(dt.UTC)).updated == 0, "an inbox is taken in every few minutes"
    assert last(home, "SKU/1")["status"] == "deleted"
    assert client.patch("/v1/items/SKU%2F1", json={"status": "active"}).json()["changed"] is True
    assert last(home, "SKU/1")["status"] == "active"


@pytest.mark.parametrize(("method", "body"), [("DELETE", None), ("PATCH", {"price": 1.0})])
def test_an_item_that_nobody_has_is_not_there(client: TestClient, home: Settings, method: str, body: Any) -> None:
    answer = client.request(method, "/v1/items/999", json=body)
    assert answer.status_code == 404
    assert answer.json()["error"] == "there is no item 999"
    assert home.lake.count("items") == 3, "two, and the end of one"


def test_what_is_acknowledged_is_on_the_disk(client: TestClient, home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that a push writes is synced before the answer, and the directories that name them."""
    synced: set[str] = set()
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(durable.os, "fsync", noted)
    before = files(home)
    item = {
        "item_id": 3,
        "title": "new",
        "images": ["iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="],
    }
    assert client.post("/v1/items", json={"items": [item]}).status_code == 202
    assert (
        client.post("/v1/events", json={"events": [{"timestamp": "2026-06-01", "item_id": 3, "event": "click", "user_id": 1}]}).json()[
            "new"
        ]
        == 1
    )
    fresh = files(home) - before
    assert {file.split("/")[0] for file in fresh} >= {"items.lance", "images.lance", "events.lance"}
    place = Path(home.lake.uri)
    assert {str(place / file) for file in fresh} <= synced
    assert {str((place / file).parent) for file in fresh} <= synced


def files(settings: Settings) -> set[str]:
    place = Path(settings.lake.uri)
    return {str(file.relative_to(place)) for file in place.rglob("*") if file.is_file() and file.suffix != ".lock"}


def test_two_parts_changed_at_once_are_both_there(home: Settings) -> None:
    """Each reads the whole item and writes the whole item: without turns one of them would be lost."""
    from concurrent.futures import ThreadPoolExecutor

    client = TestClient(create_app(home), headers=TOKEN)
    parts = [{"price": 77.0}, {"brand": "Both"}, {"description": "told"}]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda part: client.patch("/v1/items/2", json=part).status_code, parts))
    assert answers == [200, 200, 200]
    after = last(home, "2")
    assert (after["price"], after["brand"], after["description"]) == (77.0, "Both", "told")
