"""A shop's directory while an importer writes it: claimed first, filled beside, named only when whole.

An importer reads its data set into relations of the draft's database, which lies on disk, so that no log has to fit into memory::

    log          timestamp, user_id, item_id, event[, session_id, query_id, rating]  one row per event of a chosen user
    catalogue    item_id, title[, spu_id, category, brand, description, attributes, price, images]    the items that are known
    queries      query_id, timestamp, text, image                            what was searched for, if the data set knows it
    known        user_id and columns of the data set's own                    what is known of the users, if something is
    given        item_id, embedding (a list of numbers)                       the vectors that the data set brings, if it does

Where pictures of items are files, ``picture_of`` says which; ``photographs`` names those of queries. :func:`write` turns all this into
the ingest layout. An item without a title is not written, and neither are its events.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moon_ops.errors import InputError, counted
from moon_ops.files import is_claimed, link, put, write_text
from moon_ops.shops.importers import files

WORK = "work.partial"  # in the shop's directory: the database, what it spills, and tables that are not whole yet
BATCH = 65_536  # vectors in memory at a time
EVENT = "SELECT timestamp, user_id, item_id, event{more} FROM kept ORDER BY timestamp, user_id, item_id, event"
NO_QUERIES = "SELECT 0::BIGINT AS query_id, now() AS timestamp, ''::VARCHAR AS text, ''::VARCHAR AS image WHERE false"
Find = Callable[[int], tuple[Path | None, str]]


@dataclass
class Draft:
    """A shop that is being written: its directory and the database that holds the relations."""

    out: Path
    database: duckdb.DuckDBPyConnection
    left_out: int = 0  # rows of the data set that became no event, as far as the importer knows
    picture_of: Find | None = None  # item → the file, if there is one, and its path in the shop
    photographs: dict[str, Path] = field(default_factory=dict)  # a query's image, its path in the shop → the file
    relations: set[str] = field(default_factory=set)

    @property
    def work(self) -> Path:
        """The directory of what is not whole yet."""
        return self.out / WORK

    def run(self, query: str) -> None:
        """Execute a statement."""
        self.database.execute(query)

    def make(self, name: str, query: str) -> None:
        """Store the query's rows as relation ``name``."""
        self.run(f"CREATE TABLE {name} AS {query}")
        self.relations.add(name)

    def view(self, name: str, query: str) -> None:
        """Name a query whose rows are read from their files each time."""
        self.run(f"CREATE VIEW {name} AS {query}")
        self.relations.add(name)

    def append(self, name: str, query: str) -> None:
        """Append the query's rows to relation ``name``, which the first of them make."""
        self.run(f"INSERT INTO {name} {query}") if name in self.relations else self.make(name, query)

    def add(self, name: str, rows: pa.Table) -> None:
        """Append a table to relation ``name``, likewise."""
        self.database.register("arriving", rows)
        self.append(name, "SELECT * FROM arriving")
        self.database.unregister("arriving")

    def count(self, query: str) -> int:
        """The whole number that the query gives in its first row."""
        (found,) = self.database.sql(query).fetchall()[0]
        return int(found)

    def sample(self, relation: str, users: int | None) -> None:
        """Make relation ``chosen`` (user_id): all users of ``relation``, or ``users`` of them.

        These are the ones with the smallest MD5 of their id: the same on every machine, and a smaller sample lies in a larger one.
        """
        few = "" if users is None else f" ORDER BY md5(user_id::VARCHAR), user_id LIMIT {users}"
        self.make("chosen", f"SELECT user_id FROM (SELECT DISTINCT user_id FROM {relation} WHERE user_id IS NOT NULL){few}")


def _link(draft: Draft, find: Find) -> int:
    """Bring the pictures of the items that occur into the directory, make relation ``pictures`` and return how many there are."""
    ids: list[int] = []
    paths: list[list[str]] = []
    for (item,) in draft.database.sql("SELECT DISTINCT item_id FROM kept ORDER BY item_id").fetchall():
        source, path = find(item)
        if source is not None and source.is_file():
            bring(source.resolve(), draft.out / path)
            ids.append(item)
            paths.append([path])
    draft.add("pictures", pa.table({"item_id": pa.array(ids, pa.int64()), "images": pa.array(paths, pa.list_(pa.string()))}))
    return len(ids)


