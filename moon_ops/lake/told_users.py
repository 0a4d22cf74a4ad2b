"""What a shop tells of its users: which rows say something that the lake does not know, and since when they are true."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.lake import changes
from moon_ops.lake.lake import Lake
from moon_ops.lake.query import newest, sql
from moon_ops.lake.seen import Taken


def new(lake: Lake, users: pa.Table, events: pa.Table, taken: Taken, now: dt.datetime) -> tuple[pa.Table, int]:
    """The rows that are new, and how many say what is not true any more: these stand in a file that was taken in before the lake learned
    what it has.

    They are valid from ``timestamp``; without one a new user's row is valid from the user's first event, which shows that there was one,
    and a changed row from ``now``, or right after the row that it changes.
    """
    if not users.num_rows:
        return users, 0
    query = """
    WITH first AS (SELECT user_id, min(timestamp) AS seen FROM events GROUP BY 1)
    SELECT u.user_id, u.extra, coalesce(s.again AND k.created > s.said, false) AS older,
        greatest($now, s.said, k.created + INTERVAL 1 MICROSECOND) AS created,
        coalesce(u.timestamp, CASE WHEN k.user_id IS NULL THEN first.seen END,
        CASE WHEN k.event_timestamp > $now THEN k.event_timestamp + INTERVAL 1 MICROSECOND END, $now) AS event_timestamp
    FROM users u JOIN said s USING (user_id) LEFT JOIN known k USING (user_id) LEFT JOIN first USING (user_id)
    WHERE k.user_id IS NULL OR k.extra IS DISTINCT FROM u.extra ORDER BY u.user_id"""
    known = newest(changes.known(lake, "users", users["user_id"], ["user_id", "event_timestamp", "created", "extra"]), "user_id")
    said = taken.said("users", users, "user_id")
    found = sql(query, {"now": now}, users=users, said=said, known=known, events=events.select(["user_id", "timestamp"]))
    fresh = found.filter(pc.invert(found["older"])).drop_columns("older")
    return fresh, found.num_rows - fresh.num_rows
