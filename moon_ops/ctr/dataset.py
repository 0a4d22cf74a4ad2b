"""Impressions → training batches, through Feast: features as known before each row's time, everything gathered by row number.

R rows, B rows of a batch, S behaviours, W words, D vector dimensions. A row carries numbers of rows in tables that are coded once; its
features, its user's sequence and all vectors are gathered when it comes into a batch (the paper's dynamic loading).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.columns import ROWS, SHOWN_AT, Feature, by_view, dense_features, id_features
from moon_ops.ctr.behaviors import Behaviors
from moon_ops.ctr.prefetch import prefetched
from moon_ops.ctr.vectors import Ints, Tables, Vectors
from moon_ops.ctr.vocabulary import Vocabulary, filled, statistics
from moon_ops.embeddings.as_of import Joined, identifiers, microseconds

if TYPE_CHECKING:
    from torch import Tensor

DIGESTED = 4096  # rows at a time
LIST = "list_"  # and the feature's name: a model's input
POSITION = "position"  # an input of training alone
PLACES = 50  # in a list that are told apart; all later ones are one


@dataclass(frozen=True)
class Coded:
    """The M rows of a view (or of the impressions themselves) as numbers, and one more, the last, for "nothing was known"."""

    ids: Ints  # [M + 1, k] embedding rows of the view's ids, categories and buckets
    dense: NDArray[np.float32]  # [M + 1, n] of its statistics, flags and numbers
    lists: dict[str, Ints]  # of each list [M + 1, length]

    @classmethod
    def of(cls, view: pa.Table, features: Sequence[Feature], vocabulary: Vocabulary) -> Coded:
        """Code the columns that ``features`` name, in their order."""
        found = {f: _with_nothing(view[f.column_joined]) for f in features if f.kind != "words"}
        nothing = np.zeros((view.num_rows + 1, 0))
        ids = [vocabulary.rows(f, column) for f, column in found.items() if f.kind in ("id", "category", "bucket")]
        counts = [filled(column) for f, column in found.items() if f.kind == "statistic"]
        numbers = [_number(f, column, vocabulary) for f, column in found.items() if f.kind in ("flag", "number")]
        dense: list[NDArray[np.float32]] = [statistics(*counts, prior=vocabulary.prior)] if counts else []
        dense += [n[:, None] for n in numbers]
        return cls(
            np.column_stack(ids) if ids else nothing.astype(np.int64),
            np.concatenate(dense, 1) if dense else nothing.astype(np.float32),
            {f.name: vocabulary.list_rows(f, column) for f, column in found.items() if f.kind == "list"},
        )


@dataclass(frozen=True)
class Rows:
    """R impressions as a model reads them, by row number."""

    own: tuple[Feature, ...]
    coded: dict[str, Coded]  # by view
    words: Ints  # [T + 1, W] of the texts that occur
    at: dict[str, Ints]  # [R] row numbers: of each view, of words, of the behaviour
    behaviors: Behaviors
    tables: Tables
    item_codes: Ints  # [R] of the vectors
    query_codes: Ints  # [R]
    times: Ints  # [R] µs
    labels: Ints
    user_ids: Ints
    item_ids: Ints
    positions: Ints  # [R] places in the list, coded; 0: not known. Only training reads them

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> int:
        """A number that changes with what is trained on: who was shown what and when, what came of it, and what was known then.

        Of features only those count that the rows reach: what others have done since changes nothing.
        """
        seen = 0
        for start in range(0, len(self), DIGESTED):
            some = slice(start, start + DIGESTED)
            rows: list[NDArray[Any]] = [self.times, self.labels, self.user_ids, self.item_ids, self.item_codes >= 0, self.query_codes >= 0]
            columns = [column[some] for column in rows] + [self.words[self.at["words"][some]]]
            for view, coded in self.coded.items():
                known: list[NDArray[Any]] = [coded.ids, coded.dense, *coded.lists.values()]
                columns += [values[self.at[view][some]] for values in known]
            columns += self.behaviors.known(self.at["behaviors"][some])
            columns += [self.positions[some]] if self.positions.any() else []
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
            if name == "words":
                columns[name] = self.words[self.at["words"][chosen]]
            elif name == "ids":
                columns[name] = self._together(chosen, id_features(self.own), {v: c.ids for v, c in self.coded.items()})
            elif name == "dense":
                columns[name] = self._together(chosen, dense_features(self.own), {v: c.dense for v, c in self.coded.items()})
            elif name.startswith(LIST):
                view = next(v for v, coded in self.coded.items() if name.removeprefix(LIST) in coded.lists)
                columns[name] = self.coded[view].lists[name.removeprefix(LIST)][self.at[view][chosen]]
            elif name == POSITION:
                columns[name] = self.positions[chosen]
            elif name == "target_vector" and target is not None:
                columns[name] = target
            elif name == "query_vector":
                columns[name] = self._gathered(self.tables.queries, self.query_codes[chosen], times)
            else:
                columns[name] = seen.column(name)
        return columns

    def _together(self, chosen: Ints, features: Sequence[Feature], coded: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The features' columns [B, K], in their order, from the views that have them."""
        out = np.empty((len(chosen), len(features)), next(iter(coded.values())).dtype)
        for view, values in coded.items():
            places = [place for place, feature in enumerate(features) if feature.view == view]
            if places:
                out[:, places] = values[self.at[view][chosen]]
        return out

    def _gathered(self, vectors: Vectors, codes: Ints, times: Ints) -> NDArray[np.float32]:
        return vectors.gather(vectors.at(codes, times))


