"""Counts that go on from night to night are those of one count of everything, and a night reads its own days."""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lance
import pyarrow as pa
import pytest

from moon_ops.lake import changes, counting, event_log, statistics
from moon_ops.lake.event_log import EventLog
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS, UNDOING
from moon_ops.lake.statistics import BEHAVIOR, STATS, derive
from moon_ops.recipes.caps import Caps

MAY, DAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC), dt.timedelta(days=1)
TIGHT = Caps(visitor=6, visitor_item=3, nobody_item=4, impressions=2)
KINDS = ("impression", "impression", "click", "cart", "purchase", "purchase", "return")


def event(day: float, kind: str = "click", item: int = 1, user: int | None = 7, **more: Any) -> dict[str, Any]:
    return {"event_timestamp": MAY + day * DAY, "event": kind, "item_id": item, "user_id": user, **more}


def table(*events: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(events), schema=SCHEMAS["events"])


def lake_of(place: Path, *events: dict[str, Any]) -> Lake:
    lake = Lake(str(place / "lake"))
    lake.append("items", SCHEMAS["items"].empty_table())
    lake.append("events", table(*events))
    return lake


def drawn(seed: int, count: int, days: float) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        more = {"session_id": rng.choice((1, 2, None)), "order_id": rng.choice(("a", "b", None, None))}
        found.append(event(round(rng.random() * days, 4), rng.choice(KINDS), rng.randrange(1, 9), rng.choice((1, 2, 3, None)), **more))
    return found


