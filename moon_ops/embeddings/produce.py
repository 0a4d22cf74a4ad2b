"""Produce vectors: embed every item version that has none yet under an encoder, and commit them to ``embeddings/v<N>``.

What there is to do is derived from the lake, so a killed run is repeated and an overlapping one does no harm: a vector is inserted
only where its item version still has none. Two commits at the very same moment may both insert it; every reader takes one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import duckdb
import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm import tqdm

from moon_ops.embeddings.runtime import Runtime
from moon_ops.errors import StageError
from moon_ops.lake.contract import Sample, item_sample, query_sample, require_same
from moon_ops.lake.images import decode
from moon_ops.lake.regions import views
from moon_ops.lake.tables import STAMP, Lake, embeddings_schema, image_bytes, items_as_of

COMMIT = 1024  # items per commit: bounds memory and what a killed run loses
KEY = ("item_id", "content_hash", "event_timestamp")
CONTRACT = b"contract_id"  # in the table's schema metadata


@dataclass(frozen=True)
class EmbedReport:
    """What one run embedded; ``total`` rows are in the table afterwards."""

    table: str
    contract_id: str
    embedded: int
    total: int


def table_name(version: int) -> str:
    """The embeddings table of encoder ``version``, e.g. ``embeddings/v3``."""
    return f"embeddings/v{version}"


def query_table_name(version: int) -> str:
    """The table of the queries' vectors under encoder ``version``."""
    return f"query_embeddings/v{version}"


def due(lake: Lake, version: int) -> pa.Table:
    """The item versions without a vector under the encoder, with what an encoder reads of them, oldest first.

    A version that changed nothing an encoder reads (a new price) needs no vector of its own, nor does one that was deleted, or corrected
    before it became valid.
    """
    lake.open("items")
    items = lake.read("items")
    name = table_name(version)
    done = lake.read(name, KEY) if lake.exists(name) else pa.table({k: items[k].slice(0, 0) for k in KEY})  # noqa: F841
    items = items.append_column("number", pa.array(range(items.num_rows), pa.int64()))
    query = f"""WITH versions AS (
        SELECT * FROM items QUALIFY row_number() OVER (PARTITION BY item_id, event_timestamp ORDER BY created DESC, number DESC) = 1),
    shown AS (
        SELECT *, lag(content_hash) OVER (PARTITION BY item_id ORDER BY event_timestamp) AS before FROM versions WHERE status = 'active')
    SELECT item_id, content_hash, event_timestamp, title, category, brand, description, attributes, image_ids
    FROM shown ANTI JOIN done USING ({", ".join(KEY)})
    WHERE content_hash IS DISTINCT FROM before ORDER BY event_timestamp, item_id"""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.sql(query).to_arrow_table()


def embed(lake: Lake, runtime: Runtime, version: int, *, now: dt.datetime, workers: int = 2) -> EmbedReport:
    """Embed what is due under encoder ``version`` and commit it; ``now`` is when the vectors become known.

    Raises :class:`~moon_ops.errors.ContractError` if the table holds another encoder's vectors, :class:`StageError` if rows that were due
    are still missing at the end.
    """
    name = table_name(version)
    _create(lake, name, runtime)
    work = due(lake, version)
    if not work.num_rows:
        return EmbedReport(name, runtime.contract_id, 0, lake.count(name))
    with ThreadPoolExecutor(workers) as pool, tqdm(total=work.num_rows, desc=f"embed v{version}", unit="item") as bar:
        for start in range(0, work.num_rows, COMMIT):
            chunk = work.slice(start, COMMIT)
            vectors = embed_samples(lake, runtime, [item_sample(i) for i in chunk.to_pylist()], pool)
            _insert(lake, name, chunk, vectors, now)
            bar.update(chunk.num_rows)
    keys = [pc.binary_join_element_wise(*(t[k].cast(pa.string()) for k in KEY), "|") for t in (due(lake, version), work)]
    left = pc.sum(pc.is_in(keys[0], keys[1].combine_chunks())).as_py()  # what arrived meanwhile is the next run's work
    if left:
        raise StageError(
            f"{left} item versions still have no vector under encoder {version}", action=f"run `moon embed --encoder {version}` again"
        )
    return EmbedReport(name, runtime.contract_id, work.num_rows, lake.count(name))


def embed_samples(lake: Lake, runtime: Runtime, samples: list[Sample], pool: ThreadPoolExecutor) -> NDArray[np.float32]:
    """Vectors [B, D] of samples whose pictures are in the lake."""
    layout = runtime.contract.layout
    wanted = list(dict.fromkeys(i for s in samples for i in s.image_ids[: layout.max_pictures]))
    made = pool.map(lambda p: (p[0], views(decode(p[1]), layout.picture_size, layout.core_region)), image_bytes(lake, wanted))
    pixels = dict(made)
    return runtime.embed(samples, pixels)


