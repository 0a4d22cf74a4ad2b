"""Features through Feast: joined as known strictly before, the same online, one view per encoder, and no harm from a kill."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore

from moon_ops.embeddings import as_of, features, handover, vector_tables
from moon_ops.embeddings.handover import Since
from moon_ops.errors import StageError
from moon_ops.lake import changes, statistics
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS, STAMP, embeddings_schema
from moon_ops.settings import Settings

MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
DAY, HOUR, MICROSECOND = dt.timedelta(days=1), dt.timedelta(hours=1), dt.timedelta(microseconds=1)
CLICK = MAY + 2 * DAY + 10 * HOUR
NOTHING = Since()
VIEWS = ["item_profile", "item_stats", "user_behavior", "item_embedding_v1"]
UNKNOWN = dict.fromkeys(("spu_id", "category", "brand", "seller_id", "price", "impressions", "clicks", "item_ids", "query_ids", "times"))


def item(item_id: int, day: int, price: float) -> dict[str, Any]:
    times = {"event_timestamp": MAY + day * DAY, "created": MAY + day * DAY}
    shown = {"title": "mug", "category": ["Home", "Mugs"], "brand": "Acme", "seller_id": 7, "status": "active"}
    return {"item_id": item_id, "spu_id": item_id + 100, "price": price, "content_hash": f"h{day}", **shown, **times}


def event(when: dt.datetime, kind: str, item_id: int, user_id: int = 5, query_id: int | None = None) -> dict[str, Any]:
    return {"event_timestamp": when, "user_id": user_id, "item_id": item_id, "query_id": query_id, "event": kind, "created": when}


ITEMS = [item(1, 0, 20.0), item(2, 0, 5.0), item(1, 9, 25.0)]
EVENTS = [
    event(MAY + DAY, "impression", 1),
    event(MAY + DAY + HOUR, "click", 1, query_id=81),
    event(CLICK, "click", 2),
    event(MAY + 5 * DAY, "purchase", 2, user_id=6),
]


def put_vectors(lake: Lake, version: int, dim: int, rows: list[tuple[int, int, int]]) -> None:
    """Rows of (item id, day valid from, which component is 1)."""
    eye = np.eye(dim, dtype=np.float32)
    columns = {
        "item_id": [i for i, _, _ in rows],
        "content_hash": [f"h{day}" for _, day, _ in rows],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(eye[[one for _, _, one in rows]].ravel()), dim),
        "event_timestamp": pa.array([MAY + day * DAY for _, day, _ in rows], STAMP),
        "created": pa.array([MAY + 20 * DAY] * len(rows), STAMP),
    }
    table = pa.table(columns)
    table = table.append_column("version_id", pa.array([f"{version}-{n}" for n in range(len(rows))]))
    for name in (f"embeddings/v{version}", f"query_embeddings/v{version}"):
        schema = vector_tables.schema_of(name, dim, f"c-{version}")
        lake.append(name, table.select(schema.names).cast(schema) if name.startswith("embeddings") else schema.empty_table())


def hand_over(store: FeatureStore, names: list[str], now: dt.datetime, since: Since = NOTHING) -> list[int]:
    views = [store.get_feature_view(name) for name in names]
    return [handover.online(store, view, features.dataset_of(view), since, now) for view in views]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose encoder 1 is published as of May 5."""
    place = tmp_path_factory.mktemp("home")
    lake = Lake(str(place / "lake"))
    lake.append("items", pa.Table.from_pylist(ITEMS, schema=SCHEMAS["items"]))
    lake.append("events", pa.Table.from_pylist(EVENTS, schema=SCHEMAS["events"]))
    statistics.derive(lake)
    put_vectors(lake, 1, 4, [(1, 0, 0), (2, 0, 1), (1, 9, 2), (1, 9, 2)])
    store = features.open_store(Settings(home=place))
    features.apply(store, place, features.definitions(lake, [1]))
    hand_over(store, VIEWS, MAY + 4 * DAY)
    return place


@pytest.fixture(scope="module")
def store(home: Path) -> FeatureStore:
    return features.open_store(Settings(home=home))


