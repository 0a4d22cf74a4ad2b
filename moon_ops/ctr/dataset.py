"""Impressions → training batches, through Feast: features as known before each row's time, everything gathered by row number.

R rows, B rows of a batch, S behaviours, W words, D vector dimensions. A row carries numbers of rows in tables that are coded once; its
features, its user's sequence and all vectors are gathered when it comes into a batch (the paper's dynamic loading).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops import pieces
from moon_ops.columns import ROWS, SHOWN_AT, Feature, by_view, dense_features, id_features
from moon_ops.ctr import digests
from moon_ops.ctr.behaviors import Behaviors, Clicks
from moon_ops.ctr.prefetch import WHOLE, Part, prefetched
from moon_ops.ctr.shuffle import shuffled
from moon_ops.ctr.vectors import Ints, Tables, Vectors
from moon_ops.ctr.vocabulary import WORDS, Vocabulary, filled, statistics
from moon_ops.embeddings.as_of import Joined, identifiers, microseconds
from moon_ops.lake.spills import numbered

if TYPE_CHECKING:
    from torch import Tensor

KINDS = {"times": "i8", "user_ids": "i8", "item_ids": "i8", "query_ids": "i8", "labels": "i1", "positions": "i1"}
LIST = "list_"  # and the feature's name: a model's input
POSITION = "position"  # an input of training alone
PLACES = 50  # in a list that are told apart; all later ones are one


@dataclass(frozen=True)
class Coded:
    """The M rows of a view (or of the impressions themselves) as numbers, and one more, the last, for "nothing was known"."""

    ids: NDArray[np.int32]  # [M + 1, k] embedding rows of the view's ids, categories and buckets
    dense: NDArray[np.float32]  # [M + 1, n] of its statistics, flags and numbers
    lists: dict[str, NDArray[np.int32]]  # of each list [M + 1, length]

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
        lists = {f.name: vocabulary.list_rows(f, column).astype(np.int32) for f, column in found.items() if f.kind == "list"}
        return cls(
            (np.column_stack(ids) if ids else nothing).astype(np.int32),
            np.concatenate(dense, 1) if dense else nothing.astype(np.float32),
            lists,
        )

    def room(self, count: int) -> Coded:
        """As wide, for ``count`` rows and the last one, which is that of this."""
        ids, dense = pieces.column(count + 1, np.int32, self.ids.shape[1]), pieces.column(count + 1, np.float32, self.dense.shape[1])
        lists = {name: pieces.column(count + 1, np.int32, values.shape[1]) for name, values in self.lists.items()}
        return Coded(ids, dense, lists).put(slice(count, count + 1), self, -1)

    def put(self, some: slice, part: Coded, first: int = 0) -> Coded:
        """Write the rows of ``part`` from its ``first`` on into ``some``."""
        for mine, other in zip(self.columns, part.columns, strict=True):
            mine[some] = other[first:][: some.stop - some.start]
        return self

    @property
    def columns(self) -> list[NDArray[Any]]:
        """All of them."""
        return [self.ids, self.dense, *self.lists.values()]


@dataclass(frozen=True)
class Rows:
    """R impressions as a model reads them, by row number; those of many lie in mapped files, see :mod:`moon_ops.pieces`."""

    own: tuple[Feature, ...]
    coded: dict[str, Coded]  # by view; of ROWS it has a row for each impression
    words: NDArray[np.int32]  # [T + 1, W] of the texts that occur
    at: Mapping[str, Ints]  # [R] row numbers: of each other view, of words, of the behaviour
    behaviors: Behaviors
    tables: Tables
    item_codes: NDArray[np.int32]  # [R] of the vectors
    query_codes: NDArray[np.int32]  # [R]
    times: NDArray[np.int64]  # [R] µs
    labels: NDArray[np.int8]
    user_ids: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    positions: NDArray[np.int8]  # [R] places in the list, coded; 0: not known. Only training reads them

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> int:
        """A number that changes with what is trained on: who was shown what and when, what came of it, and what was known then.

        Of features only those count that the rows reach: what others have done since changes nothing.
        """
        known = {view: digests.of_rows(coded.columns) for view, coded in self.coded.items() if view != ROWS}
        known |= {"words": digests.of_rows([self.words]), "behaviors": self.behaviors.digests()}
        placed, seen = bool(self.positions.any()), 0
        for some in pieces.parts(len(self)):
            rows: list[NDArray[Any]] = [self.times, self.labels, self.user_ids, self.item_ids, *([self.positions] if placed else [])]
            columns = [column[some] for column in (*rows, *self.coded[ROWS].columns)]
            columns += [codes[some] >= 0 for codes in (self.item_codes, self.query_codes)]
            columns += [numbers[self.at[name][some]] for name, numbers in known.items()]
            seen = zlib.crc32(digests.of_rows(columns).data, seen)
        return seen

    def _at(self, view: str, chosen: Ints) -> NDArray[np.integer[Any]]:
        """The rows of a view that the rows ``chosen`` [B] see."""
        return chosen if view == ROWS else self.at[view][chosen]

    def columns(self, chosen: Ints, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The inputs ``names`` of the rows ``chosen`` [B], as :mod:`moon_ops.ctr.models` describes them."""
        times = self.times[chosen]
        wanted = "target_vector" in names or self.behaviors.picks
        target = self._gathered(self.tables.items, self.item_codes[chosen], times) if wanted else None
        seen = self.behaviors.of(self.at["behaviors"][chosen], times, target)
        columns: dict[str, NDArray[Any]] = {}
        for name in names:
            if name == "words":
                columns[name] = self.words[self.at["words"][chosen]].astype(np.int64)
            elif name == "ids":
                columns[name] = self._together(chosen, id_features(self.own), {v: c.ids for v, c in self.coded.items()}, np.int64)
            elif name == "dense":
                columns[name] = self._together(chosen, dense_features(self.own), {v: c.dense for v, c in self.coded.items()}, np.float32)
            elif name.startswith(LIST):
                view = next(v for v, coded in self.coded.items() if name.removeprefix(LIST) in coded.lists)
                columns[name] = self.coded[view].lists[name.removeprefix(LIST)][self._at(view, chosen)].astype(np.int64)
            elif name == POSITION:
                columns[name] = self.positions[chosen].astype(np.int64)
            elif name == "target_vector" and target is not None:
                columns[name] = target
            elif name == "query_vector":
                columns[name] = self._gathered(self.tables.queries, self.query_codes[chosen], times)
            else:
                columns[name] = seen.column(name)
        return columns

    def _together(self, chosen: Ints, features: Sequence[Feature], coded: Mapping[str, NDArray[Any]], kind: Any) -> NDArray[Any]:
        """The features' columns [B, K], in their order, from the views that have them."""
        out = np.empty((len(chosen), len(features)), kind)
        for view, values in coded.items():
            places = [place for place, feature in enumerate(features) if feature.view == view]
            if places:
                out[:, places] = values[self._at(view, chosen)]
        return out

    def _gathered(self, vectors: Vectors, codes: Ints, times: Ints) -> NDArray[np.float32]:
        return vectors.gather(vectors.at(codes, times))