def chunks(samples: list[Sample], size: int = COMMIT) -> Iterator[list[Sample]]:
    """The samples in pieces that fit in memory with their pictures."""
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def embed_queries(lake: Lake, runtime: Runtime, version: int, *, now: dt.datetime, workers: int = 2) -> EmbedReport:
    """Embed the queries that have no vector yet under encoder ``version``: click models read what users asked for."""
    name = query_table_name(version)
    if not lake.exists(name):
        lake.append(name, _query_schema(runtime).empty_table())
    require_same(runtime.contract_id, _contract(lake, name), what=f"table {name}")
    queries = lake.read("queries", ["query_id", "text", "image_id", "event_timestamp"])
    work = queries.filter(pc.invert(pc.is_in(queries["query_id"], lake.read(name, ["query_id"])["query_id"].combine_chunks())))
    if not work.num_rows:
        return EmbedReport(name, runtime.contract_id, 0, lake.count(name))
    with ThreadPoolExecutor(workers) as pool, tqdm(total=work.num_rows, desc=f"embed queries v{version}", unit="query") as bar:
        for start in range(0, work.num_rows, COMMIT):
            chunk = work.slice(start, COMMIT)
            vectors = embed_samples(lake, runtime, [query_sample(q) for q in chunk.to_pylist()], pool)
            rows = chunk.select(["query_id", "event_timestamp"]).append_column("embedding", _column(vectors))
            rows = rows.append_column("created", pa.array([now] * len(vectors), STAMP))
            rows = rows.select(_query_schema(runtime).names).cast(_query_schema(runtime))
            lance.dataset(lake.address(name)).merge_insert(["query_id"]).when_not_matched_insert_all().execute(rows)
            bar.update(chunk.num_rows)
    return EmbedReport(name, runtime.contract_id, work.num_rows, lake.count(name))


def _query_schema(runtime: Runtime) -> pa.Schema:
    """Like the items' table, keyed by query: a query never changes, so it has no content hash."""
    fields = [pa.field("query_id", pa.int64(), nullable=False)]
    fields += [f for f in embeddings_schema(runtime.dim) if f.name not in ("item_id", "content_hash")]
    return pa.schema(fields, metadata={CONTRACT: runtime.contract_id.encode()})


def vectors_as_of(lake: Lake, version: int, when: dt.datetime) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids [N], ascending, and vectors [N, D] of the item versions valid at ``when``, straight from the lake.

    Deleted items are left out. Training and serving read the same through Feast; this is for evaluation against a whole catalogue.
    """
    lake.open(table_name(version), needs=f"moon embed --encoder {version}")
    rows = lake.read(table_name(version), ["item_id", "event_timestamp", "created", "embedding"])
    active = items_as_of(lake, when, ["item_id"])["item_id"].combine_chunks()
    rows = rows.filter(pc.and_(pc.less_equal(rows["event_timestamp"], pa.scalar(when, STAMP)), pc.is_in(rows["item_id"], active)))
    order = pc.sort_indices(rows, [("item_id", "ascending"), ("event_timestamp", "ascending"), ("created", "ascending")])
    rows = rows.take(order)
    ids = rows["item_id"].to_numpy()
    last = np.append(ids[1:] != ids[:-1], True) if len(ids) else np.zeros(0, bool)
    dim = rows.schema.field("embedding").type.list_size
    vectors = rows["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    return ids[last], vectors[last]


def contract_of(lake: Lake, version: int) -> str:
    """The contract id that the embeddings table was made with."""
    lake.open(table_name(version), needs=f"moon embed --encoder {version}")
    return _contract(lake, table_name(version))


def _contract(lake: Lake, name: str) -> str:
    return (lake.open(name).schema.metadata or {}).get(CONTRACT, b"").decode()


def _column(vectors: NDArray[np.float32]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])


def _create(lake: Lake, name: str, runtime: Runtime) -> None:
    """The empty table with its contract, or a check that the table there is of the same contract."""
    if not lake.exists(name):
        schema = embeddings_schema(runtime.dim).with_metadata({CONTRACT: runtime.contract_id.encode()})
        lake.append(name, schema.empty_table())
    require_same(runtime.contract_id, _contract(lake, name), what=f"table {name}")


def _insert(lake: Lake, name: str, chunk: pa.Table, vectors: NDArray[np.float32], now: dt.datetime) -> None:
    """Commit the vectors of item versions that have none yet; another run may have been quicker."""
    rows = chunk.select(list(KEY)).append_column("embedding", _column(vectors))
    schema = embeddings_schema(vectors.shape[1])
    rows = rows.append_column("created", pa.array([now] * len(vectors), STAMP)).select(schema.names).cast(schema)
    lance.dataset(lake.address(name)).merge_insert(list(KEY)).when_not_matched_insert_all().execute(rows)
