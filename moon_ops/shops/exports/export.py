"""An export on its way to the ingest layout: the items that a system's importer makes of its rows, and the account of every row.

Each row of the products' files becomes an item, goes into another item (a further picture, the product of which others are the variants),
or is refused with its place and the reason. Columns that mean nothing here are counted, or kept as columns of the shop's own.
"""

from __future__ import annotations

import datetime as dt
import filecmp
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from moon_ops.lake.meanings import Meanings
from moon_ops.lake.reading import numbers, pictures, times
from moon_ops.lake.schemas import STAMP
from moon_ops.shops.exports.sheets import Line, Sheet, called
from moon_ops.shops.importers.shop import bring

MEDIA = ("", "pub/media/catalog/product", "media/catalog/product", "catalog/product", "media", "images")  # where pictures may lie
ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("spu_id", pa.string()),
        ("title", pa.string()),
        ("category", pa.list_(pa.string())),
        ("brand", pa.string()),
        ("description", pa.string()),
        ("attributes", pa.map_(pa.string(), pa.string())),
        ("price", pa.float64()),
        ("status", pa.string()),
        ("images", pa.list_(pa.string())),
        ("available_until", STAMP),
        ("tags", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class Choices:
    """What a user may say of an import: columns to ``keep`` as the shop's own, the address in front of pictures that are named by paths
    (``media``), the store view whose texts count (``store``), and the key that hides who has bought (``secret``). ``now``: the time of the
    import; without it a price that has a first day is not taken for one that holds.
    """

    keep: tuple[str, ...] = ()
    media: str = ""
    store: str = ""
    secret: bytes = b""
    now: dt.datetime | None = None


@dataclass
class Item:
    """An item as its row says it. ``sku`` and ``names`` are what an order may call it."""

    line: Line
    item_id: str
    spu_id: str
    title: str
    category: Sequence[str] = ()
    brand: str = ""
    description: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    price: str = ""
    status: str = "active"
    images: Sequence[str] = ()
    until: str = ""
    tags: Sequence[str] = ()
    sku: str = ""
    names: Sequence[str] = ()
    product: Line | None = None  # the row that says what all variants have in common


@dataclass
class Export:
    """What has become of an export so far. ``used`` are the columns that its importer reads."""

    source: Path
    out: Path
    words: Meanings
    chosen: Choices
    used: Collection[str]
    rows: int = 0
    merged: int = 0
    items: list[Item] = field(default_factory=list)
    refused: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)  # place, reason and cells
    log_refused: list[tuple[str, str]] = field(default_factory=list)  # of a log beside it: place and reason
    left_out: Counter[str] = field(default_factory=Counter)  # column → its cells that hold something
    notes: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # what was recognised of the cells
    files: set[str] = field(default_factory=set)  # pictures that were brought along
    addresses: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)

    def take(self, sheet: Sheet) -> list[Line]:
        """Count a sheet of products, refuse what cannot be read of it, and hand out its rows."""
        self.rows += sheet.rows
        for line, reason in sheet.refused:
            self.refuse(line, reason)
        kept = {called(name) for name in self.chosen.keep}
        for line in sheet.lines:
            self.left_out.update(sheet.columns[name] for name in line.cells if name not in self.used and name not in kept)
        self.notes += sheet.notes
        return sheet.lines

    def refuse(self, line: Line, reason: str) -> None:
        """Refuse a row of the products' files."""
        self.refused.append((line.place, reason, line.cells))

    def status(self, word: str, line: Line) -> str | None:
        """``active`` or ``deleted`` for a word of the shop's, refusing a row with another; an empty one is active."""
        meant = self.words.status.get(called(word), "") if word else "active"
        if not meant:
            self.refuse(line, f"{word!r} is no state that is known (moon.toml may say what it means)")
        return meant or None

    def pictures(self, references: Iterable[str]) -> list[str]:
        """The pictures as the layout names them, each once: addresses, or files that are brought along."""
        return list(dict.fromkeys(self._picture(one) for one in references))

    def _picture(self, reference: str) -> str:
        if reference.lower().startswith(("http://", "https://")):
            self.addresses.add(reference)
            return reference
        for root in (self.source / part for part in MEDIA):
            try:
                path = pictures.place(root.resolve(), reference)
            except (OSError, ValueError, RuntimeError):
                break
            if path.is_relative_to(self.source) and path.is_file():
                name = path.relative_to(self.source).as_posix()
                self.bring(path, name)
                self.files.add(name)
                return name
        if self.chosen.media:
            address = f"{self.chosen.media.rstrip('/')}/{reference.lstrip('/')}"
            self.addresses.add(address)
            return address
        self.missing.add(reference)
        return reference

    def bring(self, path: Path, name: str) -> None:
        """Have the file in the shop's directory under ``name``, as it is now."""
        target = self.out / name
        if target.exists() and not path.samefile(target) and not filecmp.cmp(path, target, shallow=False):
            target.unlink()
        bring(path, target)

    def table(self) -> pa.Table:
        """The good items, typed, with the kept columns; the rows of the others are refused."""
        prices = numbers.parsed(pa.array([item.price or None for item in self.items], pa.string()))
        ends = times.parsed(pa.array([item.until or None for item in self.items], pa.string())).to_pylist()
        self.said += prices.said
        seen: dict[str, str] = {}
        rows, good = [], []
        for item, price, end in zip(self.items, prices.values.to_pylist(), ends, strict=True):
            if why := self._fault(item, price, end, prices.reasons, seen):
                self.refuse(item.line, why)
                continue
            seen[item.item_id] = item.line.place
            good.append(item)
            rows.append(self._row(item, price, end))
        self.items = good
        kept = [name for name in self.chosen.keep if name not in ITEMS.names]
        return pa.Table.from_pylist(rows, pa.schema([*ITEMS, *((name, pa.string()) for name in kept)]))

    def _fault(self, item: Item, price: float | None, end: object, reasons: Mapping[str, str], seen: Mapping[str, str]) -> str:
        """Why an item cannot be used; empty if it can."""
        if not item.item_id:
            return "names no item: it has neither a SKU nor an id"
        if not item.title and item.status == "active":
            return "has no title, and no row that it continues has one"
        if item.item_id in seen:
            return f"item {item.item_id!r} is there twice: the first row ({seen[item.item_id]}) counts"
        if item.price and (item.price in reasons or price is None):
            return f"price = {item.price!r} {reasons.get(item.price, 'is not a number')}"
        if price is not None and price < 0:
            return f"price = {item.price!r} is below zero"
        return f"{item.until!r} is not a time ({times.FORMS})" if item.until and end is None else ""

    def _row(self, item: Item, price: float | None, end: object) -> dict[str, object]:
        said = (item.product.cells if item.product else {}) | item.line.cells
        own = {name: said.get(called(name)) for name in self.chosen.keep if name not in ITEMS.names}
        texts = {name: getattr(item, name) or None for name in ("item_id", "spu_id", "title", "brand", "description", "status")}
        return {
            **own,
            **texts,
            "category": list(item.category),
            "attributes": [(name, value) for name, value in item.attributes.items() if name and value],
            "price": price,
            "images": self.pictures(item.images),
            "available_until": end,
            "tags": list(item.tags) or None,
        }


def alone(own: Sequence[str], product: Sequence[str], taken: Collection[str]) -> list[str]:
    """A variant's pictures: its ``own``, then those of its ``product`` that are not ``taken`` by another variant; all, if none is left."""
    shared = [picture for picture in product if picture in own or picture not in taken]
    return list(dict.fromkeys([*own, *shared])) or list(dict.fromkeys(product))


def deepest(paths: Iterable[Sequence[str]]) -> list[str]:
    """The first of the longest category paths."""
    return max(([part.strip() for part in path if part.strip()] for path in paths), key=len, default=[])


def listed(cell: str, separator: str = ",") -> list[str]:
    """The parts of a cell, without the space around them."""
    return [part.strip() for part in cell.split(separator) if part.strip()]
