"""Lake, online store or a file goes while the service runs: it says what is lacking, and goes on as far as it can."""

from __future__ import annotations

import datetime as dt
import logging
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from fastapi.testclient import TestClient

from moon_ops.publication import places, publication
from moon_ops.serving import stores
from moon_ops.serving.app import create_app
from moon_ops.serving.follower import Follower
from moon_ops.settings import Settings

ASKED = {"user_id": 1, "item_ids": [1, 2], "text": "red lamp"}


@pytest.fixture
def client(copied: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(copied), raise_server_exceptions=False) as opened:
        yield opened


def told(client: TestClient, status: str) -> dict[str, Any]:
    """What ``/ready`` says once it says ``status``: the lake is looked at every two seconds."""
    end = time.monotonic() + 30
    while (ready := client.get("/ready").json())["status"] != status and time.monotonic() < end:
        time.sleep(0.05)
    return dict(ready)


def test_a_search_without_the_lake_loses_nothing(copied: Settings, now: dt.datetime) -> None:
    """Titles and prices come from the cards that were published beside the index."""
    publication.publish(copied, 1, now=now)
    with TestClient(create_app(copied), raise_server_exceptions=False) as client:
        before = client.post("/v1/search", data={"text": "mug"}).json()
        assert all(item["title"] and item["price"] for item in before["items"])
        (copied.home / "lake").rename(copied.home / "lake-away")
        assert client.post("/v1/search", data={"text": "mug"}).json() == before
        ready = told(client, "degraded")
        assert (ready["status"], "the lake at" in ready["refused"]) == ("degraded", True)
        assert client.post("/v1/search", data={"text": "mug"}).json() == before
        shutil.rmtree(copied.home / "lake", ignore_errors=True)
        (copied.home / "lake-away").rename(copied.home / "lake")
        assert told(client, "ready")["status"] == "ready"


def test_a_search_of_an_older_publication_without_the_lake_has_ids_and_scores_and_says_so(copied: Settings) -> None:
    places.cards_place(copied, 1).unlink()
    with TestClient(create_app(copied), raise_server_exceptions=False) as client:
        _lose_the_lake(client, copied)


def _lose_the_lake(client: TestClient, copied: Settings) -> None:
    before = client.post("/v1/search", data={"text": "mug"}).json()
    assert "degraded" not in before
    away = copied.home / "lake-away"
    (copied.home / "lake").rename(away)
    answer = client.post("/v1/search", data={"text": "mug"})
    assert answer.status_code == 200
    body = answer.json()
    assert [(i["item_id"], i["score"]) for i in body["items"]] == [(i["item_id"], i["score"]) for i in before["items"]]
    assert body["degraded"].startswith(f"items are without title, price and pictures: the lake at {copied.home / 'lake'} cannot be read")
    assert not any("withdrawn" in item for item in body["items"])
    ready = client.get("/ready").json()
    assert (ready["status"], ready["release"]) == ("degraded", 1)
    assert "the lake at" in ready["refused"]
    metrics = client.get("/metrics").text
    assert 'moon_store_faults_total{store="lake"}' in metrics
    assert 'moon_store_faults_total{store="lake"} 0.0' not in metrics
    assert "moon_degraded 1.0" in metrics
    for path in ("/v1/items?item_id=1", f"/v1/images/{'0' * 64}"):
        answer = client.get(path)
        assert answer.status_code == 503
        assert "cannot be read" in answer.json()["error"]
    shutil.rmtree(copied.home / "lake", ignore_errors=True)  # a lock that somebody has made meanwhile
    away.rename(copied.home / "lake")
    assert client.post("/v1/search", data={"text": "mug"}).json() == before
    assert told(client, "ready")["status"] == "ready"


def test_an_item_that_was_withdrawn_since_is_no_fault_of_the_lake(client: TestClient, copied: Settings) -> None:
    first = client.post("/v1/search", data={"text": "mug"}).json()["items"][0]["item_id"]
    row = copied.lake.read("items", where=f"item_id = {first}").slice(0, 1)
    now = pa.array([dt.datetime.now(dt.UTC)], row.schema.field("created").type)
    changed = {"status": pa.array(["deleted"]), "event_timestamp": now, "created": now}
    for name, value in changed.items():
        row = row.set_column(row.schema.get_field_index(name), row.schema.field(name), value)
    copied.lake.append("items", row)
    end = time.monotonic() + 30
    while (body := client.post("/v1/search", data={"text": "mug"}).json())["items"][0]["item_id"] == first and time.monotonic() < end:
        time.sleep(0.05)
    assert first not in [item["item_id"] for item in body["items"]]
    assert all(item["title"] and "withdrawn" not in item for item in body["items"])
    assert "degraded" not in body
    assert client.get("/ready").json()["status"] == "ready"


