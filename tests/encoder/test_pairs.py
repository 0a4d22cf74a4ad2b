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
from moon_ops.recipes.caps import Caps, Most

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


def test_nothing_of_an_excepted_time_is_known(small: Lake) -> None:
    """From the first moment on, and up to the second: neither pairs, nor what is no negative, nor exposures."""
    start, end = (dt.datetime(2026, 1, day, 1, 0, second, tzinfo=dt.UTC) for day, second in ((2, 3), (3, 9)))
    pairs = behaviour(small, DAY, excepted=(start, end))
    assert told(pairs) == [("query 1", 10, 2), ("query 3", 12, 0), ("query 4", 13, 2)]
    assert pairs.left_out["except_between"] == 6
    assert len(pairs.exposed) == 0
    assert sorted(pairs.item_ids[pairs.known[:, 1]].tolist()) == [10, 11, 12, 12, 13]


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


SEARCHED, BOUGHT = "2026-01-01T01:00:00Z", "2026-01-02T01:00:00Z"


def shop_of(make_shop: Any, tmp_path: Any, now: dt.datetime, events: list[dict[str, Any]], name: str = "own") -> Lake:
    """A shop of 40 items and 40 queries, of which these events are all that happened."""
    items = [{"item_id": i, "title": f"item {i}", "available_from": "2026-01-01T00:00:00Z"} for i in range(40)]
    queries = [{"query_id": q, "timestamp": "2026-01-01T00:00:00Z", "text": f"query {q}"} for q in range(40)]
    lake = Lake(str(tmp_path / name))
    ingest(make_shop(name + "-files", items=items, queries=queries, events=events), lake, now=now)
    return lake


def test_a_bot_makes_as_many_pairs_as_the_caps_allow(make_shop: Any, tmp_path: Any, now: dt.datetime) -> None:
    people = [{"timestamp": SEARCHED, "item_id": n % 20, "query_id": n, "event": "click", "user_id": n} for n in range(30)]
    bot = [
        {"timestamp": f"2026-01-02T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}Z", "item_id": 20 + n % 20, "query_id": 39 - n % 9}
        | {"event": "click", "user_id": 99}
        for n in range(4000)
    ]
    clean, flooded = (shop_of(make_shop, tmp_path, now, e, name) for e, name in ((people, "clean"), (people + bot, "flooded")))
    expected = told(behaviour(clean, DAY))
    most = Most(visitor=50, query=3)
    pairs = behaviour(flooded, DAY, Caps(visitor=100), most)
    assert {pair for pair in told(pairs) if pair[1] < 20} == set(expected), "what people did teaches as much as before"
    of_bot = [query for query, item, _ in told(pairs) if item >= 20]
    assert 0 < len(of_bot) <= 9 * most.query
    assert max(of_bot.count(query) for query in of_bot) == most.query
    assert [pairs.left_out[name] for name in ("visitor_item", "visitor", "most.visitor")] == [4000 - 20 * 20, 400 - 100, 100 - 50]
    assert told(behaviour(flooded, DAY, Caps(visitor=100), most)) == told(pairs), "the same ones at each run"


def test_an_item_has_no_more_pairs_than_its_cap(make_shop: Any, tmp_path: Any, now: dt.datetime) -> None:
    lake = shop_of(make_shop, tmp_path, now, [{"timestamp": SEARCHED, "item_id": 1, "query_id": n, "event": "click"} for n in range(30)])
    pairs = behaviour(lake, DAY, most=Most(item=4))
    assert (len(pairs), pairs.left_out) == (4, {"most.item": 26})


def test_a_cancelled_purchase_trains_no_pair_once_that_is_known(make_shop: Any, tmp_path: Any, now: dt.datetime) -> None:
    bought = [{"timestamp": BOUGHT, "item_id": n, "query_id": n, "event": "purchase", "user_id": n, "order_id": f"A-{n}"} for n in range(4)]
    undone = [
        {"timestamp": "2026-01-05T00:00:00Z", "item_id": 0, "event": "refund", "order_id": "A-0"},
        {"timestamp": "2026-01-06T00:00:00Z", "item_id": 1, "event": "cancelled", "user_id": 1},
    ]
    lake = shop_of(make_shop, tmp_path, now, bought + undone)
    by_day = {day: [item for _, item, _ in told(behaviour(lake, dt.datetime(2026, 1, day, tzinfo=dt.UTC)))] for day in (5, 6, 7)}
    assert by_day == {5: [0, 1, 2, 3], 6: [1, 2, 3], 7: [2, 3]}
    assert behaviour(lake, DAY).left_out == {"undone": 2}


def test_clicks_of_nobody_make_pairs(make_shop: Any, tmp_path: Any, now: dt.datetime) -> None:
    click = {"timestamp": SEARCHED, "event": "click"}
    events = [click | {"item_id": n, "query_id": n, "session_id": 5} for n in range(2)] + [click | {"item_id": 7, "query_id": 7}]
    assert [item for _, item, _ in told(behaviour(shop_of(make_shop, tmp_path, now, events), DAY))] == [0, 1, 7]
