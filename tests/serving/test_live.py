"""New items over HTTP: accepted with the right token alone, refused with the reason, and found seconds later by search and by Feast."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from moon_ops.cli.trial import running
from moon_ops.embeddings import features, produce
from moon_ops.publication import publication
from moon_ops.serving import guard, live
from moon_ops.settings import Settings

TOKEN = {"authorization": "Bearer a-secret"}


def picture(colour: str) -> str:
    Image.new("RGB", (40, 30), colour).save(content := io.BytesIO(), "PNG")
    return base64.b64encode(content.getvalue()).decode()


@pytest.fixture
def home(copied: Settings, now: Any) -> Settings:
    publication.publish(copied, 1, now=now)
    return copied.replace(items_token="a-secret")


@pytest.fixture
def client(home: Settings) -> Iterator[httpx.Client]:
    with running(home) as opened:
        yield opened


def eventually(holds: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return holds()


def found(client: httpx.Client, title: str, image: str = "") -> list[int]:
    files = {"image": base64.b64decode(image)} if image else None
    return [hit["item_id"] for hit in client.post("/v1/search", data={"text": title, "k": "3"}, files=files).json()["items"]]


def test_a_new_item_is_found_and_a_changed_one_changes(client: httpx.Client, home: Settings) -> None:
    item = {"item_id": 900_001, "title": "violet <b>zeppelin</b>", "category": "Toys > Flying", "images": [picture("violet")]}
    text = "violet zeppelin | Toys Flying"  # what the encoder reads of it
    answer = client.post("/v1/items", json={"items": [item]}, headers=TOKEN)
    assert (answer.status_code, answer.json()["new"]) == (202, 1)
    assert home.lake.read("items", ["title"], "item_id = 900001")["title"].to_pylist() == ["violet zeppelin"], "as an ingest reads it"
    assert eventually(lambda: found(client, text, item["images"][0])[:1] == [900_001])
    store = features.open_store(home)
    known = store.get_online_features(["item_embedding_v1:embedding", "item_profile:category"], [{"item_id": 900_001}]).to_dict()
    assert known["embedding"][0] is not None
    assert known["category"] == ["Flying"]
    answer = client.post("/v1/items", json={"items": [{**item, "status": "deleted"}]}, headers=TOKEN)
    assert answer.json()["changed"] == 1
    assert eventually(lambda: 900_001 not in found(client, text, item["images"][0]))
    assert client.get("/ready").json()["refused"] == ""


def test_what_cannot_be_used_is_refused_with_the_reason(client: httpx.Client, home: Settings) -> None:
    rows = home.lake.count("items")
    answer = client.post("/v1/items", json={"items": [{"item_id": 1, "title": ""}]}, headers=TOKEN)
    assert answer.status_code == 422
    assert "title" in answer.json()["error"]
    answer = client.post("/v1/items", json={"items": [{"item_id": 1, "title": "x", "images": ["%%"]}]}, headers=TOKEN)
    assert "items[0].images[0] is not base64" in answer.json()["error"]
    assert client.post("/v1/items", json={"items": [{"item_id": 1, "tilte": "x"}]}, headers=TOKEN).status_code == 422
    assert client.post("/v1/items", json={"items": []}, headers=TOKEN).status_code == 422
    assert home.lake.count("items") == rows


def test_a_request_does_not_wait_for_ever_while_the_lake_is_maintained(
    client: httpx.Client, home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "PATIENCE", 0.2)
    rows = home.lake.count("items")
    with home.lake.one_writer():
        answer = client.post("/v1/items", json={"items": [{"item_id": 900_002, "title": "Late"}]}, headers=TOKEN)
    assert (answer.status_code, answer.json()["action"]) == (503, "try again later")
    assert home.lake.count("items") == rows
    assert client.post("/v1/items", json={"items": [{"item_id": 900_002, "title": "Late"}]}, headers=TOKEN).status_code == 202


def test_a_strangers_request_is_not_even_read(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it holds, and however it is sent: 403 without the token, 413 for too much, at once."""
    assert client.post("/v1/items", content=b"{", headers={"content-type": "application/json"}).status_code == 403
    monkeypatch.setattr(guard, "MOST_BYTES", 1000)
    large = {"items": [{"item_id": 1, "title": "x" * 2000}]}
    assert client.post("/v1/items", json=large, headers=TOKEN).status_code == 413
    chunks = (b"{" + b" " * 400 for _ in range(5))  # without a content-length
    assert client.post("/v1/items", content=chunks, headers=TOKEN).status_code == 413
    assert client.post("/v1/score", json={"user_id": 1, "item_ids": [1], "text": "x" * 2000}).status_code == 413
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"item_id": True, "title": "x"}, "item_id"),
        ({"item_id": 1, "title": "x", "images": ["é"]}, "is not base64"),
        ({"item_id": 1, "title": "x", "images": ["QUJD"] * 21}, "images"),
    ],
)
def test_what_is_wrong_is_named_and_not_sent_back(client: httpx.Client, home: Settings, item: dict[str, Any], says: str) -> None:
    rows = home.lake.count("items")
    answer = client.post("/v1/items", json={"items": [item]}, headers=TOKEN)
    assert answer.status_code == 422
    assert says in answer.json()["error"]
    assert "QUJD" not in answer.text
    assert home.lake.count("items") == rows


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "a-secret"}])
def test_without_the_token_nothing_is_taken(client: httpx.Client, home: Settings, headers: dict[str, str]) -> None:
    rows = home.lake.count("items")
    answer = client.post("/v1/items", json={"items": [{"item_id": 1, "title": "x"}]}, headers=headers)
    assert answer.status_code == 403
    assert home.lake.count("items") == rows


def test_a_service_without_a_token_takes_nothing(copied: Settings) -> None:
    with running(copied) as client:
        answer = client.post("/v1/items", json={"items": [{"item_id": 1, "title": "x"}]}, headers={"authorization": "Bearer x"})
    assert answer.status_code == 403
    assert "MOON_ITEMS_TOKEN" in answer.json()["action"]


def test_a_fault_does_not_end_it(client: httpx.Client, home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first refresh after the item fails; the next one finds it in the lake."""
    embed, faults = produce.embed, iter([1])

    def sometimes(*arguments: Any, **more: Any) -> Any:
        if next(faults, None):
            raise OSError("the disk is away")
        return embed(*arguments, **more)

    monkeypatch.setattr(produce, "embed", sometimes)
    monkeypatch.setattr("moon_ops.serving.live.AGAIN_SECONDS", 0.1)
    client.post("/v1/items", json={"items": [{"item_id": 900_002, "title": "crimson submarine"}]}, headers=TOKEN).raise_for_status()
    assert eventually(lambda: found(client, "crimson submarine")[:1] == [900_002])
    assert next(faults, None) is None, "it did fail once"
