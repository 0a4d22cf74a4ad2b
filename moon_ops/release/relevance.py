"""From which cosine on an item counts as what was asked for: the cut between retrieval and ranking, measured on what was bought.

The cosine of a query and an item is no probability, and pictures and texts lie at different distances from items. So each kind of query has
a threshold of its own: 95 % of the items that were bought after such queries reach it. Q queries, N items, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

KEPT = 0.95  # of the items bought that reach the threshold
FEWEST = 20  # queries of a kind
OTHERS = 1000  # items that tell how many others reach it
KINDS = ("image", "text")  # of queries


class Asked(Protocol):
    """What is read of the queries of a window: which item was bought after each [Q], and whether it showed a picture [Q]."""

    @property
    def item_ids(self) -> NDArray[np.int64]:
        """The items bought [Q]."""

    @property
    def is_image(self) -> NDArray[np.bool_]:
        """Which queries showed a picture [Q]."""


@dataclass(frozen=True)
class Threshold:
    """A cosine; the share of bought items that reach it (``kept``), and of any items of the catalogue (``others``); of so many queries."""

    cosine: float
    kept: float
    others: float
    queries: int


def thresholds(queries: Asked, vectors: NDArray[np.float32], ids: NDArray[np.int64], items: NDArray[np.float32]) -> dict[str, Threshold]:
    """The threshold of each kind of query, from query ``vectors`` [Q, D] and the catalogue's ``ids`` [N], ascending, and ``items`` [N, D].

    A kind with fewer than :data:`FEWEST` queries has none.
    """
    rows = np.minimum(np.searchsorted(ids, queries.item_ids), max(len(ids) - 1, 0))
    usable = (ids[rows] == queries.item_ids) & vectors.any(axis=1) if len(ids) else np.zeros(len(rows), bool)
    drawn = items[np.sort(np.random.default_rng(0).permutation(len(ids))[:OTHERS])]
    found = {}
    for kind, chosen in zip(KINDS, (queries.is_image & usable, ~queries.is_image & usable), strict=True):
        if chosen.sum() >= FEWEST:
            cosines = (vectors[chosen] * items[rows[chosen]]).sum(axis=1)
            cut = float(np.quantile(cosines, 1 - KEPT, method="lower"))
            others = float((vectors[chosen] @ drawn.T >= cut).mean())
            found[kind] = Threshold(cut, float((cosines >= cut).mean()), others, int(chosen.sum()))
    return found
