"""Produce vectors: embed what is due under an encoder and commit it, in portions, on one machine or many.

What there is to do is derived from the lake (:mod:`moon_ops.embeddings.due`), and a row is inserted only where there is none of its key.
So a run may be killed anywhere, repeated, and overlap with another: the table ends with the same rows, each once.
"""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from moon_ops.embeddings import vector_tables
from moon_ops.embeddings.due import Work, due, known, queries_due
from moon_ops.embeddings.engines import Engine, local
from moon_ops.embeddings.portions import Count, Items, Portions, Queries
from moon_ops.embeddings.runtime import Runtime
from moon_ops.embeddings.vector_tables import excused_table_name, query_table_name, table_name
from moon_ops.errors import StageError
from moon_ops.lake import changes, lookups
from moon_ops.lake.lake import Lake


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
    seconds: float | None  # at the speed of the last run; unknown before the first


def plan(lake: Lake, version: int) -> Plan:
    """What :func:`embed` and :func:`embed_queries` would do under encoder ``version``; changes nothing."""
    work = due(lake, version)
    asked = queries_due(lake, version)[0].num_rows
    rate, count = changes.marks(lake, table_name(version)).get("rate"), work.rows.num_rows + asked
    return Plan(work.rows.num_rows, asked, work.looked_at, count / rate if rate else None if count else 0.0)


def embed(lake: Lake, runtime: Runtime, version: int, *, now: dt.datetime, workers: int = 2, engine: Engine | None = None) -> EmbedReport:
    """Embed what is due under encoder ``version`` and commit it; ``now`` is when the vectors become known.

    An item of which nothing can be read is listed in ``excused/v<version>`` and not tried again until it changes. Raises
    :class:`~moon_ops.errors.ContractError` if the table holds another encoder's vectors, :class:`StageError` if rows that were due are
    neither embedded nor excused at the end.
    """
    name, excuses = table_name(version), excused_table_name(version)
    for table in (name, excuses):
        vector_tables.create(lake, table, runtime)
    erasures = changes.erasures(lake)  # before the work is found
    work, began = due(lake, version), time.perf_counter()
    again = pc.is_in(work.superseded, vector_tables.version_ids(work.rows))
    vector_tables.withdraw(lake, name, work.superseded.filter(again))  # they are due, and inserted only where there are none
    count = _run(engine or local(runtime), lake, Items(lake, version, now, erasures), work.rows, workers, f"embed v{version}")
    _require_complete(lake, work, name, excuses, version)
    vector_tables.withdraw(lake, name, work.superseded.filter(pc.invert(again)))  # now that their successors are there
    rate = work.rows.num_rows / (time.perf_counter() - began)
    _remember(lake, name, "items", work.mark, rate if work.rows.num_rows else None)
    for table in (name, excuses):
        lookups.tend(lake, table)
    return EmbedReport(name, runtime.contract_id, count.embedded, lake.count(name), count.excused, count.unread, work.looked_at)


def embed_queries(
    lake: Lake, runtime: Runtime, version: int, *, now: dt.datetime, workers: int = 2, engine: Engine | None = None
) -> EmbedReport:
    """Embed the queries that have no vector yet under encoder ``version``: click models read what users asked for.

    A query whose picture cannot be read, and that has no text, keeps no vector: nobody asks for it again.
    """
    name = query_table_name(version)
    vector_tables.create(lake, name, runtime)
    rows, mark = queries_due(lake, version)
    count = _run(engine or local(runtime), lake, Queries(lake, version, now), rows, workers, f"embed queries v{version}")
    _remember(lake, name, "queries", mark, None)
    lookups.tend(lake, name)
    return EmbedReport(name, runtime.contract_id, count.embedded, lake.count(name), count.excused, count.unread, rows.num_rows)


def _run(engine: Engine, lake: Lake, portions: Portions, rows: pa.Table, workers: int, title: str) -> Count:
    """Let an engine deal with the due rows; what became of them."""
    total = Count()
    with tqdm(total=rows.num_rows, desc=title, unit="row", disable=None if rows.num_rows else True) as bar:
        for count in engine(lake, portions, rows, workers):
            total += count
            bar.update(count.embedded + count.excused)
    return total


def _require_complete(lake: Lake, work: Work, name: str, excuses: str, version: int) -> None:
    """Embedded + excused = due; what arrived meanwhile is the next run's work, and nothing is due of what was erased meanwhile."""
    if not work.rows.num_rows:
        return
    ids = work.rows["item_id"].combine_chunks().unique()
    there = [changes.rows_of(lake.open(table), "item_id", ids, ["version_id"])["version_id"] for table in (name, excuses)]
    wanted = vector_tables.version_ids(work.rows)
    found = pa.chunked_array([*there[0].chunks, *there[1].chunks], pa.string()).combine_chunks()
    missing = wanted.filter(pc.invert(pc.is_in(wanted, found)))
    if len(missing):
        left = work.rows.filter(pc.is_in(wanted, missing))
        missing = pc.filter(missing, pa.array(known(lake.open("items"), left)))
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
