"""The tables of vectors: ``embeddings/v<N>`` of items, ``query_embeddings/v<N>`` of queries, ``excused/v<N>`` of what cannot be embedded.

Each is of one contract, which stands in its metadata. A row has a key of one column, so that two commits at the same moment that insert
the same row are seen by Lance, and the later one inserts only what is still missing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Protocol

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.errors import StageError
from moon_ops.inputs.contract import require_same
from moon_ops.lake import lookups
from moon_ops.lake.lake import Lake
from moon_ops.lake.query import newest
from moon_ops.lake.schemas import PRIMARY, STAMP, embeddings_schema
from moon_ops.lake.tables import items_as_of
from moon_ops.pieces import let_go, spans, spilled

KEY = ("item_id", "content_hash", "event_timestamp")  # of an item version
VALID = ("event_timestamp", "created")  # what tells which of an item's rows is the newest one
BATCH = 16_384  # rows read at a time
CONTRACT = b"contract_id"  # in a table's schema metadata


def table_name(version: int) -> str:
    """The embeddings table of encoder ``version``, e.g. ``embeddings/v3``."""
    return f"embeddings/v{version}"


def query_table_name(version: int) -> str:
    """The table of the queries' vectors under encoder ``version``."""
    return f"query_embeddings/v{version}"


def excused_table_name(version: int) -> str:
    """The table of the item versions that encoder ``version`` cannot read, with the reason."""
    return f"excused/v{version}"


def version_ids(rows: pa.Table) -> pa.ChunkedArray:
    """One string for each item version: item, valid from [µs], content."""
    moment = rows["event_timestamp"].cast(STAMP).cast(pa.int64()).cast(pa.string())
    return pc.binary_join_element_wise(rows["item_id"].cast(pa.string()), moment, rows["content_hash"], "-")


def schema_of(name: str, dim: int, contract_id: str) -> pa.Schema:
    """The schema of one of the tables; a query never changes, so its table has no content hash."""
    schema = embeddings_schema(dim)
    if name.startswith("query_"):
        key = pa.field("query_id", pa.int64(), nullable=False, metadata=PRIMARY)
        schema = pa.schema([key, *(f for f in schema if f.name not in ("version_id", "item_id", "content_hash"))])
    if name.startswith("excused/"):
        schema = pa.schema([f if f.name != "embedding" else pa.field("reason", pa.string(), nullable=False) for f in schema])
    return schema.with_metadata({CONTRACT: contract_id.encode()})


class Kind(Protocol):
    """What makes vectors: an opened encoder, or a file of them."""

    @property
    def dim(self) -> int:
        """D."""

    @property
    def contract_id(self) -> str:
        """What tells them from others."""


def create(lake: Lake, name: str, made_by: Kind) -> None:
    """The empty table with its contract, or a check that the one there is of the same contract and layout."""
    schema = schema_of(name, made_by.dim, made_by.contract_id)
    if not lake.exists(name):
        lake.append(name, schema.empty_table())
    require_same(made_by.contract_id, contract_in(lake, name), what=f"table {name}")
    found = lake.open(name).schema
    if found.names != schema.names:
        raise StageError(
            f"table {name} has columns {', '.join(found.names)}: an older moon_ops wrote it, and it cannot be added to",
            action=f"remove {lake.address(name)} and run the command again; every vector is made anew",
        )


def insert(lake: Lake, name: str, rows: pa.Table, columns: Mapping[str, pa.Array], now: dt.datetime) -> None:
    """Commit ``rows`` with further ``columns`` where the table has none of that key yet: another run may have been quicker."""
    for column, values in columns.items():
        rows = rows.append_column(column, values)
    rows = rows.append_column("created", pa.array([now] * rows.num_rows, STAMP))
    key = "query_id" if name.startswith("query_") else "version_id"
    if key == "version_id":
        rows = rows.append_column(key, version_ids(rows))
    table = lake.open(name)
    lookups.insert(table, key, rows.select(table.schema.names).cast(table.schema))


