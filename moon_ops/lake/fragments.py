"""Tables written in parts that nobody sees until all of them are there, and then at once.

A part's file is no row of any table until it is committed, so whoever writes it may be killed and do it again; what is left behind of the
first time, ``moon maintain`` removes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from moon_ops.lake.lake import Lake

if TYPE_CHECKING:
    from lance.fragment import FragmentMetadata


def written(address: str, rows: pa.Table) -> list[FragmentMetadata]:
    """Write rows beside the table at an ``address``, which need not be there yet; none for no rows."""
    from lance.fragment import write_fragments

    return list(write_fragments(rows, address, schema=rows.schema, mode="overwrite")) if rows.num_rows else []


def commit(lake: Lake, name: str, schema: pa.Schema, fragments: Iterable[FragmentMetadata]) -> None:
    """Make the table anew of what was written; readers see the old table or the new one."""
    import lance

    version = lake.open(name).version if lake.exists(name) else None
    lance.LanceDataset.commit(lake.address(name), lance.LanceOperation.Overwrite(schema, list(fragments)), read_version=version)


@contextlib.contextmanager
def reader(schema: pa.Schema, tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatchReader]:
    """A reader for Lance, which asks for one table after another. An error of theirs is raised as it is: Lance would make a text of it."""
    raised: list[Exception] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for table in tables:
                yield from table.to_batches()
        except Exception as fault:
            raised.append(fault)
            raise

    try:
        yield pa.RecordBatchReader.from_batches(schema, batches())
    except Exception as fault:
        if raised:
            raise raised[0] from fault
        raise
