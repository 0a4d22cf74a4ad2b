"""Tables derived from the ledger for click models: what was known of an item and of a user, and since when.

A row's ``event_timestamp`` is the first moment at which its values are known, so a point-in-time join never sees the event it is to
predict: a click counts from one microsecond after itself, a day's counts from the next midnight.
Item statistics have a row for every day since an item's first event: a dense history lets the join look back two days, not for ever.
Behaviour has a row for every click; the sequences are made of these when they are read (:mod:`moon_ops.embeddings.sequences`).
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import lance
import pyarrow as pa

from moon_ops.lake import changes
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import PRIMARY

PROFILE, STATS, BEHAVIOR = "features/item_profile", "features/item_stats", "features/user_behavior"
NO_QUERY = -1  # a click that no query led to

PROFILE_SQL = """
SELECT concat_ws('-', item_id, epoch_us(event_timestamp), epoch_us(created), row_number() OVER (
           PARTITION BY item_id, event_timestamp, created ORDER BY number)) AS profile_id,
       item_id, spu_id, coalesce(category[-1], '') AS category, coalesce(brand, '') AS brand, coalesce(seller_id, -1) AS seller_id,
       coalesce(price, 0.0) AS price, event_timestamp, created
FROM (SELECT *, row_number() OVER () AS number FROM items) ORDER BY event_timestamp, item_id"""

STATS_SQL = """
WITH days AS (
    SELECT item_id, date_trunc('day', event_timestamp) + INTERVAL 1 DAY AS known,
           count(*) FILTER (event = 'impression') AS impressions, count(*) FILTER (event = 'click') AS clicks,
           count(*) FILTER (event = 'purchase') AS purchases
    FROM events GROUP BY ALL),
spans AS (
    SELECT item_id, unnest(generate_series(min(known), (SELECT max(known) FROM days), INTERVAL 1 DAY)) AS known
    FROM days GROUP BY item_id)
SELECT item_id, coalesce(sum(impressions) OVER w, 0)::BIGINT AS impressions, coalesce(sum(clicks) OVER w, 0)::BIGINT AS clicks,
       coalesce(sum(purchases) OVER w, 0)::BIGINT AS purchases, known AS event_timestamp, known AS created
FROM spans LEFT JOIN days USING (item_id, known) WINDOW w AS (PARTITION BY item_id ORDER BY known) ORDER BY event_timestamp, item_id"""

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


def derive(lake: Lake, *, behaviour: bool = True) -> StatisticsReport:
    """Bring the tables up to date: profiles by the item versions that are new, behaviour by the clicks of users who have clicked since,
    and the counts of items anew if there are new events: every item gets a row a day.

    Without ``behaviour`` the other two stay as they are once they are there: new items have no behaviour yet, and every night it is
    counted. A reader sees the old table or the new one.
    """
    with lake.erasing(shared=True):  # else what was read before an erasure would be written after it
        return _derive(lake, behaviour=behaviour)


def _derive(lake: Lake, *, behaviour: bool) -> StatisticsReport:
    with lake.deriving(PROFILE):
        _profile(lake)
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
    _write(lake, STATS, _sql(STATS_SQL, events=lake.read("events", ["event_timestamp", "item_id", "event"])))


def _behavior(lake: Lake, since: int) -> None:
    """Add the clicks that are not there yet, of users who have clicked since; killed, it adds none twice."""
    columns, clicks = ["event_timestamp", "user_id", "item_id", "query_id", "event"], "event = 'click' AND user_id IS NOT NULL"
    if since == changes.NOTHING:
        _write(lake, BEHAVIOR, _keyed(_sql(BEHAVIOR_SQL, events=lake.read("events", columns, clicks)), "behavior_id"))
        return
    events = lake.open("events")
    users = changes.newer(events, since, ["user_id"], clicks)["user_id"].combine_chunks().unique()
    fresh = _sql(BEHAVIOR_SQL, events=changes.rows_of(events, "user_id", users, columns, clicks))
    known = changes.rows_of(lake.open(BEHAVIOR), "user_id", users, ["behavior_id"])
    missing = _sql("SELECT * FROM fresh ANTI JOIN known USING (behavior_id) ORDER BY ALL", fresh=fresh, known=known)
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


def _profile(lake: Lake) -> None:
    """Add a row for every item version written since the last time; killed before the mark is set, it adds none of them twice."""
    since = int(changes.marks(lake, PROFILE).get("items", changes.NOTHING))
    items = lake.open("items")
    if changes.newest(items) == since:
        return
    columns = ["item_id", "spu_id", "category", "brand", "seller_id", "price", "event_timestamp", "created"]
    fresh = _keyed(_sql(PROFILE_SQL, items=changes.newer(items, since, columns)), "profile_id")
    if not lake.exists(PROFILE):
        lake.append(PROFILE, fresh.schema.empty_table())
    _insert(lake, PROFILE, "profile_id", fresh)
    changes.mark(lake, PROFILE, items=changes.newest(items))


def _sql(query: str, **tables: pa.Table) -> pa.Table:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name, table in tables.items():
            connection.register(name, table)
        return _plain(connection.sql(query).to_arrow_table())


def _plain(table: pa.Table) -> pa.Table:
    """UTC timestamps in microseconds, as in all the lake."""
    fields = [pa.field(f.name, pa.timestamp("us", tz="UTC") if pa.types.is_timestamp(f.type) else f.type) for f in table.schema]
    return table.cast(pa.schema(fields))
