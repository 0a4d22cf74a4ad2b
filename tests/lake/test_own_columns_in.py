"""A shop's own columns on their way into the lake: kept from every file, in every format, and typed for Feast's views."""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from moon_ops.columns import Feature
from moon_ops.errors import InputError
from moon_ops.lake import own_columns, statistics
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS

NOW, MAY = dt.datetime(2026, 6, 1, tzinfo=dt.UTC), dt.datetime(2026, 5, 2, tzinfo=dt.UTC)
WEIGHT, MADE_OF = Feature("weight", "item", "number"), Feature("made_of", "item", "category", "Made of")
TAGS, AGE = Feature("tags", "item", "list"), Feature("age", "user", "number")
Shop = Callable[..., Path]


def extras(lake: Lake, table: str, key: str) -> dict[int, Any]:
    """The own columns of each row, the last one written counts."""
    return {row[key]: json.loads(row["extra"] or "null") for row in lake.read(table).to_pylist()}


def test_every_file_keeps_what_only_this_shop_has(make_shop: Shop, empty: Lake) -> None:
    items = [
        {"item_id": 1, "title": "Hat", "weight": 1.5, "tags": ["new", " "], "empty": " "},
        {"item_id": 2, "title": "Coat", "weight": 3.0},
    ]
    events = [{"timestamp": MAY.isoformat(), "item_id": 1, "event": "impression", "user_id": 7, "relevance": 0.5}]
    users = [{"user_id": 7, "age": 30}, {"user_id": 8, "age": None, "timestamp": "2026-05-01T00:00:00Z"}, {"user_id": -1, "age": 3}]
    report = ingest(make_shop(items=items, events=events, users=users), empty, now=NOW)
    assert (report.users, report.refused) == (2, {"users.jsonl user_id": 1})
    assert extras(empty, "items", "item_id") == {1: {"weight": 1.5, "tags": ["new"]}, 2: {"weight": 3}}
    assert extras(empty, "events", "item_id") == {1: {"relevance": 0.5}}
    assert extras(empty, "users", "user_id") == {7: {"age": 30}, 8: None}
    since = {row["user_id"]: row["event_timestamp"] for row in empty.read("users").to_pylist()}
    assert since == {7: MAY, 8: dt.datetime(2026, 5, 1, tzinfo=dt.UTC)}, "without a time: from the user's first event"


def test_the_same_columns_change_nothing_and_others_are_a_new_version(make_shop: Shop, empty: Lake) -> None:
    shop = {"items": [{"item_id": 1, "title": "Hat", "weight": 1}], "users": [{"user_id": 7, "age": 30}]}
    ingest(make_shop("first", **shop), empty, now=NOW)
    before = empty.read("items").to_pylist()[0]
    again = ingest(make_shop("second", **shop), empty, now=NOW + dt.timedelta(days=1))
    assert (again.items, again.updated, again.users, again.known) == (0, 0, 0, 2)
    later = NOW + dt.timedelta(days=2)
    other = ingest(
        make_shop("third", items=[{"item_id": 1, "title": "Hat", "weight": 2}], users=[{"user_id": 7, "age": 31}]), empty, now=later
    )
    assert (other.items, other.updated, other.users) == (0, 1, 1)
    after = max(empty.read("items").to_pylist(), key=lambda row: row["event_timestamp"])
    assert (after["content_hash"], after["event_timestamp"]) == (before["content_hash"], later), "an encoder reads none of it"


