"""The way in for other people's models: every value of a small history by hand, nothing that was not known yet, and bad rows."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore
from sklearn.metrics import roc_auc_score

from moon_ops.ctr.loader import Loader
from moon_ops.embeddings import as_of, features, vector_tables
from moon_ops.embeddings.histories import History
from moon_ops.errors import ContractError, InputError, LeakError, StageError
from moon_ops.lake import statistics
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS, STAMP
from moon_ops.settings import Settings

MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
HOUR, DAY, TICK = dt.timedelta(hours=1), dt.timedelta(days=1), dt.timedelta(microseconds=1)
NOW = MAY + 30 * DAY
CLICKS = [(MAY + DAY + HOUR, 1, 81), (MAY + 2 * DAY, 2, None), (MAY + 3 * DAY, 1, 82)]  # of user 5: when, item, query


def item(item_id: int, since: dt.datetime, price: float) -> dict[str, Any]:
    rest = {"title": "x", "status": "active", "content_hash": f"{price}", "event_timestamp": since, "created": since}
    return {
        "item_id": item_id,
        "spu_id": item_id * 10,
        "category": ["Home", "Mugs"],
        "brand": "Acme",
        "seller_id": 3,
        "price": price,
        **rest,
    }


def put_vectors(lake: Lake, name: str, dim: int, rows: list[tuple[int, dt.datetime, int]], contract: str) -> None:
    """(id, valid from, which unit vector)."""
    key = "query_id" if name.startswith("query") else "item_id"
    columns = {
        "version_id": [f"{i}-{n}" for n, (i, _, _) in enumerate(rows)],
        key: pa.array([i for i, _, _ in rows], pa.int64()),
        "content_hash": [str(n) for n in range(len(rows))],
        "embedding": pa.array([np.eye(dim, dtype=np.float32)[axis].tolist() for _, _, axis in rows], pa.list_(pa.float32(), dim)),
        "event_timestamp": pa.array([t for _, t, _ in rows], STAMP),
        "created": pa.array([t for _, t, _ in rows], STAMP),
    }
    schema = vector_tables.schema_of(name, dim, contract)
    lake.append(name, pa.table(columns).select(schema.names).cast(schema))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Item 1 is a version of May 1 and one of May 3, item 2 comes on May 2, item 3 is not embedded; encoder 1 was trained until May 2."""
    home = tmp_path_factory.mktemp("home")
    lake = Lake(str(home / "lake"))
    items = [item(1, MAY, 10.0), item(1, MAY + 2 * DAY, 20.0), item(2, MAY + DAY, 30.0), item(3, MAY, 40.0)]
    lake.append("items", pa.Table.from_pylist(items, schema=SCHEMAS["items"]))
    events = [
        {"event_timestamp": when - second, "user_id": 5, "item_id": i, "query_id": q, "event": kind, "created": when}
        for when, i, q in CLICKS
        for kind, second in (("impression", 2 * TICK), ("click", 0 * TICK))
    ]
    lake.append("events", pa.Table.from_pylist(events, schema=SCHEMAS["events"]))
    statistics.derive(lake)
    for version, contract in ((1, "c-one"), (2, "c-two")):
        put_vectors(lake, f"embeddings/v{version}", 4, [(1, MAY, 0), (1, MAY + 2 * DAY, 1), (2, MAY + DAY, 2)], contract)
        put_vectors(lake, f"query_embeddings/v{version}", 4, [(81, MAY + DAY, 3), (82, MAY + 3 * DAY, 0)], contract)
    opened = features.open_store(Settings(home=home))
    features.apply(opened, home, features.definitions(lake, [1, 2], {1: (MAY + DAY).isoformat()}))
    return opened


def rows(*asked: tuple[int, int, int, dt.datetime]) -> pd.DataFrame:
    """(user, item, query, time), labelled by their number."""
    columns = {name: [row[n] for row in asked] for n, name in enumerate(("user_id", "item_id", "query_id"))}
    return pd.DataFrame({**columns, "event_timestamp": pd.to_datetime([row[3] for row in asked], utc=True), "label": range(len(asked))})


