"""A user's behaviour sequence in batches: ids, categories and vectors of the last clicks, gathered by position.

All sequences lie in flat arrays, each click coded once. For long ones (1,000) the clicks most similar in content to the target are chosen
first, as in MUSE's general search unit, and the model reads only these. B rows, S behaviours read, L behaviours known, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.ctr import digests
from moon_ops.ctr.vocabulary import NOTHING, Vocabulary
from moon_ops.embeddings.sequences import one

if TYPE_CHECKING:
    from moon_ops.ctr.vectors import Vectors

Ints = NDArray[np.integer[Any]]
UNSEEN = -1e30  # the likeness of a click without a vector: less than any other's
SEARCHED = 1 << 22  # floats of vectors that a search for the most similar clicks holds at a time: 16 MB


@dataclass(frozen=True)
class Lengths:
    """Where each of M lists ends in an array of values, and how long it is; the last of each [M + 1] is that of no list."""

    ends: NDArray[np.integer[Any]]
    counts: NDArray[np.integer[Any]]

    @classmethod
    def of(cls, lists: pa.Array) -> Lengths:
        """Of lists, which may lie in one another (list views); null is empty."""
        starts = np.asarray(lists.offsets)[: len(lists)]  # plain lists have an offset more, where the last one ends
        counts = np.asarray(lists.sizes) if hasattr(lists, "sizes") else np.diff(np.asarray(lists.offsets))
        counts = np.where(np.asarray(lists.is_null()), 0, counts) if lists.null_count else counts
        nothing = np.zeros(1, starts.dtype)
        return cls(np.concatenate([starts + counts, nothing]), np.concatenate([counts, nothing]))


@dataclass(frozen=True)
class Clicks:
    """What sequences are of: F clicks, each coded once. A nothing more stands at the end of each array."""

    lengths: Lengths
    items: NDArray[np.int32]  # [F + 1] rows of the embedding table
    categories: NDArray[np.int32]
    queries: NDArray[np.int32]
    item_ids: Ints  # of the shop, -1 for none
    query_ids: Ints

    @classmethod
    def of(cls, view: pa.Table, vocabulary: Vocabulary) -> Clicks:
        """Code the rows [M] of ``user_behavior`` (item_ids and query_ids, oldest first)."""
        lists = one(view["item_ids"])
        item_ids, query_ids = flat(lists), flat(one(view["query_ids"]))
        rows = vocabulary.encode("item", item_ids)
        return cls(
            lengths=Lengths.of(lists),
            items=rows.astype(np.int32),
            categories=vocabulary.category_of(rows).astype(np.int32),
            queries=vocabulary.encode("query", query_ids).astype(np.int32),
            item_ids=item_ids,
            query_ids=query_ids,
        )


@dataclass(frozen=True)
class Behaviors:
    """Sequences of M feature rows, F clicks in all; :meth:`of` looks at the last ``length`` of each."""

    lengths: Lengths
    items: NDArray[np.int32]  # [F + 1] rows of the embedding table; the last stands for nothing, here and below
    categories: NDArray[np.int32]
    queries: NDArray[np.int32]
    item_codes: NDArray[np.int32]  # of the vectors
    query_codes: NDArray[np.int32]
    item_vectors: Vectors
    query_vectors: Vectors
    length: int
    top_k: int  # 0: all of them

    @property
    def picks(self) -> bool:
        """Whether only the most similar behaviours are read."""
        return 0 < self.top_k < self.length

    @classmethod
    def among(cls, clicks: Clicks, items: Vectors, queries: Vectors, length: int, top_k: int) -> Behaviors:
        """Of these clicks the last ``length``, with the vectors of items and queries."""
        return cls(
            clicks.lengths,
            clicks.items,
            clicks.categories,
            clicks.queries,
            item_codes=items.codes(clicks.item_ids).astype(np.int32),
            query_codes=queries.codes(clicks.query_ids).astype(np.int32),
            item_vectors=items,
            query_vectors=queries,
            length=length,
            top_k=top_k,
        )

    def digests(self) -> NDArray[np.uint64]:
        """A number [M + 1] of all that a model may read of each feature row: what tells them from others."""
        known: list[NDArray[Any]] = [self.items, self.categories, self.queries, self.item_codes >= 0, self.query_codes >= 0]
        return digests.of_lists(digests.of_rows(known), self.lengths.ends, np.minimum(self.lengths.counts, self.length))

    def of(self, at: Ints, times: Ints, target: NDArray[np.float32] | None) -> Seen:
        """The behaviours of feature rows ``at`` [B] (-1: none), oldest first and filled from the left, as of ``times`` [B]."""
        places = last(self.lengths, at, self.length)
        if self.picks and target is not None:
            places = most_similar(places, self.item_codes, self.item_vectors, times, target, self.top_k)
        return Seen(self, places, times)


@dataclass(frozen=True)
class Seen:
    """The behaviours that B rows read, as places [B, S] in the flat arrays."""

    of: Behaviors
    places: Ints
    times: Ints

    def column(self, name: str) -> NDArray[Any]:
        """One of the inputs whose names begin with ``behavior``."""
        if name.endswith("_vector"):
            query = "query" in name
            vectors, codes = (self.of.query_vectors, self.of.query_codes) if query else (self.of.item_vectors, self.of.item_codes)
            return vectors.gather(vectors.at(codes[self.places], self.times[:, None]))
        coded = {"behavior_item": self.of.items, "behavior_category": self.of.categories, "behavior_query": self.of.queries}
        return coded[name][self.places].astype(np.int64)


def last(lengths: Lengths, at: Ints, length: int) -> Ints:
    """Where the last ``length`` values of the lists ``at`` [B] lie: [B, L], filled with -1 from the left."""
    end = lengths.ends[at]
    places = end[:, None] - np.arange(length, 0, -1)[None, :]
    return np.where(places >= (end - lengths.counts[at])[:, None], places, -1)


def most_similar(places: Ints, codes: Ints, vectors: Vectors, times: Ints, target: NDArray[np.float32], k: int) -> Ints:
    """Of places [B, L] the ``k`` whose vectors are nearest to the target's [B, D], in their order of time: [B, K].

    ``codes`` names the vector of each place; this is the general search unit of MUSE (2512.07216), with its content similarity.
    """
    chosen = np.full((len(places), k), -1)
    some = max(1, SEARCHED // (places.shape[1] * target.shape[1]))
    for start in range(0, len(places), some):
        rows = slice(start, start + some)
        found = vectors.at(codes[places[rows]], times[rows, None])
        similar = np.einsum("bld,bd->bl", vectors.gather(found), target[rows])
        similar = np.where(found >= 0, similar, UNSEEN)
        similar = np.where(places[rows] >= 0, similar, -np.inf)
        best = np.sort(np.argpartition(-similar, k - 1, axis=1)[:, :k], axis=1)
        picked = np.take_along_axis(places[rows], best, 1)
        chosen[rows] = np.take_along_axis(picked, np.argsort(picked >= 0, axis=1, kind="stable"), 1)  # nothing goes to the left
    return chosen


def flat(lists: pa.Array) -> Ints:
    """The values that :class:`Lengths` counts in, and a -1 that stands for nothing."""
    return np.append(pc.fill_null(lists.values, -1).to_numpy(zero_copy_only=False), -1)


assert NOTHING == 0, "what -1 leads to is coded as nothing by the vocabulary"