@dataclass(frozen=True)
class Known:
    """R impressions and what was known of them, as numbers; vectors come to them by :meth:`rows`. It can be kept, see :mod:`.prepared`."""

    own: tuple[Feature, ...]
    coded: dict[str, Coded]
    words: NDArray[np.int32]
    at: dict[str, Ints]
    clicks: Clicks
    columns: dict[str, NDArray[Any]]  # [R] those of :data:`KINDS`

    def rows(self, tables: Tables, behaviors: int, top_k: int = 0) -> Rows:
        """For a model that reads the last ``behaviors`` clicks, or of these the ``top_k`` whose content is most similar to the target's
        (0: all), with the vectors of ``tables``."""
        count, codes = len(self.columns["labels"]), dict[str, NDArray[Any]]()
        for kind, vectors in (("item", tables.items), ("query", tables.queries)):
            codes[f"{kind}_codes"] = pieces.column(count, np.int32)
            for some in pieces.parts(count):
                codes[f"{kind}_codes"][some] = vectors.codes(self.columns[f"{kind}_ids"][some])
        return Rows(
            own=self.own,
            coded=self.coded,
            words=self.words,
            at=self.at,
            behaviors=Behaviors.among(self.clicks, tables.items, tables.queries, behaviors, top_k),
            tables=tables,
            **codes,
            **{name: column for name, column in self.columns.items() if name != "query_ids"},
        )