def batch(store: FeatureStore, *asked: tuple[int, int, int, dt.datetime], **more: Any) -> dict[str, Any]:
    settings = {"behaviors": 3, "vectors": ("item", "query", "item_ids", "query_ids"), "now": NOW, "seen_by_encoder": True, **more}
    (found,) = Loader(store, rows(*asked), "ctr_v1", **settings).batches(100)
    return found


def unit(*axes: int | None) -> list[list[float]]:
    return [np.eye(4)[axis].tolist() if axis is not None else [0.0] * 4 for axis in axes]


def test_every_value_of_a_small_history(store: FeatureStore) -> None:
    """Just before, and just after, each thing becomes known; what is there at the row's own moment is not known yet."""
    third = MAY + 2 * DAY  # item 1 changes, and user 5 clicks item 2, at this moment
    found = batch(store, (5, 1, 81, third), (5, 1, 82, third + 2 * TICK), (5, 1, 82, MAY + 3 * DAY + HOUR), (5, 2, 81, MAY + DAY))
    assert found["label"].tolist() == [0, 1, 2, 3]
    assert found["price"].tolist()[:3] == [10.0, 20.0, 20.0]
    assert np.isnan(found["price"][3]), "item 2 comes at this very moment"
    assert found["item_embedding"].tolist() == unit(0, 1, 1, None)
    assert found["query_embedding"].tolist() == unit(3, None, 0, None)
    assert found["item_ids"].tolist() == [[-1, -1, 1], [-1, 1, 2], [1, 2, 1], [-1, -1, -1]]
    assert found["query_ids"].tolist() == [[-1, -1, 81], [-1, 81, -1], [81, -1, 82], [-1, -1, -1]]
    assert found["item_ids_embedding"].tolist() == [unit(None, None, 0), unit(None, 1, 2), unit(1, 2, 1), unit(None, None, None)]
    assert found["query_ids_embedding"][2].tolist() == unit(3, None, 0)
    assert found["clicks"].tolist() == [-1, 1, 1, -1], "a day's clicks count from the next midnight on"
    assert found["spu_id"].tolist() == [10, 10, 10, -1]


def test_texts_are_numbers_with_their_values_beside_them(store: FeatureStore) -> None:
    loader = Loader(store, rows((5, 1, 81, MAY + 3 * DAY), (5, 99, 81, MAY + 3 * DAY)), "ctr_v1", now=NOW)
    (found,) = loader.batches(10)
    assert [loader.values["category"][code] for code in found["category"]] == ["Mugs", ""]


def test_it_is_what_feast_itself_would_join(store: FeatureStore) -> None:
    """Every scalar and list feature, at a thousand random moments, against get_historical_features one microsecond before."""
    drawn = np.random.default_rng(0)
    times = [MAY + dt.timedelta(microseconds=int(us)) for us in drawn.integers(0, 5 * 86400 * 10**6, 1000)]
    asked = rows(*((int(drawn.integers(4, 7)), int(drawn.integers(1, 5)), 81, when) for when in sorted(times)))
    service = features.service(store, 1)
    ours = as_of.join(store, pa.Table.from_pandas(asked, preserve_index=False), service).table()
    names = [f"{p.name}:{f.name}" for p in service.feature_view_projections for f in p.features if features.VECTORS not in p.name]
    earlier = asked.assign(event_timestamp=asked["event_timestamp"] - pd.Timedelta(1, "us"))
    theirs = store.get_historical_features(earlier, names).to_arrow().sort_by("label")
    assert len(names) >= 10
    for name in (reference.split(":")[1] for reference in names):
        assert ours[name].to_pylist() == theirs[name].to_pylist(), name