def historical(store: FeatureStore, asked: pa.Table, version: int) -> pa.Table:
    return as_of.join(store, asked, features.service(store, version)).table()


def rows(*asked: tuple[int, int, dt.datetime]) -> pa.Table:
    """(item, user, time) with a column of their number."""
    return pa.table(
        {
            "item_id": [i for i, _, _ in asked],
            "user_id": [u for _, u, _ in asked],
            "event_timestamp": pa.array([t for _, _, t in asked], STAMP),
            "mine": list(range(len(asked))),
        }
    )


def test_only_what_was_known_strictly_before_is_joined(store: FeatureStore) -> None:
    found = historical(store, rows((2, 5, CLICK), (2, 5, CLICK + 2 * MICROSECOND)), 1).to_pylist()
    first, second = MAY + DAY + HOUR, CLICK
    assert found[0]["item_ids"] == [1]
    assert found[1]["item_ids"] == [1, 2]
    assert found[1]["query_ids"] == [81, statistics.NO_QUERY]
    assert found[1]["times"] == [int(t.timestamp() * 1e6) for t in (first, second)]


def test_a_days_statistics_count_from_the_next_midnight(store: FeatureStore) -> None:
    midnight = MAY + 2 * DAY
    found = historical(store, rows((1, 5, midnight), (1, 5, midnight + MICROSECOND)), 1).to_pylist()
    assert [(r["impressions"], r["clicks"], r["purchases"]) for r in found] == [(None, None, None), (1, 1, 0)]


def test_an_items_version_is_joined_from_its_time_on(store: FeatureStore) -> None:
    change = MAY + 9 * DAY
    found = historical(store, rows((1, 5, change), (1, 5, change + MICROSECOND)), 1).to_pylist()
    assert [r["price"] for r in found] == [20.0, 25.0]
    assert (found[0]["spu_id"], found[0]["category"], found[0]["brand"], found[0]["seller_id"]) == (101, "Mugs", "Acme", 7)


def test_rows_keep_their_order_their_number_and_their_columns(store: FeatureStore) -> None:
    """Also rows that are asked twice, and in no order of time."""
    late, early = MAY + 3 * DAY, MAY + HOUR
    asked = rows((2, 5, late), (1, 6, late), (2, 5, early), (2, 5, late), (9, 8, late), (1, 5, early))
    found = historical(store, asked, 1)
    assert found.select(asked.column_names).equals(asked)
    assert found["spu_id"].to_pylist() == [102, 101, 102, 102, None, 101]
    assert found["item_ids"].to_pylist() == [[1, 2], None, None, [1, 2], None, None]


def test_many_rows_keep_their_order(store: FeatureStore) -> None:
    generator = np.random.default_rng(0)
    items, days = generator.integers(1, 4, 5000), generator.integers(0, 20, 5000)
    found = historical(store, rows(*((int(i), 5, MAY + int(d) * DAY + HOUR) for i, d in zip(items, days, strict=True))), 1)
    price = {1: lambda day: 20.0 if day < 9 else 25.0, 2: lambda _: 5.0, 3: lambda _: None}
    assert found["mine"].to_pylist() == list(range(5000))
    assert found["price"].to_pylist() == [price[int(i)](d) for i, d in zip(items, days, strict=True)]


def test_what_is_not_known_is_null(store: FeatureStore) -> None:
    unknown, too_early = historical(store, rows((99, 98, MAY + 3 * DAY), (1, 5, MAY)), 1).to_pylist()
    assert {name: unknown[name] for name in UNKNOWN} == UNKNOWN
    assert {name: too_early[name] for name in UNKNOWN} == UNKNOWN


def test_no_rows_are_no_rows(store: FeatureStore) -> None:
    found = historical(store, rows((1, 5, MAY)).slice(0, 0), 1)
    assert found.num_rows == 0
    assert set(UNKNOWN) < set(found.column_names)


