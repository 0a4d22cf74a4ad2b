"""Keep the lake small.

Compaction merges the small files of many commits; retention removes versions that nobody can ask for any more; versions that a release
has tagged stay. Both may be killed and repeated. Readers keep the version that they have open.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

from moon_ops.embeddings import features
from moon_ops.embeddings.vector_tables import excused_table_name, query_table_name, table_name
from moon_ops.lake import changes, lookups, statistics
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.publication import marks, sharing
from moon_ops.settings import Settings
from moon_ops.telemetry.stages import stage

FRAGMENTS = 32  # a table of more is compacted: each is a file to open
COMMITS = 2  # of one compaction: it reserves the numbers of its files, then it puts them in place


@dataclass(frozen=True)
class Kept:
    """What maintenance did to one table."""

    table: str
    fragments: int  # before
    fragments_after: int
    versions_removed: int
    bytes_removed: int


@stage("maintain")
def maintain(settings: Settings, *, keep: dt.timedelta, now: dt.datetime, fragments: int | None = None) -> list[Kept]:
    """Compact every table of more than ``fragments`` files, and remove versions older than ``keep`` that no release has tagged."""
    lake, encoders = settings.lake, features.versions(settings.lake)
    with lake.one_writer(), sharing.turn(settings):
        held = [encoder for encoder in encoders if sharing.holds(settings, encoder)]
        for encoder in held:
            sharing.fetch_in_turn(settings, encoder)
        done = [_maintain(settings, name, keep, FRAGMENTS if fragments is None else fragments) for name in tables(lake)]
        for encoder in held:  # their marks have moved
            sharing.share(settings, encoder, now)
        sharing.tidy(lake, keep, now)
    return done


def tables(lake: Lake) -> Iterator[str]:
    """Every table of the lake that is there."""
    encoders = [make(v) for v in features.versions(lake) for make in (table_name, query_table_name, excused_table_name)]
    yield from (n for n in (*SCHEMAS, *statistics.TABLES, *encoders) if lake.exists(n))


def _maintain(settings: Settings, name: str, keep: dt.timedelta, fragments: int) -> Kept:
    table = settings.lake.open(name)
    before = len(table.get_fragments())
    if before > fragments:
        compact(settings, name)
    lookups.tend(settings.lake, name, anew=True)  # in one piece, also where one was damaged
    removed = settings.lake.open(name).cleanup_old_versions(older_than=keep, error_if_tagged_old_versions=False)
    after = len(settings.lake.open(name).get_fragments())
    return Kept(name, before, after, int(removed.old_versions), int(removed.bytes_removed))


def compact(settings: Settings, name: str, *, deletions: bool = False) -> None:
    """Merge a table's files; with ``deletions`` write anew every file that holds a deleted row.

    Who has looked at all of the table before has looked at all of it afterwards: the marks move with it, unless somebody has written
    meanwhile. Then they stay, and the rows are looked at once more.
    """
    table = settings.lake.open(name)
    mark, version = changes.newest(table), table.version
    table.optimize.compact_files(materialize_deletions=deletions or None, materialize_deletions_threshold=0.0 if deletions else None)
    now = settings.lake.open(name)
    alone = now.version <= version + COMMITS and now.count_rows() == table.count_rows()
    if alone:
        _move_marks(settings, name, mark, changes.newest(now))


def _move_marks(settings: Settings, name: str, before: int, after: int) -> None:
    """Every reader whose mark in the table is ``before`` gets ``after``."""
    lake = settings.lake
    readers = [(table_name(v), "items") for v in features.versions(lake)] if name == "items" else []
    readers += [(query_table_name(v), "queries") for v in features.versions(lake)] if name == "queries" else []
    readers += [(statistics.PROFILE, "items")] if name == "items" else []
    readers += [(statistics.USERS, "users")] if name == "users" else []
    readers += [(statistics.STATS, "events"), (statistics.BEHAVIOR, "events")] if name == "events" else []
    for reader, key in readers:
        if changes.marks(lake, reader).get(key) == before:
            changes.mark(lake, reader, **{key: after})
    marks.move_marks(settings, name, before, after)
