"""A client of the service, for programs that ask it: typed, with retries, synchronous and asynchronous.

::

    from moon_ops.client import Client

    with Client("http://127.0.0.1:8321", key="moon_…") as moon:
        for item in moon.recommend(user_id=1, text="red lamp", k=5).items:
            print(item.item_id, item.title, item.score)

It needs httpx and nothing else of moon_ops. Every request may be sent again, so each is, where the service is busy or away: the same items
and the same events are known the second time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from moon_ops.client import calls
from moon_ops.client.answers import Embedded, Found, Item, ShopId, Taken
from moon_ops.client.calls import Call, Picture
from moon_ops.errors import ServiceError

__all__ = ["AsyncClient", "Client", "Embedded", "Found", "Item", "RefusedError", "Retries", "Taken"]
T = TypeVar("T")
AGAIN = (429, 502, 503, 504)  # statuses after which it may go well


class RefusedError(ServiceError):
    """The service's answer was an error: its ``status``, and its words for the problem and for what to do."""

    def __init__(self, problem: str, *, action: str, status: int = 0) -> None:
        super().__init__(problem, action=action)
        self.status = status


@dataclass(frozen=True)
class Retries:
    """How often a request is sent again, and how long it waits before: twice as long each time, or as long as the service says."""

    most: int = 3
    first_seconds: float = 0.2
    most_seconds: float = 30.0

    def pause(self, tried: int, answer: httpx.Response | None) -> float | None:
        """Seconds until the next try, after ``tried`` ones; None if there is to be none. ``answer`` is None where there was none."""
        if tried > self.most or (answer is not None and answer.status_code not in AGAIN):
            return None
        said = answer.headers.get("retry-after", "") if answer is not None else ""
        wait = float(said) if said.isdecimal() else self.first_seconds * 2 ** (tried - 1) * random.uniform(0.5, 1.0)
        return wait if wait <= self.most_seconds else None


