"""Which answers the probe knows: what was bought and not taken back."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa

from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.serving.probe import Answer, answers


def test_a_purchase_that_was_cancelled_is_no_known_answer(tmp_path: Path) -> None:
    def event(day: int, kind: str, **more: Any) -> dict[str, Any]:
        return {"event_timestamp": dt.datetime(2026, 5, day, tzinfo=dt.UTC), "event": kind, "user_id": 7, **more}

    events = [event(1, "purchase", item_id=n, query_id=n) for n in (1, 2)] + [event(2, "cancel", item_id=1), event(2, "click", item_id=2)]
    lake = Lake(str(tmp_path / "lake"))
    lake.append("events", pa.Table.from_pylist(events, schema=SCHEMAS["events"]))
    assert answers(lake) == [Answer(2, 2)]
