"""The services that hold the shards of an index which this process does not: asked over HTTP, all at once, and merged exactly.

Each address stands for one service, or for a balancer before several that hold the same. A question names the index, so the parts of
an answer are of one encoder, one length of vectors and one number of shards, or there is none: never a part of it in silence. One that
does not answer is known to :class:`~moon_ops.serving.stores.Stores`, so it is told at ``/ready``, and where it hangs, others do not wait.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

import httpx
import numpy as np

from moon_ops.embeddings.index_shards import Found, merged, shard_of
from moon_ops.errors import ServiceError, StageError
from moon_ops.serving.access import REQUEST
from moon_ops.serving.shelf import IndexName, Part, Question
from moon_ops.serving.stores import Stores
from moon_ops.settings import Settings
from moon_ops.telemetry.traces import span, traceparent

log = logging.getLogger(__name__)
PATH, LOOK = "/v1/shards/search", "/v1/shards/ready"
CONNECT_SECONDS = 1.0
CONNECTIONS = 32  # to each service
KEPT_SECONDS = 20.0  # that an idle connection is kept: the other side closes it after 30
LOOK_SECONDS, ALL_SECONDS = 1.0, 5.0  # between looks at those that were lost, and at all
PREPARE_SECONDS = 120.0  # that a new release waits for the others to have opened its index
AGAIN_SECONDS = 0.5  # between two questions meanwhile
AGREED = 8  # answers in a row, over connections of their own, by which all services behind a balancer are taken to have it
NOBODY, LARGEST = -1, 1.01  # the id where there are no more items; a cosine, rounded
LONGEST = 2**26  # bytes of an answer: some thousand times those of a page
BUSY, ENDING, NO_KEY = 429, (502, 503, 504), (401, 403)
AGAIN = "ask again in a moment"
T = TypeVar("T")
Seen = Callable[[str, float, bool], None]  # told of each question: the address, seconds, and whether it was answered


class Peers:
    """Those that the settings name. May be asked from many threads; without any it does nothing."""

    def __init__(self, settings: Settings, stores: Stores) -> None:
        self.settings, self.stores, self.known = settings, stores, settings.peers
        self.seen: Seen = lambda *_: None
        self._reached: set[str] = set()
        self._stop = threading.Event()
        if self.known:
            self._client = self._connected(count := CONNECTIONS * len(set(self.known.values())))
            self._threads = ThreadPoolExecutor(count, thread_name_prefix="peers")
            stores.faults.update({_store(address): 0 for address in self.known.values()})

    def _connected(self, count: int) -> httpx.Client:
        """Its connections are kept; no proxy is asked, whatever the environment says of the world outside."""
        limits = httpx.Limits(max_connections=count, max_keepalive_connections=count, keepalive_expiry=KEPT_SECONDS)
        patience = httpx.Timeout(self.settings.request_seconds / 2, connect=CONNECT_SECONDS)
        return httpx.Client(timeout=patience, limits=limits, trust_env=False)

    def knows(self, shards: Collection[int]) -> bool:
        """Whether somebody is named for each of them."""
        return set(shards) <= set(self.known)

    def ask(self, name: IndexName, shards: Collection[int], asked: Question) -> Callable[[], list[Found]]:
        """Ask for these shards; what is returned waits for the answers. :class:`ServiceError` names the shards of which there is none."""
        if unknown := sorted(set(shards) - set(self.known)):
            problem = f"shard {unknown[0]} of {name.shards} is held neither by this service nor by one that it knows"
            raise ServiceError(problem, action="name who holds it in MOON_INDEX_PEERS, or ask a service that knows")
        calls = [partial(self._asked, address, own, name, asked) for address, own in self._by_address(shards).items()]
        later = [self._threads.submit(copy_context().run, call) for call in calls]  # within the request's trace
        return lambda: [answer.result() for answer in later]

    def prepare(self, part: Part, seconds: float = PREPARE_SECONDS, *, wait: bool = True) -> None:
        """Wait until the others have opened what is missing here; :class:`StageError` with what the last one says after ``seconds``."""
        missing, end, said = part.index.missing, time.monotonic() + seconds, ""
        left = self._by_address(missing) if wait and self.knows(missing) else {}
        while left:
            for address, own in list(left.items()):
                try:
                    for _ in range(AGREED):
                        self._look(address, own, part.name, fresh=True)
                    del left[address]
                except (ServiceError, _Refusal) as fault:
                    said = str(fault)
            if left and time.monotonic() > end:
                raise StageError(f"others have not opened their part of it: {said}", action="look at their /ready; it is tried again")
            time.sleep(AGAIN_SECONDS if left else 0.0)

    def waiting(self, part: Part | None) -> str:
        """Why not all shards of what is served have been reached since the process began; empty if they have, or it asks nobody."""
        if part is None or not self.known:
            return ""
        away = sorted(n for n in part.index.missing if self.known.get(n) not in self._reached)
        return f"shard {away[0]} ({self.known.get(away[0], 'held by nobody in MOON_INDEX_PEERS')}) has not been reached yet" if away else ""

    def start(self, part: Callable[[], Part | None]) -> None:
        """Look in the background, until :meth:`stop`, whether the others answer for the part that is served here."""
        if self.known:
            threading.Thread(target=self._loop, args=(part,), name="look-at-peers", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def _loop(self, part: Callable[[], Part | None]) -> None:
        last = -ALL_SECONDS
        while not self._stop.is_set():
            now, served = time.monotonic(), part()
            everyone = now - last >= ALL_SECONDS
            last = now if everyone else last
            if served is not None:
                for address, own in self._by_address(served.index.missing).items():
                    if everyone or address not in self._reached or _store(address) in self.stores.lost:
                        self._looked(address, own, served.name)
            self._stop.wait(LOOK_SECONDS)

    def _by_address(self, shards: Collection[int]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for number in sorted(set(shards) & set(self.known)):
            found.setdefault(self.known[number], []).append(number)
        return found

    def _looked(self, address: str, shards: list[int], name: IndexName) -> None:
        """Note whether it has its part of this index open; that it has too much to do is no fault of it."""
        with contextlib.suppress(ServiceError, _Refusal), self.stores.asked(_store(address)):
            try:
                self._look(address, shards, name)
                self._reached.add(address)
            except _Refusal as refused:
                if refused.status == BUSY:
                    raise
                raise refused.fault() from refused

    def _look(self, address: str, shards: list[int], name: IndexName, *, fresh: bool = False) -> None:
        body = json.dumps({"index": dataclasses.asdict(name), "only": shards})
        self._answer(address + LOOK, shards, body, lambda answer: _same(answer, name), fresh=fresh)

    def _asked(self, address: str, shards: list[int], name: IndexName, asked: Question) -> Found:
        """One service's answer. One that cannot be reached is noted; one that refuses this question alone is not."""
        began, answered = time.monotonic(), False
        try:
            with span("shards", peer=address, shards=",".join(map(str, shards)), k=asked.k), self.stores.asked(_store(address)):
                found = self._answer(
                    address + PATH, shards, _written(name, shards, asked), lambda answer: _read(answer, name, shards, asked)
                )
                answered = True
                return found
        except _Refusal as refused:
            raise refused.fault() from refused
        finally:
            self.seen(address, time.monotonic() - began, answered)

    def _answer(self, url: str, shards: list[int], body: str, read: Callable[[dict[str, Any]], T], *, fresh: bool = False) -> T:
        who = f"shard {', '.join(map(str, shards))} of the index ({url.removesuffix(PATH).removesuffix(LOOK)})"
        try:
            answer = self._sent(url, body, fresh=fresh)
            if answer.status_code == httpx.codes.OK:
                return read(answer.json())
        except (httpx.HTTPError, httpx.InvalidURL) as fault:
            problem = f"{who} does not answer ({type(fault).__name__}: {fault})"
            raise ServiceError(problem, action="start it, or correct MOON_INDEX_PEERS") from fault
        except (ValueError, KeyError, TypeError, RecursionError) as fault:
            action = "run the same version of moon_ops on all services"
            raise ServiceError(f"{who} gave an answer that cannot be read ({fault})", action=action) from fault
        raise _refusal(who, answer)

    def _sent(self, url: str, body: str, *, fresh: bool) -> httpx.Response:
        """An answer; a connection that was closed, and a service that is about to end, are tried once more: a balancer knows another.

        ``fresh``: over a connection of its own.
        """
        headers = {"content-type": "application/json"} | ({"connection": "close"} if fresh else {})
        if key := self.settings.index_key.get_secret_value():
            headers["authorization"] = f"Bearer {key}"
        if trace := traceparent():
            headers["traceparent"] = trace
        if (request := REQUEST.get()) is not None:
            headers["x-request-id"] = request.request_id
        with contextlib.suppress(httpx.NetworkError, httpx.RemoteProtocolError):
            answer = self._posted(url, body, headers)
            if answer.status_code not in ENDING:
                return answer
        return self._posted(url, body, headers)

    def _posted(self, url: str, body: str, headers: dict[str, str]) -> httpx.Response:
        """An answer that has come whole in time: the client's own patience is with each piece of it."""
        end, content = time.monotonic() + self.settings.request_seconds / 2, bytearray()
        with self._client.stream("POST", url, content=body, headers=headers) as answer:
            for piece in answer.iter_bytes():
                content += piece
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("its answer comes too slowly", request=answer.request)
                if len(content) > LONGEST:
                    raise ValueError(f"it is longer than {LONGEST:,} bytes")
            return httpx.Response(answer.status_code, content=bytes(content), request=answer.request)


