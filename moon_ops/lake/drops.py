"""The drop zone: directories in the ingest layout that somebody puts down, each taken in once, by its content.

What was taken in stands in the lake's table ``drops``: the directory's name, and a hash of which files it holds, when they were written and
how large they are. A directory that is written to is another one. One that could not be used as a whole is noted, too: it is told once, and
tried again when it has changed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from moon_ops.errors import InputError
from moon_ops.lake import fetches
from moon_ops.lake.lake import Lake
from moon_ops.lake.reading import files
from moon_ops.lake.schemas import STAMP

TABLE = "drops"
SCHEMA = pa.schema([("name", pa.string()), ("state", pa.string()), ("refused", pa.string()), ("created", STAMP)])


@dataclass(frozen=True)
class Drop:
    """A directory of the drop zone as it is now."""

    place: Path
    name: str  # in the drop zone; a dot for itself
    state: str


def waiting(lake: Lake, inbox: Path, now: dt.datetime, *, again: bool = False) -> list[Drop]:
    """What is not in the lake yet, in order of names: the drop zone itself, if it holds a table's file, else its directories.

    All of it, if it is wanted ``again``, or if addresses of pictures are to be tried again at ``now``. Raises
    :class:`~moon_ops.errors.InputError` if there is no such directory.
    """
    if not inbox.is_dir():
        raise InputError(f"MOON_INBOX = {inbox} is no directory, so nothing was taken in", action="make it, or name another one")
    itself = any(files.find(inbox, name) for name in files.TABLES)
    places = [inbox] if itself else sorted(place for place in inbox.iterdir() if place.is_dir() and not files.hidden(place.name))
    found = [Drop(place, "." if itself else place.name, state(place)) for place in places]
    if again or fetches.due(lake, now):
        return found
    noted = lake.read(TABLE, ["name", "state"]).to_pylist() if lake.exists(TABLE) else []
    known = {(row["name"], row["state"]) for row in noted}
    return [drop for drop in found if (drop.name, drop.state) not in known]


def state(place: Path) -> str:
    """What names the content of a directory as it is now, without reading its files."""
    known = [(path.relative_to(place).as_posix(), (at := path.stat()).st_mtime_ns, at.st_size) for path in files.under(place)]
    return hashlib.blake2b(repr(known).encode(), digest_size=16).hexdigest()


def note(lake: Lake, drop: Drop, now: dt.datetime, refused: str = "") -> None:
    """Remember that the directory, as it was before it was read, was taken in; or why it could not be."""
    row = {"name": drop.name, "state": drop.state, "refused": refused or None, "created": now}
    lake.append(TABLE, pa.Table.from_pylist([row], schema=SCHEMA))
