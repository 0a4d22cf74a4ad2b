"""Of many rows and versions: joins in parts are joins at once, and of vectors only those are held that a window may see."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from feast import FeatureStore

from moon_ops import pieces
from moon_ops.ctr import vector_files
from moon_ops.embeddings import as_of, features, vector_tables
from moon_ops.lake import statistics
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS, STAMP
from moon_ops.settings import Settings

MAY, DAY, ITEMS, COUNT = dt.datetime(2026, 5, 1, tzinfo=dt.UTC), dt.timedelta(days=1), 20, 200


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Twenty items with ten versions of a vector each, on thirty days; some of one moment, which were made at different times."""
    place, drawn = tmp_path_factory.mktemp("home"), np.random.default_rng(0)
    lake = Lake(str(place / "lake"))
    told = {"title": "mug", "status": "active", "content_hash": "h", "event_timestamp": MAY, "created": MAY}
    lake.append("items", pa.Table.from_pylist([{"item_id": n, "spu_id": n, **told} for n in range(ITEMS)], schema=SCHEMAS["items"]))
    shown = [{"user_id": 5, "item_id": n % ITEMS, "event": "click", "event_timestamp": MAY + n * DAY / 8} for n in range(COUNT)]
    lake.append("events", pa.Table.from_pylist(shown, schema=SCHEMAS["events"]))
    statistics.derive(lake)
    columns = {
        "item_id": drawn.integers(0, ITEMS, COUNT),
        "query_id": np.arange(COUNT),
        "embedding": vector_tables.as_column(drawn.normal(size=(COUNT, 4)).astype(np.float32)),
        "event_timestamp": pa.array([MAY + int(day) * DAY for day in drawn.integers(0, 30, COUNT)], STAMP),
        "created": pa.array([MAY + int(n) * DAY for n in drawn.permutation(COUNT)], STAMP),
        "version_id": pa.array([str(n) for n in range(COUNT)]),
        "content_hash": pa.array(["h"] * COUNT),
    }
    for name in ("embeddings/v1", "query_embeddings/v1"):
        schema = vector_tables.schema_of(name, 4, "c-1")
        lake.append(name, pa.table(columns).select(schema.names).cast(schema))
    found = features.open_store(Settings(home=place))
    features.apply(found, place, features.definitions(lake, [1]))
    return found


def asked(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Items, one of which nobody knows, and moments of some days, their first midnight among them."""
    drawn = np.random.default_rng(1)
    times = drawn.integers(first * 24, last * 24, 2000) * 3_600_000_000 + int(MAY.timestamp() * 1e6)
    return drawn.integers(0, ITEMS + 1, 2000), times


def test_a_window_sees_the_vectors_that_all_versions_would_show_it(store: FeatureStore) -> None:
    view = store.get_feature_view("item_embedding_v1")
    whole, some = as_of.vectors(view), as_of.vectors(view, (MAY + 10 * DAY, MAY + 15 * DAY))
    items, times = asked(10, 15)
    seen = [found.gather(found.at(found.codes(items), times)) for found in (whole, some)]
    assert np.array_equal(*seen)
    assert np.any(seen[0])
    assert len(whole.vectors) == COUNT + 1
    assert len(some.vectors) < COUNT / 3, "ten versions an item, five of thirty days"
    late, after = asked(20, 25)
    assert not np.array_equal(*(found.gather(found.at(found.codes(late), after)) for found in (whole, some)))


def test_vectors_may_be_held_in_half_of_the_memory(store: FeatureStore) -> None:
    view, (items, times) = store.get_feature_view("item_embedding_v1"), asked(0, 30)
    whole, half = as_of.vectors(view), as_of.vectors(view, kind="float16")
    assert half.vectors.nbytes * 2 == whole.vectors.nbytes
    found = half.gather(half.at(half.codes(items), times))
    assert found.dtype == np.float32
    assert found == pytest.approx(whole.gather(whole.at(whole.codes(items), times)), rel=1e-3, abs=1e-4)


def test_vectors_may_be_held_in_a_quarter_of_the_memory(store: FeatureStore, tmp_path: Path) -> None:
    """A number is off by half a step at most, a step being a 127th of the vector's largest; so are those that processes share."""
    view, (items, times) = store.get_feature_view("item_embedding_v1"), asked(0, 30)
    whole, held = as_of.vectors(view), as_of.vectors(view, kind="int8")
    assert held.scales is not None
    assert (held.vectors.dtype, held.scales.dtype, held.scales.shape) == (np.int8, np.float32, (COUNT + 1,))
    expected, found = (one.gather(one.at(one.codes(items), times)) for one in (whole, held))
    assert found.dtype == np.float32
    step = np.abs(expected).max(-1, keepdims=True) / 127
    assert (np.abs(found - expected) <= 0.5001 * step).all()
    assert np.array_equal(found.any(-1), expected.any(-1)), "no vector is no vector"
    assert held.gather(items[:6].reshape(2, 3) * 0 - 1).tolist() == [[[0.0] * 4] * 3] * 2
    vector_files.write(held, tmp_path)
    shared = vector_files.read(tmp_path)
    assert shared.vectors.dtype == np.int8
    assert np.array_equal(shared.gather(shared.at(shared.codes(items), times)), found)


def test_a_number_that_is_none_is_not_hidden_by_whole_numbers() -> None:
    """Nor does it touch another vector; zeros stay zeros, also where they are nearly none."""
    odd = np.array([[1.0, -2.0, 0.5], [np.nan, 1.0, 9.0], [np.inf, 1.0, 0.0], [0.0, 0.0, 0.0], [2e-43, 0.0, 0.0]], np.float32)
    whole, scales = as_of.quantized(odd)
    assert whole.tolist() == [[64, -127, 32], *[[0, 0, 0]] * 4]
    held = as_of.VectorHistory(
        as_of.History(np.arange(5), np.zeros(5, np.int64)), np.append(whole, [[0] * 3], 0), "c", np.append(scales, 0)
    )
    with np.errstate(invalid="ignore"):
        assert np.isfinite(held.gather(np.arange(-1, 5))).all(1).tolist() == [True, True, False, False, True, True]


def test_rows_joined_in_parts_are_those_joined_at_once(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    items, times = asked(0, 30)
    rows = pa.table({"item_id": items, "user_id": items % 7, "query_id": items, "event_timestamp": pa.array(times).cast(STAMP)})
    whole = as_of.join(store, rows, features.service(store, 1))
    monkeypatch.setattr(pieces, "LONG", 100)
    monkeypatch.setattr(pieces, "AT_ONCE", 64)
    parts = as_of.join(store, rows, features.service(store, 1))
    assert all(isinstance(at.base, np.memmap) for at in parts.at.values())
    assert parts.table().equals(whole.table())
    assert parts.part(slice(70, 300)).table().equals(whole.table().slice(70, 230))


def test_a_long_column_is_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces.tempfile, "tempdir", str(tmp_path))
    assert pieces.column(100, np.int32).base is None
    monkeypatch.setattr(pieces, "LONG", 99)
    monkeypatch.setattr(pieces, "AT_ONCE", 33)
    found = pieces.column(100, np.int32, 2)
    assert not list(tmp_path.iterdir())
    for some in pieces.parts(100):
        found[some] = np.arange(100)[some, None]
    assert found.tolist() == [[n, n] for n in range(100)]
    assert [(some.start, some.stop) for some in pieces.parts(0)] == [(0, 0)], "nothing has a shape, too"
