"""The service over real HTTP, on the released tiny shop."""

from __future__ import annotations

import base64
import datetime as dt
import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import numpy as np
import pyarrow as pa
import pytest
from feast import FeatureStore
from PIL import Image

from moon_ops.cli.trial import running
from moon_ops.ctr.score import Scorer
from moon_ops.embeddings import as_of, features
from moon_ops.inputs.contract import item_sample
from moon_ops.lake.schemas import STAMP
from moon_ops.lake.tables import image_bytes, items_as_of
from moon_ops.publication import places, publication
from moon_ops.registry.registry import CTR, Registry
from moon_ops.release import clicks, stages
from moon_ops.settings import Settings

LONE = b'{"user_id": 1, "item_ids": [1], "text": "\\ud800"}'  # half a surrogate pair


@pytest.fixture(scope="module")
def client(released: Settings, moved: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a service of a copy: a service remembers in its home what it has served."""
    with running(moved(released, tmp_path_factory.mktemp("served") / "home")) as opened:
        yield opened


@pytest.fixture(scope="module")
def item(released: Settings) -> dict[str, Any]:
    """An item with one picture."""
    rows = released.lake.read("items", ["item_id", "title", "image_ids"]).to_pylist()
    return next(r for r in rows if len(r["image_ids"]) == 1)


@pytest.fixture(scope="module")
def picture(released: Settings, item: dict[str, Any]) -> bytes:
    return next(image_bytes(released.lake, item["image_ids"]))[1]


def test_ready_names_the_release(client: httpx.Client, released: Settings) -> None:
    body = client.get("/ready").json()
    contract = stages.runtime(released, 1).contract_id
    parts = {"release": 1, "encoder": 1, "ctr": 1, "contract_id": contract, "items": 115, "dimensions": 64}
    times, watched = {name: body.pop(name) for name in ("started", "since")}, {name: body.pop(name) for name in ("watch", "canary")}
    assert body == {"ready": True, "status": "ready", "asked": 1, "refused": "", "fixed": False, "alerts": [], **parts}
    assert watched["canary"] is None, "nothing was served before it"
    assert all(abs(dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(time)) < dt.timedelta(minutes=10) for time in times.values())
    assert client.get("/health").json() == {"status": "ok"}


def test_embed_gives_the_vector_that_bulk_production_gives(
    client: httpx.Client, released: Settings, item: dict[str, Any], picture: bytes
) -> None:

    row = next(r for r in released.lake.read("items").to_pylist() if r["item_id"] == item["item_id"])
    body = client.post("/v1/embed", files={"image": picture}, data={"text": item_sample(row).text}).json()
    table = places.tables(released, 1).items
    stored = table.gather(table.rows(np.array([item["item_id"]])))[0]
    assert body["release"] == 1
    assert np.dot(body["embedding"], stored) == pytest.approx(1.0, abs=1e-5)


def test_search_returns_the_nearest_items_in_order(client: httpx.Client, released: Settings, picture: bytes) -> None:
    body = client.post("/v1/search", files={"image": picture}, data={"k": "7"}).json()
    vector = np.array(client.post("/v1/embed", files={"image": picture}).json()["embedding"], np.float32)
    table = places.tables(released, 1).items
    expected = np.sort(table.vectors @ vector)[::-1][:7]
    assert [i["score"] for i in body["items"]] == pytest.approx(expected.tolist(), abs=1e-5)
    assert all(i["title"] and i["image_ids"] for i in body["items"])
    by_text = client.post("/v1/search", data={"text": "dress", "k": "3"}).json()
    assert len(by_text["items"]) == 3


def test_a_logged_request_is_replayed_offline_with_the_same_features_and_scores(client: httpx.Client, released: Settings) -> None:
    """The requests of the newest users are logged as impressions and joined again point in time: features and scores are those online."""
    store, now = features.open_store(released), newest_event(released) + dt.timedelta(days=1)
    active = items_as_of(released.lake, now, ["item_id"])["item_id"].to_pylist()
    users = released.lake.read("events", ["user_id"], "event = 'click'")["user_id"].to_pylist()
    scorer, tables = Scorer(Registry(released).fetch(CTR, 1), threads=1), clicks.vectors_known(released, 1)
    queries = released.lake.read("queries", ["query_id", "text"], "text IS NOT NULL").slice(0, 8).to_pylist()
    for user, query in zip(dict.fromkeys(reversed(users)), queries, strict=False):
        asked = [active[(user * 7 + n * 13) % len(active)] for n in range(20)]
        body = client.post("/v1/score", json={"user_id": user, "item_ids": asked, **query}).json()
        logged = {
            "user_id": [user] * 20,
            "item_id": asked,
            "query_id": [query["query_id"]] * 20,
            "session_id": [-1] * 20,
            "label": [0] * 20,
        }
        logged |= {"event_timestamp": pa.array([now] * 20, STAMP), "text": [query["text"]] * 20, "is_image": [False] * 20}
        joined = as_of.join(store, pa.table(logged), features.service(store, 1))
        online = features.online(store, 1, asked, user)
        for name in ("spu_id", "category", "brand", "seller_id", "price", "impressions", "clicks", "purchases", "item_ids", "query_ids"):
            known = online[name] * 20 if len(online[name]) == 1 else online[name]  # of the user one in all
            assert joined.column(name).to_pylist() == known, name
        replayed = scorer.score(scorer.encode(joined, tables))
        assert [s["score"] for s in body["scores"]] == pytest.approx(replayed.tolist(), abs=1e-4)
        assert [s["item_id"] for s in body["scores"]] == asked
    other = client.post("/v1/score", json={"user_id": user, "item_ids": asked, "text": "blue lamp"}).json()
    assert [s["score"] for s in other["scores"]] != [s["score"] for s in body["scores"]], "the query counts"


def newest_event(settings: Settings) -> dt.datetime:
    newest = max(settings.lake.read("events", ["event_timestamp"])["event_timestamp"].to_pylist())
    assert isinstance(newest, dt.datetime)
    return newest


def test_feast_knows_which_features_a_registered_click_model_needs(released: Settings) -> None:
    features.open_store(released)
    store = FeatureStore(str(released.home / "feature_store"))
    assert store.mlflow.resolve_features("models:/moon-ctr/1") == "ctr_v1"


@pytest.mark.parametrize(
    ("path", "request_", "status", "named"),
    [
        ("/v1/search", {}, 422, "neither text nor image"),
        ("/v1/search", {"files": {"image": b"not a picture"}}, 422, "not a JPEG, PNG, WebP"),
        ("/v1/search", {"data": {"text": "mug", "k": "0"}}, 422, "k"),
        ("/v1/score", {"json": {"user_id": 1, "item_ids": [987654]}}, 422, "987654 is no item"),
        ("/v1/score", {"json": {"user_id": 1, "item_ids": []}}, 422, "item_ids"),
        ("/v1/score", {"json": {"user_id": 1, "item_ids": [True]}}, 422, "item_ids"),
        ("/v1/score", {"json": {"user_id": 1, "item_ids": [1], "txt": "blue lamp"}}, 422, "txt"),
        ("/v1/score", {"json": {"user_id": 1, "item_ids": [1], "image": "%%%"}}, 422, "not base64"),
        ("/v1/score", {"json": {"user_id": 1, "item_ids": [1], "image": "é"}}, 422, "not base64"),
        ("/v1/score", {"content": LONE, "headers": {"content-type": "application/json"}}, 422, "text"),
    ],
)
def test_bad_requests_name_the_field(client: httpx.Client, path: str, request_: dict[str, Any], status: int, named: str) -> None:
    answer = client.post(path, **request_)
    assert answer.status_code == status
    assert named in answer.text


def test_items_images_and_the_page(client: httpx.Client, item: dict[str, Any], picture: bytes) -> None:
    found = client.get("/v1/items", params={"item_id": [item["item_id"], 987654]}).json()["items"]
    assert [(i["item_id"], i["title"]) for i in found] == [(item["item_id"], item["title"])]
    shown = client.get(f"/v1/images/{item['image_ids'][0]}")
    assert shown.content == picture
    assert Image.open(io.BytesIO(shown.content)).size == (96, 96)
    assert client.get(f"/v1/images/{'0' * 64}").status_code == 404
    assert client.get("/v1/images/..%2Fsecret").status_code in (404, 422)
    assert "Visual search" in client.get("/").text


def test_a_product_cut_out_is_the_product_on_white(client: httpx.Client, picture: bytes) -> None:
    """As it is in ingest and in training: on black its cosine to itself was .06."""
    product = Image.open(io.BytesIO(picture)).convert("RGBA")
    mask = Image.new("L", product.size, 0)
    mask.paste(255, (24, 24, 72, 72))
    product.putalpha(mask)
    studio = Image.new("RGB", product.size, "white")
    studio.paste(product, mask=mask)
    vectors = []
    for shown in (product, studio):
        file = io.BytesIO()
        shown.save(file, "PNG")
        vectors.append(client.post("/v1/embed", files={"image": file.getvalue()}).json()["embedding"])
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-6)


def test_score_takes_a_picture(client: httpx.Client, picture: bytes) -> None:
    body = client.post("/v1/score", json={"user_id": 1, "item_ids": [1, 2], "image": base64.b64encode(picture).decode()}).json()
    assert all(0 < s["score"] < 1 for s in body["scores"])


def test_without_a_champion_the_service_says_why(tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    from moon_ops.serving.app import create_app

    with TestClient(create_app(Settings.from_environment(tmp_path / "empty"))) as empty:
        assert empty.get("/health").status_code == 200
        ready = empty.get("/ready")
        assert ready.status_code == 503
        assert "there is no champion release" in ready.json()["refused"]
        answer = empty.post("/v1/search", data={"text": "mug"})
        assert answer.status_code == 503
        assert "moon demo" in answer.text


def test_a_refused_champion_leaves_the_served_one_in_place(released: Settings, tmp_path: Path) -> None:
    """The alias moves to a release whose index is damaged: the old one is still served, and /ready says why."""
    from moon_ops.serving.follower import Follower

    home = tmp_path / "home"
    shutil.copytree(released.home, home, symlinks=True)
    settings = Settings.from_environment(home)
    follower = Follower(settings)
    follower.follow()
    assert follower.current is not None
    damaged = (home / "index" / "v1").resolve() / "index.faiss"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    follower.current = None
    follower.follow()
    assert follower.current is None
    assert "release 1 is not served" in follower.refused
    assert "sha256" in follower.refused


def test_what_cannot_be_served_is_logged_once(
    released: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked four times a second, for as long as it takes somebody to mend it; and reported again when it comes back."""
    from moon_ops.serving.follower import Follower

    home = tmp_path / "home"
    shutil.copytree(released.home, home, symlinks=True)
    follower = Follower(Settings.from_environment(home), every_seconds=0.6)
    follower.follow()
    with monkeypatch.context() as patched:
        patched.setattr(follower, "refresh", Mock(side_effect=OSError("the index is broken")))
        follower.start()
        time.sleep(2.5)
        follower.stop()
        assert [r.levelname for r in caplog.records if "the index is broken" in r.getMessage()] == ["ERROR"]
        assert "the index is broken" in follower.refused
    follower.reopen()
    assert follower.refused == ""


def test_a_model_that_reads_more_clicks_than_are_shown_is_served_with_a_warning(
    released: Settings, tmp_path: Path, now: dt.datetime, caplog: pytest.LogCaptureFixture
) -> None:
    """At night the service must go on; the log says why its scores are not those that were judged."""
    from moon_ops.serving.follower import Follower

    home = tmp_path / "home"
    shutil.copytree(released.home, home, symlinks=True)
    settings = Settings.from_environment(home)
    for behaviors, warned in ((100, False), (2, True)):
        publication.publish(settings.replace(behaviors=behaviors), 1, now=now)
        follower = Follower(settings)
        follower.follow()
        assert follower.current is not None, follower.refused
        assert ("less than it was trained on: behaviors = 20, but ctr_v1 shows the last 2 clicks" in caplog.text) == warned


def test_an_alias_moved_to_a_failed_release_is_not_followed(released: Settings, tmp_path: Path) -> None:
    """Anyone may move an alias in MLflow; the evidence is asked again before it is honoured."""
    import json

    from moon_ops.registry.registry import CHAMPION, RELEASE, Registry, manifest_of
    from moon_ops.serving.follower import Follower

    home = tmp_path / "home"
    shutil.copytree(released.home, home, symlinks=True)
    settings = Settings.from_environment(home)
    registry = Registry(settings)
    manifest = manifest_of(registry, 1)
    manifest["evidence"][1] |= {"passed": False, "value": 0.01}
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "manifest.json").write_text(json.dumps({**manifest, "passed": False}))
    follower = Follower(settings)
    follower.follow()
    version = registry.register(RELEASE, registry.start_run("failed", {}), tmp_path / "failed", {})
    registry.point(CHAMPION, version)
    follower.follow()
    assert follower.champion().version == 1
    assert f"release {version} is not served" in follower.refused
    assert "image_search/recall@10 = 0.0100" in follower.refused
