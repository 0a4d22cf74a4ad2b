"""The Grocery Store Dataset (Klasson, Zhang, Kjellström, WACV 2019, arXiv 1901.00711): products, and photographs of them in shops.

https://github.com/marcusklasson/GroceryStoreDataset. SOURCE is the repository or its directory ``dataset``. What is read of it::

    classes.csv                     Class Name, Class ID, Coarse Class Name, Coarse Class ID, Iconic Image Path, Product Description Path
    train.txt, val.txt, test.txt    a photograph on each line: path, class ID, coarse class ID
    iconic-images-and-descriptions/Fruit/Apple/Granny-Smith/Granny-Smith_Iconic.jpg, Granny-Smith_Description.txt
    train/…, val/…, test/…          the photographs

Serves real photographs: each is the picture query of one purchase by nobody, so it trains and judges image search. There are no users,
no impressions and no clicks, so there is no click model. A class is an item with the id 1000 + Class ID.

The source has no times. Here they are made so that a split by time is the source's own split: train from 2019-01-01, val from
2019-03-01, test from 2019-04-01 (UTC). Within a split the order is that of a hash of the paths: the files are sorted by product, and a
window of time would else hold few products.
"""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from moon_ops.errors import InputError
from moon_ops.shops.importers import files
from moon_ops.shops.importers.shop import Draft

NAME, CLASS, COARSE = "Class Name (str)", "Class ID (int)", "Coarse Class Name (str)"
ICONIC, DESCRIPTION = "Iconic Image Path (str)", "Product Description Path (str)"
STARTS = {  # split → its first moment
    "train": dt.datetime(2019, 1, 1, tzinfo=dt.UTC),
    "val": dt.datetime(2019, 3, 1, tzinfo=dt.UTC),
    "test": dt.datetime(2019, 4, 1, tzinfo=dt.UTC),
}
LENGTH = dt.timedelta(days=28)  # of a split: shorter than the time to the next
LISTED = dt.datetime(2018, 12, 1, tzinfo=dt.UTC)
DECIDING = dt.timedelta(minutes=1)  # from the photograph to the purchase
FIRST_ID = 1000
TIME = pa.timestamp("us", tz="UTC")
ITEMS = pa.schema(
    [
        *(("item_id", pa.int64()), ("spu_id", pa.int64()), ("title", pa.string()), ("category", pa.string())),
        *(("description", pa.string()), ("available_from", TIME)),
    ]
)
QUERIES = pa.schema([("query_id", pa.int64()), ("timestamp", TIME), ("text", pa.string()), ("image", pa.string())])
LOG = pa.schema([("timestamp", TIME), ("user_id", pa.int64()), ("item_id", pa.int64()), ("event", pa.string()), ("query_id", pa.int64())])


def load(draft: Draft, source: Path, users: int | None) -> None:
    """Fill the draft from the directory ``source``; :class:`~moon_ops.errors.InputError` for a sample of users, of whom there are none,
    and for a file or a column that is not there. A photograph that is listed and not there is left out and counted.
    """
    if users is not None:
        raise InputError("--users means nothing for grocery: it names no users; nothing was imported", action="leave it out")
    if (source / "items.parquet").is_file():
        problem = f"SOURCE = {source} is a shop in the ingest layout already; nothing was imported"
        raise InputError(problem, action=f"moon ingest {source}")
    place = source / "dataset" if (source / "dataset" / "classes.csv").is_file() else source
    for name in ("classes.csv", *(f"{split}.txt" for split in STARTS)):
        if not (place / name).is_file():
            raise files.absent(source, f"{name}, or dataset/{name}")
    rows = list(_products(place))
    items = {row["item_id"]: row for row, _ in rows}
    iconic = {row["item_id"]: picture for row, picture in rows if picture}
    draft.add("catalogue", pa.Table.from_pylist(list(items.values()), ITEMS))
    draft.picture_of = lambda item: (iconic.get(item), f"images/products/{item}.jpg")
    _photographs(draft, place)


def _products(place: Path) -> Iterator[tuple[dict[str, Any], Path | None]]:
    """Each class as an item, and where its iconic picture lies."""
    path = place / "classes.csv"
    files.csv_columns(path, (NAME, CLASS, COARSE, ICONIC, DESCRIPTION))
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for row in csv.DictReader(lines):
            iconic = place / row[ICONIC].strip().lstrip("/")
            number = _number(path, row[CLASS], row[NAME])
            root = iconic.relative_to(place).parts[1:2]  # Fruit, Packages or Vegetables
            item = {
                "item_id": FIRST_ID + number,
                "spu_id": FIRST_ID + number,
                "title": _words(row[NAME]),
                "category": " > ".join([*root, _words(row[COARSE])]),
                "description": _description(place / row[DESCRIPTION].strip().lstrip("/"), iconic.parent),
                "available_from": LISTED,
            }
            yield item, iconic if iconic.is_file() else None


def _words(name: str) -> str:
    """A name of a class as people write it."""
    return name.strip().replace("-", " ")


def _number(path: Path, cell: str | None, where: str) -> int:
    text = (cell or "").strip()
    if not text.isdecimal():
        raise InputError(f"{path}: the class ID of {where} is {text!r}, and no number; nothing was imported", action="download it again")
    return int(text)


def _description(named: Path, beside: Path) -> str | None:
    """The product's text. Two paths in the published classes.csv are misspelt: then the description that lies beside the picture."""
    path = named if named.is_file() else next(iter(sorted(beside.glob("*_Description*.txt"))), None)
    return " ".join(path.read_text(encoding="utf-8-sig", errors="replace").split()) or None if path else None


def _photographs(draft: Draft, place: Path) -> None:
    """Make each split's photographs queries and purchases."""
    queries: list[dict[str, Any]] = []
    bought: list[dict[str, Any]] = []
    for split, start in STARTS.items():
        listed = sorted(set(_listed(place / f"{split}.txt")), key=lambda row: (hashlib.md5(row[0].encode()).hexdigest(), row))
        for number, (name, item) in enumerate(listed):
            if not (place / name).is_file():
                draft.left_out += 1
                continue
            query, asked = len(queries) + 1, start + LENGTH * (number / len(listed))
            image = f"images/queries/{split}/{query:05d}{Path(name).suffix.lower()}"
            draft.photographs[image] = place / name
            queries.append({"query_id": query, "timestamp": asked, "text": None, "image": image})
            bought.append({"timestamp": asked + DECIDING, "item_id": item, "event": "purchase", "query_id": query})
    draft.add("queries", pa.Table.from_pylist(queries, QUERIES))
    draft.add("log", pa.Table.from_pylist(bought, LOG))


def _listed(path: Path) -> Iterator[tuple[str, int]]:
    """The photographs of a split: path and item id."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for number, row in enumerate(csv.reader(lines, skipinitialspace=True), 1):
            if not row:
                continue
            if len(row) < 2 or Path(row[0]).is_absolute() or ".." in Path(row[0]).parts:
                problem = f"{path}, line {number}: {', '.join(row)!r} is no path and class ID; nothing was imported"
                raise InputError(problem, action="download it again")
            yield row[0].strip(), FIRST_ID + _number(path, row[1], row[0])
