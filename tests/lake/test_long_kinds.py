"""A long log of any kind is taken in as it is when it is read whole: rows, reasons, the order of both, counts, words and notes."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from moon_ops.errors import InputError
from moon_ops.lake import ids, long_log, rows, tombstones
from moon_ops.lake.ingest import IngestReport, ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.meanings import PLAIN
from moon_ops.lake.reading import content, delimited, json_lines
from tests.lake.long_shops import ERASED, KINDS, NOW, WHOLE, as_csv, catalogue, log_of, some_events

FEW = 48


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Small pieces of everything, once it is called."""

    def set_small() -> None:
        monkeypatch.setattr(long_log, "AT_ONCE", FEW)
        monkeypatch.setattr(content, "AT_ONCE", 17)
        monkeypatch.setattr(delimited, "BATCH", 10)
        monkeypatch.setattr(json_lines, "AT_ONCE", 900)
        monkeypatch.setattr(json_lines, "LINES", 10)

    return set_small


def taken_in(source: Path, place: Path, before: Path | None = None) -> tuple[Lake, IngestReport]:
    lake = Lake(str(place))
    if before is not None:
        ingest(before, lake, now=NOW - dt.timedelta(hours=1))
    tombstones.add(lake, "user", [ids.stable_id(ERASED)], NOW)
    return lake, ingest(source, lake, now=NOW)


def contents(lake: Lake) -> dict[str, Any]:
    """The tables; events in the order in which they were written, what has none of its own in any."""
    found: dict[str, Any] = {"events": lake.read("events").to_pylist()}
    for name in ("items", "users", "queries", "ids", "quarantine"):
        rows = lake.read(name).to_pylist()
        found[name] = sorted(rows, key=lambda row: [(k, str(v)) for k, v in sorted(row.items())])
    return found


