"""Tables derived from the ledger for click models: what was known of an item and of a user, and since when.

A row's ``event_timestamp`` is the first moment at which its values are known, so a point-in-time join never sees the event it is to
predict: a click counts from one microsecond after itself, a day's counts from the next midnight.
Item statistics have a row for every day on which something happened to the item, so they do not grow with days on which nothing did.
Behaviour has a row for every click; the sequences are made of these when they are read (:mod:`moon_ops.embeddings.sequences`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import lance
import pyarrow as pa

from moon_ops.columns import ITEM_VIEW, STATS_VIEW, USER_VIEW, Feature, by_view
from moon_ops.lake import changes, own_columns
from moon_ops.lake.lake import Lake
from moon_ops.lake.query import sql
from moon_ops.lake.schemas import PRIMARY

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

STATS_SQL = """
WITH days AS (
    SELECT item_id, date_trunc('day', event_timestamp) + INTERVAL 1 DAY AS known,
           count(*) FILTER (event = 'impression') AS impressions, count(*) FILTER (event = 'click') AS clicks,
           count(*) FILTER (event = 'purchase') AS purchases
    FROM events GROUP BY ALL)
SELECT item_id, (sum(impressions) OVER w)::BIGINT AS impressions, (sum(clicks) OVER w)::BIGINT AS clicks,
       (sum(purchases) OVER w)::BIGINT AS purchases, known AS event_timestamp, known AS created
FROM days WINDOW w AS (PARTITION BY item_id ORDER BY known) ORDER BY event_timestamp, item_id"""

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
    """Rows of each derived table."""

    item_profile: int
    item_stats: int
    user_behavior: int


def derive(lake: Lake, *, behaviour: bool = True, own: Sequence[Feature] = ()) -> StatisticsReport:
    """Bring the tables up to date: profiles by the item versions that are new, behaviour by the clicks of users who have clicked since,
    and the counts of items anew if there are new events.

    Profiles have the columns that ``own`` declares of a shop's own, beside those that they have had before: declared otherwise than
    before, a column is made anew. Users have a profile where there are such columns of theirs.
    Without ``behaviour`` the other two stay as they are once they are there: new items have no behaviour yet, and every night it is
    counted. A reader sees the old table or the new one.
    """
    with lake.erasing(shared=True):  # else what was read before an erasure would be written after it
        return _derive(lake, own, behaviour=behaviour)


def _derive(lake: Lake, own: Sequence[Feature], *, behaviour: bool) -> StatisticsReport:
    with lake.deriving(PROFILE):
        _profiles(lake, PROFILE, "items", [f for f in own if f.view == ITEM_VIEW])
    of_users = [f for f in own if f.view == USER_VIEW]
    if of_users or lake.exists(USERS):
        with lake.deriving(USERS):
            _profiles(lake, USERS, "users", of_users)
    for name in (STATS, BEHAVIOR):
        if behaviour or not usable(lake, name):  # new items do not wait for who counts the night's events
            with lake.deriving(name):
                _of_events(lake, name)
    pa.default_memory_pool().release_unused()  # whole histories were in memory
    return StatisticsReport(*(lake.count(name) for name in (PROFILE, STATS, BEHAVIOR)))


def _of_events(lake: Lake, name: str) -> None:
    """Bring a table of what has happened up to date, unless somebody has just done so."""
    events = changes.newest(lake.open("events")) if lake.exists("events") else changes.NOTHING
    there, since = usable(lake, name), int(changes.marks(lake, name).get("events", changes.NOTHING))
    if there and since == events:
        return
    if name == STATS:
        _stats(lake)
    else:
        _behavior(lake, since if there else changes.NOTHING)
    changes.mark(lake, name, events=events)


def usable(lake: Lake, name: str) -> bool:
    """Whether a table is there, and not one of before, when a row of behaviour held a whole sequence; the next derivation makes it anew."""
    return lake.exists(name) and (name != BEHAVIOR or "item_ids" not in lake.open(name).schema.names)


def _stats(lake: Lake) -> None:
    _write(lake, STATS, sql(STATS_SQL, events=lake.read("events", ["event_timestamp", "item_id", "event"])))


def _behavior(lake: Lake, since: int) -> None:
    """Add the clicks that are not there yet, of users who have clicked since; killed, it adds none twice."""
    columns, clicks = ["event_timestamp", "user_id", "item_id", "query_id", "event"], "event = 'click' AND user_id IS NOT NULL"
    if since == changes.NOTHING:
        _write(lake, BEHAVIOR, _keyed(sql(BEHAVIOR_SQL, events=lake.read("events", columns, clicks)), "behavior_id"))
        return
    events = lake.open("events")
    users = changes.newer(events, since, ["user_id"], clicks)["user_id"].combine_chunks().unique()
    fresh = sql(BEHAVIOR_SQL, events=changes.rows_of(events, "user_id", users, columns, clicks))
    known = changes.rows_of(lake.open(BEHAVIOR), "user_id", users, ["behavior_id"])
    missing = sql("SELECT * FROM fresh ANTI JOIN known USING (behavior_id) ORDER BY ALL", fresh=fresh, known=known)
    _insert(lake, BEHAVIOR, "behavior_id", _keyed(missing, "behavior_id"))


def _insert(lake: Lake, name: str, key: str, rows: pa.Table) -> None:
    """Add the rows whose key is not there yet."""
    lake.open(name).merge_insert([key]).when_not_matched_insert_all().execute(rows)


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


def _newer(versions: lance.LanceDataset, since: int, columns: Sequence[str]) -> pa.Table:
    """Versions written after ``since``, with ``extra``: null for a table of before shops' own columns were kept."""
    if "extra" in versions.schema.names:
        return changes.newer(versions, since, [*columns, "extra"])
    found = changes.newer(versions, since, columns)
    return found.append_column("extra", pa.nulls(found.num_rows, pa.string()))


def own(lake: Lake) -> tuple[Feature, ...]:
    """The columns of a shop's own that the tables have."""
    return tuple(f for name in (PROFILE, USERS) if lake.exists(name) for f in own_columns.declared(lake.open(name).schema))
