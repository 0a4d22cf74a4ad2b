"""How one service asks another for its shards: what it holds in memory, and each way in which an answer may fail to come."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import gc
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from moon_ops.embeddings import index_shards
from moon_ops.embeddings.index import IndexHeader
from moon_ops.errors import ServiceError, StageError
from moon_ops.publication import places
from moon_ops.serving import keys, peers, shelf
from moon_ops.serving.access import REQUEST, Noted
from moon_ops.serving.app import create_app
from moon_ops.serving.peers import LOOK, PATH, Peers
from moon_ops.serving.shelf import IndexName, Part, Question, Shelf
from moon_ops.serving.stores import Stores
from moon_ops.settings import Settings

NAME = IndexName(1, 0, "c-one", 3)
ASKED = Question(np.eye(1, 4, dtype=np.float32), 2)
ADDRESS = "http://one:8321"
Answer = Callable[[httpx.Request], httpx.Response]


def answered(name: IndexName = NAME, ids: tuple[int, ...] = (7, 6)) -> httpx.Response:
    body = {"index": dataclasses.asdict(name), "ids": written(np.array(ids)), "cosines": written(np.array([0.5, 0.25], np.float32))}
    return httpx.Response(200, json=body)


def written(matrix: Any) -> str:
    return base64.b64encode(matrix.tobytes()).decode()


def refused(status: int, error: str = "no") -> httpx.Response:
    return httpx.Response(status, json={"error": error})


def of(answers: list[Any], tmp_path: Path, **more: Any) -> tuple[Peers, list[httpx.Request]]:
    """Peers of which the one at :data:`ADDRESS` gives these answers, one after the other, or raises them."""
    settings = Settings(home=tmp_path, index_shards=3, index_shard="0", index_peers=f"1={ADDRESS},2={ADDRESS}/", **more)
    asking, had = Peers(settings, Stores()), list[httpx.Request]()

    def answer(request: httpx.Request) -> httpx.Response:
        had.append(request)
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    asking._client = httpx.Client(transport=httpx.MockTransport(answer))
    return asking, had


def test_shards_of_one_address_are_asked_for_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (asking, had), seen = of([answered()], tmp_path, index_key="moon_1_secret"), list[tuple[str, bool]]()
    asking.seen = lambda address, _, answered: seen.append((address, answered))
    monkeypatch.setattr(peers, "traceparent", lambda: "00-trace-span-01")
    token = REQUEST.set(Noted("the-request"))
    ((ids, cosines),) = asking.ask(NAME, [1, 2], ASKED)()
    REQUEST.reset(token)
    assert (ids.tolist(), cosines.tolist()) == ([[7, 6]], [[0.5, 0.25]])
    (request,) = had
    assert (str(request.url), request.headers["authorization"]) == (f"{ADDRESS}{PATH}", "Bearer moon_1_secret")
    assert (request.headers["x-request-id"], request.headers["traceparent"]) == ("the-request", "00-trace-span-01")
    assert json.loads(request.content)["only"] == [1, 2]
    assert seen == [(ADDRESS, True)]
    assert asking.stores.why() == ""


@pytest.mark.parametrize("first", [httpx.ReadError("reset"), httpx.RemoteProtocolError("closed"), httpx.ConnectError("no"), refused(503)])
def test_a_closed_connection_and_a_service_that_ends_are_asked_once_more(tmp_path: Path, first: Any) -> None:
    asking, had = of([first, answered()], tmp_path)
    assert len(asking.ask(NAME, [1], ASKED)()) == 1
    assert len(had) == 2
    assert asking.stores.why() == ""


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([httpx.ConnectError("refused")] * 2, r"shard 1, 2 of the index \(http://one:8321\) does not answer \(ConnectError: refused\)"),
        ([httpx.ReadTimeout("slow")], r"shard 1, 2 .* does not answer \(ReadTimeout"),
        ([httpx.Response(404, text="<html>")], r"answers 404: <html>"),
        ([answered(dataclasses.replace(NAME, contract_id="c-two"))], r"cannot be read \(it is of another index"),
        ([answered(ids=(7,))], r"gave an answer that cannot be read"),
        ([httpx.Response(200, text="<html>")], r"gave an answer that cannot be read"),
    ],
)
def test_what_is_no_answer_is_said_and_told_at_ready(tmp_path: Path, answers: list[Any], said: str) -> None:
    asking, _ = of([*answers, answered()], tmp_path)
    with pytest.raises(ServiceError, match=said):
        asking.ask(NAME, [1, 2], ASKED)()
    assert "shard 1, 2 of the index" in asking.stores.why()
    assert asking.stores.faults[f"index at {ADDRESS}"] == 1
    asking.ask(NAME, [1, 2], ASKED)()
    assert asking.stores.why() == "", "the next answer ends it"


@pytest.mark.parametrize(("status", "told"), [(429, False), (503, True), (401, True)])
def test_one_that_refuses_a_question_is_there_but_not_if_it_refuses_what_is_served(
    tmp_path: Path, status: int, told: bool, part: Part
) -> None:
    """A candidate's index may not be open there yet; what is served is looked at in the background. To have much to do is no fault."""
    tries = 2 if status == 503 else 1
    asking, had = of(
        [refused(status, "not here")] * 2 * tries + [httpx.Response(200, json={"index": dataclasses.asdict(part.name)})], tmp_path
    )
    with pytest.raises(ServiceError, match=f"shard 1 of the index .* answers {status}: not here"):
        asking.ask(part.name, [1], ASKED)()
    assert asking.stores.why() == ""
    asking._looked(ADDRESS, [1, 2], part.name)
    assert ("shard 1, 2 of the index" in asking.stores.why()) == told
    assert asking.waiting(part) == f"shard 1 ({ADDRESS}) has not been reached yet"
    asking._looked(ADDRESS, [1, 2], part.name)
    assert (asking.stores.why(), asking.waiting(part)) == ("", "")
    assert had[-1].url.path == LOOK
    assert json.loads(had[-1].content) == {"index": dataclasses.asdict(part.name), "only": [1, 2]}


