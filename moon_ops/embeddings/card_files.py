"""A file of item cards: written from rows of items, mapped into memory, asked by id and by filter, and made rows again.

An Arrow file, whose batches are read where they lie, ascending by item id, and a file of words: the brands and categories that it names by
number. This file does not know which of several such files is the newest.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.embeddings import layers

COLUMNS = ("item_id", "spu_id", "seller_id", "price", "brand", "category", "title", "image_ids")  # of a lake's items
SCHEMA = pa.schema(
    [(name, pa.int64()) for name in ("item_id", "spu_id", "seller_id")]
    + [("price", pa.float64()), ("brand", pa.int32()), ("category", pa.int32())]
    + [("title", pa.string()), ("image_ids", pa.list_(pa.string()))]
)
LEVEL = "\x1f"  # between the levels of a category
NONE = -1
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Wanted:
    """What an item must be; an empty text or None lets all through. ``category``: a word of any level, or levels with ``>`` between them.
    Letter case does not count. ``seller`` is a key; prices are inclusive, and an item without one lies in no range.
    """

    category: str = ""
    brand: str = ""
    seller: int | None = None
    price_min: float | None = None
    price_max: float | None = None

    def __bool__(self) -> bool:
        return self != Wanted()


@dataclass
class CardFile:
    """Cards of an Arrow file: ``firsts`` is the least id of each batch."""

    batches: list[pa.RecordBatch]
    words: dict[str, list[str]]
    firsts: list[int] = field(init=False)
    ids_of: list[Ids] = field(init=False)
    columns: list[list[pa.Array]] = field(init=False)

    def __post_init__(self) -> None:
        self.batches = [batch for batch in self.batches if batch.num_rows]
        self.ids_of = [_view(batch, "item_id") for batch in self.batches]
        self.columns = [batch.columns for batch in self.batches]
        self.firsts = [int(ids[0]) for ids in self.ids_of]

    def card(self, item: int) -> dict[str, Any] | None:
        """The item's card, None if it has none here."""
        number = bisect_right(self.firsts, item) - 1
        if number < 0:
            return None
        ids = self.ids_of[number]
        at = int(np.searchsorted(ids, item))
        if at == len(ids) or ids[at] != item:
            return None
        row: dict[str, Any] = {name: column[at].as_py() for name, column in zip(SCHEMA.names, self.columns[number], strict=True)}
        row["price"] = None if np.isnan(row["price"]) else row["price"]
        row["seller_id"] = None if row["seller_id"] == NONE else row["seller_id"]
        row["brand"] = None if row["brand"] == NONE else self.words["brand"][row["brand"]]
        row["category"] = None if row["category"] == NONE else self.words["category"][row["category"]].split(LEVEL)
        return row

    def matching(self, wanted: Wanted) -> Ids:
        """The items, ascending, that are as ``wanted``."""
        named = {name: np.array([fits(word, value) for word in self.words[name]] + [False]) for name, fits, value in _worded(wanted)}
        found = []
        for batch, ids in zip(self.batches, self.ids_of, strict=True):
            keep = np.ones(batch.num_rows, bool)
            for name, fits in named.items():
                keep &= fits[_view(batch, name)]  # -1 is the last one, False
            if wanted.seller is not None:
                keep &= _view(batch, "seller_id") == wanted.seller
            if wanted.price_min is not None:
                keep &= _view(batch, "price") >= wanted.price_min
            if wanted.price_max is not None:
                keep &= _view(batch, "price") <= wanted.price_max
            found.append(ids[keep])
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def ids(self) -> Ids:
        """All items, ascending."""
        return np.concatenate(self.ids_of) if self.ids_of else np.zeros(0, np.int64)

    def held(self, items: Ids) -> NDArray[np.bool_]:
        """Which of the items have a card here."""
        numbers = np.searchsorted(np.array(self.firsts, np.int64), items, side="right") - 1
        found = np.zeros(len(items), bool)
        for number in np.unique(numbers[numbers >= 0]):
            mine = numbers == number
            found[mine] = layers.held(self.ids_of[number], items[mine])
        return found


def shown(file: CardFile, ids: Ids) -> pa.Table:
    """Cards of the ``ids`` (ascending, all of which have one) as rows of items again."""
    kinds = {"brand": pa.string(), "category": pa.list_(pa.string())}
    schema = pa.schema([pa.field(f.name, kinds.get(f.name, f.type)) for f in SCHEMA])
    table = pa.Table.from_batches(file.batches, SCHEMA)
    rows = table.filter(pc.is_in(table["item_id"], pa.array(ids, pa.int64())))
    columns = {name: rows[name] for name in SCHEMA.names}
    known = {name: pc.if_else(pc.equal(rows[name], NONE), None, rows[name]) for name in ("seller_id", "brand", "category")}
    columns["seller_id"] = known["seller_id"]
    columns["price"] = pc.if_else(pc.is_nan(rows["price"]), None, rows["price"])
    columns["brand"] = pc.take(pa.array(file.words["brand"], pa.string()), known["brand"])
    levels = [word.split(LEVEL) for word in file.words["category"]]
    columns["category"] = pc.take(pa.array(levels, kinds["category"]), known["category"])
    return pa.table(columns).cast(schema)


def write(at: Path, name: str, parts: Iterable[pa.Table]) -> int:
    """An Arrow file and its words; how many cards it has."""
    brands, categories, count = dict[str, int](), dict[str, int](), 0
    with pa.OSFile(str(at / f"{name}.arrow"), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as file:
        for part in parts:
            columns: dict[str, Any] = {name: part[name] for name in ("item_id", "spu_id", "title", "image_ids")}
            columns["seller_id"] = pc.fill_null(part["seller_id"], NONE)
            columns["price"] = pc.fill_null(part["price"], float("nan"))
            columns["brand"] = _numbered(part["brand"], brands)
            columns["category"] = _numbered(pc.binary_join(part["category"], LEVEL), categories)
            file.write_table(pa.table(columns).select(SCHEMA.names).cast(SCHEMA).combine_chunks())
            count += part.num_rows
    (at / f"{name}.json").write_text(json.dumps({"brand": list(brands), "category": list(categories)}))
    return count


def _numbered(column: pa.ChunkedArray, known: dict[str, int]) -> pa.Array:
    """Each text's number, -1 for none; new texts are added to ``known``."""
    encoded = column.combine_chunks().dictionary_encode()
    numbers = [known.setdefault(word, len(known)) if word else NONE for word in encoded.dictionary.to_pylist()]
    return pc.fill_null(pa.array(numbers, pa.int32()).take(encoded.indices), NONE)


def read(at: Path, name: str) -> CardFile:
    """Map a file of cards in the directory ``at``."""
    reader = pa.ipc.open_file(pa.memory_map(str(at / f"{name}.arrow")))
    return CardFile([reader.get_batch(n) for n in range(reader.num_record_batches)], json.loads((at / f"{name}.json").read_text()))


def _view(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    """A column of numbers as it lies in the file."""
    return np.asarray(batch[name].to_numpy(zero_copy_only=True))


def _worded(wanted: Wanted) -> Iterator[tuple[str, Any, str]]:
    if wanted.category:
        yield "category", _in_category, wanted.category
    if wanted.brand:
        yield "brand", lambda word, value: word.casefold() == value.strip().casefold(), wanted.brand


def _in_category(path: str, wanted: str) -> bool:
    """Whether the levels that are wanted stand in the path, one after another."""
    levels, asked = path.casefold().split(LEVEL), [level.strip() for level in wanted.casefold().split(">")]
    return any(levels[at : at + len(asked)] == asked for at in range(len(levels) - len(asked) + 1))
