"""Which events count: floods within their caps, purchases until they are undone, and nobody's events as nobody's."""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from moon_ops.lake import changes, counting
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.lake.statistics import BEHAVIOR, STATS, caps_of, derive
from moon_ops.recipes.caps import Caps, Most

MAY = dt.datetime(2026, 5, 1, 8, tzinfo=dt.UTC)
DAY, SECOND = dt.timedelta(days=1), dt.timedelta(seconds=1)
TIGHT = Caps(visitor=6, visitor_item=3, nobody_item=4, impressions=2)


def event(second: float, kind: str = "click", item: int = 1, user: int | None = 7, **more: Any) -> dict[str, Any]:
    return {"event_timestamp": MAY + second * SECOND, "event": kind, "item_id": item, "user_id": user, **more}


def table(*events: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(events), schema=SCHEMAS["events"])


def lake_of(place: Path, *events: dict[str, Any]) -> Lake:
    lake = Lake(str(place / "lake"))
    lake.append("items", SCHEMAS["items"].empty_table())
    lake.append("events", table(*events))
    return lake


def stats(lake: Lake) -> list[tuple[int, int, int, int, int]]:
    """Day, item, impressions, clicks and purchases."""
    names = ("item_id", "impressions", "clicks", "purchases")
    return [((row["event_timestamp"] - MAY).days + 1, *(row[n] for n in names)) for row in lake.read(STATS).to_pylist()]


def plainly(events: list[dict[str, Any]], caps: Caps) -> list[int]:
    """The rule one event after another: the places of those that count."""
    kept = list(range(len(events)))
    for name in ("visitor_item", "nobody_item", "visitor"):
        seen: Counter[tuple[Any, ...]] = Counter()
        left = []
        for place in sorted(kept, key=lambda p: (events[p]["event_timestamp"], events[p]["item_id"], p)):
            one = events[place]
            user, session = one["user_id"], one.get("session_id")
            nobody = user is None and session is None
            who = ("user", user) if user is not None else ("session", session)
            key = {"visitor_item": (who, one["item_id"]), "nobody_item": one["item_id"], "visitor": who}[name]
            if nobody == (name == "nobody_item"):
                seen[key, one["event_timestamp"].date(), one["event"]] += 1
                limit = getattr(caps, name) * (caps.impressions if one["event"] == "impression" else 1)
                if seen[key, one["event_timestamp"].date(), one["event"]] > limit:
                    continue
            left.append(place)
        kept = sorted(left)
    return kept


@pytest.mark.parametrize("seed", range(4))
def test_what_is_within_the_caps_is_what_counting_one_by_one_says(seed: int) -> None:
    rng = random.Random(seed)
    events = [
        event(
            rng.randrange(2 * 86_400),
            rng.choice(("impression", "impression", "click", "cart")),
            rng.randrange(1, 4),
            rng.choice((1, 2, 3, None, None, None)),
            session_id=rng.choice((1, 2, None, None)),
        )
        for _ in range(600)
    ]
    found = counting.within(table(*events), TIGHT)
    expected = plainly(events, TIGHT)
    assert found.events.to_pylist() == table(*(events[place] for place in expected)).to_pylist()
    assert set(found.left_out) == {"visitor_item", "nobody_item", "visitor"}
    assert sum(found.left_out.values()) == len(events) - len(expected)
    assert counting.within(table(*events), Caps(visitor=0, visitor_item=0, nobody_item=0)).events.num_rows == len(events)


def test_a_session_is_no_user_of_the_same_number_and_nobody_is_no_visitor() -> None:
    user = [event(n, user=5, session_id=1) for n in range(3)]
    session = [event(n, user=None, session_id=5) for n in range(3)]
    nobody = [event(n, user=None) for n in range(4)]
    found = counting.within(table(*user, *session, *nobody), TIGHT)
    assert (found.events.num_rows, found.left_out) == (10, {})


def test_whether_an_event_counts_does_not_depend_on_what_comes_after_it() -> None:
    events = [event(n, item=n % 2) for n in range(12)]
    for count in (0, 5, 8, 12):
        whole = [row for row in counting.within(table(*events), TIGHT).events.to_pylist() if row["event_timestamp"] < MAY + count * SECOND]
        assert counting.within(table(*events[:count]), TIGHT).events.to_pylist() == whole


def test_a_bots_hundred_thousand_clicks_move_statistics_and_sequences_by_a_cap(tmp_path: Path) -> None:
    people = [event(n, item=1 + n % 3, user=n) for n in range(30)]
    bot = table(*people, event(40, user=99)).slice(30)
    times = pa.array([MAY + (40 + n / 5) * SECOND for n in range(100_000)], bot["event_timestamp"].type)
    flood = bot.take([0] * 100_000).set_column(0, "event_timestamp", times)
    lake = lake_of(tmp_path, *people)
    lake.append("events", flood)
    report = derive(lake)
    assert (report.left_out, report.user_behavior) == (100_000 - Caps().visitor_item, 30 + Caps().visitor_item)
    assert stats(lake) == [(1, 1, 0, 10 + Caps().visitor_item, 0), (1, 2, 0, 10, 0), (1, 3, 0, 10, 0)]
    assert lake.count("events") == 100_030, "the lake keeps all of them"


def test_tables_follow_the_caps_and_keep_those_that_they_have(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, *(event(n) for n in range(10)))
    assert (derive(lake).user_behavior, stats(lake)) == (10, [(1, 1, 0, 10, 0)])
    assert (derive(lake, caps=TIGHT).user_behavior, stats(lake)) == (3, [(1, 1, 0, 3, 0)])
    lake.append("events", table(event(86_400)))
    assert derive(lake).user_behavior == 4, "an erasure knows no recipes, and counts as before"
    assert caps_of(lake, STATS) == caps_of(lake, BEHAVIOR) == TIGHT
    version = lake.open(BEHAVIOR).version
    assert derive(lake, caps=TIGHT).left_out == 7
    assert lake.open(BEHAVIOR).version == version, "nothing new, nothing written"


