"""Files that were taken in before: one that has not been written since says nothing new, so it undoes nothing that came after it.

An inbox is taken in every few minutes, and what a request has corrected meanwhile must stay. A file is known by where it lies, when it was
written and how large it is; of these a hash is kept.
"""

from __future__ import annotations

import datetime as dt
import hashlib

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.lake.lake import Lake
from moon_ops.lake.reading.content import Content
from moon_ops.lake.schemas import STAMP

TABLE = "taken"
SCHEMA = pa.schema([pa.field("state", pa.string(), nullable=False), pa.field("created", STAMP, nullable=False)])


def state(content: Content | None) -> str:
    """What names the files as they are now; empty if there are none."""
    if content is None or not content.paths:
        return ""
    known = [(str(path.resolve()), (at := path.stat()).st_mtime_ns, at.st_size) for path in content.paths]
    return hashlib.blake2b(repr(known).encode(), digest_size=16).hexdigest()


def since(lake: Lake, files: str, now: dt.datetime) -> dt.datetime:
    """When the files were taken in for the first time as they are; ``now`` if that is new."""
    if not files or not lake.exists(TABLE):
        return now
    found = pc.min(lake.open(TABLE).to_table(filter=f"state = '{files}'")["created"]).as_py()
    return now if found is None else min(found, now)


def remember(lake: Lake, files: str, now: dt.datetime) -> None:
    """Note that all of the files is in the lake."""
    if files and since(lake, files, now) == now:
        lake.append(TABLE, pa.table({"state": [files], "created": pa.array([now], STAMP)}, schema=SCHEMA))
