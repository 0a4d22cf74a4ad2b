"""The lake's tables: the rows of them that are valid at a time. Nothing is edited in place.

A table is a Lance dataset under the lake's address (a directory, or an object store). Appends commit atomically, so a reader
sees all rows of a commit or none, and a killed writer leaves nothing behind that a reader could meet.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.lake import lookups
from moon_ops.lake.lake import Lake
from moon_ops.lake.query import newest
from moon_ops.lake.schemas import STAMP, VALIDITY

if TYPE_CHECKING:
    import lance

FEW, AT_ONCE = 4, 256  # pictures that are read together: at first, while nobody knows how large they are, and at most
BYTES_AT_ONCE = 16 * 2**20  # and bytes of them, if they are no larger than those before


def items_as_of(lake: Lake, when: dt.datetime, columns: Sequence[str] | None = None) -> pa.Table:
    """The version of each item that is valid at ``when``, active ones only, ordered by item_id."""
    table = lake.open("items")  # a shop without items is an error here, not an empty catalogue
    wanted = list(columns) if columns is not None else table.schema.names
    return active_as_of(lake.read("items", list(dict.fromkeys([*wanted, *VALIDITY]))), when).select(wanted)


def active_as_of(versions: pa.Table, when: dt.datetime) -> pa.Table:
    """Of versions of items (with the columns of ``VALIDITY``) those valid at ``when`` and active, ordered by item_id.

    Of several versions the one that became valid last is taken, and among those the one learned last.
    """
    table = versions.filter(pc.less_equal(versions["event_timestamp"], pa.scalar(when, STAMP)))
    table = newest(table, "item_id")
    return table.filter(pc.equal(table["status"], pa.scalar("active")))


def image_bytes(lake: Lake, image_ids: Sequence[str], batch: int = 1024) -> Iterator[tuple[str, bytes]]:
    """``(image_id, bytes)`` of the pictures wanted, each once; ``batch`` are looked up at a time, few are in memory.

    Only those rows' bytes are read.
    """
    wanted = sorted(set(image_ids))
    if not wanted:
        return
    images = lake.open("images")
    for start in range(0, len(wanted), batch):
        where = "image_id IN (" + ", ".join(f"'{i}'" for i in wanted[start : start + batch]) + ")"
        yield from bytes_at(images, lookups.read(images, ["_rowoffset"], where)["_rowoffset"].to_pylist())


def bytes_at(images: lance.LanceDataset, places: Sequence[int]) -> Iterator[tuple[str, bytes]]:
    """``(image_id, bytes)`` of the pictures in those rows of the table, in their order; few are in memory."""
    at, together = 0, FEW
    while at < len(places):
        rows = images.take(list(places[at : at + together]), columns=["image_id", "bytes"])
        at, largest = at + together, 1
        for image_id, content in zip(rows["image_id"], rows["bytes"], strict=True):  # a list would copy all of them
            if content.is_valid:
                largest = max(largest, len(found := content.as_py()))
                yield image_id.as_py(), found
        together = max(1, min(4 * together, AT_ONCE, BYTES_AT_ONCE // largest))