def code(joined: Joined, vocabulary: Vocabulary) -> Known:
    """Impressions joined with the features of ``ctr_v<N>``, as the vocabulary tells them."""
    numbers, texts = numbered(joined.rows["text"])
    views, count = by_view(vocabulary.own), len(joined)
    coded = {view: Coded.of(joined.views[view], found, vocabulary) for view, found in views.items() if view != ROWS}
    own = Coded.of(joined.rows.slice(0, 0), views[ROWS], vocabulary).room(count)
    at = {**{view: joined.at[view] for view in coded}, "words": pieces.column(count, np.int32), "behaviors": joined.at["user_behavior"]}
    columns = {name: pieces.column(count, kind) for name, kind in KINDS.items()}
    for some in pieces.parts(count):
        part = joined.rows.slice(some.start, some.stop - some.start)
        own.put(some, Coded.of(part, views[ROWS], vocabulary))
        at["words"][some] = pc.fill_null(numbers.slice(some.start, len(part)), -1).to_numpy()
        for name in ("item", "user", "query"):
            columns[f"{name}_ids"][some] = identifiers(part, f"{name}_id")
        columns["times"][some], columns["labels"][some] = microseconds(part, "event_timestamp"), identifiers(part, "label")
        columns["positions"][some] = places(part)
    clicks = Clicks.of(joined.views["user_behavior"], vocabulary)
    return Known(vocabulary.own, coded | {ROWS: own}, _words(texts, vocabulary), at, clicks, columns)


def encode(joined: Joined, vocabulary: Vocabulary, tables: Tables, behaviors: int, top_k: int = 0) -> Rows:
    """Impressions, coded for a model that reads the last ``behaviors`` clicks: :func:`code` and :meth:`Known.rows`."""
    return code(joined, vocabulary).rows(tables, behaviors, top_k)


def _words(texts: pa.Array, vocabulary: Vocabulary) -> NDArray[np.int32]:
    """The words of each text [T + 1, W]; the last one has none."""
    found = np.zeros((len(texts) + 1, WORDS), np.int32)
    for some in pieces.spans(len(texts)):
        found[some] = vocabulary.words(texts[some].to_pylist())
    return found


def batches(
    rows: Rows, names: Sequence[str], size: int, order: NDArray[np.int64], part: Part = WHOLE
) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Batches of the inputs ``names``, in this order, and labels [B], of the rows in ``order``; of several processes one's ``part``."""
    import torch  # what scores by ONNX needs none

    for chosen, found in prefetched(lambda some: rows.columns(some, names), order, size, part=part):
        yield tuple(torch.from_numpy(np.ascontiguousarray(found[name])) for name in names), torch.from_numpy(rows.labels[chosen]).float()


def mixed(
    rows: Rows, names: Sequence[str], size: int, count: int, seed: tuple[int, ...], done: int = 0, part: Part = WHOLE
) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Batches of the first ``count`` rows in the order of ``seed``, after the first ``done`` ones."""
    for order in shuffled(count, seed, size, done):
        yield from batches(rows, names, size, order, part)
        if count > pieces.LONG:
            pieces.let_columns_go()


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