def test_a_table_from_before_caps_is_made_anew_once(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, *(event(n) for n in range(30)))
    derive(lake, caps=Caps(visitor=0, visitor_item=0))
    for name in (STATS, BEHAVIOR):
        lake.open(name).delete_config_keys([key for key in lake.open(name).config() if "caps_" in key])
    assert caps_of(lake, STATS) is None
    assert derive(lake, caps=Caps()).user_behavior == 20


def test_a_late_click_takes_the_place_of_a_later_one(tmp_path: Path) -> None:
    """Night by night the sequences are those that one night would have made."""
    lake = lake_of(tmp_path / "grown", *(event(n) for n in (10, 20, 30)), event(0, user=8))
    derive(lake, caps=TIGHT)
    lake.append("events", table(event(5)))
    derive(lake, caps=TIGHT)
    whole = lake_of(tmp_path / "whole", *(event(n) for n in (5, 10, 20, 30)), event(0, user=8))
    derive(whole, caps=TIGHT)
    assert lake.read(BEHAVIOR).sort_by("behavior_id") == whole.read(BEHAVIOR).sort_by("behavior_id")
    assert lake.count(BEHAVIOR) == 4


BUY, BACK = "purchase", "return"


@pytest.mark.parametrize(
    ("events", "undone"),
    [
        ([event(0, BUY), event(9, BACK)], [0]),
        ([event(0, BUY), event(1, BUY), event(9, BACK)], [1]),  # the last one before it
        ([event(0, BUY), event(9, "cancel"), event(10, BUY)], [0]),
        ([event(0, BUY), event(1, BUY), event(8, BACK), event(9, BACK), event(10, BACK)], [1, 0]),
        ([event(0, BUY, order_id="a"), event(1, BUY, order_id="b"), event(9, BACK, order_id="a")], [0]),
        ([event(0, BUY, order_id="a"), event(9, BACK, order_id="z")], []),  # of another order
        ([event(0, BUY), event(9, BACK, order_id="z")], [0]),  # the purchase named no order
        ([event(0, BUY, order_id="a"), event(9, BACK)], [0]),
        ([event(0, BUY, order_id="a", user=None), event(9, BACK, order_id="a")], [0]),
        ([event(9, BUY, order_id="a"), event(0, BACK, order_id="a")], [0]),  # two clocks
        ([event(0, BUY), event(9, BACK, item=2), event(9, BACK, user=8), event(9, BACK, user=None)], []),
        ([event(9, BUY), event(0, BACK)], []),
        ([event(0, BUY, user=None, session_id=3), event(9, BACK, user=None, session_id=3)], [0]),
        ([event(0, BUY, user=None), event(9, BACK, user=None)], []),  # nobody is no visitor
        ([event(0, "click"), event(1, "cart"), event(9, BACK)], []),
    ],
)
def test_what_an_undoing_undoes(events: list[dict[str, Any]], undone: list[int]) -> None:
    found = counting.undone(table(*events))
    assert found["number"].to_pylist() == undone
    left = [e for n, e in enumerate(events) if n not in undone and e["event"] not in ("cancel", "return")]
    assert counting.standing(table(*events)).to_pylist() == table(*left).to_pylist()


def test_a_purchase_counts_until_it_is_undone(tmp_path: Path) -> None:
    second_day, fourth_day = 86_400, 3 * 86_400
    lake = lake_of(
        tmp_path, event(0, BUY), event(1, BUY), event(second_day, "click"), event(fourth_day, "cancel"), event(fourth_day, BACK, item=9)
    )
    derive(lake)
    assert stats(lake) == [(1, 1, 0, 0, 2), (2, 1, 0, 1, 2), (4, 1, 0, 1, 1)]


def test_a_purchase_beyond_a_cap_is_not_taken_off(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, *(event(n, BUY) for n in range(5)), *(event(100 + n, BACK) for n in range(9)))
    derive(lake, caps=TIGHT)
    assert stats(lake) == [(1, 1, 0, 0, 0)]


def test_a_lake_of_before_has_no_orders_and_goes_on(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.append("items", SCHEMAS["items"].empty_table())
    lake.append("events", table(event(0, BUY), event(1)).drop_columns(["event_id", "order_id"]))
    derive(lake)
    assert stats(lake) == [(1, 1, 0, 1, 1)]
    lake.evolve("events")
    lake.append("events", table(event(9, BACK, order_id="a")))
    derive(lake)
    assert stats(lake) == [(1, 1, 0, 1, 0)]


def test_the_newest_of_each_are_kept() -> None:
    events = [event(n, item=n % 2, user=None if n == 5 else 7, query_id=None if n < 3 else -1 if n == 3 else 4) for n in range(8)]
    found = counting.newest(table(*events), Most(visitor=5, query=2))
    assert [(row["event_timestamp"] - MAY).seconds for row in found.events.to_pylist()] == [2, 3, 6, 7]
    assert found.left_out == {"most.visitor": 2, "most.query": 2}
    assert counting.newest(table(*events), Most()).left_out == {}


def test_the_mark_of_the_caps_does_not_hide_new_events(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, event(0))
    derive(lake, caps=TIGHT)
    assert changes.marks(lake, STATS)["caps_visitor"] == TIGHT.visitor
    lake.append("events", table(event(1, item=2)))
    derive(lake, caps=TIGHT)
    assert stats(lake) == [(1, 1, 0, 1, 0), (1, 2, 0, 1, 0)]
