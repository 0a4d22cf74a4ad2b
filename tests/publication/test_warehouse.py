"""The features as Parquet: what Feast's own offline stores join from the copy is what our join finds in the lake."""

from __future__ import annotations

import datetime as dt
import errno
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore, RepoConfig

from moon_ops.embeddings import as_of, features, vector_tables
from moon_ops.errors import InputError, StageError
from moon_ops.files import TakenError
from moon_ops.lake import statistics
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS, STAMP
from moon_ops.publication import warehouse
from moon_ops.settings import ROOT, Settings

MAY, DAY, ITEMS, USERS, COUNT = dt.datetime(2026, 5, 1, tzinfo=dt.UTC), dt.timedelta(days=1), 15, 9, 400
SNIPPET = re.compile(r"```python\n(# moon features warehouse.*?)```", re.DOTALL)
ASKED = ("item_stats:clicks", "item_stats:impressions", "item_profile:price", "item_profile:category", "user_behavior:item_ids")
VECTOR = "item_embedding_v1:embedding"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items whose prices change, four hundred events of nine users, and vectors of two versions."""
    place, drawn = tmp_path_factory.mktemp("home"), np.random.default_rng(0)
    lake = Lake(str(place / "lake"))
    told = {"title": "mug", "status": "active"}
    items = [
        {"item_id": n, "spu_id": n, "category": ["A", f"B{n % 3}"], "price": n + day / 10, "content_hash": f"{day}", **told}
        | {"event_timestamp": MAY + day * DAY, "created": MAY + day * DAY}
        for n in range(ITEMS)
        for day in ((0,) if n % 2 else (0, 4))
    ]
    lake.append("items", pa.Table.from_pylist(items, schema=SCHEMAS["items"]))
    events = [
        {"user_id": int(user), "item_id": int(item), "event": str(kind), "event_timestamp": MAY + float(day) * DAY}
        for user, item, kind, day in zip(
            drawn.integers(0, USERS, COUNT),
            drawn.integers(0, ITEMS, COUNT),
            drawn.choice(["impression", "click"], COUNT),
            np.round(drawn.random(COUNT) * 9, 3),
            strict=True,
        )
    ]
    lake.append("events", pa.Table.from_pylist(events, schema=SCHEMAS["events"]))
    statistics.derive(lake)
    columns = {
        "item_id": np.arange(ITEMS),
        "embedding": vector_tables.as_column(drawn.normal(size=(ITEMS, 4)).astype(np.float32)),
        **dict.fromkeys(("event_timestamp", "created"), pa.array([MAY + DAY] * ITEMS, STAMP)),
        **dict.fromkeys(("version_id", "content_hash"), pa.array([str(n) for n in range(ITEMS)])),
    }
    for name in ("embeddings/v1", "query_embeddings/v1"):
        schema = vector_tables.schema_of(name, 4, "c-1")
        lake.append(name, pa.table(columns).select(schema.names).cast(schema) if name == "embeddings/v1" else schema.empty_table())
    store = features.open_store(Settings(home=place))
    features.apply(store, place, features.definitions(lake, [1], behaviors=5))
    return place


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any rows are many."""
    monkeypatch.setattr(warehouse, "IN_FILE", 7)
    monkeypatch.setattr(warehouse, "CLICKS", 20)
    monkeypatch.setattr(warehouse, "NUMBERS", 40)
    monkeypatch.setattr(warehouse, "GROUP", 1)


def asked() -> pd.DataFrame:
    drawn = np.random.default_rng(1)
    times = [MAY + dt.timedelta(microseconds=int(us)) for us in drawn.integers(0, 11 * 86400 * 10**6, 200)]
    known = [event for day in range(1, 10) for event in (MAY + day * DAY, MAY + day * DAY + dt.timedelta(microseconds=1))]
    ids = {"item_id": drawn.integers(0, ITEMS + 2, 218), "user_id": drawn.integers(0, USERS + 1, 218)}
    return pd.DataFrame({**ids, "event_timestamp": sorted([*times, *known]), "row": np.arange(218)})


def told(column: pa.ChunkedArray) -> list[Any]:
    return [None if value is None or value != value else value for value in column.to_pylist()]


