"""Answers of other services that are none: too slow, too long, of other shards, no cosines, or nested beyond reading."""

from __future__ import annotations

import base64
import dataclasses
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from moon_ops.embeddings.index_shards import shard_of
from moon_ops.errors import ServiceError
from moon_ops.serving import peers
from moon_ops.serving.peers import Peers
from moon_ops.serving.shelf import IndexName, Question
from moon_ops.serving.stores import Stores
from moon_ops.settings import Settings

NAME = IndexName(1, 0, "c-one", 3)
ASKED = Question(np.eye(1, 4, dtype=np.float32), 2)
SHARDS = [1, 2]
OWN = [item for item in range(20) if shard_of(np.array([item]), 3)[0] in SHARDS]
FOREIGN = next(item for item in range(20) if item not in OWN)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 10000\r\n\r\n"


def asking(tmp_path: Path, address: str, **more: float) -> Peers:
    return Peers(Settings(home=tmp_path, index_shards=3, index_shard="0", index_peers=f"1={address},2={address}", **more), Stores())


def answer(ids: list[int], cosines: list[float]) -> httpx.Response:
    ids_, cosines_ = (base64.b64encode(np.array(some, kind).tobytes()).decode() for some, kind in ((ids, "<i8"), (cosines, "<f4")))
    return httpx.Response(200, json={"index": dataclasses.asdict(NAME), "ids": ids_, "cosines": cosines_})


@pytest.fixture
def trickling() -> Iterator[str]:
    """The address of a service that sends a byte of its answer now and then."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def trickle() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(HEAD)
                while not over.wait(0.1):
                    try:
                        connection.sendall(b" ")
                    except OSError:  # it is waited for no more
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        over.set()
        thread.join()


def test_an_answer_that_trickles_is_given_up(tmp_path: Path, trickling: str) -> None:
    """Each of its bytes comes soon, all ten thousand in a quarter of an hour."""
    found = asking(tmp_path, trickling, request_seconds=1.0)
    began = time.monotonic()
    with pytest.raises(ServiceError, match="its answer comes too slowly"):
        found.ask(NAME, SHARDS, ASKED)()
    assert time.monotonic() - began < 500
    assert "shard 1, 2 of the index" in found.stores.why()


@pytest.mark.parametrize(
    ("ids", "cosines", "readable"),
    [
        (OWN[:2], [0.5, 0.25], True),
        ([OWN[0], -1], [0.5, -np.inf], True),
        (OWN[:2], [7.0, 0.25], False),
        (OWN[:2], [np.nan, 0.25], False),
        ([OWN[0], -5], [0.5, 0.25], False),
        ([OWN[0], FOREIGN], [0.5, 0.25], False),
    ],
)
def test_what_cannot_be_in_these_shards_is_not_merged(tmp_path: Path, ids: list[int], cosines: list[float], readable: bool) -> None:
    found = asking(tmp_path, "http://one:8321")
    found._client = httpx.Client(transport=httpx.MockTransport(lambda _: answer(ids, cosines)))
    if readable:
        assert found.ask(NAME, SHARDS, ASKED)()[0][0].tolist() == [ids]
        return
    with pytest.raises(ServiceError, match=r"cannot be read .it names items of other shards, or has cosines that are none"):
        found.ask(NAME, SHARDS, ASKED)()


def test_an_answer_without_an_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LONGEST", 1000)
    found = asking(tmp_path, "http://one:8321")
    found._client = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, content=b" " * 2000)))
    with pytest.raises(ServiceError, match=r"cannot be read .it is longer than 1,000 bytes"):
        found.ask(NAME, SHARDS, ASKED)()


def test_an_answer_nested_too_deeply_is_one_that_cannot_be_read(tmp_path: Path) -> None:
    found = asking(tmp_path, "http://one:8321")
    found._client = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, content=b"[" * 200_000)))
    with pytest.raises(ServiceError, match="gave an answer that cannot be read"):
        found.ask(NAME, SHARDS, ASKED)()