def test_nobody_is_asked_for_a_shard_that_nobody_is_named_for(tmp_path: Path) -> None:
    asking, had = of([], tmp_path)
    with pytest.raises(ServiceError, match=r"shard 0 of 3 is held neither by this service nor by one that it knows"):
        asking.ask(NAME, [0, 1], ASKED)
    assert not had


def test_a_new_release_waits_until_all_behind_a_balancer_have_opened_its_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: Part
) -> None:
    monkeypatch.setattr(peers, "AGAIN_SECONDS", 0.001)
    asking, had = of([], tmp_path)
    has_it = httpx.Response(200, json={"index": dataclasses.asdict(part.name)})
    answers = [has_it, has_it, refused(503), refused(503)]  # the third connection leads to another one
    asking._client = httpx.Client(transport=httpx.MockTransport(_then(answers, has_it, had)))
    asking.prepare(part)
    assert len(had) == 4 + peers.AGREED
    assert {(request.url.path, request.headers["connection"]) for request in had} == {(LOOK, "close")}
    asking._client = httpx.Client(transport=httpx.MockTransport(_then([], refused(503, "another publication"), had)))
    with pytest.raises(StageError, match=r"others have not opened their part of it: .* answers 503: another publication"):
        asking.prepare(part, seconds=0.02)
    assert asking.stores.why() == "", "what is served is asked of them as before"


def _then(first: list[httpx.Response], last: httpx.Response, had: list[httpx.Request]) -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        had.append(request)
        return first.pop(0) if first else last

    return answer


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    """A home with an index of 60 items in three shards, of which 1 and 2 are held."""
    settings = Settings(home=tmp_path, index_shards=3, index_shard="1,2")
    published(settings, 0)
    return settings


@pytest.fixture
def part(home: Settings) -> Part:
    return Part(home.replace(index_shard="0"), (1, 0))


def published(settings: Settings, seed: int, encoder: int = 1) -> None:
    vectors = np.random.default_rng(seed).choice([-0.5, 0.5], size=(60, 4)).astype(np.float32)
    index_shards.build(places.index_place(settings, encoder), np.arange(60), vectors, f"c-{encoder}", shards=settings.index_shards)


def named(settings: Settings, encoder: int = 1) -> IndexName:
    header = IndexHeader.read(places.index_place(settings, encoder))
    return IndexName(encoder, 0, header.contract_id, header.shards)


def opened(held: Shelf, name: IndexName) -> Part:
    """Ask until it is open, as others do."""
    for _ in range(2000):
        try:
            return held.asked(name)
        except ServiceError:
            threading.Event().wait(0.01)
    raise AssertionError("it is never opened")


def test_what_is_in_memory_is_opened_once(home: Settings) -> None:
    held = Shelf(home)
    first = held.opened(1, 0)
    assert held.opened(1, 0) is first
    assert held.asked(named(home)) is first
    assert sorted(first.index.held) == [1, 2]
    published(home, 1)
    second = held.opened(1, 0)
    assert second is not first
    assert held.asked(named(home)) is second
    assert first.index.search(np.eye(1, 4, dtype=np.float32), 1, "c-1")[0].shape == (1, 1), "who has it keeps it"


def test_an_index_that_others_need_is_opened_kept_brought_up_to_date_and_let_go(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "TEND_SECONDS", 3600.0)
    monkeypatch.setattr(shelf.item_cards, "opened", lambda *_: None)  # pytest keeps the warning, and all that it was said in
    held, name = Shelf(home), named(home)
    with pytest.raises(ServiceError, match=r"the index of encoder 1 in 3 shards, contract c-1 is being opened → ask again"):
        held.asked(name)
    first = opened(held, name)
    published(home, 1)
    assert held.asked(name) is first
    held.tend()
    second = held.asked(name)
    assert second is not first
    number = id(second)
    del first, second
    assert id(held.asked(name)) == number, "nobody else has it, and it is kept"
    monkeypatch.setattr(shelf, "IDLE_SECONDS", -1.0)
    gc.disable()  # memory is free at once
    held.tend()
    gc.enable()
    with pytest.raises(ServiceError, match="is being opened"):
        held.asked(name)


