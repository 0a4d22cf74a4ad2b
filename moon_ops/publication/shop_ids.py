"""The shop's ids where a service finds them in microseconds, and without the lake: a SQLite file beside the published tables.

It holds texts alone (of items and products) and, of items that are variants, their product; of a shop of whole numbers without variants
it is empty, and no request looks into it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.embeddings.generations import turn
from moon_ops.errors import ServiceError
from moon_ops.lake import changes, ids, tombstones
from moon_ops.lake.ids import ShopId
from moon_ops.lake.query import newest
from moon_ops.publication import traces
from moon_ops.publication.marks import remember, since_of
from moon_ops.publication.places import handed
from moon_ops.settings import Settings

log = logging.getLogger(__name__)
VIEW = "shop-ids"
COLUMNS = ("item_id", "source_id", "spu_id", "event_timestamp", "created")
BATCH = 10_000  # rows in a transaction: readers wait for no more
PATIENCE = 5.0  # seconds
MADE = """CREATE TABLE IF NOT EXISTS name (kind TEXT, key INTEGER, source_id TEXT, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS product (item INTEGER PRIMARY KEY, product INTEGER);"""
NAME, PRODUCT = "INSERT OR REPLACE INTO name VALUES (?, ?, ?)", "INSERT OR REPLACE INTO product VALUES (?, ?)"


def place(settings: Settings) -> Path:
    """Where the file lies."""
    return settings.home / "tables" / "shop_ids.db"


def publish(settings: Settings, now: dt.datetime, *, full: bool) -> None:
    """Hand over the ids of items written since the last time; a file that cannot be read is made anew."""
    with turn(handed(settings, VIEW)):
        try:
            _publish(settings, now, full=full)
        except sqlite3.DatabaseError as fault:
            log.warning("%s cannot be read (%s): it is made anew", place(settings), fault)
            place(settings).unlink(missing_ok=True)
            _publish(settings, now, full=True)


def _publish(settings: Settings, now: dt.datetime, *, full: bool) -> None:
    dataset = settings.lake.open("items")
    since = since_of(settings, VIEW, full=full or not place(settings).is_file())
    mark = changes.newest(dataset)
    rows = newest(changes.newer(dataset, since.mark, list(COLUMNS)), "item_id")
    item, product = rows["item_id"], rows["spu_id"]
    texts = rows.filter(pc.fill_null(pc.not_equal(rows["source_id"], item.cast(pa.string())), False))
    pairs = zip(texts["item_id"].to_pylist(), texts["source_id"].to_pylist(), strict=True)
    names = [("item", key, text) for key, text in pairs if ids.stable_id(text) == key]  # a lake of before may have kept "1001.0"
    names += [("product", *pair) for pair in ids.known_texts(settings.lake, "product", pc.unique(product).to_pylist()).items()]
    variant = pc.not_equal(item, product)
    with _written(place(settings)) as connection:
        _many(connection, NAME, names)
        _many(connection, PRODUCT, zip(item.filter(variant).to_pylist(), product.filter(variant).to_pylist(), strict=True))
        if since.when is not None:  # it may have been a variant before
            _many(connection, "DELETE FROM product WHERE item = ?", ((i,) for i in item.filter(pc.invert(variant)).to_pylist()))
    remember(settings, VIEW, mark, now)


def forget(settings: Settings, key: int, *, product: bool) -> int:
    """Remove an item, and ``product``, the product of that key, which no other item is a variant of; how many rows there were."""
    if not place(settings).is_file():
        return 0
    kinds = ("item", "product") if product else ("item", "item")
    with turn(handed(settings, VIEW)), _written(place(settings)) as connection, connection:
        gone = connection.execute("DELETE FROM name WHERE kind IN (?, ?) AND key = ?", (*kinds, key)).rowcount
        return gone + connection.execute("DELETE FROM product WHERE item = ?", (key,)).rowcount


def forget_erased(settings: Settings) -> None:
    """Remove the items that another machine has erased."""
    erased = settings.lake.read(tombstones.TABLE, ["key"], where="kind = 'item'")["key"].to_pylist()
    if not erased or not place(settings).is_file():
        return
    with contextlib.closing(sqlite3.connect(place(settings), timeout=60)) as connection:
        kept = "SELECT key FROM name WHERE key IN ({0}) UNION SELECT item FROM product WHERE item IN ({0})"
        listed = ", ".join(str(int(key)) for key in erased)
        left = [key for (key,) in connection.execute(kept.format(listed))]
    for key in left:
        forget(settings, key, product=traces.product_is_alone(settings.lake, key))


@contextlib.contextmanager
def _written(file: Path) -> Iterator[sqlite3.Connection]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as connection:
        connection.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten
        connection.executescript(MADE)
        yield connection


def _many(connection: sqlite3.Connection, statement: str, rows: Iterable[Sequence[Any]]) -> None:
    left = iter(rows)
    while some := list(islice(left, BATCH)):
        with connection:
            connection.executemany(statement, some)


class ShopIds:
    """What a service asks of the file; it notices when a publication has changed it. May be used from many threads."""

    def __init__(self, settings: Settings) -> None:
        self._place, self._lock = place(settings), threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._seen: tuple[int, int, int] | None = None
        self._texts = self._variants = False

    def item(self, keys: Sequence[int]) -> list[ShopId]:
        """The shop's ids of items, as JSON carries them."""
        return self._shown("item", keys)

    def product(self, keys: Sequence[int]) -> list[ShopId]:
        """The shop's ids of products, likewise."""
        return self._shown("product", keys)

    def product_of(self, items: Sequence[int]) -> list[ShopId | None]:
        """The shop's id of each item's product, as JSON carries it; None where it is not known."""
        return [None] * len(items) if self.lacking() else list(self.product(self.products_of(items)))

    def lacking(self) -> str:
        """Why products are not known: an older version has published this home, and nobody since; else empty."""
        return "" if self._look() else f"items are not grouped by product: {self._place} is not there, run `moon publish`"

    def products_of(self, items: Sequence[int]) -> list[int]:
        """The key of each item's product; its own where that is not known, see :meth:`lacking`."""
        variants = bool(items) and self._look() and self._variants
        found = self._asked("SELECT item, product FROM product WHERE item IN ({})", items) if variants else {}
        return [found.get(item, item) for item in items]

    def _shown(self, kind: str, keys: Sequence[int]) -> list[ShopId]:
        known: dict[int, Any] = {}
        if keys and self._look() and self._texts:
            for one in ("item", kind) if kind == "product" else (kind,):  # a product without an id of its own has that of its item
                known |= self._asked(f"SELECT key, source_id FROM name WHERE kind = '{one}' AND key IN ({{}})", keys)
        return [ids.wire(known.get(key, key)) for key in keys]

    def _asked(self, query: str, keys: Sequence[int]) -> dict[int, Any]:
        with self._lock, self._answering():
            assert self._connection is not None, "looked at before"
            return dict(self._connection.execute(query.format(", ".join("?" * len(keys))), keys).fetchall())

    def _look(self) -> bool:
        """Whether the file is there; what it holds is looked at again when it has changed."""
        try:
            found = self._place.stat()
        except OSError:  # a home that was published by an older version
            return False
        seen = found.st_mtime_ns, found.st_size, found.st_ino
        if seen != self._seen:
            with self._lock, self._answering():
                connection = sqlite3.connect(self._place, timeout=PATIENCE, check_same_thread=False)
                exists = "SELECT EXISTS (SELECT 1 FROM {})"
                self._texts, self._variants = (bool(connection.execute(exists.format(t)).fetchone()[0]) for t in ("name", "product"))
                self._connection, self._seen = connection, seen
        return True

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as fault:
            raise ServiceError(f"{self._place} cannot be read ({fault})", action="run `moon publish`, which makes it anew") from fault
