"""Clicks as a Feast feature: lists that lie in one another, and the same lists for whoever needs values of their own."""

from __future__ import annotations

import datetime as dt
import random
from collections import defaultdict
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from feast import FeatureStore, FeatureView
from feast.infra.data_sources.contrib.lance.lance_source import LanceSource

from moon_ops.embeddings import features
from moon_ops.embeddings.sequences import LISTS, ClickSequences, sequences
from moon_ops.errors import InputError
from moon_ops.lake import statistics
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS, STAMP
from moon_ops.settings import Settings

MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
SECOND, TICK = dt.timedelta(seconds=1), dt.timedelta(microseconds=1)
ITEM = {"item_id": 1, "spu_id": 1, "title": "mug", "status": "active", "content_hash": "h", "event_timestamp": MAY, "created": MAY}
Click = tuple[int, int, int, int]  # user, item, query, second


def table(clicks: list[Click]) -> pa.Table:
    columns = {name: pa.array([c[n] for c in clicks], pa.int64()) for n, name in enumerate(("user_id", "item_id", "query_id"))}
    times = pa.array([MAY + c[3] * SECOND + TICK for c in clicks], STAMP)
    return pa.table({**columns, "event_timestamp": times, "created": times, "behavior_id": [str(n) for n in range(len(clicks))]})


