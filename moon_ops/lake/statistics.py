"""Tables derived from the ledger for click models: what was known of an item and of a user, and since when.

A row's ``event_timestamp`` is the first moment at which its values are known, so a point-in-time join never sees the event it is to
predict: a click counts from one microsecond after itself, a day's counts from the next midnight.
Item statistics have a row for every day on which something happened to the item, so they do not grow with days on which nothing did.
Behaviour has a row for every click; the sequences are made of these when they are read (:mod:`moon_ops.embeddings.sequences`).
Of events those count that :mod:`moon_ops.lake.counting` lets count; a purchase that was undone is taken off on the day of its undoing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.columns import ITEM_VIEW, STATS_VIEW, USER_VIEW, Feature, by_view
from moon_ops.dealing import Deal, here
from moon_ops.lake import changes, counting, event_log, fragments, item_counts, lookups, own_columns
from moon_ops.lake.event_log import DAY, EventLog
from moon_ops.lake.lake import Lake
from moon_ops.lake.query import sql
from moon_ops.lake.schemas import PRIMARY, SCHEMAS
from moon_ops.recipes.caps import Caps

if TYPE_CHECKING:
    from lance.fragment import FragmentMetadata

Users = tuple[int | None, int | None]  # from the first on, and before the second; None: no bound
PROFILE, STATS, BEHAVIOR, USERS = f"features/{ITEM_VIEW}", f"features/{STATS_VIEW}", "features/user_behavior", f"features/{USER_VIEW}"
TABLES = (PROFILE, STATS, BEHAVIOR, USERS)
NO_QUERY = -1  # a click that no query led to
CLICKS = "event = 'click' AND user_id IS NOT NULL"  # a filter of Lance's

PROFILE_SQL = """
SELECT concat_ws('-', item_id, epoch_us(event_timestamp), epoch_us(created), row_number() OVER (
           PARTITION BY item_id, event_timestamp, created ORDER BY number)) AS profile_id,
       item_id, spu_id, coalesce(category[-1], '') AS category, coalesce(brand, '') AS brand, coalesce(seller_id, -1) AS seller_id,
       coalesce(price, 0.0) AS price, event_timestamp, created, extra
FROM (SELECT *, row_number() OVER () AS number FROM fresh) ORDER BY event_timestamp, item_id"""
PROFILE_COLUMNS = ("item_id", "spu_id", "category", "brand", "seller_id", "price", "event_timestamp", "created")

USERS_SQL = """
SELECT concat_ws('-', user_id, epoch_us(event_timestamp), epoch_us(created), row_number() OVER (
           PARTITION BY user_id, event_timestamp, created ORDER BY number)) AS profile_id,
       user_id, event_timestamp, created, extra
FROM (SELECT *, row_number() OVER () AS number FROM fresh) ORDER BY event_timestamp, user_id"""
USERS_COLUMNS = ("user_id", "event_timestamp", "created")

BEHAVIOR_SQL = f"""
SELECT concat_ws('-', user_id, epoch_us(event_timestamp), item_id, query_id, row_number() OVER (
           PARTITION BY user_id, event_timestamp, item_id, query_id)) AS behavior_id,
       user_id, item_id, query_id, event_timestamp + INTERVAL 1 MICROSECOND AS event_timestamp,
       event_timestamp + INTERVAL 1 MICROSECOND AS created
FROM (SELECT user_id, event_timestamp, item_id, coalesce(query_id, {NO_QUERY}) AS query_id
      FROM events WHERE event = 'click' AND user_id IS NOT NULL)
ORDER BY user_id, event_timestamp, item_id, query_id"""


@dataclass(frozen=True)
class StatisticsReport:
    """Rows of each derived table; ``left_out`` events of the lake are beyond a cap and count in none."""

    item_profile: int
    item_stats: int
    user_behavior: int
    left_out: int = 0


def derive(
    lake: Lake, *, behaviour: bool = True, own: Sequence[Feature] = (), caps: Caps | None = None, deal: Deal = here
) -> StatisticsReport:
    """Bring the tables up to date: profiles by the item versions that are new, behaviour by the clicks of users who have clicked since,
    and the counts of items from the first day on which an event is new (:mod:`~moon_ops.lake.item_counts`).

    Profiles have the columns that ``own`` declares of a shop's own, beside those that they have had before: declared otherwise than
    before, a column is made anew. Users have a profile where there are such columns of theirs.
    Without ``behaviour`` the other two stay as they are once they are there: new items have no behaviour yet, and every night it is
    counted. With other ``caps`` than before they are made anew; without any they keep those that they have. A reader sees the old table or
    the new one. Events are counted, and clicks written, wherever ``deal`` has it done (:mod:`moon_ops.dealing`).
    """
    with lake.erasing(shared=True):  # else what was read before an erasure would be written after it
        return _derive(lake, own, caps, deal, behaviour=behaviour)


def derive_clicks(lake: Lake) -> None:
    """Bring users' behaviour alone up to date, by the caps that it has; the counts of items wait for :func:`derive`."""
    with lake.erasing(shared=True), lake.deriving(BEHAVIOR):
        _of_events(lake, BEHAVIOR, None, here)


