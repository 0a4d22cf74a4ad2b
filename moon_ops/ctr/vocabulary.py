"""Raw feature values → row numbers of embedding tables. Fitted on training rows, saved with the model, shared by training and serving."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops import pieces
from moon_ops.columns import STANDARD, Feature, id_features, list_features
from moon_ops.ctr.values import Values
from moon_ops.embeddings.as_of import Joined
from moon_ops.errors import ContractError
from moon_ops.files import required
from moon_ops.lake.spills import different

PRICE_BUCKETS = 10
FEWEST_WORD_ROWS, MOST_WORD_ROWS = 256, 1 << 20  # of hashed words; a million rows of 16 numbers are 64 MB
ROWS_PER_WORD = 8  # so that about one word in eight shares its row with another
WORDS = 6  # of a query
SMOOTHED = 20  # impressions at the shop's mean click rate that an item's own are added to
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and Han characters, between which no spaces stand
NOTHING, UNKNOWN, KNOWN = 0, 1, 2  # rows of every table: nothing, everything else, and where the known values begin
Column: TypeAlias = pa.ChunkedArray | NDArray[Any]
Known: TypeAlias = NDArray[np.int64] | pa.Array  # ids; texts


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Known values per embedding table, sorted; value k has row k + 2. ``item_category`` [K] is the category row of each known item.

    Both are arrays, and are made arrays where they come as lists: a million ids are 8 MB so, and 40 MB as Python's objects.
    """

    values: dict[str, Known]
    item_category: NDArray[np.int32]
    price_edges: list[float]
    own: tuple[Feature, ...] = ()  # the columns of the shop's own that the model reads
    scales: dict[str, tuple[float, float]] = field(default_factory=dict)  # mean and standard deviation of each number among them
    prior: float = 0.08  # the click rate to which an item's is smoothed: that of the rows trained on; models of before have 8 %
    word_rows: int = 2048  # rows of hashed words; models of before have 2,048
    bigrams: bool = False  # whether a run of Han or kana is read by pairs of characters; models of before read it as one word

    def __post_init__(self) -> None:
        texts = {f.name for f in (*STANDARD, *self.own) if f.kind in ("category", "list")}
        object.__setattr__(self, "values", {name: _texts(some) if name in texts else _ids(some) for name, some in self.values.items()})
        object.__setattr__(self, "item_category", np.asarray(self.item_category, np.int32))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._content() == other._content()

    @classmethod
    def fit(cls, joined: Joined, own: Sequence[Feature] = ()) -> Vocabulary:
        """Learn the values that occur in training rows; a query counts once a session, however many items it showed."""
        known, rows = [f for f in (*STANDARD, *own) if f.kind in ("id", "category", "list") and f.name != "query"], Values(joined)
        values = {f.name: rows.frequent(f.column_joined) for f in known} | {"query": rows.asked()}
        edges = rows.quantiles("price", np.linspace(0, 1, PRICE_BUCKETS + 1)[1:-1].tolist())
        scales = {f.name: _scale(joined.column(f.name)) for f in own if f.kind == "number"}
        prior, word_rows = float(np.clip(rows.clicked, 1e-6, 1 - 1e-6)), _word_rows(joined.rows["text"])
        bare = cls(values, np.zeros(0, np.int32), [float(e) for e in np.unique(edges)], tuple(own), scales, prior, word_rows, bigrams=True)
        item_category = np.zeros(len(values["item"]), np.int32)
        category_of = np.append(bare.encode("category", joined.views[joined.view_of("category")]["category"]), NOTHING)
        for some in pieces.parts(len(joined)):
            part = joined.part(some)
            items, categories = bare.encode("item", part.rows["item_id"]), category_of[part.at[joined.view_of("category")]]
            seen = items >= KNOWN
            item_category[items[seen] - KNOWN] = categories[seen]
        return replace(bare, item_category=item_category)

    def sizes(self) -> dict[str, int]:
        """Rows of each embedding table, in the order of the features."""
        named = (*id_features(self.own), *list_features(self.own))
        return {f.name: (PRICE_BUCKETS if f.kind == "bucket" else len(self.values[f.name])) + KNOWN for f in named}

    def encode(self, table: str, values: Column) -> NDArray[np.int64]:
        """Row numbers, in the shape given: 0 for nothing (null, -1, an empty text), 1 for a value that training did not know."""
        known = self.values[table]
        if isinstance(known, pa.Array):
            texts = pa.chunked_array([pa.array(values)]) if isinstance(values, np.ndarray) else values
            found = pc.index_in(texts.cast(pa.string()), known)
            nothing = pc.equal(pc.fill_null(texts, ""), "").to_numpy(zero_copy_only=False)
            rows = pc.fill_null(found.cast(pa.int64()), -1).to_numpy() + KNOWN
            return np.where(nothing, NOTHING, np.where(rows < KNOWN, UNKNOWN, rows))
        numbers = values if isinstance(values, np.ndarray) else pc.fill_null(values, -1).to_numpy()
        at = np.searchsorted(known, numbers)
        there = known[np.minimum(at, len(known) - 1)] == numbers if len(known) else np.zeros(np.shape(numbers), bool)
        return np.where(numbers == -1, NOTHING, np.where(there, at + KNOWN, UNKNOWN)).astype(np.int64)

    def rows(self, feature: Feature, column: pa.ChunkedArray) -> NDArray[np.int64]:
        """The embedding rows [N] of an id, a category or a bucket."""
        if feature.kind == "bucket":
            return self.price(filled(column))
        return self.encode(feature.name, column if feature.default is None else pc.fill_null(column, str(feature.default)))

    def list_rows(self, feature: Feature, column: pa.ChunkedArray) -> NDArray[np.int64]:
        """The embedding rows [N, length] of a list's first values, 0 where it has no more."""
        lists = column.combine_chunks()
        flat, starts = self.encode(feature.name, _flat(column)), np.append(0, np.cumsum(pc.fill_null(pc.list_value_length(lists), 0)))
        place = starts[:-1, None] + np.arange(feature.length)
        return np.where(place < starts[1:, None], np.append(flat, NOTHING)[np.minimum(place, len(flat))], NOTHING)

    def number(self, feature: Feature, column: pa.ChunkedArray) -> NDArray[np.float32]:
        """A number [N] less its mean in training, by its standard deviation; 0, which is the mean, where nothing is known."""
        mean, deviation = self.scales[feature.name]
        values = pc.fill_null(column.cast(pa.float64()), mean if feature.default is None else float(feature.default))
        return ((values.to_numpy() - mean) / deviation).astype(np.float32)

    def category_of(self, item_rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The category row of each item row, in the shape given."""
        out = np.array(item_rows, np.int64)  # of nothing, and of the unknown, it is the same
        known = out >= KNOWN
        out[known] = self.item_category[out[known] - KNOWN]
        return out

    def price(self, prices: NDArray[np.float64]) -> NDArray[np.int64]:
        """Price buckets of equal share; 0 where there is no price."""
        bucket = np.searchsorted(np.asarray(self.price_edges), prices, side="right") + KNOWN
        return np.where(np.isfinite(prices) & (prices > 0), bucket, NOTHING).astype(np.int64)

    def words(self, texts: list[str | None]) -> NDArray[np.int64]:
        """The rows [T, W] of the texts' words, 0 where there are no more."""
        return words(texts, self.word_rows, bigrams=self.bigrams)

    def about(self) -> dict[str, Any]:
        """What JSON can hold of it, but for values and the items' categories."""
        names = ("price_edges", "own", "scales", "prior", "word_rows", "bigrams")
        return {name: [asdict(one) for one in self.own] if name == "own" else getattr(self, name) for name in names}

    def _content(self) -> dict[str, Any]:
        values = {name: some.tolist() for name, some in self.values.items()}
        return {"values": values, "item_category": self.item_category.tolist(), **json.loads(json.dumps(self.about()))}

    def save(self, directory: Path) -> None:
        """Write ``vocabulary.json``."""
        (directory / "vocabulary.json").write_text(json.dumps(self._content()) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Vocabulary:
        """Read ``vocabulary.json``."""
        path = directory / "vocabulary.json"
        if not path.is_file():
            raise ContractError(f"{directory} holds no vocabulary.json: it is not a click model", action="train it with `moon ctr`")
        return cls.told(required(path, "train the click model again with `moon ctr`"))

    @classmethod
    def told(cls, content: Mapping[str, Any]) -> Vocabulary:
        """Of its fields; columns of the shop's own by the names of theirs."""
        return cls(**{**content, "own": tuple(Feature(**one) for one in content.get("own", ()))})


def _ids(some: Sequence[int] | Known) -> NDArray[np.int64]:
    """A list goes through Arrow, whose memory is its own: between the list's objects a numpy array would keep theirs from the system."""
    return some if isinstance(some, np.ndarray) else pa.array(some, pa.int64()).to_numpy()


def _texts(some: Sequence[str] | pa.Array) -> pa.Array:
    return some.cast(pa.string()) if isinstance(some, pa.Array) else pa.array(some, pa.string())


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.list_flatten(column) if pa.types.is_list(column.type) else column


def _scale(column: pa.ChunkedArray) -> tuple[float, float]:
    """Mean and standard deviation; 0 and 1 where there is nothing to learn them from."""
    mean, deviation = pc.mean(column).as_py(), pc.stddev(column).as_py()
    return (0.0 if mean is None else float(mean)), (float(deviation) if deviation else 1.0)


def filled(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """float64, 0 for null: an item without statistics has been seen 0 times."""
    return pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy()


def _word_rows(texts: pa.ChunkedArray) -> int:
    """How many rows the words of the queries want: a power of two, from 256 to a million."""
    known = {word for text in different(texts) for word in _split((text or "").lower())[:WORDS]}
    return min(max(FEWEST_WORD_ROWS, 1 << (ROWS_PER_WORD * max(1, len(known)) - 1).bit_length()), MOST_WORD_ROWS)


def words(texts: list[str | None], rows: int, *, bigrams: bool) -> NDArray[np.int64]:
    """The words of query texts, hashed to ``rows`` [T, W], 0 where there are no more; ``bigrams``: of Han and kana the pairs of
    neighbours."""
    out = np.zeros((len(texts), WORDS), np.int64)
    for row, text in enumerate(texts):
        found = (_split if bigrams else _spaced)((text or "").lower())[:WORDS]
        out[row, : len(found)] = [1 + zlib.crc32(word.encode()) % (rows - 1) for word in found]
    return out


def _spaced(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _split(text: str) -> list[str]:
    """Words between spaces and signs; a run of Han or kana as its pairs of neighbours, as search engines index them."""
    out: list[str] = []
    for run in re.findall(rf"[{UNSPACED}]+|[^\W{UNSPACED}]+", text):
        pairs = [run[at : at + 2] for at in range(len(run) - 1)] if re.match(f"[{UNSPACED}]", run) else []
        out += pairs or [run]
    return out


def statistics(
    impressions: NDArray[np.float64], clicks: NDArray[np.float64], purchases: NDArray[np.float64], *, prior: float
) -> NDArray[np.float32]:
    """Item statistics as known then: [N, 3]. The click rate is smoothed by 20 impressions at ``prior``, and told in proportion to it."""
    rate = (clicks + prior * SMOOTHED) / (impressions + SMOOTHED)
    return np.stack([np.log1p(impressions) / 5, np.log(rate / prior), np.log1p(purchases) / 2], axis=1).astype(np.float32)