def shown(rows: pa.Table) -> list[tuple[int, int, list[int], list[int]]]:
    return [(r["user_id"], (r["event_timestamp"] - MAY) // SECOND, r["item_ids"], r["query_ids"]) for r in rows.to_pylist()]


def test_a_row_shows_the_clicks_until_then_oldest_first_and_the_last_ones_only() -> None:
    rows = sequences(table([(2, 9, 5, 3), (1, 10, 7, 0), (1, 11, -1, 4), (1, 12, 8, 2)]), 2)
    assert shown(rows) == [(1, 0, [10], [7]), (1, 2, [10, 12], [7, 8]), (1, 4, [12, 11], [8, -1]), (2, 3, [9], [5])]
    moments = [(MAY + n * SECOND - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // TICK for n in (2, 4)]
    assert rows["times"].to_pylist()[2] == moments, "of the clicks themselves, not of the moment after them"
    assert rows["created"] == rows["event_timestamp"]


def test_clicks_at_one_moment_are_one_row_in_the_order_of_their_items() -> None:
    assert shown(sequences(table([(1, 3, 0, 0), (1, 1, 0, 0), (2, 4, 0, 0), (1, 2, 0, 0)]), 9)) == [
        (1, 0, [1, 2, 3], [0, 0, 0]),
        (2, 0, [4], [0]),
    ]


def test_nobody_has_clicked() -> None:
    rows = sequences(table([]), 5)
    assert (rows.num_rows, set(LISTS) <= set(rows.column_names)) == (0, True)


def test_a_thousand_clicks_take_memory_once() -> None:
    """With values of its own each list would hold half a thousand: 12 MB instead of 72 KB."""
    rows = sequences(table([(1, n, n, n) for n in range(1000)]), 1000)
    assert rows["item_ids"][999].as_py() == list(range(1000))
    assert rows.nbytes < 100_000


def test_a_random_history_equals_counting_the_obvious_way() -> None:
    drawn = random.Random(0)
    clicks = [(drawn.randrange(5), drawn.randrange(9), drawn.randrange(3), second) for second in drawn.sample(range(900), 300)]
    kept: dict[int, list[Click]] = defaultdict(list)
    expected = []
    for click in sorted(clicks, key=lambda c: c[3]):
        kept[click[0]].append(click)
        last = kept[click[0]][-20:]
        expected.append((click[0], click[3], [c[1] for c in last], [c[2] for c in last]))
    assert shown(sequences(table(clicks), 20)) == sorted(expected, key=lambda row: row[:2])


@pytest.fixture
def source(tmp_path: Path) -> ClickSequences:
    uri = str(tmp_path / "clicks")
    lance.write_dataset(table([(1, 10, 7, 0), (2, 9, 5, 3), (1, 12, 8, 2)]), uri)
    return ClickSequences(length=5, name="user_behavior", uri=uri, **features.TIMES)


def test_feast_sees_plain_lists(source: ClickSequences) -> None:
    rows = source.to_arrow()
    assert rows.schema.equals(source.get_schema())
    assert shown(rows) == [(1, 0, [10], [7]), (1, 2, [10, 12], [7, 8]), (2, 3, [9], [5])]
    assert source.to_arrow(columns=["user_id", "times"]).column_names == ["user_id", "times"]
    assert [name for name, _ in source.get_table_column_names_and_types(None)] == source.get_schema().names


def test_the_registry_gives_back_the_same_source(source: ClickSequences) -> None:
    known = LanceSource.from_proto(source.to_proto())
    other = ClickSequences(length=6, name="user_behavior", uri=source.uri, **features.TIMES)
    source.tags, source.description = {"team": "ctr"}, "clicks"
    found = ClickSequences.from_proto(source.to_proto())
    assert (found.tags, found.description) == (source.tags, source.description)
    assert (found, found.length, found.timestamp_field, found.created_timestamp_column) == (source, 5, "event_timestamp", "created")
    assert source != other
    assert source != known, "a plain table is another source"


def test_a_registry_that_holds_the_plain_table_of_before_is_upgraded(tmp_path: Path) -> None:
    """Feast reads the old source with the new class before it replaces it."""
    lake = Lake(str(tmp_path / "lake"))
    lake.append("items", pa.Table.from_pylist([ITEM], schema=SCHEMAS["items"]))
    statistics.derive(lake)
    new = features.definitions(lake, [], behaviors=7)
    (view,) = (thing for thing in new if getattr(thing, "name", "") == "user_behavior")
    assert isinstance(view, FeatureView)
    plain = LanceSource(name="user_behavior", uri=lake.address(statistics.BEHAVIOR), **features.TIMES)
    old = FeatureView(name=view.name, entities=[features.USER], ttl=view.ttl, schema=view.features, source=plain)
    features.apply(features.open_store(Settings(home=tmp_path)), tmp_path, [features.USER, old])
    features.apply(features.open_store(Settings(home=tmp_path)), tmp_path, new)
    found = features.clicks_of(features.open_store(Settings(home=tmp_path)).get_feature_view("user_behavior"))
    assert found is not None
    assert found.length == 7


def test_feasts_lists_of_more_than_arrow_can_hold_are_refused(source: ClickSequences, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moon_ops.embeddings.sequences.MOST", 3)
    with pytest.raises(InputError, match=r"would copy 4 clicks into lists, and can hold 3 → .*MOON_BEHAVIORS"):
        source.to_arrow()


def test_another_number_of_clicks_is_registered_and_joined(tmp_path: Path) -> None:
    """Through Feast's own join, with a registry that is read again."""
    lake = Lake(str(tmp_path / "lake"))
    lake.append("items", pa.Table.from_pylist([ITEM], schema=SCHEMAS["items"]))
    clicks = [{"event_timestamp": MAY + n * SECOND, "user_id": 1, "item_id": 1, "event": "click", "query_id": n} for n in range(8)]
    lake.append("events", pa.Table.from_pylist(clicks, schema=SCHEMAS["events"]))
    statistics.derive(lake)
    asked = pa.table({"user_id": [1, 1], "event_timestamp": pa.array([MAY + 6 * SECOND, MAY + 9 * SECOND], STAMP)}).to_pandas()
    found: list[list[list[int]]] = []
    for length in (3, 5):
        features.apply(features.open_store(Settings(home=tmp_path)), tmp_path, features.definitions(lake, [], behaviors=length))
        store: FeatureStore = features.open_store(Settings(home=tmp_path))
        known = store.get_historical_features(asked, ["user_behavior:query_ids"]).to_df().sort_values("event_timestamp")
        found.append([np.asarray(row).tolist() for row in known["query_ids"]])
    assert found == [[[3, 4, 5], [5, 6, 7]], [[1, 2, 3, 4, 5], [3, 4, 5, 6, 7]]]
