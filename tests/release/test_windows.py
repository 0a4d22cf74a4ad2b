"""Which time is learned from, and which is held out: shares, caps, and what cannot be."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from moon_ops.ctr.impressions import has_click_sequences
from moon_ops.errors import InputError, StageError
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.release.windows import Windows, windows

MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
DAY, MICROSECOND = dt.timedelta(days=1), dt.timedelta(microseconds=1)


def lake_of(path: Path, *days: float) -> Lake:
    """A lake with an event on each of these days after May 1."""
    lake = Lake(str(path / "lake"))
    rows = [{"event_timestamp": MAY + day * DAY, "item_id": 1, "event": "click"} for day in days]
    lake.append("events", pa.Table.from_pylist(rows, schema=SCHEMAS["events"]))
    return lake


def test_a_quarter_is_held_out_for_recall_and_fifteen_percent_for_clicks(tmp_path: Path) -> None:
    found = windows(lake_of(tmp_path, 40, 0, 7))
    end = MAY + 40 * DAY + MICROSECOND
    assert (found.start, found.end) == (MAY, end), "the last event belongs to the window"
    assert abs(found.trained_until - (MAY + 30 * DAY)) <= MICROSECOND
    assert abs(found.ctr_until - (MAY + 34 * DAY)) <= MICROSECOND


def test_no_more_than_four_and_two_weeks_are_held_out(tmp_path: Path) -> None:
    found = windows(lake_of(tmp_path, 0, 400))
    assert found.end - found.trained_until == 28 * DAY
    assert found.end - found.ctr_until == 14 * DAY


def test_only_events_before_the_end_count(tmp_path: Path) -> None:
    found = windows(lake_of(tmp_path, 0, 20, 40, 90), end=MAY + 90 * DAY)
    assert found.end == MAY + 40 * DAY + MICROSECOND


def test_an_encoder_that_was_trained_later_moves_both_windows(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, 0, 40)
    early, late = (windows(lake, trained_until=MAY + days * DAY) for days in (10, 37))
    assert early.trained_until == MAY + 10 * DAY
    assert abs(early.ctr_until - (MAY + 34 * DAY)) <= MICROSECOND
    assert (late.trained_until, late.ctr_until) == (MAY + 37 * DAY, MAY + 37 * DAY)


@pytest.mark.parametrize("days", [0, -1, 41])
def test_a_cut_outside_the_events_is_refused(tmp_path: Path, days: int) -> None:
    with pytest.raises(InputError, match=f"{MAY + days * DAY:%Y-%m-%dT%H:%MZ} must lie between"):
        windows(lake_of(tmp_path, 0, 40), trained_until=MAY + days * DAY)


@pytest.mark.parametrize("days", [0, -100])
def test_an_encoder_that_has_seen_nothing_of_the_shop_is_judged_on_all_of_it(tmp_path: Path, days: int) -> None:
    found = windows(lake_of(tmp_path, 0, 40), seen_until=MAY + days * DAY)
    assert (found.start, found.trained_until) == (MAY, MAY)
    assert abs(found.ctr_until - (MAY + 34 * DAY)) <= MICROSECOND


def test_an_encoder_that_has_seen_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must lie between"):
        windows(lake_of(tmp_path, 0, 40), seen_until=MAY + 41 * DAY)


@pytest.mark.parametrize(("days", "count"), [((), 0), ((3,), 1), ((3, 50), 1)])
def test_too_few_events_are_an_error(tmp_path: Path, days: tuple[float, ...], count: int) -> None:
    what = "1 event: one is learned from and a later one judges" if count else "0 events: there is nothing to learn from"
    with pytest.raises(StageError, match=f"the lake has {what} → ingest a directory with more events"):
        windows(lake_of(tmp_path, *days), end=MAY + 50 * DAY)


def test_a_lake_without_events_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="moon ingest DIRECTORY"):
        windows(Lake(str(tmp_path / "lake")))


def test_windows_never_overlap() -> None:
    times = [MAY + n * DAY for n in range(4)]
    assert Windows(*times).ctr_until == MAY + 2 * DAY
    assert Windows(times[0], times[1], times[1], times[2]).ctr_until == times[1]
    for wrong in ([1, 0, 2, 3], [0, 2, 1, 3], [0, 1, 3, 3], [0, 0, 2, 2]):
        with pytest.raises(InputError, match="must lie between the first event"):
            Windows(*(times[n] for n in wrong))


def test_of_a_long_log_few_rows_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows read times in batches, and whether there are clicks is one row of each kind."""
    lake = lake_of(tmp_path, *(day / 100 for day in range(20_000)))
    rows: list[int] = []
    real_table, real_batches = lance.LanceDataset.to_table, lance.LanceDataset.to_batches

    def table(self: lance.LanceDataset, *args: Any, **named: Any) -> pa.Table:
        rows.append((found := real_table(self, *args, **named)).num_rows)
        return found

    def batches(self: lance.LanceDataset, *args: Any, **named: Any) -> Any:
        for batch in real_batches(self, *args, **named):
            rows.append(len(batch))
            yield batch

    monkeypatch.setattr(lance.LanceDataset, "to_table", table)
    monkeypatch.setattr(lance.LanceDataset, "to_batches", batches)
    found = windows(lake, end=MAY + dt.timedelta(days=180))
    assert (found.start, found.end) == (MAY, MAY + dt.timedelta(days=179.99, microseconds=1))
    assert sum(rows) == 18_000
    assert max(rows) <= 8192
    rows.clear()
    assert not has_click_sequences(lake)
    assert sum(rows) <= 2
