"""Several services that hold a shard or some of one index: they answer as one that holds all, or say which shard is missing."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient

from moon_ops.embeddings import index_shards
from moon_ops.embeddings.index import IndexHeader
from moon_ops.embeddings.prefixes import served
from moon_ops.publication import erasure, places, publication
from moon_ops.registry.registry import CHAMPION, RELEASE, Registry, manifest_of
from moon_ops.serving.app import create_app
from moon_ops.serving.follower import Follower
from moon_ops.settings import Settings

WAIT_SECONDS = 60.0
TEXTS = ("red mug", "lamp", "blue chair", "green", "a small vase with stripes", "table")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running(httpx.Client):
    """A client of a service in this process, and what the service follows; it looks at the alias when it is woken, and not before."""

    follower: Follower


@contextlib.contextmanager
def running(settings: Settings, port: int) -> Iterator[Running]:
    """A service with an event loop and connections of its own, at a port of this machine."""
    app = create_app(settings)
    app.state.follower.every_seconds = 3600.0
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        with Running(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            client.follower = app.state.follower
            until(lambda: server.started)
            yield client
    finally:
        server.should_exit = True
        thread.join(30)


def until(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {WAIT_SECONDS:g} seconds")


@pytest.fixture(scope="module")
def made(released: Settings, moved: Any, tmp_path_factory: pytest.TempPathFactory, now: dt.datetime) -> Settings:
    """The released home with its index in three shards. Do not write into it."""
    settings = moved(released, tmp_path_factory.mktemp("shards") / "home").replace(index_shards=3)
    publication.publish(settings, 1, now=now)
    assert IndexHeader.read(places.index_place(settings, 1)).shards == 3
    return settings


@pytest.fixture
def dealt(made: Settings, moved: Any, tmp_path: Path) -> Settings:
    """The same at another place, to change at will."""
    return moved(made, tmp_path / "dealt").replace(canary_latency_ratio=1000.0)


def found(client: Any, **form: Any) -> list[tuple[int, float]]:
    answer = client.post("/v1/search", data=form)
    assert answer.status_code == 200, answer.text
    return [(item["item_id"], item["score"]) for item in answer.json()["items"]]


def front_of(settings: Settings, own: str, **ports: int) -> Settings:
    """A service that holds ``own`` and asks others, at ``shard_1=port``."""
    named = ",".join(f"{name.removeprefix('shard_')}=http://127.0.0.1:{port}" for name, port in ports.items())
    return settings.replace(index_shard=own, index_peers=named)


def test_three_services_answer_as_one(dealt: Settings) -> None:
    one, two = free_port(), free_port()
    questions: list[dict[str, Any]] = [{"text": text, "k": 20} for text in TEXTS]
    questions += [{"text": "mug", "k": 5, "offset": 7}, {"text": "mug", "k": 8, "group": "product"}, {"text": "lamp", "k": 200}]
    with contextlib.ExitStack() as stack:
        holders = [stack.enter_context(running(dealt.replace(index_shard=own), port)) for own, port in (("1", one), ("2", two))]
        front = stack.enter_context(running(front_of(dealt, "0", shard_1=one, shard_2=two), free_port()))
        bare = stack.enter_context(running(front_of(dealt, "none", shard_0=free_port(), shard_1=one, shard_2=two), free_port()))
        alone = stack.enter_context(TestClient(create_app(dealt)))
        until(lambda: front.get("/ready").status_code == 200)
        assert front.get("/ready").json()["status"] == "ready"
        for asked in questions:
            assert found(front, **asked) == found(alone, **asked)
        category = next(row["category"][0] for row in alone.post("/v1/search", data={"text": "mug"}).json()["items"] if row["category"])
        for filters in ({"category": category}, {"price_max": 20.0}, {"brand": "nobody's"}):
            both = [found(client, text="red", k=30, **filters) for client in (front, alone)]
            assert [item for item, _ in both[0]] == [item for item, _ in both[1]]
            np.testing.assert_allclose([score for _, score in both[0]], [score for _, score in both[1]], atol=1e-6)
        item = found(alone, text="mug")[0][0]
        ways: list[tuple[str, str, dict[str, Any]]] = [
            ("GET", f"/v1/items/{item}/similar", {}),
            ("POST", "/v1/recommend", {"json": {"user_id": 1, "text": "red mug", "threshold": -1}}),
        ]
        for method, path, sent in ways:
            answers = [client.request(method, path, **sent).json() for client in (front, alone)]
            assert answers[0]["items"]
            assert answers[0]["items"] == answers[1]["items"]
        for holder in holders:  # it answers for its own shard, and searches nothing by itself
            assert holder.get("/ready").status_code == 200
            refused = holder.post("/v1/search", data={"text": "mug"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "shard 0 of 3 is held neither by this service nor by one that it knows" in refused.json()["error"]
        counts = front.get("/metrics").text
        assert f'moon_shard_seconds_count{{peer="http://127.0.0.1:{one}"}}' in counts
        assert f'moon_shard_failures_total{{peer="http://127.0.0.1:{two}"}} 0.0' in counts
        until(lambda: "shard 0 (" in bare.get("/ready").json()["refused"])  # nobody listens there
        assert (bare.get("/ready").status_code, bare.get("/ready").json()["status"]) == (503, "unavailable")
        assert bare.post("/v1/embed", data={"text": "mug"}).status_code == 200, "what needs no index goes on"


def test_all_go_on_with_the_old_index_where_one_cannot_open_the_new_one(dealt: Settings, now: dt.datetime) -> None:
    """A job that has forgotten MOON_INDEX_SHARDS publishes two shards: a service that is to hold the third one cannot follow."""
    port, tried = free_port(), threading.Event()
    with running(dealt.replace(index_shard="1,2"), port), running(front_of(dealt, "0", shard_1=port, shard_2=port), free_port()) as front:
        until(lambda: front.get("/ready").json()["status"] == "ready")
        before, prepare = found(front, text="red mug"), front.follower.peers.prepare

        def prepared(part: Any) -> None:
            tried.set()
            prepare(part, 0.0)

        front.follower.peers.prepare = prepared  # type: ignore[method-assign]
        publication.publish(dealt.replace(index_shards=2), 1, now=now)
        until(tried.is_set)
        assert found(front, text="red mug") == before
        until(lambda: "others have not opened their part of it" in str(front.get("/ready").json()))
        assert found(front, text="red mug") == before


def test_a_service_that_is_gone_is_named_and_found_again(dealt: Settings) -> None:
    port = free_port()
    with running(front_of(dealt, "0,2", shard_1=port), free_port()) as front:
        for text in ("red mug", "lamp"):  # nobody is there yet
            refused = front.post("/v1/search", data={"text": text})
            assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
            assert f"shard 1 of the index (http://127.0.0.1:{port}) does not answer" in refused.json()["error"]
        with running(dealt.replace(index_shard="1"), port):
            until(lambda: front.get("/ready").json()["status"] == "ready")
            whole = found(front, text="red mug")
        until(lambda: front.post("/v1/search", data={"text": "red mug"}).status_code == 503)
        until(lambda: front.get("/ready").json()["status"] == "degraded")
        ready = front.get("/ready")
        assert ready.status_code == 200, "it has been whole, so it stays in its balancer and says what is wrong"
        assert "shard 1 of the index" in ready.json()["refused"]
        with running(dealt.replace(index_shard="1"), port):
            until(lambda: front.post("/v1/search", data={"text": "red mug"}).status_code == 200)
            assert found(front, text="red mug") == whole
            until(lambda: front.get("/ready").json()["status"] == "ready")


@pytest.mark.parametrize("first", ["front", "holder"])
def test_while_a_release_is_switched_no_answer_is_of_both(dealt: Settings, first: str) -> None:
    """Release 2 searches the first numbers of each vector: another index, with other cosines. Either side may switch first."""
    port, answers = free_port(), list[tuple[int, list[tuple[int, float]]]]()
    release = narrow_release(dealt)
    with contextlib.ExitStack() as stack:
        holder = stack.enter_context(running(dealt.replace(index_shard="1,2"), port))
        front = stack.enter_context(running(front_of(dealt, "0", shard_1=port, shard_2=port), free_port()))
        until(lambda: front.get("/ready").json()["status"] == "ready")
        stop = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=front.base_url, timeout=30, trust_env=False) as client:
                while not stop.is_set():
                    answer = client.post("/v1/search", data={"text": "red mug", "k": 30})
                    assert answer.status_code == 200, answer.text
                    body = answer.json()
                    answers.append((body["release"], [(item["item_id"], item["score"]) for item in body["items"]]))

        asking_now = [threading.Thread(target=watched(ask, failed := [])) for _ in range(2)]
        for thread in asking_now:
            thread.start()
        Registry(dealt).point(CHAMPION, release)
        for service in (front, holder) if first == "front" else (holder, front):
            service.follower.wake()
            until(lambda service=service: service.get("/ready").json()["release"] == release)
        count = len(answers)
        until(lambda: len(answers) > count + 5)
        stop.set()
        for thread in asking_now:
            thread.join(30)
    assert not failed
    with TestClient(create_app(dealt)) as alone:
        expected = {release: found(alone, text="red mug", k=30)}
    with TestClient(create_app(dealt, release=1)) as before:
        expected[1] = found(before, text="red mug", k=30)
    assert expected[1] != expected[release]
    assert {number for number, _ in answers} == {1, release}
    assert all(items == expected[number] for number, items in answers)


def watched(work: Callable[[], None], failed: list[BaseException]) -> Callable[[], None]:
    """The work for a thread; what it raises is in ``failed``."""

    def run() -> None:
        try:
            work()
        except BaseException as fault:
            failed.append(fault)

    return run


def narrow_release(settings: Settings) -> int:
    """Release 1 with an index of the first sixteen numbers of each vector."""
    registry, whole = Registry(settings), places.index_place(settings, 1)
    items = np.concatenate([shard.items() for shard in index_shards.each(whole)])
    known, vectors = places.tables(settings, 1).items.of(items)
    contract = IndexHeader.read(whole).contract_id
    index_shards.build(places.index_place(settings, 1, 16), known, served(vectors, 16), contract, shards=3)
    directory = settings.home / "narrow"
    directory.mkdir()
    manifest = {**manifest_of(registry, 1), "compared_with": {"release": 1}, "index": {"place": "index/v1.first16", "dimensions": 16}}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return registry.register(RELEASE, registry.start_run("by hand", {}), directory, {})


def test_what_is_new_is_found_and_what_is_erased_is_not(dealt: Settings) -> None:
    """Items of every shard are taken in by the front and found through it; one that is erased is gone from the shard of another service."""
    port, items = free_port(), list(range(910_001, 910_013))
    own = index_shards.shard_of(np.array(items), 3).tolist()
    assert set(own) == {0, 1, 2}
    with contextlib.ExitStack() as stack:
        holder = stack.enter_context(running(dealt.replace(index_shard="1,2"), port))
        front = stack.enter_context(running(front_of(dealt.replace(items_token="a-secret"), "0", shard_1=port, shard_2=port), free_port()))
        until(lambda: front.get("/ready").json()["status"] == "ready")
        rows = [{"item_id": item, "title": "a very particular mauve astrolabe"} for item in items]
        sent = front.post("/v1/items", json={"items": rows}, headers={"authorization": "Bearer a-secret"})
        assert sent.status_code == 202, sent.text
        until(lambda: set(items) <= {item for item, _ in found(front, text="a very particular mauve astrolabe", k=200)})
        assert holder.get("/ready").json()["items"] == front.get("/ready").json()["items"]
        erased = items[own.index(2)]
        assert erasure.erase(dealt, erased, now=dt.datetime.now(dt.UTC)).places["index/v1"] == 1
        until(lambda: erased not in {item for item, _ in found(front, text="a very particular mauve astrolabe", k=200)})
        until(lambda: not holder.follower.champion().index.holds(erased))
        left = {item for item, _ in found(front, text="a very particular mauve astrolabe", k=200)}
        assert set(items) - left == {erased}
