"""The client: typed answers, tries again as the service says, says the service's words, and imports nothing heavy."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from moon_ops import client as module
from moon_ops.client import AsyncClient, Client, RefusedError, Retries
from moon_ops.errors import ServiceError

BASE = {"release": 3, "contract_id": "abc"}
FOUND = {**BASE, "items": [{"item_id": "SKU/1", "score": 0.5, "title": "lamp", "unheard_of": 1}], "degraded": "no titles"}
TAKEN = {"new": 1, "changed": 0, "known": 2, "refused": {"items.title": 1}, "first_refusal": "is empty"}
Answer = Callable[[httpx.Request], httpx.Response]


class Service:
    """A service that answers what it is told to, in turn, and remembers what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.asked = list(answers), list[httpx.Request]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Instead of sleeping."""
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    return pauses


def opened(service: Service, **more: Any) -> Client:
    return Client("http://moon.test", key="moon_1_x", transport=httpx.MockTransport(service), **more)


def ok(body: Any) -> httpx.Response:
    return httpx.Response(200, json=body)


def test_answers_are_typed_and_the_rest_is_in_raw(tmp_path: Path) -> None:
    service = Service(ok(FOUND))
    (tmp_path / "photo.jpg").write_bytes(b"a picture")
    found = opened(service).search("lamp", tmp_path / "photo.jpg", k=5, filters={"brand": "Lux"})
    (item,) = found.items
    assert (item.item_id, item.score, item.title, item.price) == ("SKU/1", 0.5, "lamp", None)
    assert (found.release, found.degraded, found.raw["items"][0]["unheard_of"]) == (3, "no titles", 1)
    (request,) = service.asked
    assert request.headers["authorization"] == "Bearer moon_1_x"
    assert all(part in request.content for part in (b"a picture", b'name="brand"', b'name="k"\r\n\r\n5'))


def test_each_call_asks_its_route() -> None:
    embedded = {**BASE, "embeddings": [[1.0]], "dimensions": 1}
    service = Service(
        *(ok(FOUND) for _ in range(3)), ok({**BASE, "scores": []}), ok(embedded), ok(TAKEN), ok(TAKEN), *(ok({"changed": True}),) * 2
    )
    with opened(service) as moon:
        moon.recommend(1, text="lamp", k=2)
        moon.relevance([1, "SKU/2"], image=b"p")
        moon.similar("SKU/1", k=3)
        assert moon.score(1, [2], context={"position": 1}).items == []
        assert moon.embed(["lamp", b"p"], dimensions=32).embeddings == [[1.0]]
        assert moon.push([{"item_id": 1, "title": "x", "images": [b"p"]}]).refused == {"items.title": 1}
        assert moon.events([{"item_id": 1, "event": "click", "timestamp": 1}]).known == 2
        assert moon.change("SKU/1", price=None) is True
        assert moon.withdraw("SKU/1") is True
    asked = [(request.method, request.url.raw_path.decode()) for request in service.asked]
    assert asked == [
        ("POST", "/v1/recommend"),
        ("POST", "/v1/relevance"),
        ("GET", "/v1/items/SKU%2F1/similar?k=3"),
        ("POST", "/v1/score"),
        ("POST", "/v1/embed"),
        ("POST", "/v1/items"),
        ("POST", "/v1/events"),
        ("PATCH", "/v1/items/SKU%2F1"),
        ("DELETE", "/v1/items/SKU%2F1"),
    ]
    bodies = [json.loads(request.content) for request in service.asked if request.method in ("POST", "PATCH")]
    assert bodies[1] == {"item_ids": [1, "SKU/2"], "text": "", "image": "cA=="}
    assert bodies[3] == {"inputs": ["lamp", {"image": "cA=="}], "dimensions": 32}
    assert bodies[4]["items"][0]["images"] == ["cA=="]
    assert bodies[6] == {"price": None}


def test_it_tries_again_when_the_service_says(slept: list[float]) -> None:
    busy = httpx.Response(429, headers={"retry-after": "7"}, json={"error": "busy"})
    service = Service(busy, httpx.Response(503), httpx.ConnectError("refused"), ok(FOUND))
    assert opened(service).search("lamp").release == 3
    assert slept[0] == 7
    assert 0.2 <= slept[1] <= 0.4, "0.2 seconds, twice as long each time, and not all at the same moment"
    assert 0.4 <= slept[2] <= 0.8


@pytest.mark.parametrize(
    ("answer", "tries", "says", "status"),
    [
        (httpx.Response(422, json={"error": "k is 0", "action": "send 1"}), 1, "/v1/search: k is 0 → send 1", 422),
        (httpx.Response(503, json={"error": "no champion", "action": "promote"}), 3, "/v1/search: no champion → promote", 503),
        (httpx.Response(400, json={"title": "Bad", "detail": "why"}), 1, "/v1/search: why → correct the request", 400),
        (httpx.Response(500, text="<html>"), 1, "/v1/search: Internal Server Error", 500),
        (httpx.Response(429, headers={"retry-after": "3600"}, json={"error": "busy"}), 1, "/v1/search: busy", 429),
    ],
)
def test_it_says_the_services_words(slept: list[float], answer: httpx.Response, tries: int, says: str, status: int) -> None:
    service = Service(*[answer] * 4)
    with pytest.raises(RefusedError) as fault:
        opened(service, retries=Retries(most=2)).search("lamp")
    assert str(fault.value).startswith(says)
    assert (fault.value.status, len(service.asked)) == (status, tries)


def test_a_service_that_is_away_is_named(slept: list[float]) -> None:
    with pytest.raises(ServiceError, match=r"/ready: the service does not answer .*refused") as fault:
        opened(Service(*[httpx.ConnectError("refused")] * 2), retries=Retries(most=1)).ready()
    assert not isinstance(fault.value, RefusedError)


def test_it_awaits_as_well() -> None:
    service = Service(httpx.Response(503, headers={"retry-after": "0"}), ok(FOUND), httpx.Response(401, json={"error": "no such key"}))

    async def ask() -> Any:
        async with AsyncClient("http://moon.test", transport=httpx.MockTransport(service)) as moon:
            found = await moon.recommend(1, text="lamp")
            with pytest.raises(RefusedError, match="no such key"):
                await moon.similar(1)
            return found

    assert asyncio.run(ask()).items[0].title == "lamp"


def test_both_clients_offer_the_same() -> None:
    both = [{name for name in vars(kind) if not name.startswith("_")} for kind in (Client, AsyncClient)]
    assert both[0] == both[1]


def test_it_imports_nothing_heavy() -> None:
    heavy = (
        "numpy",
        "pandas",
        "pyarrow",
        "torch",
        "feast",
        "mlflow",
        "lance",
        "onnxruntime",
        "fastapi",
        "pydantic",
        "PIL",
        "moon_ops.lake",
    )
    code = f"import sys, moon_ops.client; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
