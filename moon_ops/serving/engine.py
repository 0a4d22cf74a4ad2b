"""How a request becomes a vector: decoded and tokenised in threads of their own, then embedded together with whatever else waits.

The event loop does neither, so it has time for every connection; and work has so many threads, whatever is asked, that ``/health`` and
``/metrics``, which need none, always find the processor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings.runtime import Runtime
from moon_ops.errors import InputError
from moon_ops.inputs.images import decode
from moon_ops.inputs.regions import views
from moon_ops.serving.access import noted
from moon_ops.serving.batcher import Batcher, Query, Seen
from moon_ops.serving.champion import Champion
from moon_ops.settings import Settings
from moon_ops.telemetry.traces import span

T = TypeVar("T")
STORES = 16  # threads that wait for the lake or the online store: they are slow where these are away
LANES = 1  # forwards at a time: one that has all cores is quicker than two with half of them each (docs/serving.md)
NOTHING = "the request has neither text nor image"


class Engine:
    """The threads of a service, and the queue before its encoder. One for each service; it lives as long as its event loop."""

    def __init__(self, settings: Settings, *, seen: Seen = lambda *_: None) -> None:
        self.readers = ThreadPoolExecutor(settings.workers, thread_name_prefix="decode")
        self.stores = ThreadPoolExecutor(STORES, thread_name_prefix="stores")
        self.online = ThreadPoolExecutor(STORES, thread_name_prefix="online")  # apart: a store that hangs must not hold up searches
        self.batcher = Batcher(lanes=LANES, patience=settings.request_seconds, seen=seen)

    def stop(self) -> None:
        """Take no more work."""
        self.batcher.stop()
        for pool in (self.readers, self.stores, self.online):
            pool.shutdown(wait=False, cancel_futures=True)

    async def vector(self, champion: Champion, text: str, picture: bytes | None, source: str = "image") -> NDArray[np.float32]:
        """The unit vector [D] of a text, a picture (called ``source`` in errors), or both; :class:`InputError` for neither, or for one that
        cannot be read.
        """
        with span("embed_query", encoder=champion.encoder, picture=picture is not None, text=bool(text.strip())):
            if picture is None:  # microseconds: a thread would take longer
                query = read(champion.runtime, text, None)
            else:
                query = await asyncio.get_running_loop().run_in_executor(self.readers, read, champion.runtime, text, picture, source)
            done = await self.batcher.embed(champion.runtime, query)
        noted(batch=done.batch, waited=done.waited)
        return done.vector

    async def asking(self, call: Callable[..., T], *given: object, **named: object) -> T:
        """The answer of a ``call`` that reads an index or the lake, in a thread."""
        return await self._in(self.stores, call, *given, **named)

    async def scoring(self, call: Callable[..., T], *given: object, **named: object) -> T:
        """The answer of a ``call`` that reads the online store, in a thread."""
        return await self._in(self.online, call, *given, **named)

    async def _in(self, pool: ThreadPoolExecutor, call: Callable[..., T], *given: object, **named: object) -> T:
        within = copy_context()  # the request's trace
        return await asyncio.get_running_loop().run_in_executor(pool, partial(within.run, call, *given, **named))


def read(runtime: Runtime, text: str, picture: bytes | None, source: str = "image") -> Query:
    """A query as the encoder reads it; :class:`InputError` for nothing, or for a picture that cannot be read."""
    if not text.strip() and picture is None:
        raise InputError(NOTHING, action="send one of them, or both")
    layout = runtime.contract.layout
    shown = [] if picture is None else [views(decode(picture, source=source), layout.picture_size, layout.core_region)]
    return Query(runtime.tokenize([text.strip()])[0], shown)
