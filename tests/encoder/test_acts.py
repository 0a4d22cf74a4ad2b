"""Acts read some days at a time are those of all events at once: caps, what is left out, and purchases that are taken back much later."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from moon_ops.encoder.acts import acts
from moon_ops.lake import counting, event_log
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS, STAMP
from moon_ops.recipes.caps import Caps
from moon_ops.recipes.encoder import EVENTS

MAY, DAY, COUNT = dt.datetime(2026, 5, 1, tzinfo=dt.UTC), dt.timedelta(days=1), 1500
TIGHT = Caps(visitor=9, visitor_item=2, nobody_item=1, impressions=2)


@pytest.fixture(params=[0, 1])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    """Ten days of six users; a third of what they bought comes back, some of it by the number of its order."""
    drawn, made = np.random.default_rng(request.param), Lake(str(tmp_path / "lake"))
    kinds = drawn.choice(["impression", "click", "cart", "purchase", "return"], COUNT, p=[0.4, 0.3, 0.1, 0.15, 0.05]).tolist()
    rows: list[dict[str, Any]] = [
        {
            "event_timestamp": MAY + float(day) * DAY,
            "event": kind,
            "user_id": None if drawn.random() < 0.3 else int(drawn.integers(0, 6)),
            "session_id": None if drawn.random() < 0.5 else int(drawn.integers(0, 4)),
            "item_id": int(drawn.integers(0, 8)),
            "query_id": None if drawn.random() < 0.2 else int(drawn.integers(0, 40)),
            "order_id": str(drawn.choice(["a", "b", "c"])) if kind in ("purchase", "return") and drawn.random() < 0.5 else None,
        }
        for day, kind in zip(np.round(drawn.random(COUNT) * 10, 3), kinds, strict=True)
    ]
    for part in (rows[:1000], rows[1000:]):
        made.append("events", pa.Table.from_pylist(part, schema=SCHEMAS["events"]))
    return made


def at_once(lake: Lake, until: dt.datetime, excepted: tuple[dt.datetime, dt.datetime] | None) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    """What was done with all events in memory: the acts, the impressions, and how many events were left out."""
    events = counting.read(lake, [*counting.COLUMNS, "order_id"])
    events = events.filter(pc.less(events["event_timestamp"], pa.scalar(until, STAMP)))
    before = events.num_rows
    if excepted is not None:
        low, high = (pa.scalar(when, STAMP) for when in excepted)
        events = events.filter(pc.or_(pc.less(events["event_timestamp"], low), pc.greater_equal(events["event_timestamp"], high)))
    found = counting.within(events, TIGHT)
    kept = counting.standing(found.events)
    undone = sum(sum(kind == "purchase" for kind in table["event"].to_pylist()) * sign for table, sign in ((found.events, 1), (kept, -1)))
    left_out = {"except_between": before - events.num_rows, **found.left_out, "undone": undone}
    done = kept.filter(pc.and_(pc.is_in(kept["event"], pa.array(EVENTS)), pc.is_valid(kept["query_id"])))
    return done, kept.filter(pc.equal(kept["event"], "impression")), {name: count for name, count in left_out.items() if count}


@pytest.mark.parametrize("excepted", [None, (MAY + 2.3 * DAY, MAY + 4 * DAY)])
def test_some_days_at_a_time(lake: Lake, monkeypatch: pytest.MonkeyPatch, excepted: tuple[dt.datetime, dt.datetime] | None) -> None:
    monkeypatch.setattr(event_log, "AT_ONCE", 100)
    until = MAY + 8.7 * DAY
    found, (done, shown, left_out) = acts(lake, until, TIGHT, excepted), at_once(lake, until, excepted)
    names = list(counting.COLUMNS)
    order = [(name, "ascending") for name in names]
    assert found.rows.sort_by(order).equals(done.select(names).sort_by(order))
    assert {"undone", "visitor", "visitor_item", "nobody_item"} <= set(left_out)
    assert found.left_out == left_out
    ids, counts = np.unique(shown["item_id"].to_numpy(), return_counts=True)
    assert (found.shown.tolist(), found.times.tolist()) == (ids.tolist(), counts.tolist())


def test_a_shop_without_events_has_no_acts(tmp_path: Path) -> None:
    found = acts(Lake(str(tmp_path / "lake")), MAY, TIGHT)
    assert (found.rows.num_rows, len(found.shown), found.left_out) == (0, 0, {})
