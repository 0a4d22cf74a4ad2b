"""Rows per second of a point-in-time join of keys: ours beside Feast's own join and DuckDB's ASOF, on a made-up shop.

A row asks which statistics of its item were known before its time: 1 million rows, 100 thousand items with 10 days each. Everything counts:
reading keys and times from the lake, sorting, searching. Ours is measured for a whole service, too (three views and the users' sequences).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import figures
import lance
import numpy as np
import pyarrow as pa
from feast import FeatureStore

from moon_ops.embeddings import as_of, features, vector_tables
from moon_ops.embeddings.vector_tables import as_column
from moon_ops.lake import statistics
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import STAMP
from moon_ops.settings import Settings

ITEMS, USERS, ROWS, DAYS, LENGTH, DIM = 100_000, 100_000, 1_000_000, 10, 50, 128
PEER = "features/whole_sequences"
DAY = 86_400_000_000  # µs
START = 1_767_225_600_000_000  # 2026-01-01


def write(lake: Lake, name: str, table: pa.Table) -> None:
    """Write a table of the lake as it is."""
    lance.write_dataset(table, lake.address(name), mode="create")


def stamps(values: np.ndarray) -> pa.Array:
    """Microseconds as times."""
    return pa.array(values, pa.int64()).cast(STAMP)


def made_up(home: Path) -> FeatureStore:
    """A published shop with twice ``LENGTH`` clicks for each user, and random unit vectors."""
    generator, lake = np.random.default_rng(0), Lake(str(home / "lake"))
    days = np.repeat(np.arange(DAYS), ITEMS) * DAY + START
    counts = generator.integers(0, 1000, ITEMS * DAYS)
    stats = dict.fromkeys(("impressions", "clicks", "purchases"), counts)
    ids = np.tile(np.arange(ITEMS), DAYS)
    write(lake, statistics.STATS, pa.table({"item_id": ids, **stats, "event_timestamp": stamps(days), "created": stamps(days)}))
    one, began = np.arange(ITEMS), stamps(np.full(ITEMS, START))
    profile = {"item_id": one, "spu_id": one, "category": pa.array([f"c{i % 300}" for i in range(ITEMS)]), "seller_id": one % 5000}
    profile |= {"brand": pa.array([f"b{i % 2000}" for i in range(ITEMS)]), "price": generator.random(ITEMS) * 100}
    write(lake, statistics.PROFILE, pa.table({**profile, "event_timestamp": began, "created": began}))
    users, order = np.repeat(np.arange(USERS), 2 * LENGTH), np.tile(np.arange(LENGTH), 2 * USERS)
    known = stamps(START + np.tile(np.repeat([0, 5 * DAY], LENGTH), USERS) + order)
    clicks = {name: generator.integers(0, ITEMS, len(users)) for name in ("item_id", "query_id")}
    write(lake, statistics.BEHAVIOR, pa.table({"user_id": users, **clicks, "event_timestamp": known, "created": known}))
    made = np.arange(2 * USERS + 1, dtype=np.int32) * LENGTH  # for Feast alone: the lists themselves, of the two moments that matter
    lists = {"item_ids": pa.ListArray.from_arrays(made, pa.array(clicks["item_id"]))}
    since = stamps(START + np.tile([LENGTH, 5 * DAY + LENGTH], USERS))
    write(lake, PEER, pa.table({"user_id": users[::LENGTH], **lists, "event_timestamp": since, "created": since}))
    vectors = generator.normal(size=(ITEMS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for name, key in (("embeddings/v1", "item_id"), ("query_embeddings/v1", "query_id")):
        count = ITEMS if key == "item_id" else 1
        columns = {key: one[:count], "embedding": as_column(vectors[:count]), "event_timestamp": began[:count], "created": began[:count]}
        columns |= {"version_id": pa.array([str(i) for i in range(count)]), "content_hash": pa.array(["x"] * count)}
        schema = vector_tables.schema_of(name, DIM, "c-bench")
        write(lake, name, pa.table(columns).select(schema.names).cast(schema))
    store = features.open_store(Settings(home=home))
    features.apply(store, home, features.definitions(lake, [1], behaviors=LENGTH))
    return store


def asked(rows: int = ROWS) -> pa.Table:
    """Impressions at random moments, in the order of time."""
    generator = np.random.default_rng(1)
    times = np.sort(generator.integers(START + DAY, START + DAYS * DAY, rows))
    columns = {
        "user_id": generator.integers(0, USERS, rows),
        "item_id": generator.integers(0, ITEMS, rows),
        "query_id": np.zeros(rows, int),
    }
    return pa.table({**columns, "event_timestamp": stamps(times), "label": (generator.random(rows) < 0.1).astype(np.int64)})


def best(run: Callable[[], object], times: int = 3) -> float:
    """The least seconds of a few runs."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return min(taken)


def measure(home: Path) -> dict[str, float]:
    """Every way on the same rows."""
    store, rows = made_up(home), asked()
    view = store.get_feature_view("item_stats")

    def ours() -> np.ndarray:
        history, _ = as_of.read(view, [])
        return history.at(history.codes(as_of.identifiers(rows, "item_id")), as_of.microseconds(rows, "event_timestamp"))

    def feast() -> pa.Table:
        return store.get_historical_features(rows.select(["item_id", "event_timestamp"]).to_pandas(), ["item_stats:clicks"]).to_arrow()

    def duck() -> pa.Table:
        known, asking = features.dataset_of(view).to_table(columns=["item_id", "event_timestamp"]), rows  # noqa: F841
        on = "r.item_id = k.item_id AND r.event_timestamp > k.event_timestamp"
        return duckdb.connect().sql(f"SELECT k.event_timestamp FROM asking r ASOF LEFT JOIN known k ON {on}").to_arrow_table()

    assert (ours() >= 0).all(), "every row finds its statistics"
    service = features.service(store, 1)
    found = {
        "rows": float(ROWS),
        "rows_per_s": ROWS / best(ours),
        "service_rows_per_s": ROWS / best(lambda: as_of.join(store, rows, service)),
    }
    return found | {"feast_rows_per_s": ROWS / best(feast, 2), "duckdb_rows_per_s": ROWS / best(duck)}


def table() -> dict[str, float]:
    """Measure, and print it."""
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch))
    for name, text in (("", "ours, one view"), ("service_", "ours, the service"), ("feast_", "Feast"), ("duckdb_", "DuckDB ASOF")):
        print(f"{text:20} {found[f'{name}rows_per_s']:14,.0f} rows/s")
    return found


if __name__ == "__main__":
    figures.main(table)
