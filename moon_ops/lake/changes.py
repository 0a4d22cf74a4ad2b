"""What has changed in a table since someone last looked: the rows of the fragments written after a mark that the reader keeps.

Tables only grow, by fragments whose numbers only rise, so "newer than fragment F" costs what is new, whatever the table holds. A
compaction writes old rows into new fragments: they are looked at once more, and found to be done. A mark is a number in the
configuration of the reader's own table, so it is committed with what it stands for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.lake import lookups
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS

if TYPE_CHECKING:
    import lance

NOTHING = -1  # the mark of who has looked at nothing yet
WRITERS = 20  # at the same moment, of whom each round one succeeds
NAMED = 2000  # ids in one filter; more are found by a scan of the column


def newest(dataset: lance.LanceDataset) -> int:
    """The mark of who has looked at all of this version."""
    return max((fragment.fragment_id for fragment in dataset.get_fragments()), default=NOTHING)


def content(dataset: lance.LanceDataset) -> str:
    """A text that is another for every other content: which files, each with a name of its own, hold the rows, and how many are deleted."""
    files = "\n".join(str(fragment.metadata) for fragment in dataset.get_fragments())
    return hashlib.sha256(files.encode()).hexdigest()


def newer(dataset: lance.LanceDataset, mark: int, columns: Sequence[str], where: str | None = None) -> pa.Table:
    """The rows written after ``mark``, in the order they were written; all of a table that has not come as far as the mark.

    Such a table was made anew, or brought back from a backup, since the mark was set: its numbers mean other rows.
    """
    mark = NOTHING if mark > newest(dataset) else mark
    fragments = [fragment for fragment in dataset.get_fragments() if fragment.fragment_id > mark]
    if not fragments:
        return pa.schema([dataset.schema.field(name) for name in columns]).empty_table()
    return dataset.scanner(columns=list(columns), fragments=fragments, filter=where).to_table()


def rows_of(dataset: lance.LanceDataset, key: str, ids: pa.Array, columns: Sequence[str], where: str | None = None) -> pa.Table:
    """All rows whose ``key`` is one of ``ids``, in the order they were written. Of few ids only those rows are read, by an index if there
    is one (:mod:`~moon_ops.lake.lookups`).
    """
    if len(ids) <= NAMED:
        also = f" AND ({where})" if where else ""
        named = ", ".join(map(lookups.literal, ids.drop_null().to_pylist())) or "NULL"
        return lookups.read(dataset, columns, f"{key} IN ({named}){also}")
    is_wanted, found = among(ids), []
    for batch in dataset.to_batches(columns=list(dict.fromkeys([key, *columns])), filter=where):
        kept = is_wanted(batch[key])
        found.append(batch.filter(kept).select(list(columns)))
    schema = pa.schema([dataset.schema.field(name) for name in columns])
    return pa.Table.from_batches(found, schema=schema)


def among(ids: pa.Array) -> Callable[[pa.Array], pa.Array]:
    """Whether cells are among the ids. Numbers are sorted once: Arrow would make a table of all ids for each batch."""
    if not pa.types.is_integer(ids.type):
        return partial(pc.is_in, value_set=ids)
    wanted = np.sort(ids.drop_null().to_numpy())
    if not len(wanted):
        return partial(pc.is_in, value_set=ids.drop_null())

    def are(cells: pa.Array) -> pa.Array:
        numbers = pc.fill_null(cells, -1).to_numpy(zero_copy_only=False)
        at = np.minimum(np.searchsorted(wanted, numbers), len(wanted) - 1)
        return pc.and_(pc.is_valid(cells), pa.array(wanted[at] == numbers))

    return are


def known(lake: Lake, table: str, asked: pa.ChunkedArray, columns: list[str]) -> pa.Table:
    """The rows of a shop's table with the ids asked for, which stand in the first of the ``columns``; none of one not written yet."""
    ids = asked.combine_chunks().unique().drop_null()
    if not len(ids) or not lake.exists(table):
        return SCHEMAS[table].empty_table().select(columns)
    return rows_of(lake.open(table), columns[0], ids, columns)


def mark(lake: Lake, table: str, **marks: float) -> None:
    """Write numbers into the table's configuration, in one commit. Of several at the same moment the last one counts."""
    patiently(lambda: lake.open(table).update_config({f"moon.{name}": repr(value) for name, value in marks.items()}))


def patiently(commit: Callable[[], object]) -> None:
    """Commit what Lance cannot merge with another commit of the same moment: configurations, and tables that are made anew."""
    for left in reversed(range(WRITERS)):
        try:
            commit()
            return
        except OSError as fault:
            if not left or not any(conflict in str(fault) for conflict in ("Incompatible transaction", "commit conflict")):
                raise


def erasures(lake: Lake) -> int:
    """How many times somebody has begun to erase items."""
    return int(marks(lake, "items").get("erasures", 0))


def marks(lake: Lake, table: str) -> dict[str, Any]:
    """The numbers in the table's configuration, by name; empty where the table has none or is not there."""
    if not lake.exists(table):
        return {}
    config = lake.open(table).config()
    return {name.removeprefix("moon."): float(value) for name, value in config.items() if name.startswith("moon.")}