def through_feast(store: FeatureStore, view: str, key: str, ids: list[int], at: dt.datetime) -> dict[int, list[float]]:
    frame = pd.DataFrame({key: ids, "event_timestamp": pd.Timestamp(at)})
    found = store.get_historical_features(frame, [f"{view}:embedding"]).to_arrow().to_pylist()
    return {row[key]: row["embedding"] for row in found if row["embedding"] is not None}


def straight(store: FeatureStore, view: str, key: str, ids: list[int], at: dt.datetime) -> dict[int, list[float]]:
    chunks = handover.vectors(features.dataset_of(store.get_feature_view(view)), key, pa.array(ids, pa.int64()), at)
    return {int(i): v.tolist() for some, matrix in chunks for i, v in zip(some, matrix, strict=True)}


@pytest.mark.parametrize(("day", "expected"), [(-1, {}), (1, {1: [1, 0, 0, 0], 2: [0, 1, 0, 0]}), (9, {1: [0, 0, 1, 0], 2: [0, 1, 0, 0]})])
def test_vectors_straight_from_the_lake_are_those_of_feast(store: FeatureStore, day: int, expected: dict[int, list[float]]) -> None:
    """The representation tables are filled straight; whoever asks Feast gets the same. Item 1's newest version stands there twice."""
    asked = (store, "item_embedding_v1", "item_id", [1, 2, 77], MAY + day * DAY)
    assert straight(*asked) == through_feast(*asked) == expected


def test_what_is_handed_over_is_what_was_written_or_became_valid_since(store: FeatureStore) -> None:
    dataset = features.dataset_of(store.get_feature_view("item_embedding_v1"))
    mark = changes.newest(dataset)

    def touched(since: Since, day: int) -> list[int]:
        return handover.touched(dataset, "item_id", since, MAY + day * DAY).to_pylist()

    assert touched(NOTHING, 1) == [1, 2]
    assert touched(Since(mark, MAY + 1 * DAY), 8) == []
    assert touched(Since(mark, MAY + 1 * DAY), 9) == [1], "its second version has become valid"
    assert touched(Since(mark, MAY + 9 * DAY), 10) == []
    assert touched(Since(changes.NOTHING, MAY + 9 * DAY), 10) == [1, 2]


def test_every_batch_is_handed_over_once_and_the_online_store_has_the_newest(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "BATCH", 1)
    opened = features.open_store(Settings(home=home))
    assert hand_over(opened, ["item_profile"], MAY + 4 * DAY) == [2]
    assert features.online(opened, 1, [1, 2], 5)["price"] == [20.0, 5.0]
    mark = changes.newest(features.dataset_of(opened.get_feature_view("item_profile")))
    assert hand_over(opened, ["item_profile"], MAY + 4 * DAY, Since(mark, MAY + 4 * DAY)) == [0]
    assert hand_over(opened, ["item_profile"], MAY + 4 * DAY, Since(mark + 9, MAY + 4 * DAY)) == [2], "a table brought back from a backup"


