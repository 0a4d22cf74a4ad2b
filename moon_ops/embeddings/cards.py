"""Item cards: what a search shows of an item and filters by, found by its id in files that are mapped into memory.

Cards are a directory that is never changed; a newer generation takes its place in one step, and a reader keeps what it has opened:

===============  ===================================================================================================
``cards.json``   the header
``base.arrow``   cards, ascending by item id, in batches of an Arrow file that is read where it lies
``base.json``    the brands and categories that the cards of the base name by number
``delta.*``      likewise of the items that have changed since
``gone.npy``     the items of the base that are gone, or have a newer card
===============  ===================================================================================================

Whatever reads them shares the pages with all other processes of the machine. Nothing here knows where items come from.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.embeddings.generations import fresh_directory, held, settled, swap
from moon_ops.errors import StageError
from moon_ops.files import link

HEADER, VERSION = "cards.json", 1
COLUMNS = ("item_id", "spu_id", "seller_id", "price", "brand", "category", "title", "image_ids")  # of a lake's items
SCHEMA = pa.schema(
    [(name, pa.int64()) for name in ("item_id", "spu_id", "seller_id")]
    + [("price", pa.float64()), ("brand", pa.int32()), ("category", pa.int32())]
    + [("title", pa.string()), ("image_ids", pa.list_(pa.string()))]
)
BATCH = 65_536  # cards of a batch: what is in memory when a base is written
CHANGED_AT_MOST, SMALL = 0.1, 1000  # of the base's cards may be gone or newer, or so many: then a new base is due
LEVEL = "\x1f"  # between the levels of a category
NONE = -1
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class CardsHeader:
    """How many ``items`` have a card, and how many are in the ``base``, in the ``delta``, and ``gone`` from the base."""

    version: int
    items: int
    base: int
    delta: int
    gone: int

    @classmethod
    def read(cls, at: Path) -> CardsHeader:
        """The header in the directory ``at``; :class:`StageError` if this version did not write it."""
        content = json.loads((at / HEADER).read_text())
        if set(content) != set(cls.__dataclass_fields__) or content["version"] != VERSION:
            raise StageError(f"{at / HEADER} was written by another version of moon_ops", action="run `moon publish --full`")
        return cls(**content)

    @property
    def crowded(self) -> bool:
        """Whether a new base is due."""
        return self.delta + self.gone > max(SMALL, CHANGED_AT_MOST * self.base)


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
class _File:
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
        return self.matching(Wanted())


class Cards:
    """Opened cards. May be asked from many threads."""

    def __init__(self, header: CardsHeader, base: _File, delta: _File, gone: Ids) -> None:
        self.header, self._base, self._delta, self._gone = header, base, delta, gone

    def __len__(self) -> int:
        return self.header.items

    def get(self, items: Iterable[int]) -> dict[int, dict[str, Any]]:
        """The cards of those ``items`` that have one, by id; a card has the columns of :data:`COLUMNS`."""
        found = ((item, self._delta.card(item) or (None if self._is_gone(item) else self._base.card(item))) for item in items)
        return {item: card for item, card in found if card is not None}

    def matching(self, wanted: Wanted) -> Ids:
        """The items, ascending, that are as ``wanted``."""
        base, later = self._base.matching(wanted), self._delta.matching(wanted)
        place, keep = np.searchsorted(base, self._gone), np.ones(len(base) + 1, bool)
        there = np.append(base, NONE)[place] == self._gone
        keep[place[there]] = False
        base = base[keep[:-1]]
        return np.sort(np.concatenate([base, later]), kind="stable") if len(later) else base

    def _is_gone(self, item: int) -> bool:
        at = int(np.searchsorted(self._gone, item))
        return at < len(self._gone) and bool(self._gone[at] == item)

    @classmethod
    def open(cls, directory: Path) -> Cards:
        """Map cards into memory; :class:`StageError` if there are none."""
        try:
            return settled(directory, cls._map)
        except FileNotFoundError as missing:
            raise StageError(f"there are no item cards at {directory}: {missing}", action="run `moon publish`") from missing

    @classmethod
    def _map(cls, at: Path) -> Cards:
        return cls(CardsHeader.read(at), _read(at, "base"), _read(at, "delta"), np.load(at / "gone.npy"))


def build(directory: Path, chunks: Iterable[pa.Table]) -> CardsHeader:
    """Make cards of items with :data:`COLUMNS`, in chunks of ascending ids, one of which is in memory at a time."""
    with fresh_directory(directory) as fresh:
        count = _write(fresh, "base", (batch for chunk in chunks for batch in _sliced(chunk)))
        _write(fresh, "delta", ())
        header = _seal(fresh, CardsHeader(VERSION, count, count, 0, 0), np.zeros(0, np.int64))
        with held(directory):
            swap(fresh, directory)
    return header


def update(directory: Path, rows: pa.Table, removed: Ids) -> CardsHeader:
    """Put the cards of new and changed items (with :data:`COLUMNS`) over those that are there, and take the items ``removed`` away.

    Costs what the delta costs; of the base only ids are looked up.
    """
    with held(directory) as at, fresh_directory(directory) as fresh:
        if at is None:
            raise StageError(f"there are no item cards at {directory} to update", action="run `moon publish` first")
        old = Cards._map(at)
        fresh_ids = rows["item_id"].to_numpy()
        touched = np.union1d(fresh_ids, removed)
        kept = old._delta.ids()
        before = _shown(old._delta, kept[~np.isin(kept, touched)])
        known = pa.concat_tables([before, rows.select(COLUMNS).cast(before.schema)])
        count = _write(fresh, "delta", _sliced(known.take(pc.sort_indices(known["item_id"]))))
        in_base = np.array([item for item in touched.tolist() if old._base.card(item) is not None], np.int64)
        gone = np.union1d(old._gone, in_base)
        for name in ("base.arrow", "base.json"):
            link(at / name, fresh / name)
        header = CardsHeader(VERSION, old.header.base - len(gone) + count, old.header.base, count, len(gone))
        _seal(fresh, header, gone)
        swap(fresh, directory)
    return header


def _shown(file: _File, ids: Ids) -> pa.Table:
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


def _sliced(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, BATCH):
        yield table.slice(start, BATCH)


def _write(at: Path, name: str, parts: Iterable[pa.Table]) -> int:
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


def _seal(fresh: Path, header: CardsHeader, gone: Ids) -> CardsHeader:
    np.save(fresh / "gone.npy", gone)
    (fresh / HEADER).write_text(json.dumps(asdict(header)) + "\n")  # last
    return header


def _read(at: Path, name: str) -> _File:
    reader = pa.ipc.open_file(pa.memory_map(str(at / f"{name}.arrow")))
    return _File([reader.get_batch(n) for n in range(reader.num_record_batches)], json.loads((at / f"{name}.json").read_text()))


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
