"""Impressions → training batches, through Feast: features as known before each row's time, everything gathered by row number.

R rows, B rows of a batch, S behaviours, W words, D vector dimensions. A row carries numbers of rows in tables that are coded once; its
features, its user's sequence and all vectors are gathered when it comes into a batch (the paper's dynamic loading).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.ctr.behaviors import Behaviors
from moon_ops.ctr.prefetch import prefetched
from moon_ops.ctr.vectors import Ints, Tables, Vectors
from moon_ops.ctr.vocabulary import IDS, Vocabulary, dense, words
from moon_ops.embeddings.as_of import Joined, identifiers, microseconds

if TYPE_CHECKING:
    from torch import Tensor

PROFILE = ("spu", "category", "brand", "seller", "price")  # of ``IDS`` those that come from the item's profile
DIGESTED = 4096  # rows at a time


@dataclass(frozen=True)
class Rows:
    """R impressions as a model reads them, by row number. ``profile`` and ``dense`` are coded feature rows; the last is that of nothing."""

    ids: dict[str, Ints]  # item, user, query: [R]
    profile: Ints  # [M, 5] in the order of PROFILE
    dense: NDArray[np.float32]  # [N, 3]
    words: Ints  # [T, W] of the texts that occur
    at: dict[str, Ints]  # [R] row numbers: profile, dense, words, behaviors
    is_image: NDArray[np.float32]  # [R]
    behaviors: Behaviors
    tables: Tables
    item_codes: Ints  # [R] of the vectors
    query_codes: Ints  # [R]
    times: Ints  # [R] µs
    labels: Ints
    user_ids: Ints
    item_ids: Ints

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> int:
        """A number that changes with what is trained on: who was shown what and when, what came of it, and what was known then.

        Of features only those count that the rows reach: what others have done since changes nothing.
        """
        seen = 0
        for start in range(0, len(self), DIGESTED):
            some = slice(start, start + DIGESTED)
            features: dict[str, NDArray[Any]] = {"profile": self.profile, "dense": self.dense, "words": self.words}
            own: list[NDArray[Any]] = [self.times, self.labels, self.user_ids, self.item_ids, self.is_image, *self.ids.values()]
            own += [self.item_codes >= 0, self.query_codes >= 0]
            columns = [column[some] for column in own] + [values[self.at[name][some]] for name, values in features.items()]
            columns += self.behaviors.known(self.at["behaviors"][some])
            seen = functools.reduce(lambda sum_, column: zlib.crc32(np.ascontiguousarray(column).data, sum_), columns, seen)
        return seen

    def columns(self, chosen: Ints, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The inputs ``names`` of the rows ``chosen`` [B], as :mod:`moon_ops.ctr.models` describes them."""
        times = self.times[chosen]
        wanted = "target_vector" in names or self.behaviors.picks
        target = self._gathered(self.tables.items, self.item_codes[chosen], times) if wanted else None
        seen = self.behaviors.of(self.at["behaviors"][chosen], times, target)
        columns: dict[str, NDArray[Any]] = {}
        for name in names:
            if name == "ids":
                profile = self.profile[self.at["profile"][chosen]]
                columns[name] = np.column_stack([self.ids[n][chosen] if n in self.ids else profile[:, PROFILE.index(n)] for n in IDS])
            elif name == "words":
                columns[name] = self.words[self.at["words"][chosen]]
            elif name == "dense":
                columns[name] = np.column_stack([self.dense[self.at["dense"][chosen]], self.is_image[chosen]])
            elif name == "target_vector" and target is not None:
                columns[name] = target
            elif name == "query_vector":
                columns[name] = self._gathered(self.tables.queries, self.query_codes[chosen], times)
            else:
                columns[name] = seen.column(name)
        return columns

    def _gathered(self, vectors: Vectors, codes: Ints, times: Ints) -> NDArray[np.float32]:
        return vectors.gather(vectors.at(codes, times))


def encode(joined: Joined, vocabulary: Vocabulary, tables: Tables, behaviors: int, top_k: int = 0) -> Rows:
    """Impressions joined with the features of ``ctr_v<N>``, coded for a model that reads the last ``behaviors`` clicks, or of these the
    ``top_k`` whose content is most similar to the target's (0: all)."""
    profile, stats = joined.views["item_profile"], joined.views["item_stats"]
    ids = {name: identifiers(joined.rows, name) for name in ("item_id", "user_id", "query_id")}
    coded = [vocabulary.encode(n, profile[f"{n}_id"]) for n in ("spu", "seller")] + [
        vocabulary.encode(n, profile[n]) for n in ("category", "brand")
    ]
    spu, seller, category, brand = coded
    price = vocabulary.price(_numbers(profile["price"]))
    texts = joined.rows["text"].combine_chunks().dictionary_encode()
    return Rows(
        ids={name: vocabulary.encode(name, joined.rows[f"{name}_id"]) for name in ("item", "user", "query")},
        profile=np.pad(np.column_stack([spu, category, brand, seller, price]), ((0, 1), (0, 0))),
        dense=dense(*(np.append(_numbers(stats[name]), 0.0) for name in ("impressions", "clicks", "purchases"))),
        words=np.pad(words(texts.dictionary.to_pylist()), ((0, 1), (0, 0))),
        at={
            "profile": joined.at["item_profile"],
            "dense": joined.at["item_stats"],
            "words": pc.fill_null(texts.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False),
            "behaviors": joined.at["user_behavior"],
        },
        is_image=_numbers(joined.rows["is_image"]).astype(np.float32),
        behaviors=Behaviors.encode(joined.views["user_behavior"], vocabulary, tables.items, tables.queries, behaviors, top_k),
        tables=tables,
        item_codes=tables.items.codes(ids["item_id"]),
        query_codes=tables.queries.codes(ids["query_id"]),
        times=microseconds(joined.rows, "event_timestamp"),
        labels=identifiers(joined.rows, "label"),
        user_ids=ids["user_id"],
        item_ids=ids["item_id"],
    )


def batches(rows: Rows, names: Sequence[str], size: int, order: Ints) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Batches of the inputs ``names``, in this order, and labels [B], of the rows in ``order``."""
    import torch  # what scores by ONNX needs none

    for chosen, found in prefetched(lambda some: rows.columns(some, names), order, size):
        yield tuple(torch.from_numpy(np.ascontiguousarray(found[name])) for name in names), torch.from_numpy(rows.labels[chosen]).float()


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """float64, 0 for null: an item without statistics has been seen 0 times."""
    return pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy()