def test_all_encoders_with_a_table_are_found_whatever_lies_between(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    assert features.versions(lake) == []
    for number in (2, 10, 45):
        lake.append(f"embeddings/v{number}", embeddings_schema(4).empty_table())
    assert features.versions(lake) == [2, 10, 45]


def test_an_encoder_that_was_never_published_is_an_error(store: FeatureStore) -> None:
    with pytest.raises(StageError, match=r"no feature service ctr_v9 .*moon publish --encoder 9"):
        historical(store, rows((1, 5, MAY)), 9)


def test_the_views_name_their_contract(store: FeatureStore) -> None:
    tags = {"contract_id": "c-1", "encoder": "1"}
    assert store.get_feature_view("item_embedding_v1").tags == tags
    assert store.get_feature_view("query_embedding_v1").tags == tags
    assert store.get_feature_service("ctr_v1").tags == tags


def test_applying_another_encoder_keeps_the_first(home: Path, store: FeatureStore) -> None:
    lake = Lake(str(home / "lake"))
    before = historical(store, rows((1, 5, MAY + 3 * DAY)), 1)
    put_vectors(lake, 2, 6, [(1, 0, 5), (2, 0, 4)])
    assert features.versions(lake) == [1, 2]
    features.apply(store, home, features.definitions(lake, [2]))
    opened = features.open_store(Settings(home=home))
    assert {v.name for v in opened.list_feature_views()} >= {f"{kind}_embedding_v{n}" for kind in ("item", "query") for n in (1, 2)}
    assert [opened.get_feature_view(f"item_embedding_v{n}").tags["contract_id"] for n in (1, 2)] == ["c-1", "c-2"]
    assert historical(opened, rows((1, 5, MAY + 3 * DAY)), 1).equals(before)
    for version, expected in ((1, [1, 0, 0, 0]), (2, [0, 0, 0, 0, 0, 1])):
        assert straight(opened, f"item_embedding_v{version}", "item_id", [1], MAY + DAY) == {1: expected}


KILLED = """
import datetime, os, sys, pathlib
from feast.infra.online_stores.sqlite import SqliteOnlineStore
from moon_ops.embeddings import as_of, features, handover
from moon_ops.settings import Settings

def die(*arguments, **more):
    os._exit(9)

SqliteOnlineStore.online_write_batch = die
store = features.open_store(Settings(home=pathlib.Path(sys.argv[1])))
view = store.get_feature_view("item_profile")
handover.online(store, view, features.dataset_of(view), handover.Since(), datetime.datetime.fromisoformat(sys.argv[2]))
"""


def test_a_killed_publication_neither_blocks_readers_nor_the_next_one(home: Path) -> None:
    end = MAY + 12 * DAY
    killed = subprocess.run([sys.executable, "-c", KILLED, str(home), end.isoformat()], capture_output=True, check=False)
    assert killed.returncode == 9, killed.stderr.decode()[-500:]
    store = features.open_store(Settings(home=home))
    assert features.online(store, 1, [1, 2], 5)["price"] == [20.0, 5.0], "what was published before is still served"
    hand_over(store, ["item_profile"], end)
    assert features.online(store, 1, [1, 2], 5)["price"] == [25.0, 5.0]


def test_online_values_of_unknown_items_and_users_are_null(store: FeatureStore) -> None:
    found = features.online(store, 1, [2, 99], 98)
    assert found["spu_id"] == [102, None]
    assert found["item_ids"] == [None], "of the user one in all"


def test_online_equals_historical_at_the_end_of_time(released: Settings) -> None:
    """On the simulated shop, for every item and two users, at the last midnight that statistics know."""
    lake, store = released.lake, features.open_store(released)
    items = lake.read(statistics.PROFILE, ["item_id"])["item_id"].unique().to_pylist()
    end = max(lake.read(statistics.STATS, ["event_timestamp"])["event_timestamp"].to_pylist()) + HOUR
    users = lake.read(statistics.BEHAVIOR, ["user_id"])["user_id"].unique().to_pylist()
    assert len(items) == 115
    for user in (users[0], users[-1]):
        online = features.online(store, 1, items, user)
        table = pa.table({"item_id": items, "user_id": [user] * len(items), "event_timestamp": pa.array([end] * len(items), STAMP)})
        offline = historical(store, table, 1)
        for name in set(online) - {"item_id", "user_id"}:
            known = online[name] if len(online[name]) == len(items) else online[name] * len(items)
            assert known == offline[name].to_pylist(), name
        assert offline["item_ids"].null_count == 0
        assert sum(offline["impressions"].to_pylist()) > 3000


def test_what_the_features_are_is_read_once_for_each_state_of_the_registry(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To read it for each request was more than half of a look-up."""
    opened, read, asked = features.open_store(Settings(home=home)), features.service, list[int]()
    monkeypatch.setattr(features, "service", lambda *given, **named: asked.append(1) or read(*given, **named))
    hand_over(opened, ["item_profile"], MAY + 4 * DAY)
    online = features.Online(opened, 1)
    found = [online.values([1, 2], 5) for _ in range(3)]
    assert found[0]["price"] == [20.0, 5.0]
    assert found[0] == found[1] == found[2]
    assert len(asked) == 1
    opened.refresh_registry()
    assert online.values([1, 2], 5) == found[0]
    assert len(asked) == 2