def _derive(lake: Lake, own: Sequence[Feature], caps: Caps | None, deal: Deal, *, behaviour: bool) -> StatisticsReport:
    with lake.deriving(PROFILE):
        _profiles(lake, PROFILE, "items", [f for f in own if f.view == ITEM_VIEW])
    of_users = [f for f in own if f.view == USER_VIEW]
    if of_users or lake.exists(USERS):
        with lake.deriving(USERS):
            _profiles(lake, USERS, "users", of_users)
    for name in (STATS, BEHAVIOR):
        if behaviour or not usable(lake, name):  # new items do not wait for who counts the night's events
            with lake.deriving(name):
                _of_events(lake, name, caps, deal)
    pa.default_memory_pool().release_unused()  # whole histories were in memory
    left_out = int(changes.marks(lake, STATS).get("left_out", 0))
    profiles, days, clicks = (lake.count(name) for name in (PROFILE, STATS, BEHAVIOR))
    return StatisticsReport(profiles, days, clicks, left_out)


def _of_events(lake: Lake, name: str, caps: Caps | None, deal: Deal) -> None:
    """Bring a table of what has happened up to date, unless somebody has just done so."""
    events = lake.open("events") if lake.exists("events") else None
    mark = changes.NOTHING if events is None else changes.newest(events)
    marks, before = changes.marks(lake, name), caps_of(lake, name)
    caps = caps or before or Caps()
    there, since = usable(lake, name) and caps == before, int(marks.get("events", changes.NOTHING))
    if there and since == mark:
        return
    since, found = since if there else changes.NOTHING, dict[str, int]()
    if name == BEHAVIOR:
        _behavior(lake, events, since, caps, deal)
    else:
        counted = item_counts.Counted(int(marks.get("left_out", 0)), int(marks.get("undoings", 0)))
        since = since if "undoings" in marks else changes.NOTHING  # a table of before is made anew
        found = asdict(item_counts.bring(lake, name, events, caps, since, counted, deal=deal))
    changes.mark(lake, name, events=mark, **found, **{f"caps_{key}": value for key, value in asdict(caps).items()})
    lookups.tend(lake, name)


def caps_of(lake: Lake, name: str) -> Caps | None:
    """The caps by which a table was made; None of one from before there were any."""
    marks = changes.marks(lake, name)
    known = {key: int(marks[f"caps_{key}"]) for key in asdict(Caps()) if f"caps_{key}" in marks}
    return Caps(**known) if known else None


def usable(lake: Lake, name: str) -> bool:
    """Whether a table is there, and not one of before, when a row of behaviour held a whole sequence; the next derivation makes it anew."""
    return lake.exists(name) and (name != BEHAVIOR or "item_ids" not in lake.open(name).schema.names)