def withdraw(lake: Lake, name: str, version_ids: pa.Array) -> None:
    """Remove the rows with these keys."""
    if len(version_ids):
        lake.open(name).delete(f"version_id IN ({', '.join(repr(key) for key in version_ids.to_pylist())})")


def as_column(vectors: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """Vectors [N, D] as a column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])


def as_matrix(column: pa.ChunkedArray, dim: int) -> NDArray[np.float32]:
    """A column of vectors as a matrix [N, D]."""
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)


def dim_of(dataset: lance.LanceDataset) -> int:
    """D, the length of the table's vectors."""
    return int(dataset.schema.field("embedding").type.list_size)


def vectors_as_of(lake: Lake, version: int, when: dt.datetime) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids [N], ascending, and vectors [N, D] of the item versions valid at ``when``, straight from the lake.

    Deleted items are left out. This is for evaluation against a whole catalogue: the vectors may be a file's (:func:`.pieces.spilled`).
    """
    dataset = lake.open(table_name(version), needs=f"moon embed --encoder {version}")
    rows = dataset.to_table(columns=[*VALID, "item_id"], with_row_id=True)
    active = items_as_of(lake, when, ["item_id"])["item_id"].combine_chunks()
    rows = _valid(rows.filter(pc.is_in(rows["item_id"], active)), when, "item_id")
    return rows["item_id"].to_numpy(), _vectors_of(dataset, rows["_rowid"].to_numpy())


def all_at(dataset: lance.LanceDataset, key: str, when: dt.datetime) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Of each ``key`` in a table the vector valid at ``when``: ids, ascending, and vectors [M, D], some at a time, after one scan."""
    rows = _valid(dataset.to_table(columns=[*VALID, key], with_row_id=True), when, key)
    ids, vectors = rows[key].to_numpy(), _vectors_of(dataset, rows["_rowid"].to_numpy())
    for some in spans(len(ids)):
        yield ids[some], vectors[some]
        let_go(vectors)


def _vectors_of(dataset: lance.LanceDataset, wanted: NDArray[np.uint64]) -> NDArray[np.float32]:
    """The vectors [N, D] of the rows ``wanted`` [N], in their order: one scan, a batch in memory at a time."""
    found, order = spilled(len(wanted), dim_of(dataset)), np.argsort(wanted)
    ascending = wanted[order]
    for batch in dataset.to_batches(columns=["embedding"], with_row_id=True, batch_size=BATCH) if len(wanted) else ():
        rows = batch["_rowid"].to_numpy()
        place = np.minimum(np.searchsorted(ascending, rows), len(ascending) - 1)
        chosen = ascending[place] == rows
        found[order[place[chosen]]] = as_matrix(pa.chunked_array([batch["embedding"]]), found.shape[1])[chosen]
        let_go(found)
    return found


def newest_valid(rows: pa.Table, when: dt.datetime, key: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each ``key`` the vector that became valid last, at ``when`` at the latest: ids [N], ascending, and vectors [N, D]."""
    rows = _valid(rows, when, key)
    return rows[key].to_numpy(), as_matrix(rows["embedding"], rows.schema.field("embedding").type.list_size)


def _valid(rows: pa.Table, when: dt.datetime, key: str) -> pa.Table:
    return newest(rows.filter(pc.less_equal(rows["event_timestamp"], pa.scalar(when, STAMP))), key)


def contract_of(lake: Lake, version: int) -> str:
    """The contract id that the embeddings table was made with."""
    lake.open(table_name(version), needs=f"moon embed --encoder {version}")
    return contract_in(lake, table_name(version))


def contract_in(lake: Lake, name: str) -> str:
    """The contract id in a table's metadata; empty if it has none."""
    return (lake.open(name).schema.metadata or {}).get(CONTRACT, b"").decode()