def test_only_what_lies_there_is_opened(home: Settings) -> None:
    held, name = Shelf(home), named(home)
    for other in (dataclasses.replace(name, contract_id="c-2"), dataclasses.replace(name, shards=4)):
        with pytest.raises(ServiceError, match=r"this service has the index of encoder 1 in 3 shards, contract c-1, not the index of"):
            held.asked(other)
    with pytest.raises(ServiceError, match=r"encoder 9.* is not here"):
        held.asked(dataclasses.replace(name, encoder=9))
    assert not held._opening
    opened(held, name)
    with pytest.raises(ServiceError, match=r"this service has the index of encoder 1 in 3 shards, contract c-1, not the index of"):
        held.asked(dataclasses.replace(name, shards=4))
    (places.index_place(home, 1) / "1" / "ids.npy").write_bytes(b"damaged")
    damaged = Shelf(home)
    for _ in range(2000):
        with pytest.raises(ServiceError) as said:
            damaged.asked(name)
        if "cannot be opened" in said.value.problem:
            break
        threading.Event().wait(0.01)
    assert "has sha256" in said.value.problem


def test_few_are_kept_for_others(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "TEND_SECONDS", 3600.0)
    held = Shelf(home)
    for encoder in range(2, 7):
        published(home, encoder, encoder)
        opened(held, named(home, encoder))
    held.tend()
    assert sorted(held._kept) == [(encoder, 0) for encoder in range(7 - shelf.MOST, 7)]


@pytest.fixture(scope="module")
def holder(
    released: Settings, moved: Any, tmp_path_factory: pytest.TempPathFactory, now: dt.datetime
) -> Iterator[tuple[TestClient, Settings]]:
    """A service that holds shard 1 of two."""
    from moon_ops.publication import publication

    settings = moved(released, tmp_path_factory.mktemp("holder") / "home").replace(index_shards=2)
    publication.publish(settings, 1, now=now)
    with TestClient(create_app(settings.replace(index_shard="1"))) as client:
        yield client, settings


def test_a_holder_answers_for_its_shards_alone(holder: tuple[TestClient, Settings]) -> None:
    client, settings = holder
    name, dim = named(settings), IndexHeader.read(places.index_place(settings, 1)).dim
    query = np.eye(2, dim, dtype="<f4")
    body = {"index": dataclasses.asdict(name), "only": [1], "k": 3, "vectors": written(query), "wanted": None}
    answer = client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    ids = np.frombuffer(base64.b64decode(answer.json()["ids"]), "<i8").reshape(2, 3)
    whole = index_shards.ItemShards.open(places.index_place(settings, 1), only=[1])
    assert ids.tolist() == whole.search(query, 3, name.contract_id)[0].tolist()
    for changed, status, said in (
        ({"only": [0]}, 503, "shard 0 is not here: held are 1"),
        ({"index": {**body["index"], "shards": 3}}, 503, "not the index of encoder 1 in 3 shards"),
        ({"index": {**body["index"], "contract_id": "c-other"}}, 503, "contract c-other"),
        ({"vectors": "x"}, 422, "vectors are not base64"),
        ({"vectors": written(np.zeros(dim + 1, "<f4"))}, 422, "vectors are not base64"),
        ({"vectors": written(np.full(dim, np.nan, "<f4"))}, 422, "not finite"),
        ({"vectors": ""}, 422, "0 vectors"),
        ({"k": 0}, 422, "k"),
        ({"wanted": {"colour": "red"}}, 422, "wanted"),
    ):
        refusal = client.post(PATH, json={**body, **changed})
        assert (refusal.status_code, said in refusal.json()["error"]) == (status, True), refusal.text
    look = {"index": body["index"], "only": [1]}
    assert client.post(LOOK, json=look).json() == {"index": body["index"]}
    assert "held are 1" in client.post(LOOK, json={**look, "only": [0, 1]}).json()["error"]
    assert not {PATH, LOOK} & set(client.get("/openapi.json").json()["paths"])


def test_who_asks_needs_a_key_where_others_do(holder: tuple[TestClient, Settings], tmp_path: Path, now: dt.datetime) -> None:
    _, settings = holder
    place = tmp_path / "keys.json"
    secret = keys.create(place, "front", ["search"], per_second=100, now=now)[1]
    with TestClient(create_app(settings.replace(index_shard="1", api_keys=place))) as client:
        asking = Peers(settings.replace(index_shard="0", index_peers="1=http://testserver", index_key=secret), Stores())
        dim = IndexHeader.read(places.index_place(settings, 1)).dim
        asked = Question(np.eye(1, dim, dtype=np.float32), 4)
        asking._client = client
        assert asking.ask(named(settings), [1], asked)()[0][0].shape == (1, 4)
        asking.settings = settings
        with pytest.raises(ServiceError, match=r"answers 401: this needs a key with the scope search"):
            asking.ask(named(settings), [1], asked)()
