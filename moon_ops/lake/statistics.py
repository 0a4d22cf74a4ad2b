"""Tables derived from the ledger for click models: what was known of an item and of a user, and since when.

A row's ``event_timestamp`` is the first moment at which its values are known, so a point-in-time join never sees the event it is to
predict: a click counts from one microsecond after itself, a day's counts from the next midnight.
Item statistics have a row for every day since an item's first event: a dense history lets the join look back two days, not for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import lance
import pyarrow as pa

from moon_ops.lake.tables import Lake

PROFILE, STATS, BEHAVIOR = "features/item_profile", "features/item_stats", "features/user_behavior"
BEHAVIORS = 50  # the user's last clicks kept per row; a click model may read fewer
NO_QUERY = -1  # a click that no query led to

PROFILE_SQL = """
SELECT item_id, spu_id, coalesce(category[-1], '') AS category, coalesce(brand, '') AS brand, coalesce(seller_id, -1) AS seller_id,
       coalesce(price, 0.0) AS price, event_timestamp, created
FROM items ORDER BY event_timestamp, item_id"""

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
WITH clicks AS (
    SELECT user_id, event_timestamp + INTERVAL 1 MICROSECOND AS known, item_id, coalesce(query_id, {NO_QUERY}) AS query_id,
           epoch_us(event_timestamp) AS moment, row_number() OVER (PARTITION BY user_id ORDER BY event_timestamp, item_id) AS number
    FROM events WHERE event = 'click' AND user_id IS NOT NULL)
SELECT user_id, list(item_id) OVER w AS item_ids, list(query_id) OVER w AS query_ids, list(moment) OVER w AS times,
       known AS event_timestamp, known AS created
FROM clicks
WINDOW w AS (PARTITION BY user_id ORDER BY number ROWS BETWEEN {BEHAVIORS - 1} PRECEDING AND CURRENT ROW)
QUALIFY row_number() OVER (PARTITION BY user_id, known ORDER BY number DESC) = 1
ORDER BY event_timestamp, user_id"""


@dataclass(frozen=True)
class StatisticsReport:
    """Rows of each derived table."""

    item_profile: int
    item_stats: int
    user_behavior: int


def derive(lake: Lake) -> StatisticsReport:
    """Rebuild the three tables from items and events; a reader sees the old table or the new one."""
    lake.open("items")
    items = lake.read("items", ["item_id", "spu_id", "category", "brand", "seller_id", "price", "event_timestamp", "created"])
    events = lake.read("events", ["event_timestamp", "user_id", "item_id", "query_id", "event"])
    counts = []
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("items", items)
        connection.register("events", events)
        for name, query in ((PROFILE, PROFILE_SQL), (STATS, STATS_SQL), (BEHAVIOR, BEHAVIOR_SQL)):
            table = _plain(connection.sql(query).to_arrow_table())
            lance.write_dataset(table, lake.address(name), mode="overwrite" if lake.exists(name) else "create")
            counts.append(table.num_rows)
    return StatisticsReport(*counts)


def _plain(table: pa.Table) -> pa.Table:
    """UTC timestamps in microseconds, as in all the lake."""
    fields = [pa.field(f.name, pa.timestamp("us", tz="UTC") if pa.types.is_timestamp(f.type) else f.type) for f in table.schema]
    return table.cast(pa.schema(fields))
