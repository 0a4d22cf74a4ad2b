"""The views of Feast as Parquet, for an offline store of the shop's own: BigQuery, Snowflake, Redshift, Spark, or files.

Feast's offline stores each know the tables of their own system and no lake of Lance, so a copy is what they can join. A row is stamped with
the first moment at which it is known, as in the lake. All is written beside the directory and moved there in one step; a few rows are in
memory at a time. What is erased from the lake later stays in the copy.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView

from moon_ops.embeddings import features
from moon_ops.embeddings.sequences import STORED, ClickSequences, owned
from moon_ops.errors import InputError
from moon_ops.files import locked, put
from moon_ops.lake import spills
from moon_ops.settings import Settings

IN_FILE = 1_000_000  # rows of a file
CLICKS = 1_000_000  # whose users' sequences are made together
NUMBERS = 2_000_000  # in the lists that are made together
GROUP = 32 * 2**20  # bytes that are written together


@dataclass(frozen=True)
class Copied:
    """What was written: the directory, and the rows of each view."""

    directory: str
    views: dict[str, int]


def export(settings: Settings, encoder: int, out: Path) -> Copied:
    """Write all views of ``ctr_v<encoder>`` as ``out/<view>/<number>.parquet``: key, features, ``event_timestamp``, ``created``.

    Raises :class:`~moon_ops.errors.StageError` for an encoder that was never published, :class:`InputError` where something is already,
    and :class:`~moon_ops.files.TakenError` where another copy is being written there.
    """
    out = out.absolute()
    if out.is_symlink() or out.exists():
        raise InputError(f"{out} is there already; nothing was written", action="name a directory that is not there yet")
    if above := next((place for place in out.parents if place.exists() and not place.is_dir()), None):
        raise InputError(f"{above} is no directory; nothing was written", action="name a directory that can be made")
    store = features.open_store(settings)
    views = [store.get_feature_view(one.name) for one in features.service(store, encoder).feature_view_projections]
    beside = out.with_name(f".{out.name}.moon-partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock := out.with_name(f".{out.name}.moon.lock"), patience=0):
        try:
            shutil.rmtree(beside, ignore_errors=True)  # of one that was killed
            with settings.lake.erasing(shared=True):  # else what is erased meanwhile would be in the copy
                counts = {view.name: _write(_rows(view), beside / view.name) for view in views}
            put(beside, out)
        finally:
            shutil.rmtree(beside, ignore_errors=True)  # a full disk has its room back
            lock.unlink()
    return Copied(str(out), counts)


def _rows(view: FeatureView) -> Iterator[pa.Table]:
    """All rows of a view, some at a time, with the columns that an offline store reads."""
    source, dataset = view.batch_source, features.dataset_of(view)
    assert source is not None, "every view here reads a table of the lake"
    names = [view.join_keys[0], *(feature.name for feature in view.features), source.timestamp_field, source.created_timestamp_column]
    stored = list(STORED) if isinstance(source, ClickSequences) else names
    none, batches = pa.schema([dataset.schema.field(name) for name in stored]).empty_table(), dataset.to_batches(columns=stored)
    if isinstance(source, ClickSequences):
        found = itertools.chain([source.of(none)], _sequences(source, batches, dataset.count_rows()))
        yield from (owned(rows.select(names)) for rows in found)
    else:
        yield from (_plain(rows) for rows in itertools.chain([none], (pa.Table.from_batches([batch]) for batch in batches)))


def _sequences(source: ClickSequences, clicks: Iterable[pa.RecordBatch], count: int) -> Iterator[pa.Table]:
    """What clicks make, of some users after others; a row has up to ``source.length`` of them in each list."""
    parts = spills.Parts(1 + count // CLICKS)
    for batch in clicks:
        parts.add(pa.Table.from_batches([batch]), np.asarray(batch["user_id"]) % parts.count)
    few = max(1, NUMBERS // max(source.length, 1))
    for part in parts:
        rows = source.of(part)
        yield from (rows.slice(start, few) for start in range(0, rows.num_rows, few))


def _plain(rows: pa.Table) -> pa.Table:
    """Vectors as lists, which every system knows; those of one length are Arrow's own."""
    kinds = {f.name: pa.list_(f.type.value_type) if pa.types.is_fixed_size_list(f.type) else f.type for f in rows.schema}
    return rows.cast(pa.schema(list(kinds.items())))


def _write(tables: Iterator[pa.Table], place: Path) -> int:
    """Files of some rows each; how many rows there are. A view without rows has a file that says its columns."""
    place.mkdir(parents=True)
    writer, number, count = None, 0, 0
    for rows in _groups(tables):
        if writer is None or count >= number * IN_FILE:
            if writer is not None:
                writer.close()
            writer = pq.ParquetWriter(place / f"{number:05}.parquet", rows.schema, compression="zstd")
            number += 1
        writer.write_table(rows)
        count += rows.num_rows
    if writer is not None:
        writer.close()
    return count


def _groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, so many bytes at a time: Parquet's row groups."""
    waiting, size = list[pa.Table](), 0
    for table in tables:
        waiting.append(table)
        size += table.nbytes
        if size >= GROUP:
            yield pa.concat_tables(waiting)
            waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting)
