"""Many vectors at once, OpenAI's client, relevance, recommendation and similar items, on a release that vouches for shorter vectors."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from moon_ops.cli.trial import running
from moon_ops.publication import places
from moon_ops.registry.registry import RELEASE, Registry, manifest_of
from moon_ops.settings import Settings

THRESHOLD = {"cosine": 0.3, "kept": 0.95, "others": 0.2, "queries": 40}
PREFIXES = [{"dim": 8, "certified": False}, {"dim": 32, "certified": True}, {"dim": 64, "certified": True}]


@pytest.fixture(scope="module")
def home(released: Settings, moved: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home whose second release says what the first one does not measure: a prefix of 32, and a threshold for texts."""
    import json

    place = tmp_path_factory.mktemp("api")
    settings = moved(released, place / "home")
    registry = Registry(settings)
    searches = {"prefixes": PREFIXES, "relevance": {"text": THRESHOLD}}
    (place / "manifest.json").write_text(json.dumps({**manifest_of(registry, 1), "searches": searches}))
    (place / "only").mkdir()
    (place / "manifest.json").rename(place / "only" / "manifest.json")
    assert registry.register(RELEASE, registry.start_run("by hand", {}), place / "only", {}) == 2
    return settings


@pytest.fixture(scope="module")
def client(home: Settings) -> Iterator[httpx.Client]:
    with running(home, release=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def photo() -> bytes:
    Image.new("RGB", (40, 30), "red").save(content := io.BytesIO(), "PNG")
    return content.getvalue()


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def test_many_are_embedded_as_one_by_one(client: httpx.Client, photo: bytes) -> None:
    inputs = ["red lamp", {"image": data_url(photo)}, {"text": "blue mug", "image": base64.b64encode(photo).decode()}]
    body = client.post("/v1/embed", json={"inputs": inputs}).json()
    alone = [
        client.post("/v1/embed", data={"text": "red lamp"}),
        client.post("/v1/embed", files={"image": photo}),
        client.post("/v1/embed", files={"image": photo}, data={"text": "blue mug"}),
    ]
    assert np.allclose(body["embeddings"], [one.json()["embedding"] for one in alone], atol=1e-5)
    assert (body["release"], body["dimensions"]) == (2, 64)


def test_a_certified_prefix_is_a_unit_vector_of_its_own(client: httpx.Client) -> None:
    whole = np.array(client.post("/v1/embed", json={"inputs": ["red lamp"]}).json()["embeddings"][0])
    short = client.post("/v1/embed", json={"inputs": ["red lamp"], "dimensions": 32}).json()
    assert np.allclose(short["embeddings"][0], whole[:32] / np.linalg.norm(whole[:32]), atol=1e-6)
    for path, body in (("/v1/embed", {"inputs": ["red lamp"]}), ("/v1/embeddings", {"model": "moon-release", "input": "red lamp"})):
        answer = client.post(path, json={**body, "dimensions": 8})
        assert answer.status_code == 422
        assert answer.json()["error"] == "dimensions = 8: release 2 vouches for vectors of 32, 64"


def test_a_picture_that_is_only_a_name_is_told_how_to_send_it(client: httpx.Client) -> None:
    answer = client.post("/v1/search", files={"image": (None, "photo.jpg")})  # as curl sends -F image=photo.jpg
    assert answer.status_code == 422
    assert "must be a file, with curl e.g. -F image=@photo.jpg" in answer.json()["error"]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([], "inputs"),
        (["x"] * 65, "inputs"),
        ([" "], "inputs[0] has neither text nor image"),
        (["x", {"image": "data:image/png;base64,QUJD"}], "inputs[1].image"),
        ([{"image": "data:image/png,abc"}], "inputs[0].image is a data URL without base64"),
        ([{"image": "%%"}], "inputs[0].image is not base64"),
    ],
)
def test_what_cannot_be_embedded_is_named(client: httpx.Client, inputs: list[Any], says: str) -> None:
    answer = client.post("/v1/embed", json={"inputs": inputs})
    assert answer.status_code == 422
    assert says in answer.json()["error"]


def test_openais_own_client_works(client: httpx.Client, photo: bytes) -> None:
    from openai import NotFoundError, OpenAI

    with OpenAI(base_url=f"{client.base_url}/v1/", api_key="none is needed here", http_client=httpx.Client(trust_env=False)) as moon:
        assert [model.id for model in moon.models.list()] == ["moon-release-2"]
        assert moon.models.retrieve("moon-release-2").owned_by == "moon_ops"
        asked: list[str] = ["red lamp", data_url(photo)]
        made = moon.embeddings.create(model="moon-release-2", input=asked)  # base64, as that client asks by itself
        plain = moon.embeddings.create(model="moon-release", input=asked, encoding_format="float", dimensions=32)
        with pytest.raises(NotFoundError) as refused:
            moon.embeddings.create(model="moon-release-1", input="red lamp")
    long = client.post("/v1/embeddings", json={"model": "moon-release", "input": ["x", "y" * 10_001]})
    assert (long.status_code, long.json()["error"]) == (422, "input[1] has 10,001 characters, more than 10,000")
    assert "moon-release-1" in refused.value.response.json()["error"]
    expected = client.post("/v1/embed", json={"inputs": ["red lamp", {"image": data_url(photo)}]}).json()["embeddings"]
    assert np.allclose([row.embedding for row in made.data], expected, atol=1e-6)
    assert [len(row.embedding) for row in plain.data] == [32, 32]
    assert made.usage.prompt_tokens == made.usage.total_tokens > 2