@pytest.mark.parametrize("store", ["duckdb", "dask"])
def test_stores_of_feasts_own_answer_what_our_join_does(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, store: str
) -> None:
    """By the definitions that the documentation shows. Dask leaves rows out of which something was unknown; nor can it have more files."""
    monkeypatch.chdir(tmp_path)
    if store == "duckdb":
        request.getfixturevalue("few")
    written = warehouse.export(Settings(home=home), 1, Path("warehouse"))
    assert (len(list(Path("warehouse/user_behavior").iterdir())) > 5) is (store == "duckdb")
    things: dict[str, Any] = {}
    exec(SNIPPET.search((ROOT / "docs" / "embeddings.md").read_text())[1], things)  # type: ignore[index]
    theirs = FeatureStore(
        config=RepoConfig(
            project="elsewhere",
            provider="local",
            registry=str(tmp_path / "registry.db"),
            offline_store={"type": store},
            online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
            entity_key_serialization_version=3,
        )
    )
    theirs.apply([things["item"], things["user"], *things["views"]])
    rows = asked()
    earlier = rows.assign(event_timestamp=rows["event_timestamp"] - pd.Timedelta(1, "us"))
    found = theirs.get_historical_features(earlier, [*ASKED, VECTOR]).to_arrow().sort_by("row")
    ours = features.open_store(Settings(home=home))
    joined = as_of.join(ours, pa.Table.from_pandas(rows, preserve_index=False), features.service(ours, 1))
    assert found.num_rows == len(rows) if store == "duckdb" else 0 < found.num_rows < len(rows)
    for name in (reference.partition(":")[2] for reference in ASKED):
        assert told(found[name]) == told(joined.column(name).take(found["row"])), name
        assert 0 < found[name].null_count < len(rows)
    vectors = as_of.vectors(ours.get_feature_view("item_embedding_v1"))
    places = vectors.at(vectors.codes(rows["item_id"].to_numpy()), as_of.microseconds(joined.rows, "event_timestamp"))
    expected = [None if n < 0 else vectors.gather(np.array(n)).tolist() for n in places[found["row"].to_numpy()]]
    assert told(found["embedding"]) == expected
    assert written.views["user_behavior"] == pq.read_table("warehouse/user_behavior").num_rows


def test_all_rows_are_there_and_a_view_without_rows_says_its_columns(home: Path, tmp_path: Path, few: None) -> None:
    settings, out = Settings(home=home), tmp_path / "below" / "warehouse"
    (tmp_path / "below" / ".warehouse.moon-partial" / "item_stats").mkdir(parents=True)  # of one that was killed
    written = warehouse.export(settings, 1, out)
    counts = {name: settings.lake.count(table) for name, table in (("item_stats", statistics.STATS), ("item_profile", statistics.PROFILE))}
    assert counts.items() <= written.views.items()
    stats = pq.read_table(out / "item_stats").sort_by([("item_id", "ascending"), ("event_timestamp", "ascending")])
    lake = settings.lake.read(statistics.STATS).sort_by([("item_id", "ascending"), ("event_timestamp", "ascending")])
    assert stats.equals(lake.select(stats.column_names).cast(stats.schema))
    empty = pq.read_table(out / "query_embedding_v1")
    assert (empty.num_rows, empty.column_names) == (0, ["query_id", "embedding", "event_timestamp", "created"])
    assert sorted(path.name for path in out.parent.iterdir()) == ["warehouse"]
    with pytest.raises(InputError, match=r"warehouse is there already; nothing was written → name a directory"):
        warehouse.export(settings, 1, out)


def test_of_two_copies_at_once_one_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what lies beside them is left alone."""
    (tmp_path / "warehouse.partial").mkdir()
    (tmp_path / "warehouse.partial" / "own").touch()
    write = warehouse._write

    def twice(*given: Any) -> int:
        with pytest.raises(TakenError, match="somebody else has held a lock"):
            warehouse.export(Settings(home=home), 1, tmp_path / "warehouse")
        return write(*given)

    monkeypatch.setattr(warehouse, "_write", twice)
    written = warehouse.export(Settings(home=home), 1, tmp_path / "warehouse")
    assert {path.name for path in (tmp_path / "warehouse").iterdir()} == set(written.views)
    assert (tmp_path / "warehouse.partial" / "own").exists()


def test_a_full_disk_has_its_room_back(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warehouse, "put", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        warehouse.export(Settings(home=home), 1, tmp_path / "warehouse")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "file", "below a file"])
def test_what_cannot_become_a_directory_is_refused_before_hours_of_writing(home: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nothing was written → name a directory"):
        warehouse.export(Settings(home=home), 1, tmp_path / {"below a file": "file/warehouse"}.get(kind, kind))


def test_of_an_encoder_that_was_never_published_nothing_is_written(home: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="moon publish --encoder 2"):
        warehouse.export(Settings(home=home), 2, tmp_path / "warehouse")
    assert list(tmp_path.iterdir()) == []
