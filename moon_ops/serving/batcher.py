"""Dynamic batching: queries of different requests that wait at the same moment go through the encoder together.

Nothing waits on purpose: a lane that is free takes all that waits, up to what fits one forward, so a lone query is run at once and batches
grow by themselves with the load. Of a release that was left meanwhile, what had been asked is still answered, by its own runtime.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings.runtime import Pixels, Runtime
from moon_ops.errors import ServiceError

Found = NDArray[np.float32] | Exception  # a vector [D], or why there is none
Seen = Callable[[int, Sequence[float]], None]  # told of each batch: its size, and the seconds that each of it has waited


@dataclass(frozen=True)
class Query:
    """A query ready for the encoder: token ids, and the pixels [V, 3, S, S] of its pictures."""

    tokens: Sequence[int]
    pictures: Sequence[Pixels]


@dataclass(frozen=True)
class Done:
    """A query's unit vector [D], the size of the batch it was part of, and the seconds that it had waited."""

    vector: NDArray[np.float32]
    batch: int
    waited: float


@dataclass(frozen=True)
class _Waiting:
    """A query in the queue; ``since``: of the loop's clock."""

    runtime: Runtime
    query: Query
    since: float
    done: asyncio.Future[Done]


class Batcher:
    """A queue before the encoder. Its methods are called on one event loop; the forwards run in threads of its own, ``lanes`` at a time.

    ``patience``: seconds after which a query that still waits is given up, as whoever asked has been told already.
    """

    def __init__(self, *, lanes: int, patience: float, seen: Seen = lambda *_: None) -> None:
        self.lanes, self.patience, self.seen = lanes, patience, seen
        self._waiting: deque[_Waiting] = deque()
        self._running = 0
        self._pool = ThreadPoolExecutor(lanes, thread_name_prefix="encoder")

    @property
    def depth(self) -> int:
        """Queries that wait."""
        return len(self._waiting)

    async def embed(self, runtime: Runtime, query: Query) -> Done:
        """The vector of a query; :class:`ServiceError` if it was not begun within ``patience``."""
        loop = asyncio.get_running_loop()
        one = _Waiting(runtime, query, loop.time(), loop.create_future())
        self._waiting.append(one)
        self._begin(loop)
        return await one.done

    def stop(self) -> None:
        """Begin nothing more; what runs is finished."""
        while self._waiting:
            self._waiting.popleft().done.cancel()
        self._pool.shutdown(wait=False)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._running < self.lanes and (batch := self._take(loop.time())):
            self._running += 1
            began = loop.time()
            running = loop.run_in_executor(self._pool, _forward, batch)
            running.add_done_callback(partial(self._end, loop, batch, began))

    def _take(self, now: float) -> list[_Waiting]:
        """The next batch: the first that waits, and all after it for the same runtime, as many as fit one forward."""
        batch, left = list[_Waiting](), deque[_Waiting]()
        while self._waiting:
            one = self._waiting.popleft()
            if one.done.done():  # whoever asked is gone
                continue
            if now - one.since > self.patience:
                one.done.set_exception(late(self.patience))
            elif batch and (one.runtime is not batch[0].runtime or len(batch) >= one.runtime.shape.samples):
                left.append(one)
                if len(batch) >= batch[0].runtime.shape.samples:
                    break
            else:
                batch.append(one)
        self._waiting.extendleft(reversed(left))
        return batch

    def _end(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting], began: float, done: asyncio.Future[list[Found]]) -> None:
        self._running -= 1
        self._begin(loop)  # before those who asked go on: the lane is not to be idle
        waits = [began - one.since for one in batch]
        self.seen(len(batch), waits)
        for one, waited, found in zip(batch, waits, done.result(), strict=True):
            if one.done.done():
                continue
            if isinstance(found, Exception):
                one.done.set_exception(found)
            else:
                one.done.set_result(Done(found, len(batch), waited))


def late(seconds: float) -> ServiceError:
    """What is said of a query that has waited too long."""
    problem = f"the service is busy: the encoder did not come to this request within {seconds:g} seconds"
    return ServiceError(problem, action="send it again in a moment, or send fewer at once")


def _forward(batch: Sequence[_Waiting]) -> list[Found]:
    """The vector of each query, in their order; where a batch fails each is run alone, so that only the one to blame has the fault."""
    runtime = batch[0].runtime
    try:
        tensors = runtime.batch([one.query.tokens for one in batch], [one.query.pictures for one in batch])
        return list(runtime.forward(tensors))
    except Exception as fault:
        return [fault] if len(batch) == 1 else [found for one in batch for found in _forward([one])]