def test_relevance_is_the_cosine_and_whether_it_reaches_the_threshold(client: httpx.Client, home: Settings, photo: bytes) -> None:
    known = [hit["item_id"] for hit in client.post("/v1/search", data={"text": "dress", "k": "200"}).json()["items"]]
    body = client.post("/v1/relevance", json={"text": "dress", "item_ids": [*known, 987_654]}).json()
    vector = np.array(client.post("/v1/embed", data={"text": "dress"}).json()["embedding"], np.float32)
    table = places.tables(home, 1).items
    expected = table.gather(table.codes(np.array(known))) @ vector
    assert [row["cosine"] for row in body["items"]] == pytest.approx(expected.tolist(), abs=1e-5)
    assert [row["relevant"] for row in body["items"]] == [cosine >= 0.3 for cosine in expected.tolist()]
    assert (body["unknown"], body["threshold"], body["measure"]) == ([987_654], THRESHOLD, "cosine")
    by_picture = client.post("/v1/relevance", json={"image": data_url(photo), "item_ids": known[:2]}).json()
    assert (by_picture["threshold"], [row["relevant"] for row in by_picture["items"]]) == (None, [None, None]), "none was measured"


def test_a_recommendation_is_retrieved_filtered_and_ranked(client: httpx.Client) -> None:
    hits = client.post("/v1/search", data={"text": "dress", "k": "30"}).json()["items"]
    cut = hits[20]["score"]
    asked = {"user_id": 1, "text": "dress", "candidates": 30, "k": 5}
    body = client.post("/v1/recommend", json={**asked, "threshold": cut}).json()
    left = [hit for hit in hits if hit["score"] >= cut]
    scores = client.post("/v1/score", json={"user_id": 1, "text": "dress", "item_ids": [hit["item_id"] for hit in left]}).json()["scores"]
    expected = sorted(scores, key=lambda row: -row["score"])[:5]
    assert [row["score"] for row in body["items"]] == pytest.approx([row["score"] for row in expected], abs=1e-5)
    assert body["stages"]["retrieval"]["candidates"] == 30
    relevance = {name: body["stages"]["relevance"][name] for name in ("source", "kept", "dropped")}
    assert relevance == {"source": "request", "kept": len(left), "dropped": 30 - len(left)}
    for row in body["items"]:
        assert row["cosine"] == pytest.approx(hits[row["place"] - 1]["score"], abs=1e-6)
        assert (row["item_id"], row["title"]) == (hits[row["place"] - 1]["item_id"], hits[row["place"] - 1]["title"])
    own = client.post("/v1/recommend", json=asked).json()["stages"]["relevance"]
    assert (own["source"], own["threshold"]) == ("release", 0.3)
    assert client.post("/v1/recommend", json={**asked, "threshold": 1.0}).json()["items"] == []


def test_similar_items_are_the_nearest_of_the_table_without_the_item(client: httpx.Client, home: Settings) -> None:
    item = home.lake.read("items", ["item_id"])["item_id"].to_pylist()[0]
    body = client.get(f"/v1/items/{item}/similar", params={"k": 5}).json()
    table = places.tables(home, 1).items
    ids, vectors = table.all()
    cosines = vectors @ table.gather(table.codes(np.array([item])))[0]
    assert [row["score"] for row in body["items"]] == pytest.approx(np.sort(cosines[ids != item])[::-1][:5].tolist(), abs=1e-5)
    assert item not in [row["item_id"] for row in body["items"]]
    assert client.get("/v1/items/987654/similar").status_code == 404


def test_a_service_that_shows_one_release_takes_nothing(client: httpx.Client) -> None:
    for method, path in (("POST", "/v1/items"), ("POST", "/v1/events"), ("DELETE", "/v1/items/1"), ("PATCH", "/v1/items/1")):
        assert client.request(method, path, json={}).status_code == 403


def test_the_document_names_every_route_and_shows_examples(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["info"]["version"] == version("moon_ops")
    assert {"/v1/embed", "/v1/embeddings", "/v1/relevance", "/v1/recommend", "/v1/events", "/admin/served"} <= set(document["paths"])
    assert set(document["paths"]["/v1/embed"]["post"]["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    for name in ("EmbedRequest", "EmbeddingsRequest", "RelevanceRequest", "RecommendRequest", "Events", "Part"):
        assert document["components"]["schemas"][name]["examples"], name