def test_a_lake_of_before_gets_the_column_when_it_is_next_written(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop("old", items=[{"item_id": 1, "title": "Hat"}]), empty, now=NOW)
    old = empty.read("items").drop_columns("extra")
    lance.write_dataset(old, empty.address("items"), mode="overwrite")
    statistics.derive(empty, own=[WEIGHT])
    assert empty.read(statistics.PROFILE)["weight"].to_pylist() == [None]
    ingest(make_shop("new", items=[{"item_id": 2, "title": "Coat", "weight": 3}]), empty, now=NOW)
    assert extras(empty, "items", "item_id") == {1: None, 2: {"weight": 3}}
    assert set(empty.open("items").schema.names) == set(SCHEMAS["items"].names)
    statistics.derive(empty, own=[WEIGHT])
    assert sorted(empty.read(statistics.PROFILE)["weight"].to_pylist(), key=str) == [3.0, None]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_three_formats_have_the_same_values(tmp_path: Path, empty: Lake, ending: str) -> None:
    rows = [{"item_id": 1, "title": "Hat", "weight": 1.5, "Made of": "wool", "tags": "new| red |"}]
    rows += [{"item_id": 2, "title": "Coat", "weight": None, "Made of": None, "tags": None}]
    table = pa.Table.from_pylist(rows)
    (tmp_path / "shop").mkdir()
    place = tmp_path / "shop" / f"items.{ending}"
    if ending == "jsonl":
        place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "csv":
        table.to_pandas().to_csv(place, index=False)
    else:
        table.to_pandas().to_parquet(place)
    ingest(tmp_path / "shop", empty, now=NOW)
    statistics.derive(empty, own=[MADE_OF, TAGS, WEIGHT])
    found = empty.read(statistics.PROFILE, ["item_id", "made_of", "tags", "weight"]).to_pylist()
    assert sorted(found, key=lambda row: row["item_id"]) == [
        {"item_id": 1, "made_of": "wool", "tags": ["new", "red"], "weight": 1.5},
        {"item_id": 2, "made_of": None, "tags": None, "weight": None},
    ]


def test_what_is_no_number_is_counted(make_shop: Shop, empty: Lake, caplog: pytest.LogCaptureFixture) -> None:
    cells = ["1", "heavy", "nan", None, "1e400"]
    ingest(make_shop(items=[{"item_id": n, "title": "Hat", "weight": cell} for n, cell in enumerate(cells)]), empty, now=NOW)
    with caplog.at_level(logging.WARNING):
        statistics.derive(empty, own=[WEIGHT])
    assert "features.weight: 2 of 5 values are no finite numbers, and count as missing" in caplog.text
    assert sorted(empty.read(statistics.PROFILE)["weight"].to_pylist(), key=str) == [1.0, None, None, None, None]


def test_a_column_declared_otherwise_is_made_anew_and_one_no_longer_declared_stays(make_shop: Shop, empty: Lake) -> None:
    items = [{"item_id": 1, "title": "Hat", "weight": 2, "Made of": "wool"}]
    ingest(make_shop(items=items, users=[{"user_id": 7, "age": 30}]), empty, now=NOW)
    statistics.derive(empty, own=[WEIGHT, MADE_OF, AGE])
    assert {f.name for f in statistics.own(empty)} == {"weight", "made_of", "age"}
    statistics.derive(empty, own=[Feature("weight", "item", "category")])
    assert empty.read(statistics.PROFILE, ["weight", "made_of"]).to_pylist() == [{"weight": "2", "made_of": "wool"}]
    version = empty.open(statistics.PROFILE).version
    statistics.derive(empty)
    assert empty.open(statistics.PROFILE).version == version
    assert empty.read(statistics.USERS, ["user_id", "age"]).to_pylist() == [{"user_id": 7, "age": 30.0}]


def test_an_event_that_is_sent_again_with_a_column_more_is_no_second_event(make_shop: Shop, empty: Lake) -> None:
    items, event = [{"item_id": 1, "title": "Hat"}], {"timestamp": MAY.isoformat(), "item_id": 1, "event": "click", "user_id": 7}
    ingest(make_shop("first", items=items, events=[event]), empty, now=NOW)
    again = ingest(make_shop("more", items=items, events=[{**event, "relevance": 1}, {**event, "relevance": 2}]), empty, now=NOW)
    assert (again.events, extras(empty, "events", "item_id")) == (0, {1: None})
    other = [{**event, "user_id": 8, "relevance": 1}, {**event, "user_id": 8, "relevance": 2}]
    assert ingest(make_shop("other", items=items, events=other), empty, now=NOW).events == 1


def test_odd_names_of_columns_are_read(make_shop: Shop, empty: Lake) -> None:
    odd = 'a "b" c\'d.e$'
    ingest(make_shop(items=[{"item_id": 1, "title": "Hat", odd: 2}]), empty, now=NOW)
    statistics.derive(empty, own=[Feature("odd", "item", "number", odd)])
    assert empty.read(statistics.PROFILE)["odd"].to_pylist() == [2.0]


def test_the_clock_is_one_number() -> None:
    assert own_columns.of_context(Feature("hour", "context", "category")) == "CAST(hour(event_timestamp) AS VARCHAR)"
    with pytest.raises(InputError, match=r"features.hours: kind = 'list', but hour is one number → declare it as number or category"):
        own_columns.of_context(Feature("hours", "context", "list", "hour"))
