"""Produce vectors: embed what is due under an encoder and commit it, in chunks.

What there is to do is derived from the lake (:mod:`moon_ops.embeddings.due`), and a row is inserted only where there is none of its key.
So a run may be killed anywhere, repeated, and overlap with another: the table ends with the same rows, each once.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from moon_ops.embeddings import vector_tables
from moon_ops.embeddings.due import Work, contents, due, queries_due
from moon_ops.embeddings.pipeline import Embedded, embed_stream
from moon_ops.embeddings.runtime import Runtime
from moon_ops.embeddings.vector_tables import excused_table_name, query_table_name, table_name
from moon_ops.errors import StageError
from moon_ops.lake import changes
from moon_ops.lake.contract import Sample, item_sample, query_sample
from moon_ops.lake.tables import Lake

COMMIT = 1024  # items per commit: bounds memory and what a killed run loses
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbedReport:
    """What one run did: ``embedded`` + ``excused`` = what was due; ``total`` rows are in the table afterwards."""

    table: str
    contract_id: str
    embedded: int
    total: int
    excused: int = 0  # nothing of them could be read; the reasons are in excused/v<N>
    unread: int = 0  # pictures that could not be read: their items were embedded from what is left
    looked_at: int = 0  # item versions read to find out what is due


@dataclass(frozen=True)
class Plan:
    """What a run would do now."""

    items: int
    queries: int
    looked_at: int  # item versions read to find out
    seconds: float  # at the speed of the last run; not a number before the first


def plan(lake: Lake, version: int) -> Plan:
    """What :func:`embed` and :func:`embed_queries` would do under encoder ``version``; changes nothing."""
    work = due(lake, version)
    asked = queries_due(lake, version)[0].num_rows
    rate = changes.marks(lake, table_name(version)).get("rate", math.nan)
    count = work.rows.num_rows + asked
    return Plan(work.rows.num_rows, asked, work.looked_at, count / rate if count else 0.0)


def embed(lake: Lake, runtime: Runtime, version: int, *, now: dt.datetime, workers: int = 2) -> EmbedReport:
    """Embed what is due under encoder ``version`` and commit it; ``now`` is when the vectors become known.

    An item of which nothing can be read is listed in ``excused/v<version>`` and not tried again until it changes. Raises
    :class:`~moon_ops.errors.ContractError` if the table holds another encoder's vectors, :class:`StageError` if rows that were due are
    neither embedded nor excused at the end.
    """
    name, excuses = table_name(version), excused_table_name(version)
    for table in (name, excuses):
        vector_tables.create(lake, table, runtime)
    work, began = due(lake, version), time.perf_counter()
    embedded = excused = unread = 0
    waiting: deque[pa.Table] = deque()

    def samples() -> Iterator[Sample]:
        for chunk, items in contents(work, COMMIT):
            waiting.append(chunk)
            yield from map(item_sample, items)

    with tqdm(total=work.rows.num_rows, desc=f"embed v{version}", unit="item", disable=None if work.rows.num_rows else True) as bar:
        for made in embed_stream(lake, runtime, samples(), workers=workers, chunk=COMMIT):  # the next chunk is made while this is written
            chunk = waiting.popleft()
            good = _commit(lake, name, excuses, chunk, made, now)
            embedded, excused, unread = embedded + good, excused + chunk.num_rows - good, unread + len(made.unread)
            bar.update(chunk.num_rows)
    _require_complete(lake, work, name, excuses, version)
    rate = work.rows.num_rows / (time.perf_counter() - began)
    _remember(lake, name, "items", work.mark, rate if work.rows.num_rows else None)
    return EmbedReport(name, runtime.contract_id, embedded, lake.count(name), excused, unread, work.looked_at)


def embed_queries(lake: Lake, runtime: Runtime, version: int, *, now: dt.datetime, workers: int = 2) -> EmbedReport:
    """Embed the queries that have no vector yet under encoder ``version``: click models read what users asked for.

    A query whose picture cannot be read, and that has no text, keeps no vector: nobody asks for it again.
    """
    name = query_table_name(version)
    vector_tables.create(lake, name, runtime)
    work, mark = queries_due(lake, version)
    embedded = unread = 0
    with tqdm(total=work.num_rows, desc=f"embed queries v{version}", unit="query", disable=None if work.num_rows else True) as bar:
        asked = (query_sample(q) for batch in work.to_batches(COMMIT) for q in batch.to_pylist())
        for number, made in enumerate(embed_stream(lake, runtime, asked, workers=workers, chunk=COMMIT)):
            chunk = work.slice(number * COMMIT, COMMIT)
            keep = made.kept()
            rows = chunk.select(["query_id", "event_timestamp"]).take(keep)
            vector_tables.insert(lake, name, rows, {"embedding": vector_tables.as_column(made.vectors[keep])}, now)
            embedded, unread = embedded + len(keep), unread + len(made.unread)
            bar.update(chunk.num_rows)
    _remember(lake, name, "queries", mark, None)
    return EmbedReport(name, runtime.contract_id, embedded, lake.count(name), work.num_rows - embedded, unread, work.num_rows)


def _commit(lake: Lake, name: str, excuses: str, chunk: pa.Table, made: Embedded, now: dt.datetime) -> int:
    """Commit the vectors, and the reasons of those that have none; how many have one."""
    for image_id, reason in made.unread.items():
        log.warning("picture %s could not be read (%s): its item is embedded from what is left", image_id, reason)
    keep = made.kept()
    vector_tables.insert(lake, name, chunk.take(keep), {"embedding": vector_tables.as_column(made.vectors[keep])}, now)
    if made.excused:
        left = chunk.take(sorted(made.excused))
        vector_tables.insert(lake, excuses, left, {"reason": pa.array([made.excused[row] for row in sorted(made.excused)])}, now)
    return len(keep)


def _require_complete(lake: Lake, work: Work, name: str, excuses: str, version: int) -> None:
    """Embedded + excused = due; what arrived meanwhile is the next run's work."""
    if not work.rows.num_rows:
        return
    ids = work.rows["item_id"].combine_chunks().unique()
    there = [changes.rows_of(lake.open(table), "item_id", ids, ["version_id"])["version_id"] for table in (name, excuses)]
    wanted = vector_tables.version_ids(work.rows)
    found = pa.chunked_array([*there[0].chunks, *there[1].chunks], pa.string()).combine_chunks()
    missing = wanted.filter(pc.invert(pc.is_in(wanted, found)))
    if len(missing):
        raise StageError(
            f"{len(missing)} item versions still have no vector under encoder {version}, e.g. {missing[0]}",
            action=f"run `moon embed --encoder {version}` again",
        )


def _remember(lake: Lake, name: str, what: str, mark: int, rate: float | None) -> None:
    """Write the marks of a complete run where they have changed. Of two runs that end together one may lose this: it only looks again."""
    known = changes.marks(lake, name)
    fresh = {what: mark, **({"rate": rate} if rate else {})}
    if mark > known.get(what, changes.NOTHING):
        changes.mark(lake, name, **fresh)