def said(report: IngestReport) -> dict[str, Any]:
    return {**vars(report), "refused": [*report.refused.items()], "erased": [*report.erased.items()]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_log_of_any_kind_is_taken_in_as_a_whole_one(tmp_path: Path, few: Callable[[], None], kind: str) -> None:
    source = catalogue(tmp_path / "shop")
    KINDS[kind](source, log_of())
    whole, of_whole = taken_in(source, tmp_path / "whole")
    assert of_whole.events > FEW
    few()
    assert (long_log.of(source, PLAIN, NOW) is None) == (kind in WHOLE)
    lake, report = taken_in(source, tmp_path / "pieces")
    assert said(report) == said(of_whole)
    assert contents(lake) == contents(whole)
    again = ingest(source, lake, now=NOW + dt.timedelta(days=1))
    assert (again.events, lake.count("events")) == (0, report.events)


@pytest.mark.parametrize("kind", ["some_events", "some_orders"])
def test_beside_events_that_the_lake_has_it_is_taken_in_as_a_whole_one(tmp_path: Path, few: Callable[[], None], kind: str) -> None:
    before, source = catalogue(tmp_path / "before"), catalogue(tmp_path / "shop")
    rows = log_of()
    other = [{**row, "event": "impression" if n % 4 else row["event"]} for n, row in enumerate(rows)]
    KINDS[kind](before, other[20:140:2])
    KINDS[kind](source, rows)
    whole, of_whole = taken_in(source, tmp_path / "whole", before)
    few()
    lake, report = taken_in(source, tmp_path / "pieces", before)
    assert said(report) == said(of_whole)
    assert contents(lake) == contents(whole)


def test_what_was_erased_of_several_tables_is_counted_in_the_same_order(tmp_path: Path, few: Callable[[], None]) -> None:
    source = catalogue(tmp_path / "shop")
    some_events(source, log_of())
    reports = []
    for place in ("whole", "pieces"):
        lake = Lake(str(tmp_path / place))
        for kind, text in (("user", ERASED), ("user", "u-1"), ("session", "s3")):
            tombstones.add(lake, kind, [ids.stable_id(text)], NOW)
        reports.append(said(ingest(source, lake, now=NOW)))
        few()
    assert reports[0] == reports[1]
    files = [name.split()[0] for name, _ in reports[0]["erased"]]
    assert {*files} == {"events.csv", "users.parquet"}


def test_killed_between_two_spans_it_is_finished_by_running_it_again(
    tmp_path: Path, few: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = catalogue(tmp_path / "shop")
    some_events(source, log_of())
    whole, _ = taken_in(source, tmp_path / "whole")
    few()
    real, done = Lake.append, list[str]()

    def append(lake: Lake, table: str, new: pa.Table) -> int:
        done.append(table)
        if done.count("events") == 3:
            raise KeyboardInterrupt
        return real(lake, table, new)

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "append", append)
        with pytest.raises(KeyboardInterrupt):
            taken_in(source, tmp_path / "killed")
    assert 0 < Lake(str(tmp_path / "killed")).count("events") < whole.count("events")
    lake, _ = taken_in(source, tmp_path / "killed")
    assert contents(lake) == contents(whole)


def test_a_log_in_no_order_is_taken_in_by_spans_that_follow_each_other(
    tmp_path: Path, few: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, source = log_of(), catalogue(tmp_path / "shop")
    random.Random(1).shuffle(rows)
    as_csv(source / "events.csv", rows)
    whole, of_whole = taken_in(source, tmp_path / "whole")
    few()
    spans: list[tuple[Any, Any, int]] = []
    real = long_log.LongLog.parts

    def parts(log: long_log.LongLog, *more: Any) -> Iterator[pa.Table]:
        for part in real(log, *more):
            times = part["timestamp"].to_pylist()
            spans.append((min(times), max(times), len(times)))
            yield part

    monkeypatch.setattr(long_log.LongLog, "parts", parts)
    lake, report = taken_in(source, tmp_path / "pieces")
    assert said(report) == said(of_whole)
    assert contents(lake) == contents(whole)
    assert len(spans) > 3
    assert all(one[1] < after[0] for one, after in pairwise(spans))
    assert max(count for *_, count in spans) <= FEW


def test_of_long_rows_fewer_are_taken_in_together(tmp_path: Path, few: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    source, read, written = catalogue(tmp_path / "shop"), list[int](), list[int]()
    some_events(source, [{**row, "color": "red" * 4000} for row in log_of()])  # 24 KB a row, with `extra`
    whole, of_whole = taken_in(source, tmp_path / "whole")
    few()
    monkeypatch.setattr(long_log, "AT_ONCE", 100)
    monkeypatch.setattr(long_log, "BYTES", 2**20)
    real, keep = rows.typed, Lake.append

    def typed(table: pa.Table, name: str, *more: Any) -> pa.Table:
        read.append(table.nbytes if name == "events" else 0)
        return real(table, name, *more)

    def append(lake: Lake, table: str, new: pa.Table) -> int:
        written.append(new.num_rows if table == "events" else 0)
        return keep(lake, table, new)

    monkeypatch.setattr(rows, "typed", typed)
    monkeypatch.setattr(Lake, "append", append)
    lake, report = taken_in(source, tmp_path / "pieces")
    assert said(report) == said(of_whole)
    assert contents(lake) == contents(whole)
    assert max(read) < 2**18 + 10 * 13_000, "bytes, and one batch more"
    assert 0 < max(written) <= 2**20 // 24_000 + 1


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("events.csv", 'timestamp,item_id,event\n2026-05-01,hat,click\n"2026-05-01,hat,click\n', r"row 2, which begins in line 3: a quote"),
        ("events.csv", "timestamp,item_id\n2026-05-01,hat\n", r"events\.csv has no column 'event' \(it has timestamp, item_id;"),
        ("events.jsonl", '{"timestamp": "2026-05-01", "item_id": "hat", "event": "click"}\n{"cut', r"line 2 is not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_as_when_it_is_read_whole(
    tmp_path: Path, few: Callable[[], None], name: str, text: str, problem: str
) -> None:
    source = catalogue(tmp_path / "shop")
    (source / name).write_text(text)
    few()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_log, "AT_ONCE", 0)
        with pytest.raises(InputError, match=problem):
            taken_in(source, tmp_path / "lake")
    assert not Lake(str(tmp_path / "lake")).exists("items")
