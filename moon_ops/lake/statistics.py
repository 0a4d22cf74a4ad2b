"""Tables derived from the ledger for click models: what was known of an item and of a user, and since when.

A row's ``event_timestamp`` is the first moment at which its values are known, so a point-in-time join never sees the event it is to
predict: a click counts from one microsecond after itself, a day's counts from the next midnight.
Item statistics have a row for every day on which something happened to the item, so they do not grow with days on which nothing did.
Behaviour has a row for every click; the sequences are made of these when they are read (:mod:`moon_ops.embeddings.sequences`).
Of events those count that :mod:`moon_ops.lake.counting` lets count; a purchase that was undone is taken off on the day of its undoing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.columns import ITEM_VIEW, STATS_VIEW, USER_VIEW, Feature, by_view
from moon_ops.lake import changes, counting, lookups, own_columns
from moon_ops.lake.counting import DAY
from moon_ops.lake.lake import Lake
from moon_ops.lake.query import sql
from moon_ops.lake.schemas import PRIMARY, STAMP, UNDOING
from moon_ops.recipes.caps import Caps

PROFILE, STATS, BEHAVIOR, USERS = f"features/{ITEM_VIEW}", f"features/{STATS_VIEW}", "features/user_behavior", f"features/{USER_VIEW}"
TABLES = (PROFILE, STATS, BEHAVIOR, USERS)
NO_QUERY = -1  # a click that no query led to

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

BEFORE = 1_000_000  # days, so that whole division rounds moments before 1970 down, too
COUNTS = ("impressions", "clicks", "purchases")
DAYS_SQL = f"""
SELECT item_id, (epoch_us(event_timestamp) + {BEFORE * DAY}) // {DAY} - {BEFORE - 1} AS known,
       count(*) FILTER (event = 'impression') AS impressions, count(*) FILTER (event = 'click') AS clicks,
       count(*) FILTER (event = 'purchase') - count(*) FILTER (event = 'undone') AS purchases
FROM events GROUP BY ALL ORDER BY known, item_id"""

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


def derive(lake: Lake, *, behaviour: bool = True, own: Sequence[Feature] = (), caps: Caps | None = None) -> StatisticsReport:
    """Bring the tables up to date: profiles by the item versions that are new, behaviour by the clicks of users who have clicked since,
    and the counts of items anew if there are new events.

    Profiles have the columns that ``own`` declares of a shop's own, beside those that they have had before: declared otherwise than
    before, a column is made anew. Users have a profile where there are such columns of theirs.
    Without ``behaviour`` the other two stay as they are once they are there: new items have no behaviour yet, and every night it is
    counted. With other ``caps`` than before they are made anew; without any they keep those that they have. A reader sees the old table or
    the new one.
    """
    with lake.erasing(shared=True):  # else what was read before an erasure would be written after it
        return _derive(lake, own, caps, behaviour=behaviour)


def derive_clicks(lake: Lake) -> None:
    """Bring users' behaviour alone up to date, by the caps that it has; the counts of items wait for :func:`derive`."""
    with lake.erasing(shared=True), lake.deriving(BEHAVIOR):
        _of_events(lake, BEHAVIOR, None)


def _derive(lake: Lake, own: Sequence[Feature], caps: Caps | None, *, behaviour: bool) -> StatisticsReport:
    with lake.deriving(PROFILE):
        _profiles(lake, PROFILE, "items", [f for f in own if f.view == ITEM_VIEW])
    of_users = [f for f in own if f.view == USER_VIEW]
    if of_users or lake.exists(USERS):
        with lake.deriving(USERS):
            _profiles(lake, USERS, "users", of_users)
    for name in (STATS, BEHAVIOR):
        if behaviour or not usable(lake, name):  # new items do not wait for who counts the night's events
            with lake.deriving(name):
                _of_events(lake, name, caps)
    pa.default_memory_pool().release_unused()  # whole histories were in memory
    left_out = int(changes.marks(lake, STATS).get("left_out", 0))
    profiles, days, clicks = (lake.count(name) for name in (PROFILE, STATS, BEHAVIOR))
    return StatisticsReport(profiles, days, clicks, left_out)


def _of_events(lake: Lake, name: str, caps: Caps | None) -> None:
    """Bring a table of what has happened up to date, unless somebody has just done so."""
    events = changes.newest(lake.open("events")) if lake.exists("events") else changes.NOTHING
    marks, before = changes.marks(lake, name), caps_of(lake, name)
    caps = caps or before or Caps()
    there, since = usable(lake, name) and caps == before, int(marks.get("events", changes.NOTHING))
    if there and since == events:
        return
    found = {"left_out": _stats(lake, caps)} if name == STATS else {}
    if name == BEHAVIOR:
        _behavior(lake, since if there else changes.NOTHING, caps)
    changes.mark(lake, name, events=events, **found, **{f"caps_{key}": value for key, value in asdict(caps).items()})


