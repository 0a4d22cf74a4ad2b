"""Scalar indexes of the lake's tables: a few rows are found by their id in the same time, however many there are.

An index is a shortcut and no source. Rows written since it was brought up to date are scanned, and so is everything where there is no index
or one that cannot be read: that costs time and changes no answer. Whoever has written to a table calls :func:`tend`, which keeps such rows
few. Tables of fewer than :data:`LEAST` rows have no indexes: a scan is as quick.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from moon_ops.errors import in_a_line
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import STAMP

if TYPE_CHECKING:
    import lance

log = logging.getLogger(__name__)
COLUMNS = {  # table → what is asked by: few ids, and times after a moment
    "items": ("item_id", "created", "event_timestamp"),
    "users": ("user_id", "created"),
    "images": ("image_id",),
    "queries": ("query_id",),
    "events": ("event_id", "user_id", "event_timestamp"),
    "ids": ("key",),
    "erased": ("key",),
    "fetches": ("address",),
    "features/item_profile": ("profile_id", "item_id", "event_timestamp"),
    "features/item_stats": ("item_id", "event_timestamp"),
    "features/user_profile": ("profile_id", "user_id"),
    "features/user_behavior": ("behavior_id", "user_id", "event_timestamp"),
}
OF_ENCODERS = {  # likewise, of the tables embeddings/v<N> and so on
    "embeddings": ("version_id", "item_id", "event_timestamp"),
    "excused": ("version_id", "item_id"),
    "query_embeddings": ("query_id", "event_timestamp"),
}
LEAST = 10_000  # rows of a table that gets indexes
BEHIND_FILES, BEHIND_ROWS = 32, 20_000  # files and rows that may be scanned beside an index
SEGMENTS = 16  # of an index: each is searched, and beyond that they become one


def columns(table: str) -> tuple[str, ...]:
    """The columns of a table that have an index."""
    return COLUMNS.get(table) or OF_ENCODERS.get(table.partition("/")[0], ())


def read(dataset: lance.LanceDataset, names: Sequence[str], where: str) -> pa.Table:
    """The rows that a filter lets through, in the order they were written; by an index if there is one that can be read."""
    try:
        return dataset.to_table(columns=list(names), filter=where)
    except (OSError, ValueError) as fault:
        found = dataset.to_table(columns=list(names), filter=where, use_scalar_index=False)  # of a store that is away the same fault
        log.warning("an index of %s cannot be read (%s): the table is scanned until `moon maintain` has made it anew", dataset.uri, fault)
        return found


def insert(dataset: lance.LanceDataset, key: str, rows: pa.Table) -> None:
    """Add the rows whose ``key`` the table does not have, in one commit."""
    try:
        dataset.merge_insert([key]).when_not_matched_insert_all().execute(rows)
    except (OSError, ValueError) as fault:
        if not dataset.describe_indices():
            raise
        dataset.checkout_version(dataset.latest_version)
        dataset.merge_insert([key]).use_index(False).when_not_matched_insert_all().execute(rows)
        log.warning("an index of %s cannot be read (%s): the table is scanned until `moon maintain` has made it anew", dataset.uri, fault)


def tend(lake: Lake, table: str, *, anew: bool = False, least: int | None = None) -> None:
    """Make the indexes that a table lacks, and bring those up to date that many rows are not in yet; ``anew``: make all of them.

    Costs what is new. What hinders it is logged: the table is complete without.
    """
    least = LEAST if least is None else least
    if not (wanted := columns(table)) or not lake.exists(table):
        return
    dataset = lake.open(table)
    if dataset.count_rows() < least and not dataset.describe_indices():
        return
    try:
        _tend(dataset, [name for name in wanted if name in dataset.schema.names], anew=anew)
    except (OSError, ValueError) as fault:  # others have written meanwhile, or the disk is full: the next one makes it
        log.warning("the indexes of %s stay as they are (%s)", table, in_a_line(fault))


def _tend(dataset: lance.LanceDataset, wanted: Sequence[str], *, anew: bool) -> None:
    made = {index.field_names[0]: [set(segment.fragment_ids) for segment in index.segments] for index in dataset.describe_indices()}
    for name in wanted:
        if anew or len(made.get(name, ())) not in range(1, SEGMENTS + 1):
            dataset.create_scalar_index(name, "BTREE", name=f"{name}_idx", replace=True)
            dataset.checkout_version(dataset.latest_version)
            made[name] = [{fragment.fragment_id for fragment in dataset.get_fragments()}]
    seen = [set[int]().union(*made[name]) for name in wanted]
    late = [f for f in dataset.get_fragments() if any(f.fragment_id not in fragments for fragments in seen)]
    if len(late) > BEHIND_FILES or sum(f.count_rows() for f in late) > BEHIND_ROWS:
        dataset.optimize.optimize_indices(num_indices_to_merge=0)  # the new rows get a segment of their own


def moment(when: dt.datetime) -> str:
    """A time as Lance's filters spell it."""
    return f"timestamp '{pa.scalar(when, STAMP).cast(pa.timestamp('us')).as_py().isoformat(sep=' ')}'"


def literal(value: Any) -> str:
    """An id as Lance's filters spell it."""
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"
