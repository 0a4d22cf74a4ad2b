"""Search among some of an index's items: those that a filter lets through.

Of few items every vector is compared with the query, so nothing is missed. Of many the index is asked, by as many more lists as the filter
leaves fewer items in each, so that as many of them are looked at as without a filter.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings.index import Ids, ItemIndex, Vectors
from moon_ops.embeddings.index_kinds import EXACT_UP_TO, Lists, best

CODES_OF_A_VECTOR = 3  # that FAISS looks at while a vector is fetched and compared
swig: Any = faiss


class Among:
    """The items ``ids`` (ascending) of an index. May be searched from many threads."""

    def __init__(self, index: ItemIndex, ids: Ids) -> None:
        self.index, self.rows = index, index.rows(ids)
        self.approximate = isinstance(index.searcher, Lists) and len(self.rows) > EXACT_UP_TO and self._is_dearer(index.searcher)
        if self.approximate:
            live = np.zeros(len(index.base.vectors) + len(index.searcher.delta.vectors), bool)
            live[self.rows] = True
            self._bits = np.packbits(live, bitorder="little")  # FAISS reads it where it lies
            self._selector = swig.IDSelectorBitmap(self._bits)

    def _is_dearer(self, searcher: Lists) -> bool:
        """Whether comparing every vector takes longer than the codes of so many lists."""
        items = len(self.index.base.vectors)
        codes = items * min(1.0, searcher.probes * items / (len(self.rows) * searcher.base.index.nlist))
        return CODES_OF_A_VECTOR * len(self.rows) > codes

    def search(self, vectors: Vectors, k: int, contract_id: str) -> tuple[Ids, Vectors]:
        """Item ids [B, k] and cosines [B, k], best first; -1 at the end where there are no more. As :meth:`ItemIndex.search`."""
        self.index.require(vectors, k, contract_id)
        vectors = np.ascontiguousarray(vectors, np.float32)
        found = self._approximate(vectors, k) if self.approximate else self._exact(vectors, k)
        return self.index.items_of(found[0]), found[1]

    def _approximate(self, vectors: Vectors, k: int) -> tuple[NDArray[np.int64], Vectors]:
        assert isinstance(self.index.searcher, Lists)
        rows, cosines = self.index.searcher.among(vectors, k, self._selector, len(self.rows))
        return self._exact(vectors, k) if (rows[:, -1] < 0).any() else (rows, cosines)

    def _exact(self, vectors: Vectors, k: int) -> tuple[NDArray[np.int64], Vectors]:
        base, delta = self.index.base.vectors, self.index.searcher.delta.vectors
        last = np.searchsorted(self.rows, len(base))
        parts = [base[self.rows[:last]], delta[self.rows[last:] - len(base)]]
        cosines = np.concatenate([vectors @ part.T for part in parts], 1)
        rows = np.broadcast_to(self.rows, cosines.shape)
        if (missing := k - cosines.shape[1]) > 0:
            rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
            cosines = np.pad(cosines, ((0, 0), (0, missing)), constant_values=-np.inf)
        return best(rows, cosines, k)