def caps_of(lake: Lake, name: str) -> Caps | None:
    """The caps by which a table was made; None of one from before there were any."""
    marks = changes.marks(lake, name)
    known = {key: int(marks[f"caps_{key}"]) for key in asdict(Caps()) if f"caps_{key}" in marks}
    return Caps(**known) if known else None


def usable(lake: Lake, name: str) -> bool:
    """Whether a table is there, and not one of before, when a row of behaviour held a whole sequence; the next derivation makes it anew."""
    return lake.exists(name) and (name != BEHAVIOR or "item_ids" not in lake.open(name).schema.names)


def _stats(lake: Lake, caps: Caps) -> int:
    """Count anew; how many events are beyond the caps."""
    events = counting.read(lake, counting.PURCHASES)
    events = events.append_column("query_id", pa.nulls(events.num_rows, pa.int64()))  # tells no counts apart
    found = counting.within(events, caps)
    gone, events = counting.undone(found.events), found.events.select(["event_timestamp", "item_id", "event"])
    if gone.num_rows:
        what = pa.array(["undone"] * gone.num_rows)
        undone = pa.table([gone["known"], events["item_id"].take(gone["number"]), what], schema=events.schema)
        events = pa.concat_tables([events, undone])
    undoings = pc.is_in(events["event"], pa.array(UNDOING))
    events = events.filter(pc.invert(undoings)) if pc.any(undoings).as_py() else events  # those that undo nothing make no row
    _write(lake, STATS, _running(sql(DAYS_SQL, events=events)))
    return sum(found.left_out.values())


def _running(days: pa.Table) -> pa.Table:
    """What had happened to each item by the end of each of its days; ``days`` are in order of time."""
    items = days["item_id"].to_numpy()
    order = np.argsort(items, kind="stable")
    first = np.flatnonzero(np.append(True, items[order][1:] != items[order][:-1])[: len(items)])
    counts = {}
    for name in COUNTS:
        sums = np.append(0, np.cumsum(days[name].to_numpy()[order]))
        counts[name] = np.empty(len(items), np.int64)
        counts[name][order] = sums[1:] - np.repeat(sums[first], np.diff(first, append=len(items)))
    known = pa.array(days["known"].to_numpy() * DAY).cast(STAMP)
    return pa.table({"item_id": days["item_id"], **counts, "event_timestamp": known, "created": known})


def _behavior(lake: Lake, since: int, caps: Caps) -> None:
    """Add the clicks that are not there yet, of users who have clicked since; killed, it adds none twice. A click that comes late may push
    one of its day beyond the caps, which then goes.
    """
    columns, clicks = list(counting.COLUMNS), "event = 'click' AND user_id IS NOT NULL"
    if since == changes.NOTHING:
        _write(lake, BEHAVIOR, _keyed(_clicks(lake.read("events", columns, clicks), caps), "behavior_id"))
        return
    events = lake.open("events")
    users = changes.newer(events, since, ["user_id"], clicks)["user_id"].combine_chunks().unique()
    fresh = _clicks(changes.rows_of(events, "user_id", users, columns, clicks), caps)
    known = changes.rows_of(lake.open(BEHAVIOR), "user_id", users, ["behavior_id"])
    missing = sql("SELECT * FROM fresh ANTI JOIN known USING (behavior_id) ORDER BY ALL", fresh=fresh, known=known)
    _insert(lake, BEHAVIOR, "behavior_id", _keyed(missing, "behavior_id"))
    over = known.filter(pc.invert(pc.is_in(known["behavior_id"], fresh["behavior_id"].combine_chunks())))["behavior_id"].to_pylist()
    for start in range(0, len(over), changes.NAMED):
        lake.open(BEHAVIOR).delete(f"behavior_id IN ({', '.join(repr(key) for key in over[start : start + changes.NAMED])})")


def _clicks(events: pa.Table, caps: Caps) -> pa.Table:
    """The rows of all clicks of some users: of the caps those of visitors count."""
    return sql(BEHAVIOR_SQL, events=counting.within(events, caps, ("visitor_item", "visitor")).events)


def _insert(lake: Lake, name: str, key: str, rows: pa.Table) -> None:
    """Add the rows whose key is not there yet."""
    lookups.insert(lake.open(name), key, rows)


def _write(lake: Lake, name: str, table: pa.Table) -> None:
    """Make the table anew."""
    changes.patiently(lambda: lance.write_dataset(table, lake.address(name), mode="overwrite" if lake.exists(name) else "create"))


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
        _write(lake, name, rows)
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