def _behavior(lake: Lake, events: lance.LanceDataset | None, since: int, caps: Caps, deal: Deal) -> None:
    """Add the clicks that are not there yet, of users who have clicked since, on the days of these clicks; killed, it adds none twice. A
    click that comes late may push one of its day beyond the caps, which then goes.
    """
    if since == changes.NOTHING or events is None:
        schema = _keyed(_clicks(SCHEMAS["events"].empty_table(), caps), "behavior_id").schema
        written = partial(_all_clicks, lake, events, caps, deal)
        changes.patiently(lambda: fragments.commit(lake, BEHAVIOR, schema, written()))
        return
    new = changes.newer(events, since, ["user_id", "event_timestamp"], CLICKS)
    if not new.num_rows:
        return
    users, ends = new["user_id"].combine_chunks().unique(), pc.min_max(new["event_timestamp"].cast(pa.int64())).as_py()
    first, last = (ends[name] // DAY for name in ("min", "max"))
    there = f"{CLICKS} AND {event_log.within((first, last + 1))}"  # caps are of a day
    known_in = f"event_timestamp > {event_log.moment(first)} AND event_timestamp <= {event_log.moment(last + 1)}"
    fresh = _clicks(changes.rows_of(events, "user_id", users, list(counting.COLUMNS), there), caps)
    known = changes.rows_of(lake.open(BEHAVIOR), "user_id", users, ["behavior_id"], known_in)
    missing = sql("SELECT * FROM fresh ANTI JOIN known USING (behavior_id) ORDER BY ALL", fresh=fresh, known=known)
    _insert(lake, BEHAVIOR, "behavior_id", _keyed(missing, "behavior_id"))
    over = known.filter(pc.invert(pc.is_in(known["behavior_id"], fresh["behavior_id"].combine_chunks())))["behavior_id"].to_pylist()
    for start in range(0, len(over), changes.NAMED):
        lake.open(BEHAVIOR).delete(f"behavior_id IN ({', '.join(repr(key) for key in over[start : start + changes.NAMED])})")


def _users(log: EventLog) -> list[Users]:
    """Ranges of users whose clicks can be in memory, all of them together those of everybody."""
    found = [batch["user_id"].to_numpy() for batch in log.events.to_batches(columns=["user_id"], filter=CLICKS)]
    users = np.sort(np.concatenate([np.zeros(0, np.int64), *found]))
    ends = np.unique(users[event_log.AT_ONCE :: event_log.AT_ONCE]).tolist()
    return list(zip([None, *ends], [*ends, None], strict=True))


def _all_clicks(lake: Lake, events: lance.LanceDataset | None, caps: Caps, deal: Deal) -> Iterable[FragmentMetadata]:
    """The table of all clicks, written but not committed yet."""
    if events is None:
        return ()
    log = EventLog(events)
    return chain.from_iterable(deal(partial(_written, log, caps, lake.address(BEHAVIOR)), _users(log)))


def _written(log: EventLog, caps: Caps, address: str, users: Users) -> list[FragmentMetadata]:
    """All clicks of some users, written but not committed yet; users ascend."""
    low, high = users
    bounds = [*([] if low is None else [f"user_id >= {low}"]), *([] if high is None else [f"user_id < {high}"])]
    rows = _clicks(log.read(counting.COLUMNS, " AND ".join([CLICKS, *bounds])), caps)
    return fragments.written(address, _keyed(rows, "behavior_id"))


def _clicks(events: pa.Table, caps: Caps) -> pa.Table:
    """The rows of all clicks of some users: of the caps those of visitors count."""
    return sql(BEHAVIOR_SQL, events=counting.within(events, caps, ("visitor_item", "visitor")).events)


def _insert(lake: Lake, name: str, key: str, rows: pa.Table) -> None:
    """Add the rows whose key is not there yet."""
    lookups.insert(lake.open(name), key, rows)


def _keyed(table: pa.Table, key: str) -> pa.Table:
    """The table with its key declared to Lance, which then refuses to insert a row twice."""
    return table.cast(pa.schema([f.with_metadata(PRIMARY).with_nullable(False) if f.name == key else f for f in table.schema]))


def _profiles(lake: Lake, name: str, source: str, own: Sequence[Feature]) -> None:
    """Add a row for every version written since the last time; killed before the mark is set, it adds none of them twice."""
    schema = lake.open(name).schema if lake.exists(name) else None
    standard = {feature.column_joined for feature in by_view().get(name.rpartition("/")[2], ())}
    anew = schema is None or not standard <= set(schema.names) or own_columns.changed(schema, own)
    own = own_columns.wanted(schema, own)
    since = changes.NOTHING if anew else int(changes.marks(lake, name).get(source, changes.NOTHING))
    versions = lake.open(source) if source == "items" or lake.exists(source) else None
    mark = changes.NOTHING if versions is None else changes.newest(versions)
    if mark == since and not anew:
        return
    query, columns = (PROFILE_SQL, PROFILE_COLUMNS) if source == "items" else (USERS_SQL, USERS_COLUMNS)
    fresh = lake.read(source, [*columns, "extra"]) if versions is None else _newer(versions, since, columns)
    rows = _keyed(own_columns.typed(sql(query, fresh=fresh), own), "profile_id")
    if anew:
        changes.patiently(lambda: lance.write_dataset(rows, lake.address(name), mode="overwrite" if lake.exists(name) else "create"))
    else:
        _insert(lake, name, "profile_id", rows)
    changes.mark(lake, name, **{source: mark})
    lookups.tend(lake, name)


def _newer(versions: lance.LanceDataset, since: int, columns: Sequence[str]) -> pa.Table:
    """Versions written after ``since``, with ``extra``: null for a table of before shops' own columns were kept."""
    if "extra" in versions.schema.names:
        return changes.newer(versions, since, [*columns, "extra"])
    found = changes.newer(versions, since, columns)
    return found.append_column("extra", pa.nulls(found.num_rows, pa.string()))


def own(lake: Lake) -> tuple[Feature, ...]:
    """The columns of a shop's own that the tables have."""
    return tuple(f for name in (PROFILE, USERS) if lake.exists(name) for f in own_columns.declared(lake.open(name).schema))
