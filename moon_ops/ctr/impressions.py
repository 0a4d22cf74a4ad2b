"""Impressions and their labels: what was shown to whom, and whether it was clicked."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import pyarrow as pa

from moon_ops.columns import ROWS, Feature
from moon_ops.errors import StageError
from moon_ops.lake import own_columns
from moon_ops.lake.lake import Lake
from moon_ops.lake.query import sql


def has_click_sequences(lake: Lake) -> bool:
    """Whether the lake has what a click model learns from: impressions and clicks of known users."""
    found = lake.read("events", ["event"], "user_id IS NOT NULL AND event IN ('impression', 'click')")
    return {"impression", "click"} <= set(found["event"].unique().to_pylist())


def impressions(lake: Lake, start: dt.datetime, end: dt.datetime, own: Sequence[Feature] = ()) -> pa.Table:
    """The entity rows in [start, end): user_id, item_id, query_id, session_id, event_timestamp, label, text, is_image, in time order.

    Of ``own`` features those of the context are columns, too.

    The label is whether the same user clicked the item in the same session, for the same query, from this moment on, before it was shown
    again, and before ``end``: what happened later is not known yet. Raises :class:`StageError` if there are no impressions of known users.
    """
    lake.open("events", needs="moon ingest DIRECTORY")
    of_context = [feature for feature in own if feature.view == ROWS]
    more = "".join(f", {name}" for name in ("position", "extra") if of_context)
    chosen = "".join(f", {own_columns.of_context(feature)} AS {feature.name}" for feature in of_context)
    given = "".join(f", shown.{feature.name}" for feature in of_context)
    query = f"""
    WITH near AS (
        SELECT event_timestamp, event, user_id, item_id, coalesce(query_id, -1) AS query_id, coalesce(session_id, -1) AS session_id{more}
        FROM events WHERE user_id IS NOT NULL AND event_timestamp >= TIMESTAMPTZ '{start.isoformat()}'
        AND event_timestamp < TIMESTAMPTZ '{end.isoformat()}'),
    shown AS (SELECT *{chosen} FROM near WHERE event = 'impression'),
    hit AS (
        SELECT DISTINCT shown.user_id, shown.item_id, shown.query_id, shown.session_id, shown.event_timestamp
        FROM (SELECT * FROM near WHERE event = 'click') clicks ASOF JOIN shown
            ON clicks.user_id = shown.user_id AND clicks.item_id = shown.item_id AND clicks.query_id = shown.query_id
            AND clicks.session_id = shown.session_id AND clicks.event_timestamp >= shown.event_timestamp)
    SELECT shown.user_id, shown.item_id, shown.query_id, shown.session_id, shown.event_timestamp,
           (hit.user_id IS NOT NULL)::BIGINT AS label, queries.text, queries.image_id IS NOT NULL AS is_image{given}
    FROM shown LEFT JOIN hit ON hit.user_id = shown.user_id AND hit.item_id = shown.item_id AND hit.query_id = shown.query_id
        AND hit.session_id = shown.session_id AND hit.event_timestamp = shown.event_timestamp
    LEFT JOIN queries ON queries.query_id = shown.query_id
    ORDER BY shown.event_timestamp, shown.session_id, shown.item_id, shown.user_id, shown.query_id, label{given}"""
    rows = sql(query, events=_events(lake, extra=bool(of_context)), queries=lake.read("queries", ["query_id", "text", "image_id"]))
    if not rows.num_rows:
        raise StageError(
            f"the lake has no impressions of known users between {start:%Y-%m-%d} and {end:%Y-%m-%d}: a click model cannot be trained",
            action="ingest events with event = impression and click, and user_id",
        )
    return rows


def _events(lake: Lake, *, extra: bool) -> pa.Table:
    """Who did what when; with ``extra`` also positions and the shop's own columns, null in a lake of before these were kept."""
    columns = ["event_timestamp", "user_id", "item_id", "query_id", "session_id", "event"]
    if not extra:
        return lake.read("events", columns)
    if "extra" in lake.open("events").schema.names:
        return lake.read("events", [*columns, "position", "extra"])
    events = lake.read("events", [*columns, "position"])
    return events.append_column("extra", pa.nulls(events.num_rows, pa.string()))
