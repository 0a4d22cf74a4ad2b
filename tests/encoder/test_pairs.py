"""Pairs from purchases, as known at trained_until."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest

from moon_ops.encoder.pairs import purchases
from moon_ops.errors import StageError
from moon_ops.lake.ingest import ingest
from moon_ops.lake.tables import Lake

DAY = dt.datetime(2026, 1, 10, tzinfo=dt.UTC)


@pytest.fixture
def small(make_shop: Any, tmp_path: Any, now: dt.datetime) -> Lake:
    items = [{"item_id": i, "spu_id": i // 2, "title": f"item {i}", "available_from": "2026-01-01T00:00:00Z"} for i in (10, 11, 12)]
    queries = [{"query_id": q, "timestamp": f"2026-01-0{q}T00:00:00Z", "text": f"query {q}"} for q in (1, 2, 3)]
    bought = [(1, 10, "purchase"), (2, 12, "purchase"), (2, 11, "click"), (3, 12, "purchase")]
    events = [{"timestamp": f"2026-01-0{q}T01:00:00Z", "item_id": i, "query_id": q, "event": e} for q, i, e in bought]
    events.append({"timestamp": "2026-01-02T01:00:00Z", "item_id": 10, "event": "purchase"})  # no query led to it
    filled = Lake(str(tmp_path / "lake"))
    ingest(make_shop(items=items, queries=queries, events=events), filled, now=now)
    return filled


def test_only_purchases_after_a_query_and_before_the_time(small: Lake) -> None:
    pairs = purchases(small, dt.datetime(2026, 1, 3, tzinfo=dt.UTC))
    found = [(pairs.queries[q].text, int(pairs.item_ids[i])) for q, i in zip(pairs.query, pairs.item, strict=True)]
    assert found == [("query 1", 10), ("query 2", 12)]
    assert pairs.spu_ids.tolist() == [5, 5, 6]
    assert len(purchases(small, DAY)) == 3


def test_too_few_purchases_are_a_clear_error(small: Lake) -> None:
    with pytest.raises(StageError, match=r"1 purchases .* trained_until = 2026-01-02"):
        purchases(small, dt.datetime(2026, 1, 2, tzinfo=dt.UTC))


def test_every_pair_is_seen_once_before_any_is_seen_again(lake: Any, now: dt.datetime) -> None:
    pairs = purchases(lake, now)
    seen = np.concatenate(list(pairs.batches(10, 2 * len(pairs) // 10, seed=0)))
    counts = np.bincount(seen[: len(pairs)], minlength=len(pairs))
    assert (counts == 1).all()
    assert not np.array_equal(seen[: len(pairs)], np.concatenate(list(pairs.batches(10, 2 * len(pairs) // 10, seed=1)))[: len(pairs)])
