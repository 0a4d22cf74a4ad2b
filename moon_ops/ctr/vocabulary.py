"""Raw feature values → row numbers of embedding tables. Fitted on training rows, saved with the model, shared by training and serving."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.ctr.models import DENSE
from moon_ops.errors import ContractError

HASHED = {"item": "item_id", "user": "user_id", "spu": "spu_id", "category": "category", "brand": "brand", "seller": "seller_id"}
PRICE_BUCKETS = 10
WORD_ROWS = 2048
WORDS = 6  # of a query
NOTHING, UNKNOWN, KNOWN = 0, 1, 2  # rows of every table: padding, everything else, and where the known values begin
MIN_COUNT = 2  # a value seen less often is trained as "everything else", so that this row means something at evaluation


@dataclass(frozen=True)
class Vocabulary:
    """Known values per embedding table, sorted; value k has row k + 2. ``item_category`` is the category row of each known item."""

    values: dict[str, list[Any]]
    item_category: list[int]
    price_edges: list[float]

    @classmethod
    def fit(cls, columns: dict[str, pa.ChunkedArray]) -> Vocabulary:
        """Learn the values that occur in the training rows' columns (``item_id``, ``user_id``, …, ``price``)."""
        values = {table: _frequent(columns[column]) for table, column in HASHED.items()}
        prices = np.asarray(columns["price"].drop_null(), np.float64)
        edges = np.quantile(prices, np.linspace(0, 1, PRICE_BUCKETS + 1)[1:-1]) if len(prices) else np.zeros(0)
        bare = cls(values, [], [float(e) for e in np.unique(edges)])
        rows = {name: bare.encode(name, np.array(columns[HASHED[name]].to_pylist(), object)) for name in ("item", "category")}
        item_category = np.zeros(len(values["item"]), np.int64)
        known = rows["item"] >= KNOWN
        item_category[rows["item"][known] - KNOWN] = rows["category"][known]
        return replace(bare, item_category=item_category.tolist())

    def sizes(self) -> dict[str, int]:
        """Rows of each embedding table."""
        return {**{name: len(values) + KNOWN for name, values in self.values.items()}, "price": PRICE_BUCKETS + KNOWN}

    def encode(self, table: str, values: NDArray[Any]) -> NDArray[np.int64]:
        """Row numbers, in the shape given: 0 for nothing (null, -1, an empty text), 1 for a value that training did not know."""
        places = {value: row + KNOWN for row, value in enumerate(self.values[table])} | dict.fromkeys((None, -1, ""), NOTHING)
        flat = np.asarray(values).ravel().tolist()
        return np.array([places.get(v, UNKNOWN) for v in flat], np.int64).reshape(np.shape(values))

    def category_of(self, item_rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The category row of each item row, in the shape given."""
        lookup = np.array([NOTHING, UNKNOWN, *self.item_category], np.int64)
        return lookup[item_rows]

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
    pairs = zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
    return sorted(value for value, count in pairs if count >= MIN_COUNT and value not in (None, "", -1))


def words(texts: list[str | None]) -> NDArray[np.int64]:
    """The hashed words [R, W] of query texts, 0 where there are no more."""
    out = np.zeros((len(texts), WORDS), np.int64)
    cache: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        if text:
            if text not in cache:
                found = re.findall(r"\w+", text.lower())[:WORDS]
                cache[text] = [1 + zlib.crc32(word.encode()) % (WORD_ROWS - 1) for word in found]
            out[row, : len(cache[text])] = cache[text]
    return out


def dense(
    impressions: NDArray[np.float64], clicks: NDArray[np.float64], purchases: NDArray[np.float64], is_image: NDArray[Any]
) -> NDArray[np.float32]:
    """Item statistics as known then, and the query's kind: [R, 4]. The click rate is smoothed by 20 impressions at 8 %."""
    rate = (clicks + 0.08 * 20) / (impressions + 20)
    columns = [np.log1p(impressions) / 5, np.log(rate / 0.08), np.log1p(purchases) / 2, np.asarray(is_image, np.float64)]
    stacked = np.stack(columns, axis=1).astype(np.float32)
    assert stacked.shape[1] == DENSE
    return stacked