def encode(joined: Joined, vocabulary: Vocabulary, tables: Tables, behaviors: int, top_k: int = 0) -> Rows:
    """Impressions joined with the features of ``ctr_v<N>``, coded for a model that reads the last ``behaviors`` clicks, or of these the
    ``top_k`` whose content is most similar to the target's (0: all)."""
    ids = {name: identifiers(joined.rows, name) for name in ("item_id", "user_id", "query_id")}
    texts = joined.rows["text"].combine_chunks().dictionary_encode()
    views = {view: (joined.rows if view == ROWS else joined.views[view], found) for view, found in by_view(vocabulary.own).items()}
    return Rows(
        own=vocabulary.own,
        coded={view: Coded.of(table, found, vocabulary) for view, (table, found) in views.items()},
        words=np.pad(vocabulary.words(texts.dictionary.to_pylist()), ((0, 1), (0, 0))),
        at={
            **{view: np.arange(len(joined)) if view == ROWS else joined.at[view] for view in views},
            "words": pc.fill_null(texts.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False),
            "behaviors": joined.at["user_behavior"],
        },
        behaviors=Behaviors.encode(joined.views["user_behavior"], vocabulary, tables.items, tables.queries, behaviors, top_k),
        tables=tables,
        item_codes=tables.items.codes(ids["item_id"]),
        query_codes=tables.queries.codes(ids["query_id"]),
        times=microseconds(joined.rows, "event_timestamp"),
        labels=identifiers(joined.rows, "label"),
        user_ids=ids["user_id"],
        item_ids=ids["item_id"],
        positions=places(joined.rows),
    )


def batches(rows: Rows, names: Sequence[str], size: int, order: Ints) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Batches of the inputs ``names``, in this order, and labels [B], of the rows in ``order``."""
    import torch  # what scores by ONNX needs none

    for chosen, found in prefetched(lambda some: rows.columns(some, names), order, size):
        yield tuple(torch.from_numpy(np.ascontiguousarray(found[name])) for name in names), torch.from_numpy(rows.labels[chosen]).float()


def places(rows: pa.Table) -> Ints:
    """The code of each impression's place in the list [R]; 0 where it is not known: everywhere, if the rows have no such column."""
    if SHOWN_AT not in rows.column_names:
        return np.zeros(rows.num_rows, np.int64)
    return np.minimum(pc.fill_null(rows[SHOWN_AT].cast(pa.int64()), -1).to_numpy(), PLACES) + 1


def _with_nothing(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with a null more at its end, which a row number of -1 leads to."""
    return pa.chunked_array([*column.chunks, pa.nulls(1, column.type)], column.type)


def _number(feature: Feature, column: pa.ChunkedArray, vocabulary: Vocabulary) -> NDArray[np.float32]:
    return filled(column).astype(np.float32) if feature.kind == "flag" else vocabulary.number(feature, column)
