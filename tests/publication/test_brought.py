"""Vectors that others made: a public log, imported, ingested, brought, published, and a click model trained on it."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moon_ops.embeddings import vector_tables
from moon_ops.errors import InputError
from moon_ops.lake.tables import items_as_of
from moon_ops.publication import brought, publication
from moon_ops.registry.encoders import encoder_version
from moon_ops.release import clicks
from moon_ops.release.windows import windows
from moon_ops.settings import Settings


def vectors_of(settings: Settings, now: dt.datetime, path: Path, dim: int = 8) -> Path:
    """Random int8 vectors of all items but the first."""
    ids = items_as_of(settings.lake, now, ["item_id"])["item_id"].to_numpy()[1:]
    drawn = np.random.default_rng(0).integers(-127, 127, (len(ids), dim), dtype=np.int8)
    drawn[:, 0] |= 1
    pq.write_table(pa.table({"item_id": ids[::-1].copy(), "embedding": list(drawn)}), path)
    return path


def test_a_click_model_learns_on_brought_vectors(copied: Settings, now: dt.datetime, tmp_path: Path) -> None:
    file = vectors_of(copied, now, tmp_path / "vectors.parquet")
    until = windows(copied.lake).trained_until
    made = brought.bring(copied, file, trained_until=until, now=now)
    assert (made.encoder, made.dim) == (2, 8)
    again = replace(made, believed_before=until.isoformat())
    assert brought.bring(copied, file, trained_until=until, now=now) == again, "the same file is the same encoder"
    later = until + dt.timedelta(days=1)
    assert brought.bring(copied, file, trained_until=later, now=now) == replace(again, trained_until=later.isoformat())
    assert encoder_version(copied, 2).trained_until == later, "a date that was wrong is corrected"
    brought.bring(copied, file, trained_until=until, now=now)
    ids, vectors = vector_tables.vectors_as_of(copied.lake, 2, now)
    assert len(ids) == len(items_as_of(copied.lake, now)) - 1
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(ids)), abs=1e-5)
    assert publication.publish(copied, 2, now=now).contract_id == made.contract_id
    times = windows(copied.lake, trained_until=until)
    directory, version = clicks.train_ctr(copied, 2, "ctr-simtier", times, seed=0, epochs=1)
    assert version == 2
    assert 0.3 < clicks.evaluate_ctr(copied, 2, directory, times)["ctr/auc"] < 0.9


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"item_id": [1]}, "holds no columns item_id and embedding"),
        ({"item_id": [1, 2], "embedding": [[1.0], [1.0, 2.0]]}, "lengths of embedding"),
        ({"item_id": ["a"], "embedding": [[1.0]]}, r"none of the 1 ids in .*, e\.g\. a, is an item"),
        ({"item_id": [-1], "embedding": [[1.0]]}, "item_id = -1 is not an id"),
        ({"item_id": [1], "embedding": [1.0]}, "holds no columns item_id and embedding"),
        ({"item_id": [1], "embedding": [["x"]]}, "holds no columns item_id and embedding"),
        ({"item_id": [1, None], "embedding": [[1.0], [2.0]]}, "bring vectors of one length"),
        ({"item_id": [10**15], "embedding": [[1.0]]}, "none of the 1 ids in"),
        ({"item_id": [1, 1], "embedding": [[1.0], [2.0]]}, "two of one item"),
        ({"item_id": [1], "embedding": [[0.0]]}, "of no length"),
    ],
)
def test_what_are_no_vectors_is_refused(released: Settings, now: dt.datetime, tmp_path: Path, columns: dict, says: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=r"vectors\.parquet is not there, or no file → name a Parquet file with the columns"):
        brought.bring(released, tmp_path / "vectors.parquet", trained_until=now, now=now)
    pq.write_table(pa.table(columns), tmp_path / "vectors.parquet")
    with pytest.raises(InputError, match=says):
        brought.bring(released, tmp_path / "vectors.parquet", trained_until=now, now=now)
