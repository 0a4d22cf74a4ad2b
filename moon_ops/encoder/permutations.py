"""In which order rows are seen: by seed alone, and readable at any place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class Stream:
    """The numbers 0 … n - 1 in an endless sequence of seeded permutations, readable at any place: a resumed run reads the same."""

    def __init__(self, count: int, seed: Sequence[int]) -> None:
        self.count, self.seed, self.kind = count, tuple(seed), np.int32 if count < 2**31 else np.int64
        self._orders: dict[int, NDArray[Any]] = {}

    def take(self, start: int, stop: int) -> Rows:
        """The numbers at the places ``start`` to ``stop``."""
        places = np.arange(start, stop)
        out = np.empty(len(places), np.int64)
        for epoch in np.unique(places // self.count).tolist():
            inside = places // self.count == epoch
            out[inside] = self._order(epoch)[places[inside] % self.count]
        return out

    def _order(self, epoch: int) -> NDArray[Any]:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = np.random.default_rng((*self.seed, epoch)).permutation(self.count).astype(self.kind)
        return self._orders[epoch]