def bring(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to the file, or a copy where the file system has none."""
    if target.exists():  # of a run that was killed
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    link(source, target)


@contextlib.contextmanager
def draft(source: Path, out: Path, identity: str) -> Iterator[Draft]:
    """Claim ``out`` for the import that ``identity`` names in one line, and hand out its draft.

    Raises :class:`~moon_ops.errors.InputError` for an ``out`` that holds anything else, and for files of ``source`` that cannot be
    read. After an error a directory that was made for this run is gone again; a killed run is repeated from its start.
    """
    fresh = not (out / "README.md").exists()
    _claim(out, identity)
    shutil.rmtree(out / WORK, ignore_errors=True)
    (out / WORK).mkdir()
    try:
        with duckdb.connect(str(out / WORK / "rows.duckdb")) as database:
            database.execute(f"SET temp_directory = {files.literal(out / WORK)}; SET TimeZone = 'UTC'")
            yield Draft(out, database)
    except (InputError, *files.UNREADABLE) as refused:
        shutil.rmtree(out / WORK, ignore_errors=True)
        if fresh and [p.name for p in out.iterdir()] == ["README.md"]:  # else it would be nobody's
            shutil.rmtree(out)
        if isinstance(refused, InputError):
            raise
        raise files.unreadable(source, refused) from refused
    shutil.rmtree(out / WORK, ignore_errors=True)


def _claim(out: Path, identity: str) -> None:
    """Make ``out`` this import's directory, or refuse: pictures of another one would be kept as if they were right."""
    if out.exists() and not out.is_dir():
        raise InputError(f"OUT = {out} is a file, and the shop needs a directory", action="give another path")
    readme = out / "README.md"
    found = readme.read_text(encoding="utf-8").splitlines()[:1] if readme.is_file() else []
    if found != [identity] and is_claimed(out, readme.name):
        problem = f"OUT = {out} holds something else ({found[0] if found else 'no README.md of an import'})"
        raise InputError(f"{problem}; nothing was imported", action="give an empty directory")
    out.mkdir(parents=True, exist_ok=True)
    write_text(readme, f"{identity}\n\nMade by `moon import`, in the ingest layout: `moon ingest` takes it in.\n")


def write(draft: Draft, source: Path) -> dict[str, int]:
    """Write the relations as the shop's files, give them their names, and return the counts of an import's report.

    Raises :class:`~moon_ops.errors.InputError` if no event is left: there is nothing to ingest.
    """
    known = "SELECT item_id FROM catalogue WHERE title IS NOT NULL AND trim(title) <> ''"
    draft.make("kept", f"SELECT * FROM log WHERE timestamp IS NOT NULL AND item_id IN ({known})")
    events, logged = draft.count("SELECT count(*) FROM kept"), draft.count("SELECT count(*) FROM log")
    if not events:
        why = f"{counted(logged, 'row names', 'rows name')} no item that has a title" if logged else "the log has no rows to take"
        raise InputError(f"{source}: no event could be made ({why}); nothing was imported", action="bring the data set as it is published")
    vectors = _vectors(draft, source) if "given" in draft.relations else 0
    pictures = _link(draft, draft.picture_of) if draft.picture_of else 0  # after all that may be refused: what was linked stays
    for image, file in draft.photographs.items():
        bring(file.resolve(), draft.out / image)
    more = "".join(f", {name}" for name in ("session_id", "query_id", "rating") if name in columns(draft, "kept"))
    asked = "SELECT * FROM queries ORDER BY timestamp, query_id" if "queries" in draft.relations else NO_QUERIES
    tables = {"items": _items(draft), "queries": asked, "events": EVENT.format(more=more)}
    if "known" in draft.relations:
        tables["users"] = "SELECT * FROM known WHERE user_id IN (SELECT user_id FROM kept) ORDER BY user_id"
    for name, query in tables.items():
        target = files.literal(draft.work / f"{name}.parquet")
        draft.run(f"COPY ({query}) TO {target} (FORMAT parquet, COMPRESSION zstd)")
    for path in sorted(draft.work.glob("*.parquet"), reverse=True):  # items last: without it there is nothing to ingest
        put(path, draft.out / path.name)
    kinds = dict(draft.database.sql("SELECT event, count(*) FROM kept GROUP BY event").fetchall())
    return {
        "users": draft.count("SELECT count(DISTINCT user_id) FROM kept"),
        "items": draft.count("SELECT count(DISTINCT item_id) FROM kept"),
        **{f"{kind}s": kinds.get(kind, 0) for kind in ("impression", "click", "purchase")},
        "left_out": draft.left_out + logged - events,
        "pictures": pictures + len(draft.photographs),
        "vectors": vectors,
        "queries": draft.count("SELECT count(*) FROM queries") if "queries" in draft.relations else 0,
    }


def columns(draft: Draft, relation: str) -> list[str]:
    """The names of a relation's columns."""
    return [name for name, *_ in draft.database.sql(f"DESCRIBE {relation}").fetchall()]


def _items(draft: Draft) -> str:
    """The query of the items that occur, in the order of their ids."""
    chosen = "SELECT * FROM catalogue LEFT JOIN pictures USING (item_id)" if "pictures" in draft.relations else "SELECT * FROM catalogue"
    return f"{chosen} WHERE item_id IN (SELECT item_id FROM kept) ORDER BY item_id"


def _vectors(draft: Draft, source: Path) -> int:
    """Write ``vectors.parquet``, item_id and embedding (float32, unit length), of the items that occur; one that is all zeros has none."""
    query = """SELECT DISTINCT ON (item_id) item_id, embedding FROM given WHERE item_id IN (SELECT item_id FROM kept)
        ORDER BY item_id, embedding"""
    reader = draft.database.sql(query).to_arrow_reader(BATCH)
    written, writer = 0, None
    try:
        for batch in reader:
            rows = _unit(batch, source)
            writer = writer or pq.ParquetWriter(draft.work / "vectors.parquet", rows.schema, compression="zstd")
            writer.write_table(rows)
            written += rows.num_rows
    finally:
        if writer:
            writer.close()
    return written


def _unit(batch: pa.RecordBatch, source: Path) -> pa.Table:
    """The batch with its vectors scaled to length 1; :class:`InputError` for lists of several lengths and for what is no number."""
    column = batch["embedding"]
    widths = pc.unique(pc.list_value_length(column)).to_pylist()
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if len(widths) != 1 or not widths[0] or not np.isfinite(flat).all():
        raise InputError(
            f"{source}: the items' vectors (lists of {widths} numbers) are not finite numbers of one length; nothing was imported",
            action="bring the file of vectors as it is published",
        )
    values = flat.reshape(-1, widths[0])
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    there = lengths[:, 0] > 0
    scaled = pa.array((values[there] / lengths[there]).ravel(), pa.float32())
    ids = batch["item_id"].filter(pa.array(there))
    return pa.table({"item_id": ids, "embedding": pa.FixedSizeListArray.from_arrays(scaled, widths[0])})
