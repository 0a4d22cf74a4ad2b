"""Whose events and queries these are: a user's, also before they signed in; and never everybody's whom nobody knows."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa

from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.publication import traces
from moon_ops.publication.traces import Target

MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)


def event(number: int, user: int | None, session: int | None, query: int | None) -> dict[str, Any]:
    when = MAY + dt.timedelta(seconds=number)
    return {"event_timestamp": when, "event": "click", "item_id": number, "user_id": user, "session_id": session, "query_id": query}


def lake_of(place: Path, *events: tuple[int | None, int | None, int | None]) -> Lake:
    lake = Lake(str(place / "lake"))
    lake.append("items", SCHEMAS["items"].empty_table())
    lake.append("events", pa.Table.from_pylist([event(n, *one) for n, one in enumerate(events)], schema=SCHEMAS["events"]))
    queries = [{"query_id": q, "text": f"query {q}", "event_timestamp": MAY} for q in range(9)]
    lake.append("queries", pa.Table.from_pylist(queries, schema=SCHEMAS["queries"]))
    return lake


def found(lake: Lake, user: int) -> tuple[list[int], list[int]]:
    """The events and the queries that go with a user."""
    rows = traces.rows_of(lake, Target("user", user, user))
    return lake.read("events", ["item_id"], rows["events"])["item_id"].to_pylist(), traces.queries_of(lake, user)


def test_what_a_user_did_before_they_signed_in_goes_with_them(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, (None, 1, 0), (7, 1, 1), (7, 2, 2), (8, 2, 3), (None, 2, 4), (None, 3, 5))
    assert found(lake, 7) == ([0, 1, 2], [0, 1, 2]), "session 2 is of two users, session 3 of nobody"


def test_events_of_nobody_are_no_users(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, (None, None, 0), (None, None, 1), (7, None, 1), (7, None, 2), (None, 3, 2))
    assert found(lake, 7) == ([2, 3], []), "somebody unknown asked the same"
    assert found(lake, 0) == ([], [])