def test_scores_without_the_online_store_are_refused_with_the_reason(client: TestClient, copied: Settings) -> None:
    items = [hit["item_id"] for hit in client.post("/v1/search", data={"text": "mug"}).json()["items"][:2]]
    asked = {**ASKED, "item_ids": items}
    assert client.post("/v1/score", json=asked).status_code == 200
    online = copied.home / "feature_store" / "online.db"
    content = online.read_bytes()
    online.write_bytes(b"no database" * 1000)
    answer = client.post("/v1/score", json=asked)
    assert answer.status_code == 503
    assert "the online store (SQLite in MOON_HOME) does not answer (DatabaseError: " in answer.json()["error"]
    assert "moon publish --encoder 1 --full" in answer.json()["action"]
    assert "the online store" in client.get("/ready").json()["refused"]
    assert 'moon_store_faults_total{store="online store"} 1.0' in client.get("/metrics").text
    assert client.post("/v1/search", data={"text": "mug"}).status_code == 200
    online.write_bytes(content)
    assert client.post("/v1/score", json=asked).status_code == 200
    assert client.get("/ready").json()["status"] == "ready"


def test_a_redis_that_is_away_is_named_without_its_password_and_holds_up_one_request(
    copied: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes ten seconds to say so. If each request waited for it, they would take every thread, and searches none."""
    monkeypatch.setattr(stores, "AGAIN_SECONDS", 60.0)
    away = copied.replace(redis="127.0.0.1:9,password=very-secret")
    with TestClient(create_app(away), raise_server_exceptions=False) as client:
        first = client.post("/v1/score", json=ASKED)
        began = time.monotonic()
        answer = client.post("/v1/score", json=ASKED)
        assert time.monotonic() - began < 2
    assert answer.json() == first.json()
    assert answer.status_code == 503
    assert "the online store (MOON_REDIS = 127.0.0.1:9,password=***) does not answer (ConnectionError: " in answer.json()["error"]
    assert "very-secret" not in answer.text


def test_files_that_a_restart_would_miss_are_noticed_while_it_runs(copied: Settings, caplog: pytest.LogCaptureFixture) -> None:
    follower = Follower(copied)
    follower.follow()
    follower.look_at_files()
    assert follower.state().status == "ready"
    champion = follower.champion()
    assert champion.parts.click_model is not None
    for file in (champion.parts.click_model / "model.onnx", champion.files()[-3]):
        assert file.is_file()
        file.rename(file.with_suffix(".away"))
        follower.look_at_files()
        follower.look_at_files()
        assert follower.state().status == "degraded"
        assert f"{file} is gone: a restart could not load it" in follower.refused
        assert champion.search(champion.embed("mug", None), 3), "what is in memory goes on"
        said = [r for r in caplog.records if str(file) in r.getMessage() and r.levelno == logging.ERROR]
        assert len(said) == 1, "logged once"
        file.with_suffix(".away").rename(file)
        follower.look_at_files()
        assert follower.state().status == "ready"


def test_a_file_that_was_cut_is_noticed_while_it_runs(copied: Settings) -> None:
    follower = Follower(copied)
    follower.follow()
    file = follower.champion().parts.encoder / "tower.onnx"
    file.write_bytes(file.read_bytes()[:1000])
    follower.look_at_files()
    assert follower.state().status == "degraded"
    assert f"{file} has changed: a restart could not load it" in follower.refused


def test_a_new_publication_is_no_missing_file(copied: Settings, now: dt.datetime) -> None:
    from moon_ops.publication import publication

    follower = Follower(copied)
    follower.follow()
    publication.publish(copied, 1, now=now, full=True)
    follower.look_at_files()
    assert follower.state().status == "ready"
    assert pc.sum(pa.array([file.is_file() for file in follower.champion().files()])).as_py() == len(follower.champion().files())
