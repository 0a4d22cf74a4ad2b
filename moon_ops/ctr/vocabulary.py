"""Raw feature values → row numbers of embedding tables. Fitted on training rows, saved with the model, shared by training and serving."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.embeddings.as_of import Joined
from moon_ops.errors import ContractError

IDS = ("item", "user", "query", "spu", "category", "brand", "seller", "price")  # one row of each embedding table per example
COLUMNS = {
    "item": "item_id",
    "user": "user_id",
    "query": "query_id",
    "spu": "spu_id",
    "category": "category",
    "brand": "brand",
    "seller": "seller_id",
}
TEXTS = ("category", "brand")
PRICE_BUCKETS = 10
WORD_ROWS = 2048
WORDS = 6  # of a query
NOTHING, UNKNOWN, KNOWN = 0, 1, 2  # rows of every table: nothing, everything else, and where the known values begin
MIN_COUNT = 2  # a value seen less often is trained as "everything else", so that this row means something at evaluation
Column: TypeAlias = pa.ChunkedArray | NDArray[Any]


@dataclass(frozen=True)
class Vocabulary:
    """Known values per embedding table, sorted; value k has row k + 2. ``item_category`` is the category row of each known item."""

    values: dict[str, list[Any]]
    item_category: list[int]
    price_edges: list[float]

    @classmethod
    def fit(cls, joined: Joined) -> Vocabulary:
        """Learn the values that occur in training rows; a query counts once a session, however many items it showed."""
        values = {table: _frequent(joined.column(column)) for table, column in COLUMNS.items() if table != "query"}
        sessions = joined.rows.select(["query_id", "session_id"]).group_by(["query_id", "session_id"]).aggregate([])
        values["query"] = _frequent(sessions["query_id"])
        prices = np.asarray(joined.column("price").drop_null(), np.float64)
        edges = np.quantile(prices, np.linspace(0, 1, PRICE_BUCKETS + 1)[1:-1]) if len(prices) else np.zeros(0)
        bare = cls(values, [], [float(e) for e in np.unique(edges)])
        items, categories = (bare.encode(name, joined.column(COLUMNS[name])) for name in ("item", "category"))
        item_category = np.zeros(len(values["item"]), np.int64)
        known = items >= KNOWN
        item_category[items[known] - KNOWN] = categories[known]
        return replace(bare, item_category=item_category.tolist())

    def sizes(self) -> dict[str, int]:
        """Rows of each embedding table."""
        return {**{name: len(values) + KNOWN for name, values in self.values.items()}, "price": PRICE_BUCKETS + KNOWN}

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        """The values as what they are looked up in; lists of a million are turned into arrays once, not in each request."""
        numbers = {name: np.array([*some, -1], np.int64) for name, some in self.values.items() if name not in TEXTS}
        texts = {name: pa.array(self.values[name], pa.string()) for name in TEXTS}
        return numbers | texts | {"item_category": np.array([NOTHING, UNKNOWN, *self.item_category], np.int64)}

    def encode(self, table: str, values: Column) -> NDArray[np.int64]:
        """Row numbers, in the shape given: 0 for nothing (null, -1, an empty text), 1 for a value that training did not know."""
        if table in TEXTS:
            texts = pa.chunked_array([pa.array(values)]) if isinstance(values, np.ndarray) else values
            known = pc.index_in(texts.cast(pa.string()), self._arrays[table])
            nothing = pc.equal(pc.fill_null(texts, ""), "").to_numpy(zero_copy_only=False)
            rows = pc.fill_null(known.cast(pa.int64()), -1).to_numpy() + KNOWN
            return np.where(nothing, NOTHING, np.where(rows < KNOWN, UNKNOWN, rows))
        numbers = values if isinstance(values, np.ndarray) else pc.fill_null(values, -1).to_numpy()
        known = self._arrays[table]  # ends with a -1
        at = np.searchsorted(known[:-1], numbers)
        found = known[at] == numbers
        return np.where(numbers == -1, NOTHING, np.where(found, at + KNOWN, UNKNOWN)).astype(np.int64)

    def category_of(self, item_rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The category row of each item row, in the shape given."""
        return self._arrays["item_category"][item_rows]

    def price(self, prices: NDArray[np.float64]) -> NDArray[np.int64]:
        """Price buckets of equal share; 0 where there is no price."""
        bucket = np.searchsorted(np.asarray(self.price_edges), prices, side="right") + KNOWN
        return np.where(np.isfinite(prices) & (prices > 0), bucket, NOTHING).astype(np.int64)

    def save(self, directory: Path) -> None:
        """Write ``vocabulary.json``."""
        (directory / "vocabulary.json").write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Vocabulary:
        """Read ``vocabulary.json``."""
        path = directory / "vocabulary.json"
        if not path.is_file():
            raise ContractError(f"{directory} holds no vocabulary.json: it is not a click model", action="train it with `moon ctr`")
        return cls(**json.loads(path.read_text()))


def _frequent(column: pa.ChunkedArray) -> list[Any]:
    """The values that occur at least :data:`MIN_COUNT` times, sorted; null, -1 and the empty text are no values."""
    counts = pc.value_counts(column.combine_chunks())
    often = counts.field("values").filter(pc.greater_equal(counts.field("counts"), MIN_COUNT))
    return sorted(value for value in often.to_pylist() if value not in (None, "", -1))


def words(texts: list[str | None]) -> NDArray[np.int64]:
    """The hashed words [T, W] of query texts, 0 where there are no more."""
    out = np.zeros((len(texts), WORDS), np.int64)
    for row, text in enumerate(texts):
        found = re.findall(r"\w+", (text or "").lower())[:WORDS]
        out[row, : len(found)] = [1 + zlib.crc32(word.encode()) % (WORD_ROWS - 1) for word in found]
    return out


def dense(impressions: NDArray[np.float64], clicks: NDArray[np.float64], purchases: NDArray[np.float64]) -> NDArray[np.float32]:
    """Item statistics as known then: [N, 3]. The click rate is smoothed by 20 impressions at 8 %."""
    rate = (clicks + 0.08 * 20) / (impressions + 20)
    return np.stack([np.log1p(impressions) / 5, np.log(rate / 0.08), np.log1p(purchases) / 2], axis=1).astype(np.float32)