def test_histories_of_many_versions_are_searched_right() -> None:
    drawn = np.random.default_rng(1)
    ids, times, created = (drawn.integers(0, most, 3000) for most in (40, 500, 9))
    for spread, ttl in ((1, 0), (1_000_003, 0), (1, 60)):
        history = History(ids * spread, times, created, ttl)
        asked, when = drawn.integers(-3, 45, 800) * spread, drawn.integers(-5, 510, 800)
        found = history.at(history.codes(asked), when)
        for one, moment, row in zip(asked, when, found, strict=True):
            known = np.flatnonzero((ids * spread == one) & (times < moment) & ((times >= moment - 1 - ttl) | (ttl == 0)))
            best = max(known, key=lambda k: (times[k], created[k], k), default=-1)
            assert row == best


def test_the_most_similar_of_a_long_history_come_in_their_order(store: FeatureStore) -> None:
    found = batch(store, (5, 2, 81, MAY + 4 * DAY), behaviors=3, top_k=1)
    assert found["item_ids"].tolist() == [[2]]
    assert found["query_ids"].tolist() == [[-1]], "all lists of a view keep the same clicks"
    assert found["item_ids_embedding"].tolist() == [unit(2)]


def test_batches_hold_every_row_once(store: FeatureStore) -> None:
    loader = Loader(store, rows(*((5, 1, 81, MAY + 4 * DAY + n * TICK) for n in range(25))), "ctr_v1", now=NOW)
    assert len(loader) == 25
    assert [len(b["label"]) for b in loader.batches(10)] == [10, 10, 5]
    shuffled = np.concatenate([b["label"] for b in loader.batches(10, seed=3)])
    assert sorted(shuffled.tolist()) == list(range(25)) != shuffled.tolist()
    assert np.concatenate([b["label"] for b in loader.batches(10, seed=3)]).tolist() == shuffled.tolist()


