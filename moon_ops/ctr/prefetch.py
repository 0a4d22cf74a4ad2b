"""Batches made ahead of whoever reads them, by threads: gathering leaves the interpreter's lock, so it runs beside a training step.

Of several processes each makes its part of every batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Made = TypeVar("Made")


@dataclass(frozen=True)
class Part:
    """Process ``number`` of so many: of each batch every so many-th row is its own, from that one on."""

    number: int = 0
    of: int = 1

    def rows(self, batch: NDArray[np.int64]) -> NDArray[np.int64]:
        """Its part of a batch; there may be none in the last one."""
        return batch[self.number :: self.of]


WHOLE = Part()


def prefetched(
    make: Callable[[NDArray[np.int64]], Made], order: NDArray[np.int64], size: int, *, workers: int = 2, part: Part = WHOLE
) -> Iterator[tuple[NDArray[np.int64], Made]]:
    """Rows [B] and what ``make`` makes of them, for all of ``order``, in order; ``workers`` batches and one more are in memory."""
    starts = iter(range(0, len(order), size))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    flight: deque[tuple[NDArray[np.int64], Future[Made]]] = deque()
    try:
        for start in starts:
            rows = part.rows(order[start : start + size])
            flight.append((rows, pool.submit(make, rows)))
            if len(flight) > workers:
                first, made = flight.popleft()
                yield first, made.result()
        while flight:
            first, made = flight.popleft()
            yield first, made.result()
    finally:  # also when nobody reads on
        pool.shutdown(wait=True, cancel_futures=True)
