"""How far a release's vectors lie behind the catalogue, asked before it is served again: what a rollback by some weeks would hide.

Read from the marks of the last embedding and the last publication, and from what was written since, so it costs what is new. Nothing
heavy is imported: `moon rollback` asks this at three in the morning.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.embeddings.vector_tables import excused_table_name, table_name
from moon_ops.errors import MoonError, counted, in_a_line
from moon_ops.files import remembered
from moon_ops.lake import changes
from moon_ops.lake.schemas import VALIDITY
from moon_ops.lake.tables import active_as_of
from moon_ops.publication.places import handed
from moon_ops.settings import Settings

OLD = dt.timedelta(days=2)  # the nightly refresh has failed twice, or the encoder is not refreshed any more


@dataclass(frozen=True)
class Freshness:
    """``without_vector``: items on sale whose present content has no vector. ``unpublished``: items changed or embedded since the last
    publication, beside these. ``index_age``: since when the index was last brought up to date; None where nothing says so. ``waiting``: how
    long the first of all these has been waiting to be found, by when it became known or valid; nothing if none waits.

    ``unknown`` says why none of it could be found out.
    """

    encoder: int
    without_vector: int = 0
    unpublished: int = 0
    index_age: dt.timedelta | None = None
    unknown: str = ""
    waiting: dt.timedelta = dt.timedelta(0)

    def told(self) -> str:
        """The figures in one line."""
        if self.unknown:
            return f"how fresh encoder {self.encoder} is could not be found out: {self.unknown}"
        age = "of unknown age" if self.index_age is None else f"{_told(self.index_age)} old"
        lacking = f"{counted(self.without_vector, 'item has', 'items have')} no vector under encoder {self.encoder}"
        return f"{lacking}; {counted(self.unpublished, 'more has', 'more have')} changed since its last publication; the index is {age}"

    def warning(self) -> str:
        """What whoever goes back should know, with what mends it; empty if the vectors are up to date."""
        old = self.index_age is None or self.index_age > OLD
        if not (self.unknown or self.without_vector or self.unpublished or old):
            return ""
        return f"{self.told()} → run `{self.commands()}`; a service shows the new vectors at once"

    def commands(self) -> str:
        """What brings it up to date."""
        return f"moon embed --encoder {self.encoder} && moon publish --encoder {self.encoder}"


def of(settings: Settings, encoder: int, now: dt.datetime) -> Freshness:
    """How fresh the encoder's vectors and index are at ``now``. Never an error: a rollback must not fail for want of this figure.

    An item that becomes valid after it was written, without another change, is seen by the next publication and not here.
    """
    try:
        return _of(settings, encoder, now)
    except MoonError as fault:
        return Freshness(encoder, unknown=fault.problem)
    except (OSError, ValueError, KeyError) as fault:
        return Freshness(encoder, unknown=in_a_line(fault))


def _of(settings: Settings, encoder: int, now: dt.datetime) -> Freshness:
    lake, name = settings.lake, table_name(encoder)
    items, vectors = lake.open("items"), lake.open(name)
    embedded = int(changes.marks(lake, name).get("items", changes.NOTHING))
    of_items, of_vectors = (_handed(settings, f"{view}-v{encoder}") for view in ("index-items", "index"))
    touched = _ids(changes.newer(items, min(embedded, of_items[0]), ["item_id"]))
    valid = active_as_of(changes.rows_of(items, "item_id", touched, [*VALIDITY, "content_hash"]), now)
    tables = [vectors, *([lake.open(excused_table_name(encoder))] if lake.exists(excused_table_name(encoder)) else [])]
    wanted = valid["item_id"].combine_chunks()
    known = [_keys(changes.rows_of(table, "item_id", wanted, ["item_id", "content_hash"])) for table in tables]
    has = pc.is_in(
        _keys(valid), value_set=pa.chunked_array([chunk for column in known for chunk in column.chunks], pa.string()).combine_chunks()
    )
    without = valid["item_id"].filter(pc.invert(has)).combine_chunks()
    changed = [_ids(changes.newer(table, mark, ["item_id"])) for table, mark in ((items, of_items[0]), (vectors, of_vectors[0]))]
    others = pa.chunked_array(changed, pa.int64()).unique()
    unpublished = others.filter(pc.invert(pc.is_in(others, value_set=without)))
    times = [when for _, when in (of_items, of_vectors) if when is not None]
    age = now - min(times) if len(times) == 2 else None
    return Freshness(encoder, len(without), len(unpublished), age, waiting=_waiting(valid, pa.concat_arrays([without, unpublished]), now))


def _waiting(valid: pa.Table, ids: pa.Array, now: dt.datetime) -> dt.timedelta:
    """How long the first of the items ``ids`` has been on sale as it is now, and known to be."""
    rows = valid.filter(pc.is_in(valid["item_id"], value_set=ids))
    valid_from, known = rows["event_timestamp"], rows["created"]
    since = pc.min(pc.if_else(pc.greater(valid_from, known), valid_from, known)).as_py()
    return dt.timedelta(0) if since is None else max(dt.timedelta(0), now - since)


def _handed(settings: Settings, view: str) -> tuple[int, dt.datetime | None]:
    """Up to which fragment, and as of when, a reader has been given what there was."""
    known = remembered(handed(settings, view), "all of it is handed over again")
    if known is None:
        return changes.NOTHING, None
    return int(known["mark"]), dt.datetime.fromisoformat(known["when"])


def _ids(rows: pa.Table) -> pa.Array:
    return rows["item_id"].combine_chunks().unique()


def _keys(rows: pa.Table) -> pa.ChunkedArray:
    """One string for an item and what it says."""
    return pc.binary_join_element_wise(rows["item_id"].cast(pa.string()), rows["content_hash"], "-")


def _told(age: dt.timedelta) -> str:
    hours = max(0, age.total_seconds()) / 3600
    return (
        f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} hours" if hours >= 2 else counted(round(hours * 60), "minute", "minutes")
    )