class Client:
    """Asks a service at ``url`` with a ``key``. May be used from many threads; close it, or use it in a ``with`` block.

    Raises :class:`RefusedError` for an answer that is an error, :class:`~moon_ops.errors.ServiceError` if there is none.
    """

    def __init__(
        self, url: str, *, key: str = "", timeout_seconds: float = 30.0, retries: Retries = Retries(), transport: Any = None
    ) -> None:
        self.retries = retries
        self._http = httpx.Client(base_url=url, headers=_headers(key), timeout=timeout_seconds, transport=transport)

    def search(
        self, text: str = "", image: Picture | None = None, *, k: int = 10, group: str = "", filters: Mapping[str, Any] | None = None
    ) -> Found:
        """The k nearest items to a text, a picture, or both; ``group="product"``: of each product one."""
        return self._do(calls.search(text, image, k, group, filters or {}))

    def embed(self, inputs: Sequence[str | Picture], *, dimensions: int | None = None) -> Embedded:
        """The vectors of texts and pictures; ``dimensions``: a shorter length that the release vouches for."""
        return self._do(calls.embed(inputs, dimensions))

    def score(self, user_id: ShopId, item_ids: Sequence[ShopId], **asked: Any) -> Found:
        """Click probabilities; ``asked``: text, image, query_id, context, item_contexts."""
        return self._do(calls.score(user_id, item_ids, asked))

    def relevance(self, item_ids: Sequence[ShopId], *, text: str = "", image: Picture | None = None) -> Found:
        """How near items are to a query."""
        return self._do(calls.relevance(item_ids, {"text": text, "image": image}))

    def recommend(self, user_id: ShopId, **asked: Any) -> Found:
        """Retrieval, relevance and ranking in one; ``asked``: text, image, k, candidates, threshold, query_id, context."""
        return self._do(calls.recommend(user_id, asked))

    def similar(self, item_id: ShopId, *, k: int = 10) -> Found:
        """The items that are like one."""
        return self._do(calls.similar(item_id, k))

    def items(self, item_ids: Sequence[ShopId]) -> list[Item]:
        """Those of the items that are on sale."""
        return self._do(calls.items(item_ids))

    def push(self, items: Sequence[Mapping[str, Any]]) -> Taken:
        """Bring new or changed items; pictures are bytes, files, or base64."""
        return self._do(calls.push(items))

    def change(self, item_id: ShopId, **part: Any) -> bool:
        """Replace a part of an item; whether that changed it."""
        return self._do(calls.change(item_id, part))

    def withdraw(self, item_id: ShopId) -> bool:
        """Take an item out of sale; whether it was on sale."""
        return self._do(calls.withdraw(item_id))

    def events(self, events: Sequence[Mapping[str, Any]], queries: Sequence[Mapping[str, Any]] = ()) -> Taken:
        """Bring impressions, clicks, carts and purchases, and the queries that they name."""
        return self._do(calls.events(events, queries))

    def ready(self) -> dict[str, Any]:
        """What the service serves."""
        return self._do(calls.ready())

    def close(self) -> None:
        """End its connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _do(self, call: Call[T]) -> T:
        tried = 0
        while True:
            tried += 1
            answer, fault = None, None
            try:
                answer = self._http.request(call.method, call.path, **call.sent)
            except httpx.TransportError as away:
                fault = away
            if answer is not None and answer.is_success:
                return call.read(answer.json())
            pause = self.retries.pause(tried, answer)
            if pause is None:
                raise _refused(call.path, answer, fault) from fault
            time.sleep(pause)


class AsyncClient:
    """:class:`Client` for programs that await; use it in an ``async with`` block."""

    def __init__(
        self, url: str, *, key: str = "", timeout_seconds: float = 30.0, retries: Retries = Retries(), transport: Any = None
    ) -> None:
        self.retries = retries
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(key), timeout=timeout_seconds, transport=transport)

    async def search(
        self, text: str = "", image: Picture | None = None, *, k: int = 10, group: str = "", filters: Mapping[str, Any] | None = None
    ) -> Found:
        """:meth:`Client.search`."""
        return await self._do(calls.search(text, image, k, group, filters or {}))

    async def embed(self, inputs: Sequence[str | Picture], *, dimensions: int | None = None) -> Embedded:
        """:meth:`Client.embed`."""
        return await self._do(calls.embed(inputs, dimensions))

    async def score(self, user_id: ShopId, item_ids: Sequence[ShopId], **asked: Any) -> Found:
        """:meth:`Client.score`."""
        return await self._do(calls.score(user_id, item_ids, asked))

    async def relevance(self, item_ids: Sequence[ShopId], *, text: str = "", image: Picture | None = None) -> Found:
        """:meth:`Client.relevance`."""
        return await self._do(calls.relevance(item_ids, {"text": text, "image": image}))

    async def recommend(self, user_id: ShopId, **asked: Any) -> Found:
        """:meth:`Client.recommend`."""
        return await self._do(calls.recommend(user_id, asked))

    async def similar(self, item_id: ShopId, *, k: int = 10) -> Found:
        """:meth:`Client.similar`."""
        return await self._do(calls.similar(item_id, k))

    async def items(self, item_ids: Sequence[ShopId]) -> list[Item]:
        """:meth:`Client.items`."""
        return await self._do(calls.items(item_ids))

    async def push(self, items: Sequence[Mapping[str, Any]]) -> Taken:
        """:meth:`Client.push`."""
        return await self._do(calls.push(items))

    async def change(self, item_id: ShopId, **part: Any) -> bool:
        """:meth:`Client.change`."""
        return await self._do(calls.change(item_id, part))

    async def withdraw(self, item_id: ShopId) -> bool:
        """:meth:`Client.withdraw`."""
        return await self._do(calls.withdraw(item_id))

    async def events(self, events: Sequence[Mapping[str, Any]], queries: Sequence[Mapping[str, Any]] = ()) -> Taken:
        """:meth:`Client.events`."""
        return await self._do(calls.events(events, queries))

    async def ready(self) -> dict[str, Any]:
        """:meth:`Client.ready`."""
        return await self._do(calls.ready())

    async def close(self) -> None:
        """End its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _do(self, call: Call[T]) -> T:
        tried = 0
        while True:
            tried += 1
            answer, fault = None, None
            try:
                answer = await self._http.request(call.method, call.path, **call.sent)
            except httpx.TransportError as away:
                fault = away
            if answer is not None and answer.is_success:
                return call.read(answer.json())
            pause = self.retries.pause(tried, answer)
            if pause is None:
                raise _refused(call.path, answer, fault) from fault
            await asyncio.sleep(pause)


def _headers(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def _refused(path: str, answer: httpx.Response | None, fault: Exception | None) -> ServiceError:
    """The service's words, or that there were none. They are ``error`` and ``action``, or ``detail`` of a problem document."""
    if answer is None:
        return ServiceError(f"{path}: the service does not answer ({fault!r})", action="start it, or correct the address")
    try:
        body = answer.json()
    except ValueError:
        body = {}
    said = body if isinstance(body, dict) else {}
    problem = next((str(said[name]) for name in ("error", "detail", "title") if said.get(name)), answer.reason_phrase)
    return RefusedError(f"{path}: {problem}", action=str(said.get("action") or "correct the request"), status=answer.status_code)
