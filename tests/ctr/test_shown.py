"""Whose clicks become labels: clocks that differ, clicks of no impression, floods, and visitors whom nobody knows."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from moon_ops.ctr.impressions import Shown, shown
from moon_ops.lake import statistics
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.recipes.caps import Caps, Most
from moon_ops.recipes.ctr import CtrRecipe

MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
DAY, SECOND = dt.timedelta(days=1), dt.timedelta(seconds=1)
PLAIN = CtrRecipe(name="r", extractor="din", epochs=1, batch=1, learning_rate=0.1)


def recipe(**changed: Any) -> CtrRecipe:
    return CtrRecipe(name="r", extractor="din", epochs=1, batch=1, learning_rate=0.1, **changed)


def event(second: float, kind: str, item: int = 1, user: int | None = 5, session: int | None = 1) -> dict[str, Any]:
    return {"event": kind, "item_id": item, "user_id": user, "event_timestamp": MAY + second * SECOND, "session_id": session}


def lake_of(path: Path, *events: dict[str, Any]) -> Lake:
    lake = Lake(str(path / "lake"))
    lake.append("items", SCHEMAS["items"].empty_table())
    lake.append("events", pa.Table.from_pylist(list(events), schema=SCHEMAS["events"]))
    return lake


def found(path: Path, *events: dict[str, Any], rule: CtrRecipe = PLAIN, start: float = 0) -> Shown:
    return shown(lake_of(path, *events), MAY + start * SECOND, MAY + DAY, rule=rule)


def labels(made: Shown) -> list[tuple[float, int]]:
    """(second, label) of each row."""
    return [((row["event_timestamp"] - MAY).total_seconds(), row["label"]) for row in made.rows.to_pylist()]


@pytest.mark.parametrize(
    ("events", "rows", "early", "unshown"),
    [
        ([event(10, "impression"), event(8, "click")], [(8, 1)], 1, 0),  # two clocks: the row has the time of the click
        ([event(10, "impression"), event(5, "click")], [(5, 1)], 1, 0),
        ([event(10, "impression"), event(4.9, "click")], [(10, 0)], 0, 1),  # too early to be its
        ([event(10, "impression"), event(9, "click"), event(8, "click")], [(8, 1)], 2, 0),
        ([event(6, "impression"), event(10, "impression"), event(8, "click")], [(6, 1), (10, 0)], 0, 0),  # one precedes it
        ([event(10, "impression"), event(8, "click", session=2)], [(10, 0)], 0, 1),
        ([event(10, "impression"), event(8, "click", item=2)], [(10, 0)], 0, 1),
        ([event(10, "impression"), event(11, "click"), event(9, "click")], [(9, 1)], 1, 0),
    ],
)
def test_a_click_logged_before_its_impression(
    tmp_path: Path, events: list[dict[str, Any]], rows: list[tuple[float, int]], early: int, unshown: int
) -> None:
    made = found(tmp_path, *events)
    clicks = sum(e["event"] == "click" for e in events)
    assert (labels(made), made.counts) == (rows, {"clicks": clicks, "clicks_early": early, "clicks_unshown": unshown})


def test_without_skew_no_click_belongs_to_a_later_impression(tmp_path: Path) -> None:
    made = found(tmp_path, event(10, "impression"), event(9.9, "click"), rule=recipe(click_skew=0.0))
    assert (labels(made), made.counts["clicks_unshown"]) == ([(10, 0)], 1)


def test_the_features_of_a_row_do_not_show_the_click_that_labels_it(tmp_path: Path) -> None:
    """A sequence shows a click from right after itself on, and the row lies at the click, not at the later impression."""
    lake = lake_of(tmp_path, event(10, "impression"), event(8, "click"))
    statistics.derive(lake)
    (row,) = shown(lake, MAY, MAY + DAY).rows.to_pylist()
    (click,) = lake.read(statistics.BEHAVIOR).to_pylist()
    assert row["label"] == 1
    assert click["event_timestamp"] > row["event_timestamp"]


def test_a_bots_hundred_thousand_clicks_and_impressions_make_as_many_rows_as_a_cap_allows(tmp_path: Path) -> None:
    people = [event(n, kind, item=n % 3, user=n) for n in range(30) for kind in ("impression", "click")]
    clean = found(tmp_path / "clean", *people)
    flood = [event(100 + n / 10, ("impression", "click")[n % 2], user=99, session=n) for n in range(100_000)]
    made = found(tmp_path / "bot", *people, *flood)
    bots = [row for row in made.rows.to_pylist() if row["user_id"] == 99]
    assert len(bots) == Caps().visitor_item * Caps().impressions
    assert [row for row in made.rows.to_pylist() if row["user_id"] != 99] == clean.rows.to_pylist()
    assert made.counts["visitor_item"] == 100_000 - len(bots) - Caps().visitor_item
    assert len(found(tmp_path / "most", *people, *flood, rule=recipe(most=Most(visitor=7))).rows.to_pylist()) == 37


def test_what_came_before_the_window_on_its_day_counts_for_the_caps(tmp_path: Path) -> None:
    history = [event(n, "impression", item=n) for n in range(6)]
    assert labels(found(tmp_path, *history, rule=recipe(caps=Caps(visitor=4, impressions=1)), start=2)) == [(2, 0), (3, 0)]


def test_nobody_knows_whose_these_are_and_they_are_no_rows(tmp_path: Path) -> None:
    """Neither one user together, nor a label of a user's impression."""
    nobody = [event(n, kind, user=None, session=s) for n in range(9) for kind in ("impression", "click") for s in (1, None)]
    lake = lake_of(tmp_path, event(0, "impression"), *nobody, event(2, "impression", item=2), event(3, "click", item=2))
    assert labels(shown(lake, MAY, MAY + DAY)) == [(0, 0), (2, 1)]
    statistics.derive(lake)
    assert lake.read(statistics.BEHAVIOR)["user_id"].to_pylist() == [5]
    (one, _) = lake.read(statistics.STATS).sort_by("item_id").to_pylist()
    assert (one["impressions"], one["clicks"]) == (19, 18), "they count for the item"
