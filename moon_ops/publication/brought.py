"""Vectors that others made, e.g. of a public click log: brought as an encoder without a model, so that click models can learn on them.

It has a contract of its own (the file's hash), a version of ``moon-encoder`` and an embeddings table, so publication, features and click
models treat it like any other. What needs the model (embedding something new, recall, a release) refuses it.
"""

from __future__ import annotations

import datetime as dt
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moon_ops.embeddings import vector_tables
from moon_ops.embeddings.vector_tables import KEY, query_table_name, table_name
from moon_ops.errors import InputError
from moon_ops.inputs.contract import file_sha256
from moon_ops.lake.ids import MISSING, of_column
from moon_ops.registry.registry import ENCODER, Registry
from moon_ops.settings import Settings

CHUNK = 50_000  # item versions per commit
RECIPE = "brought"


@dataclass(frozen=True)
class Kind:
    """What a table of vectors is of: D and the contract."""

    dim: int
    contract_id: str


@dataclass(frozen=True)
class Brought:
    """The version of moon-encoder that stands for the vectors; of ``items`` versions in the lake, ``with_vector`` have one.

    ``trained_until`` is what is believed now; until now it was ``believed_before``, empty for new vectors. Publish again where they differ.
    """

    encoder: int
    contract_id: str
    trained_until: str
    believed_before: str
    dim: int
    items: int
    with_vector: int


def bring(settings: Settings, file: Path, *, trained_until: dt.datetime, now: dt.datetime) -> Brought:
    """Take the Parquet ``file`` (item_id, embedding) in as the vectors of the items of the lake; called again, it adds what is missing.

    ``trained_until`` is the time until when whatever made them has seen behaviour. Raises :class:`InputError` for a file that is not one.
    """
    ids, vectors, example = _read(file)
    kind, lake = Kind(vectors.shape[1], f"b-{file_sha256(file)[:12]}"), settings.lake
    items = lake.open("items").to_table(columns=[*KEY, "status"])
    items = items.filter(pc.and_(pc.equal(items["status"], "active"), pc.is_in(items["item_id"], pa.array(ids)))).select(list(KEY))
    if not items.num_rows:
        problem = f"none of the {len(ids)} ids in {file}, e.g. {example}, is an item of the lake"
        raise InputError(problem, action="ingest the shop that they belong to first")
    version, before = _version(settings, kind, trained_until)
    for name in (table_name(version), query_table_name(version)):
        vector_tables.create(lake, name, kind)
    for start in range(0, items.num_rows, CHUNK):
        rows = items.slice(start, CHUNK)
        found = vectors[np.searchsorted(ids, rows["item_id"].to_numpy())]
        vector_tables.insert(lake, table_name(version), rows, {"embedding": vector_tables.as_column(found)}, now)
    believed = trained_until.isoformat(), before
    return Brought(version, kind.contract_id, *believed, kind.dim, lake.count("items"), lake.count(table_name(version)))


def _version(settings: Settings, kind: Kind, trained_until: dt.datetime) -> tuple[int, str]:
    """The version that these vectors have, or a new one; and its ``trained_until`` before."""
    registry = Registry(settings)
    known = registry.client.search_model_versions(f"name = '{ENCODER}'") if registry.newest(ENCODER) else []
    for version in known:
        if version.tags.get("contract_id") == kind.contract_id:
            registry.tag(ENCODER, int(version.version), {"trained_until": trained_until.isoformat()})  # it may have been corrected
            return int(version.version), str(version.tags["trained_until"])
    run_id = registry.start_run("vectors brought", {"dim": kind.dim}, {"contract_id": kind.contract_id})
    tags = {"contract_id": kind.contract_id, "trained_until": trained_until.isoformat(), "recipe": RECIPE}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "vectors.json").write_text(json.dumps({"contract_id": kind.contract_id, "dim": kind.dim}) + "\n")
        made = registry.register(ENCODER, run_id, Path(scratch), tags)
    registry.finish(run_id)
    return made, ""


def _read(file: Path) -> tuple[NDArray[np.int64], NDArray[np.float32], object]:
    """Keys [N] of items, ascending, unit vectors [N, D], and an id as the file has it."""
    if not file.is_file():
        raise InputError(f"{file} is not there, or no file", action="name a Parquet file with the columns item_id and embedding")
    try:
        table = pq.read_table(file, columns=["item_id", "embedding"])
        numbers, lists = of_column("item_id", table["item_id"].combine_chunks()), table["embedding"].combine_chunks()
        lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
        values = lists.flatten().cast(pa.float32())
    except (OSError, ValueError, pa.ArrowException) as broken:
        problem = f"{file} holds no columns item_id and embedding ({str(broken).splitlines()[0]})"
        raise InputError(problem, action="bring a Parquet file with both") from broken
    if not table.num_rows or len(lengths) != 1 or not lengths[0] or (numbers == MISSING).any():
        raise InputError(f"{file}: {table.num_rows} rows, lengths of embedding {lengths[:5]}", action="bring vectors of one length")
    vectors = values.to_numpy(zero_copy_only=False).reshape(-1, lengths[0])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not (norms > 0).all() or len(np.unique(numbers)) != len(numbers):
        raise InputError(f"{file} holds vectors of no length, not of numbers, or two of one item", action="leave these out")
    order = np.argsort(numbers)
    return numbers[order], (vectors / norms)[order], table["item_id"][0].as_py()
