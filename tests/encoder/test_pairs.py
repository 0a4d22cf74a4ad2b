"""Pairs from behaviour, as known at trained_until, and the order in which they are seen."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest

from moon_ops.encoder.pairs import Pairs, behaviour
from moon_ops.encoder.permutations import Stream
from moon_ops.errors import StageError
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake

DAY = dt.datetime(2026, 1, 10, tzinfo=dt.UTC)


@pytest.fixture
def small(make_shop: Any, tmp_path: Any, now: dt.datetime) -> Lake:
    names = {10: ["Shoes", "Boots"], 11: ["Shoes", "Boots"], 12: ["Bags"], 13: None}
    items: list[dict[str, Any]] = [
        {"item_id": i, "spu_id": i // 2, "title": f"item {i}", "category": c, "available_from": "2026-01-01T00:00:00Z"}
        for i, c in names.items()
    ]
    queries = [{"query_id": q, "timestamp": f"2026-01-0{q}T00:00:00Z", "text": f"query {q}"} for q in (1, 2, 3, 4)]
    done = [(1, 10, "purchase"), (1, 12, "cart"), (1, 11, "click"), (2, 12, "cart"), (2, 12, "click"), (2, 11, "cart"), (2, 10, "click")]
    done += [(3, 12, "impression"), (3, 10, "impression"), (3, 12, "click"), (4, 13, "purchase"), (4, 13, "purchase")]
    events = [
        {"timestamp": f"2026-01-0{q}T01:00:{second:02}Z", "item_id": i, "query_id": q, "event": e} for second, (q, i, e) in enumerate(done)
    ]
    events.append({"timestamp": "2026-01-02T01:00:00Z", "item_id": 10, "event": "purchase"})  # no query led to it
    filled = Lake(str(tmp_path / "lake"))
    ingest(make_shop(items=items), filled, now=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    renamed = items[0] | {"title": "item 10, renamed"}
    ingest(make_shop("later", items=[renamed]), filled, now=dt.datetime(2026, 1, 5, tzinfo=dt.UTC))
    ingest(make_shop("behaviour", items=[renamed], queries=queries, events=events), filled, now=now)
    return filled


def told(pairs: Pairs) -> list[tuple[str, int, int]]:
    return [(pairs.queries[q].text, int(pairs.item_ids[i]), int(e)) for q, i, e in zip(pairs.query, pairs.item, pairs.event, strict=True)]


def test_of_a_query_only_the_pairs_of_its_strongest_event_are_kept_each_once(small: Lake) -> None:
    found = told(behaviour(small, DAY))
    assert found == [("query 1", 10, 2), ("query 2", 11, 1), ("query 2", 12, 1), ("query 3", 12, 0), ("query 4", 13, 2)]


def test_pairs_of_some_events_leave_the_others_out(small: Lake) -> None:
    pairs = behaviour(small, DAY)
    assert told(pairs.of(("purchase",))) == [("query 1", 10, 2), ("query 4", 13, 2)]
    assert told(pairs.of(("click", "cart"))) == [("query 2", 11, 1), ("query 2", 12, 1), ("query 3", 12, 0)]


def test_nothing_from_trained_until_on_is_known(small: Lake) -> None:
    pairs = behaviour(small, dt.datetime(2026, 1, 3, 1, 0, 9, tzinfo=dt.UTC))  # the click after query 3 comes at that very second
    assert told(pairs) == [("query 1", 10, 2), ("query 2", 11, 1), ("query 2", 12, 1)]
    assert [q.text for q in pairs.queries] == ["query 1", "query 2"]


def test_items_are_those_of_the_time_with_their_products_and_leaf_categories(small: Lake) -> None:
    early, late = (behaviour(small, dt.datetime(2026, 1, day, tzinfo=dt.UTC)) for day in (4, 10))
    assert early.item_ids.tolist() == [10, 11, 12, 13]
    assert early.spu_ids.tolist() == [5, 5, 6, 6]
    assert early.categories.tolist() == [1, 1, 0, -1]  # bags, boots
    assert (early.items[0].text.split(" | ")[0], late.items[0].text.split(" | ")[0]) == ("item 10", "item 10, renamed")


def test_exposures_are_the_impressions_as_often_as_they_were(small: Lake) -> None:
    assert sorted(behaviour(small, DAY).exposed.tolist()) == [0, 2]
    assert behaviour(small, dt.datetime(2026, 1, 3, 1, 0, 8, tzinfo=dt.UTC)).exposed.tolist() == [2]


def test_too_little_behaviour_is_a_clear_error(small: Lake) -> None:
    with pytest.raises(StageError, match=r"1 clicks, carts and purchases .* trained_until = 2026-01-02T00:00Z: too few"):
        behaviour(small, dt.datetime(2026, 1, 2, tzinfo=dt.UTC))
    with pytest.raises(StageError, match="0 clicks, carts and purchases"):
        behaviour(small, dt.datetime(2025, 1, 2, tzinfo=dt.UTC))


def test_every_number_is_seen_once_before_any_is_seen_again() -> None:
    taken = Stream(7, (3, 1)).take(0, 21).reshape(3, 7)
    assert (np.sort(taken) == np.arange(7)).all()
    assert len({tuple(epoch) for epoch in taken.tolist()}) == 3  # another order each time
    assert not np.array_equal(taken[0], Stream(7, (3, 2)).take(0, 7))


def test_a_stream_reads_the_same_from_any_place() -> None:
    whole = Stream(7, (3,)).take(0, 30)
    jumping = Stream(7, (3,))
    for start, stop in ((25, 30), (0, 5), (12, 23), (7, 7)):
        assert jumping.take(start, stop).tolist() == whole[start:stop].tolist()