def plainly(events: pa.Table, caps: Caps) -> list[tuple[Any, ...]]:
    """The counts as they were made before: of all events at once."""
    found = counting.within(events, caps).events
    gone = counting.undone(found)
    happened: Counter[tuple[Any, ...]] = Counter()
    rows = [(r["item_id"], r["event_timestamp"], r["event"]) for r in found.to_pylist() if r["event"] not in UNDOING]
    rows += [(found["item_id"][r["number"]].as_py(), r["known"], "undone") for r in gone.to_pylist()]
    for item, at, kind in rows:
        happened[item, (at - MAY) // DAY + 1, kind] += 1
    made = []
    for item, day in sorted({key[:2] for key in happened}, key=lambda key: key[::-1]):
        had: Counter[str] = Counter()
        for (other, when, kind), count in happened.items():
            had[kind] += count * (other == item and when <= day)
        made.append((MAY + day * DAY, item, had["impression"], had["click"], had["purchase"] - had["undone"]))
    return made


def counts(lake: Lake) -> list[tuple[Any, ...]]:
    rows = lake.read(STATS).sort_by([("event_timestamp", "ascending"), ("item_id", "ascending")]).to_pylist()
    return [(row["event_timestamp"], *(row[name] for name in ("item_id", "impressions", "clicks", "purchases"))) for row in rows]


@pytest.mark.parametrize("seed", range(2))
def test_night_by_night_they_are_those_of_everything_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Events of the day, some that come late, undoings of purchases of long ago; few are in memory at a time."""
    monkeypatch.setattr(event_log, "AT_ONCE", 40)
    first, nights = drawn(seed, 300, 6), [drawn(seed + 10, 5, 6), *(drawn(seed + 20 + n, 30, 1.2) for n in range(4))]
    lake, every = lake_of(tmp_path, *first), list(first)
    derive(lake, caps=TIGHT)
    for number, night in enumerate(nights):
        late = [each | {"event_timestamp": each["event_timestamp"] + (6 + number) * DAY * (number > 0)} for each in night]
        every += late
        lake.append("events", table(*late))
        found = derive(lake, caps=TIGHT)
        assert counts(lake) == plainly(table(*every), TIGHT)
        assert found.left_out == sum(counting.within(table(*every), TIGHT).left_out.values())


def test_a_night_reads_its_own_days_and_leaves_what_was_counted_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = lake_of(tmp_path, *(event(day, user=user) for day in range(20) for user in range(30)))
    derive(lake)
    before = {f.fragment_id for f in lake.open(STATS).get_fragments()}
    lake.append("events", table(event(19.5, item=2), event(20.5), event(20.6, "purchase")))
    read: list[int] = []
    real, real_rows = EventLog.read, changes.rows_of

    def counted(log: EventLog, *asked: Any) -> pa.Table:
        read.append((found := real(log, *asked)).num_rows)
        return found

    def counted_rows(*asked: Any) -> pa.Table:
        read.append((found := real_rows(*asked)).num_rows)
        return found

    monkeypatch.setattr(EventLog, "read", counted)
    monkeypatch.setattr(changes, "rows_of", counted_rows)
    assert derive(lake).item_stats == 20 + 2
    assert sum(read) <= 30 + 3 + 2 * 3, "the nineteenth day and what is new, and of who has clicked the clicks of these days"
    assert before <= {f.fragment_id for f in lake.open(STATS).get_fragments()}


def test_a_night_in_which_nobody_counts_writes_no_counts(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, *(event(day) for day in range(5)))
    derive(lake)
    rows = lake.read(STATS)
    lake.append("events", table(event(2.5, "return", item=9)))  # of nothing
    derive(lake)
    assert lake.read(STATS).sort_by("event_timestamp") == rows


@pytest.mark.parametrize("step", ["commit", "mark"])
def test_a_killed_night_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    first, more = drawn(5, 200, 6), drawn(6, 40, 7)
    lake = lake_of(tmp_path, *first)
    derive(lake, caps=TIGHT)
    seen = counts(lake)
    lake.append("events", table(*more))
    with monkeypatch.context() as patch:
        patch.setattr(*((lance.LanceDataset, "commit") if step == "commit" else (changes, "mark")), Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            derive(lake, caps=TIGHT)
    assert step == "mark" or counts(lake) == seen, "a reader sees the counts of before"
    found = derive(lake, caps=TIGHT)
    assert counts(lake) == plainly(table(*first, *more), TIGHT)
    assert found.left_out == sum(counting.within(table(*first, *more), TIGHT).left_out.values())


def test_an_item_that_loses_its_last_day_is_told_to_who_looks_for_new_rows(tmp_path: Path) -> None:
    """Eight clicks of one visitor: the two of another item come too late for the cap, once earlier ones of their day are known."""
    caps = Caps(visitor=6, visitor_item=6)
    lake = lake_of(tmp_path, *(event(n) for n in range(20)), event(0.6, item=2, user=3), event(5.8, item=2, user=8), event(5.1, user=8))
    derive(lake, caps=caps)
    mark = changes.newest(lake.open(STATS))
    lake.append("events", table(*(event(5.2 + n / 100, user=8) for n in range(5))))
    derive(lake, caps=caps)
    assert [row[0] for row in counts(lake) if row[1] == 2] == [MAY + DAY]
    assert 2 in changes.newer(lake.open(STATS), mark, ["item_id"])["item_id"].to_pylist()


def test_a_compacted_log_is_counted_once_more(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, *drawn(1, 100, 5))
    for seed in (2, 3):
        lake.append("events", table(*drawn(seed, 10, 5)))
        derive(lake, caps=TIGHT)
    expected = counts(lake)
    lake.open("events").optimize.compact_files()
    derive(lake, caps=TIGHT)
    assert counts(lake) == expected


def test_behaviour_is_written_user_by_user_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = drawn(4, 400, 5)
    whole = lake_of(tmp_path / "whole", *events)
    derive(whole, caps=TIGHT)
    monkeypatch.setattr(event_log, "AT_ONCE", 9)
    parts: list[int] = []
    real = statistics._clicks
    monkeypatch.setattr(statistics, "_clicks", lambda some, caps: parts.append(some.num_rows) or real(some, caps))
    lake = lake_of(tmp_path / "parts", *events)
    derive(lake, caps=TIGHT)
    assert lake.read(BEHAVIOR) == whole.read(BEHAVIOR)
    assert len([part for part in parts if part]) == 3, "three users, each with more clicks than are read together"
