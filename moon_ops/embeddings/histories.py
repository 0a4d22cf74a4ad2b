"""Which row of a feature view was known at a time: the search itself, over ids and times alone.

It knows nothing of Feast, which takes seconds to import: a worker of a cluster that looks rows up needs none of it.
K entities, M feature rows, R rows that ask. Times are microseconds since 1970, UTC.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings.table import MISSING

Ints = NDArray[np.integer[Any]]
DENSE = 16  # a table of all numbers between the least and the greatest id may be that many times as long as there are ids
STRICTLY = 1  # µs: a row never sees what became known at its own moment


class History:
    """When the rows of a feature view became known: of K entities, M rows in all."""

    def __init__(self, ids: Ints, times: Ints, created: Ints | None = None, ttl: int = 0) -> None:
        """Rows [M] of entities ``ids``, known from ``times`` on, for ``ttl`` µs (0: for ever); of one time the last ``created``."""
        keys = (ids, times) if created is None else (ids, times, created)
        self.order = None if in_order(*keys) else np.lexsort(keys[::-1])
        ids, self.times = (ids, times) if self.order is None else (ids[self.order], times[self.order])
        self.start = np.append(np.flatnonzero(np.append(True, ids[1:] != ids[:-1])) if len(ids) else np.zeros(0, np.int64), len(ids))
        self.ids, self.ttl = ids[self.start[:-1]], ttl
        self.most = int(np.diff(self.start).max(initial=0))
        self._places = _places(self.ids)

    def codes(self, ids: Ints) -> Ints:
        """The number of each entity, any shape; -1 for one without rows."""
        if not len(self.ids):
            return np.full(np.shape(ids), MISSING)
        if self._places is not None:
            offset = ids - self.ids[0]
            inside = (offset >= 0) & (offset < len(self._places))
            return np.where(inside, self._places[np.where(inside, offset, 0)], MISSING)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[at] == ids, at, MISSING)

    def at(self, codes: Ints, times: Ints) -> Ints:
        """The feature row that was known last strictly before ``times`` of the entities ``codes`` (shapes that broadcast); -1 for none."""
        if not len(self.times):
            return np.full(np.broadcast_shapes(codes.shape, times.shape), MISSING)
        limit = times - STRICTLY
        low, high = self.start[codes], self.start[codes + 1]  # of -1: the last place to the first, an empty span
        low, high, limit = np.broadcast_arrays(low, high, limit)
        before, low = low, low.copy() if self.most > 1 else low
        if self.most == 1:
            found = np.where((codes >= 0) & (self.times[np.minimum(low, len(self.times) - 1)] <= limit), low, MISSING)
        else:
            for _ in range(self.most.bit_length()):  # all spans are halved at once
                middle = (low + high) >> 1
                known = (self.times[np.minimum(middle, len(self.times) - 1)] <= limit) & (low < high)
                low = np.where(known, middle + 1, low)
                high = np.where(known, high, middle)
            found = np.where((low > before) & (codes >= 0), low - 1, MISSING)
        if self.ttl:
            found = np.where(self.times[found] >= limit - self.ttl, found, MISSING)
        return found if self.order is None else np.where(found >= 0, self.order[found], MISSING)

    def part(self, asked: tuple[slice, tuple[Ints, Ints]]) -> tuple[slice, NDArray[np.int32]]:
        """:meth:`at` of ids and times [R] each, for who puts together what others have looked up: with the place of these rows."""
        some, (ids, times) = asked
        return some, self.at(self.codes(ids), times).astype(np.int32)


def _places(ids: Ints) -> Ints | None:
    """The place of each number from the least id to the greatest, -1 for those that are none; None where ids are too far apart."""
    if not len(ids) or int(ids[-1]) - int(ids[0]) >= DENSE * len(ids):
        return None
    places = np.full(int(ids[-1]) - int(ids[0]) + 1, MISSING)
    places[ids - ids[0]] = np.arange(len(ids))
    return places


def in_order(*columns: Ints) -> bool:
    """Whether rows are sorted by the first column, those that are equal in it by the second, and so on."""
    equal: NDArray[np.bool_] | bool = True
    for column in columns:
        before, after = column[:-1], column[1:]
        if np.any(equal & (after < before)):
            return False
        equal &= after == before
    return True
