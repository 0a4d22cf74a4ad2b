"""Import a public data set: a downloaded data set becomes a shop in the ingest layout, which ``moon ingest`` takes in.

Logs are read in pieces through a database on disk, never as a whole in memory. A killed run is repeated from its start: tables get
their names only when all of them are whole, and pictures that are there are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moon_ops.errors import InputError
from moon_ops.shops.catalogues import KINDS as EXPORTED
from moon_ops.shops.importers import amazon2023, grocery, hm, microlens, movielens, shop, taobao_mm

KINDS: dict[str, Callable[[shop.Draft, Path, int | None], None]] = {
    "taobao_mm": taobao_mm.load,
    "microlens": microlens.load,
    "amazon2023": amazon2023.load,
    "hm": hm.load,
    "movielens": movielens.load,
    "grocery": grocery.load,
}


@dataclass(frozen=True)
class ImportReport:
    """What an imported shop holds. ``left_out`` counts what became no event, as its item is not known or it shows no purchase."""

    kind: str
    source: Path
    out: Path
    users: int
    items: int
    impressions: int
    clicks: int
    purchases: int
    left_out: int
    pictures: int  # files; addresses are not counted
    vectors: int
    queries: int


def import_clicks(kind: str, source: Path, out: Path, *, users: int | None = None) -> ImportReport:
    """Convert the data set of ``kind`` (see ``KINDS``) in directory ``source`` into a shop in directory ``out``.

    ``users`` takes a sample of so many users, the same whenever it is asked for; the items are those that the sample's events name.

    Raises :class:`~moon_ops.errors.InputError` for an unknown kind, a sample of fewer than one user, a file or a column that is not
    there or cannot be read, a log of which no event can be made, and an ``out`` that is a file or holds anything but this very import.
    """
    source, out = Path(source), Path(out)
    if kind not in KINDS:
        raise InputError(f"KIND = {kind!r} is no data set that can be imported", action=f"choose one of {', '.join((*EXPORTED, *KINDS))}")
    if users is not None and users < 1:
        raise InputError(f"users = {users} is no sample", action="give 1 or more, or leave it out for all users")
    if not source.is_dir():
        raise InputError(f"SOURCE = {source} is not a directory", action="name the directory that the data set was downloaded to")
    sample = "all users" if users is None else f"a sample of {users} users"
    with shop.draft(source, out, f"Imported from {kind} in {source.resolve()}, {sample}.") as draft:
        KINDS[kind](draft, source, users)
        counts = shop.write(draft, source)
    return ImportReport(kind, source, out, **counts)