def test_any_notebook_opens_the_same_store(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file in the home, with no variable set."""
    place = Path(store.config.registry.path.removeprefix("sqlite:///")).parent
    for name in ("MOON_REGISTRY", "MOON_ONLINE_STORE", "MOON_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert (place / "feature_store.yaml").stat().st_mode & 0o044 == 0o044, "others may read what holds no secret"
    (found,) = Loader(FeatureStore(str(place)), rows((5, 1, 81, MAY + 3 * DAY)), "ctr_v1", now=NOW).batches(1)
    assert found["item_embedding"].tolist() == unit(1)


def test_no_rows_are_no_batches_and_the_unknown_is_nothing(store: FeatureStore) -> None:
    for empty in (rows((5, 1, 81, MAY)).iloc[:0], pd.DataFrame(columns=["user_id", "item_id", "query_id", "event_timestamp", "label"])):
        assert list(Loader(store, empty, "ctr_v1", now=NOW).batches(10)) == []
    found = batch(store, (77, 88, 99, MAY + 9 * DAY))
    assert (found["spu_id"].tolist(), found["item_ids"].tolist()) == ([-1], [[-1, -1, -1]])
    assert not found["item_embedding"].any()


@pytest.mark.parametrize(
    ("change", "more", "error", "says"),
    [
        ({}, {"service": "ctr_v7"}, StageError, r"no feature service ctr_v7 \(there are: ctr_v1, ctr_v2\)"),
        ({"event_timestamp": pd.Timestamp("2026-05-04")}, {}, InputError, r"event_timestamp is timestamp\[.*not a time with a zone"),
        ({"event_timestamp": "2026-05-04"}, {}, InputError, "event_timestamp is .*string.*not a time with a zone"),
        ({"event_timestamp": pd.NaT}, {}, InputError, "event_timestamp"),
        ({}, {"now": MAY}, InputError, "event_timestamp of 1 rows is after 2026-05-01T00:00Z, e.g. 2026-05-04"),
        ({"event_timestamp": pd.Timestamp("2026-05-01T12:00Z")}, {}, LeakError, "1 of 1 rows are from before 2026-05-02"),
        ({"item_id": "-5"}, {}, InputError, "item_id = '-5' is not an id"),
        ({"item_id": True}, {}, InputError, "item_id = True is not an id"),
        ({"item_id": None}, {"drop": "item_id"}, InputError, "rows have no column item_id"),
        ({}, {"vectors": ("user",)}, InputError, "vectors names user, but service ctr_v1 has no user vectors"),
        ({"price": 1.0}, {}, InputError, "rows have a column price, and so has item_profile"),
        ({"query_id": 81.5}, {}, InputError, r"query_id = 81.5 is a number with a fraction, which is no id"),
        ({"item_id": 2.0**53}, {}, InputError, r"item_id = 9007199254740992.0 is a whole number stored as a float"),
        ({"label": [[1, 2]]}, {}, InputError, "label is list.*: neither numbers, texts nor times"),
        ({}, {"behaviors": 0}, InputError, "behaviors = 0 must be a whole number of at least 1"),
        ({}, {"behaviors": "5"}, InputError, "behaviors = '5' must be a whole number"),
        ({}, {"behaviors": 5, "top_k": 2.5}, InputError, "top_k = 2.5 must be a whole number"),
        ({}, {"behaviors": 5, "top_k": 6}, InputError, "top_k = 6 is more than behaviors = 5"),
        ({}, {"vectors": None}, InputError, "vectors = None is no list of names"),
        ({}, {"service": None}, StageError, "Feast has no feature service None"),
        ({}, {"now": NOW.replace(tzinfo=None)}, InputError, "now = .* is not a time with a zone"),
        ({}, {"now": "2026-02-01"}, InputError, "now = '2026-02-01' is not a time with a zone"),
        ({"label": np.uint64(2**63)}, {}, InputError, "label holds numbers of 2"),
        ({}, {"behaviors": 101}, InputError, "behaviors = 101, but ctr_v1 shows the last 100 clicks"),
        ({}, {"vectors": "item"}, InputError, "vectors = 'item' is no list of names"),
    ],
)
def test_what_cannot_be_used_is_refused(
    store: FeatureStore, change: dict[str, Any], more: dict[str, Any], error: type[Exception], says: str
) -> None:
    asked = rows((5, 1, 81, MAY + 3 * DAY)).assign(**change)
    settings = {"service": "ctr_v1", "now": NOW, **more}
    if column := settings.pop("drop", ""):
        asked = asked.drop(columns=[column])
    with pytest.raises(error, match=says):
        Loader(store, asked, **settings)


def test_a_service_of_ones_own_is_guarded_too_and_keeps_the_most_similar(store: FeatureStore) -> None:
    """The encoder's training stands with its vectors, whoever names them; and the order of features says nothing."""
    from feast import FeatureService

    views = [store.get_feature_view(name) for name in ("user_behavior", "item_embedding_v1", "item_profile")]
    mine = FeatureService(name="mine", features=[views[0][["times", "item_ids"]], *views[1:]])
    store.apply([mine])
    try:
        with pytest.raises(LeakError, match="1 of 1 rows are from before 2026-05-02"):
            Loader(store, rows((5, 1, 81, MAY + HOUR)), "mine", vectors=("item",), now=NOW)
        loader = Loader(store, rows((5, 2, 81, MAY + 4 * DAY)), "mine", vectors=("item_ids",), behaviors=3, top_k=1, now=NOW)
        (found,) = loader.batches(1)
        assert (found["item_ids"].tolist(), found["times"].shape) == ([[2]], (1, 1))
    finally:
        store.delete_feature_service("mine")


@pytest.mark.parametrize(
    "change", [{"size": 0}, {"size": 2.5}, {"size": 2, "workers": 0}, {"size": 2, "seed": -1}, {"size": 2, "seed": "x"}]
)
def test_a_number_that_makes_no_batches_is_refused_at_once(store: FeatureStore, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"must be a whole number of at least (0|1)"):
        Loader(store, rows((5, 1, 81, MAY + 3 * DAY)), "ctr_v1", now=NOW).batches(**change)


def test_a_view_of_another_name_or_key_is_refused(store: FeatureStore) -> None:
    """Feast would join it by another column of the rows."""
    from feast import FeatureService

    view = store.get_feature_view("item_profile")
    for n, other in enumerate((view.with_join_key_map({"item_id": "shown_id"}), view.with_name("shown"))):
        store.apply([FeatureService(name=f"other{n}", features=[other])])
        try:
            with pytest.raises(InputError, match=f"service other{n} gives item_profile another name or key"):
                Loader(store, rows((5, 1, 81, MAY + 3 * DAY)), f"other{n}", vectors=(), now=NOW)
        finally:
            store.delete_feature_service(f"other{n}")


def test_a_service_of_two_contracts_is_refused(store: FeatureStore) -> None:
    from feast import FeatureService

    mixed = FeatureService(name="mixed", features=[store.get_feature_view(f"item_embedding_v{n}") for n in (1, 2)])
    store.apply([mixed])
    try:
        with pytest.raises(ContractError, match="contract c-one was about to meet contract c-two"):
            Loader(store, rows((5, 1, 81, MAY + 3 * DAY)), "mixed", now=NOW)
    finally:
        store.delete_feature_service("mixed")


def test_what_the_leak_would_have_been_worth(tmp_path: Path) -> None:
    """Clicks drawn by lot: nothing that was known before tells anything. With what is known at the row's own moment they are no riddle."""
    drawn = np.random.default_rng(2)
    lake = Lake(str(tmp_path / "lake"))
    lake.append("items", pa.Table.from_pylist([item(1, MAY, 1.0)], schema=SCHEMAS["items"]))
    shown = [(MAY + n * HOUR, int(drawn.integers(0, 40)), bool(drawn.random() < 0.3)) for n in range(600)]
    events = [
        {"event_timestamp": when, "user_id": user, "item_id": 1, "event": kind, "created": when}
        for when, user, clicked in shown
        for kind in (("impression", "click") if clicked else ("impression",))
    ]
    lake.append("events", pa.Table.from_pylist(events, schema=SCHEMAS["events"]))
    statistics.derive(lake)
    put_vectors(lake, "embeddings/v1", 4, [(1, MAY, 0)], "c-one")
    lake.append("query_embeddings/v1", vector_tables.schema_of("query_embeddings/v1", 4, "c-one").empty_table())
    store = features.open_store(Settings(home=tmp_path))
    features.apply(store, tmp_path, features.definitions(lake, [1]))
    labels = np.array([clicked for _, _, clicked in shown])

    def freshness(offset: dt.timedelta) -> float:
        """AUC of "clicked within the last second, as far as is known" when rows see what is known ``offset`` later."""
        asked = rows(*((user, 1, -1, when + offset) for when, user, _ in shown))
        (found,) = Loader(store, asked, "ctr_v1", vectors=(), now=NOW, seen_by_encoder=True).batches(1000)
        newest = found["times"][:, -1]
        seconds = (found["event_timestamp"] - newest) / 1e6
        return float(roc_auc_score(labels, (seconds < 1).astype(float)))

    assert freshness(0 * TICK) == 0.5, "no click is known at its own moment"
    assert freshness(2 * TICK) > 0.99, "two microseconds later each one is"


def test_numpys_numbers_are_numbers(store: FeatureStore) -> None:
    loader = Loader(store, rows((5, 1, 81, MAY + 3 * DAY)), "ctr_v1", behaviors=np.int64(5), top_k=np.int64(2), now=NOW)  # type: ignore[arg-type]
    (batch,) = loader.batches(np.int64(8))  # type: ignore[arg-type]
    assert batch["item_ids"].shape == (1, 2)


def test_rows_that_are_no_table_are_refused(store: FeatureStore) -> None:
    with pytest.raises(InputError, match="rows are a dict, not a table"):
        Loader(store, {"user_id": [1]}, "ctr_v1", now=NOW)  # type: ignore[arg-type]
