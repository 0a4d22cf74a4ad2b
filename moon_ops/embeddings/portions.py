"""Portions of work: what a few due rows show to an encoder, and where their vectors go. The same for every engine.

A portion reads what it needs from the lake and commits what it made, so that it can be done by any thread, process or machine, and done
again: a row is inserted only where there is none of its key.
"""

from __future__ import annotations

import datetime as dt
import logging
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from moon_ops.embeddings import vector_tables
from moon_ops.embeddings.due import contents, known
from moon_ops.embeddings.pipeline import Embedded
from moon_ops.embeddings.vector_tables import excused_table_name, query_table_name, table_name
from moon_ops.inputs.contract import Sample, item_sample, query_sample
from moon_ops.lake import changes
from moon_ops.lake.lake import Lake

SIZE = 1024  # rows of a portion: bounds memory and what a killed worker loses
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Count:
    """What became of some rows: ``excused`` of them could not be read at all, of others ``unread`` pictures."""

    embedded: int = 0
    excused: int = 0
    unread: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.embedded + other.embedded, self.excused + other.excused, self.unread + other.unread)


class Portions(Protocol):
    """Rows of one kind under one encoder. May be pickled."""

    def samples(self, rows: pa.Table) -> list[Sample]:
        """What each row shows."""

    def commit(self, rows: pa.Table, made: Embedded) -> Count:
        """Write the rows' vectors, as known from the time of this run on."""


@dataclass(frozen=True)
class Items:
    """Item versions, with the columns of ``vector_tables.KEY``. One that is erased meanwhile leaves no trace."""

    lake: Lake
    encoder: int
    now: dt.datetime
    erasures: int  # there had been, when the work was found

    def samples(self, rows: pa.Table) -> list[Sample]:
        """Text and pictures of each item version; nothing of one that was erased."""
        return [item_sample(item) for item in contents(self.lake.open("items"), rows)]

    def commit(self, rows: pa.Table, made: Embedded) -> Count:
        """Vectors go to ``embeddings/v<N>``, and the reasons of those that have none to ``excused/v<N>``."""
        for image_id, reason in made.unread.items():
            log.warning("picture %s could not be read (%s): its item is embedded from what is left", image_id, reason)
        with self.lake.erasing(shared=True):
            same = changes.erasures(self.lake) == self.erasures  # else all of the table's ids would be looked through each time
            there = [True] * rows.num_rows if same else known(self.lake.open("items"), rows)
            keep = [row for row in made.kept() if there[row]]
            left = [row for row in sorted(made.excused) if there[row]]
            vectors = {"embedding": vector_tables.as_column(made.vectors[keep])}
            vector_tables.insert(self.lake, table_name(self.encoder), rows.take(keep), vectors, self.now)
            if left:
                reasons = pa.array([made.excused[row] for row in left])
                vector_tables.insert(self.lake, excused_table_name(self.encoder), rows.take(left), {"reason": reasons}, self.now)
        return Count(len(keep), len(left), len(made.unread))


@dataclass(frozen=True)
class Queries:
    """Queries, with all that an encoder reads of them in their rows."""

    lake: Lake
    encoder: int
    now: dt.datetime

    def samples(self, rows: pa.Table) -> list[Sample]:
        """Text and picture of each query."""
        return [query_sample(query) for query in rows.to_pylist()]

    def commit(self, rows: pa.Table, made: Embedded) -> Count:
        """Vectors go to ``query_embeddings/v<N>``. A query of which nothing can be read keeps none: nobody asks for it again."""
        keep = made.kept()
        kept = rows.select(["query_id", "event_timestamp"]).take(keep)
        column = {"embedding": vector_tables.as_column(made.vectors[keep])}
        vector_tables.insert(self.lake, query_table_name(self.encoder), kept, column, self.now)
        return Count(len(keep), rows.num_rows - len(keep), len(made.unread))
