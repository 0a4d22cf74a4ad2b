"""From a million impressions to training batches, with sequences of 50 clicks and vectors of 128: rows per second and peak memory.

Ours (the loader: join, features, sequences, vectors) beside Feast alone with the vectors joined into every row, on some of the rows, since
all of them would not fit; and beside the limit, a numpy gather by row numbers that are already known, from arrays in memory.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import figures
import numpy as np
import pandas as pd
from as_of import LENGTH, PEER, ROWS, asked, made_up
from feast import FeatureView, Field
from feast.infra.data_sources.contrib.lance.lance_source import LanceSource
from feast.types import Array, Int64

from moon_ops.ctr.loader import Loader
from moon_ops.embeddings import as_of, features
from moon_ops.lake.lake import Lake
from moon_ops.settings import Settings

BATCH, SOME = 1024, 50_000  # rows of a batch; rows that Feast alone is asked for


def memory() -> float:
    """Peak of this process [bytes]."""
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def ours(home: Path) -> dict[str, float]:
    """Every row once, through the loader."""
    store, rows, before = features.open_store(Settings(home=home)), asked(), memory()
    began = time.perf_counter()
    loader = Loader(store, rows, "ctr_v1", behaviors=LENGTH, vectors=("item", "item_ids"), seen_by_encoder=True)
    ready = time.perf_counter()
    count = sum(len(batch["label"]) for batch in loader.batches(BATCH, seed=0))
    assert count == ROWS
    ended = time.perf_counter()
    return {"rows_per_s": ROWS / (ended - began), "join_s": ready - began, "peak_bytes": memory(), "added_bytes": memory() - before}


def feast(home: Path) -> dict[str, float]:
    """The same through ``get_historical_features``: the sequences, and then the vector of every behaviour in every row.

    The sequences lie there as lists, only those of two moments of each user: a list for every click would not fit into memory.
    """
    store, rows = features.open_store(Settings(home=home)), asked(SOME)
    source = LanceSource(name="whole", uri=Lake(str(home / "lake")).address(PEER), **features.TIMES)
    fields = [Field(name="item_ids", dtype=Array(Int64))]
    store.apply([FeatureView(name="whole_sequences", entities=[features.USER], ttl=features.FOREVER, schema=fields, source=source)])
    before = memory()
    began = time.perf_counter()
    frame = rows.to_pandas()
    known = store.get_historical_features(frame, ["whole_sequences:item_ids", "item_embedding_v1:embedding", "item_stats:clicks"]).to_df()
    long = known[["user_id", "event_timestamp", "item_ids"]].explode("item_ids").dropna().rename(columns={"item_ids": "item_id"})
    long = long.astype({"item_id": "int64"})
    vectors = store.get_historical_features(long[["item_id", "event_timestamp"]], ["item_embedding_v1:embedding"]).to_df()
    matrix = np.stack(pd.Series(vectors["embedding"]).to_numpy())
    assert len(matrix) == SOME * LENGTH
    return {"rows_per_s": SOME / (time.perf_counter() - began), "added_bytes": memory() - before}


def limit(home: Path) -> dict[str, float]:
    """A numpy gather of the same batches: row numbers and vectors lie in memory."""
    store = features.open_store(Settings(home=home))
    matrix = as_of.vectors(store.get_feature_view("item_embedding_v1")).vectors
    generator = np.random.default_rng(2)
    targets, behaviors = generator.integers(0, len(matrix), ROWS), generator.integers(0, len(matrix), (ROWS, LENGTH))
    order = generator.permutation(ROWS)
    began = time.perf_counter()
    for start in range(0, ROWS, BATCH):
        some = order[start : start + BATCH]
        batch = matrix[targets[some]], matrix[behaviors[some]]
        assert batch[1].shape[1:] == (LENGTH, matrix.shape[1])
    return {"rows_per_s": ROWS / (time.perf_counter() - began)}


def table() -> dict[str, float]:
    """Measure, and print it; every way runs in a process of its own."""
    found: dict[str, float] = {"rows": float(ROWS)}
    with tempfile.TemporaryDirectory() as scratch:
        made_up(Path(scratch))
        for run in (ours, feast, limit):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                one = pool.apply(run, (Path(scratch),))
            found |= {key if run is ours else f"{run.__name__}_{key}": value for key, value in one.items()}
            print(f"{run.__name__:8} {one['rows_per_s']:12,.0f} rows/s", f"{one.get('added_bytes', 0) / 2**20:10,.0f} MiB")
    found["ratio_feast"], found["ratio_limit"] = (found["rows_per_s"] / found[f"{peer}_rows_per_s"] for peer in ("feast", "limit"))
    print(f"ratio_feast {found['ratio_feast']:.1f}, ratio_limit {found['ratio_limit']:.2f}")
    return found


if __name__ == "__main__":
    figures.main(table)