class Everywhere:
    """All of an index: the part that is here, and those that others hold. May be searched from many threads."""

    def __init__(self, part: Part, peers: Peers) -> None:
        self.part, self.peers = part, peers

    def find(self, asked: Question, contract_id: str) -> Found:
        """The k best of all shards; :class:`ServiceError` if one of them does not answer."""
        theirs = self.peers.ask(self.part.name, self.part.index.missing, asked)
        own = self.part.find(asked, contract_id)  # meanwhile
        return merged([own, *theirs()], len(asked.vectors), asked.k)


class _Refusal(Exception):  # noqa: N818 - none of the service's: it is there, and says why it does not answer this
    def __init__(self, status: int, told: str) -> None:
        super().__init__(told)
        self.status = status

    def fault(self) -> ServiceError:
        return ServiceError(str(self), action="correct MOON_INDEX_KEY" if self.status in NO_KEY else AGAIN)


def _refusal(who: str, answer: httpx.Response) -> Exception:
    told = f"{who} answers {answer.status_code}"
    try:
        return _Refusal(answer.status_code, f"{told}: {answer.json()['error']}")
    except (ValueError, KeyError, TypeError):  # a proxy's words
        return ServiceError(f"{told}: {answer.text[:200]}", action=AGAIN)


def _store(address: str) -> str:
    return f"index at {address}"


def _written(name: IndexName, shards: list[int], asked: Question) -> str:
    vectors = base64.b64encode(np.ascontiguousarray(asked.vectors, "<f4").tobytes()).decode()
    wanted = None if asked.wanted is None else dataclasses.asdict(asked.wanted)
    return json.dumps({"index": dataclasses.asdict(name), "only": shards, "k": asked.k, "vectors": vectors, "wanted": wanted})


def _same(answer: dict[str, Any], name: IndexName) -> None:
    if answer["index"] != dataclasses.asdict(name):
        raise ValueError(f"it is of another index, {answer['index']}")


def _read(answer: dict[str, Any], name: IndexName, shards: list[int], asked: Question) -> Found:
    _same(answer, name)
    shape = (len(asked.vectors), asked.k)
    ids = np.frombuffer(base64.b64decode(answer["ids"]), "<i8").reshape(shape)
    cosines = np.frombuffer(base64.b64decode(answer["cosines"]), "<f4").reshape(shape)
    if not np.all((ids == NOBODY) | (ids >= 0) & np.isin(shard_of(ids, name.shards), shards) & (np.abs(cosines) < LARGEST)):
        raise ValueError("it names items of other shards, or has cosines that are none")
    return ids, cosines
