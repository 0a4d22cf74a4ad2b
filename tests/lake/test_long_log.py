"""A log that is read in pieces brings what one that is read whole brings, and a piece of it is in memory."""

from __future__ import annotations

import datetime as dt
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moon_ops.errors import InputError
from moon_ops.lake import long_log, rows, tombstones
from moon_ops.lake.ingest import IngestReport, ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.meanings import PLAIN
from moon_ops.lake.reading import content

NOW, MAY = dt.datetime(2026, 6, 1, tzinfo=dt.UTC), dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
ERASED = 3
TYPES = {"timestamp": pa.timestamp("ms"), "position": pa.int32(), "color": pa.string()}


def log_of(count: int) -> list[dict[str, Any]]:
    """Events in time order: some come twice, far from each other; some name what is not there, or happen in the future."""
    rng = random.Random(0)
    found = []
    for number in range(count):
        row = {"timestamp": MAY + dt.timedelta(minutes=number), "user_id": rng.choice((1, 2, ERASED, None)), "query_id": None}
        row |= {"item_id": rng.choice((10, 20, 30, 40)), "event": rng.choice(("impression", "view_item", "purchase"))}
        found.append(row | {"session_id": number // 9, "position": rng.choice((1, None)), "color": rng.choice(("red", None))})
    for number in (20, 80, 150, 170):
        found[number]["user_id"] = 1
    found[20]["item_id"], found[150]["query_id"], found[80]["event"] = 99, 7, "nonsense"
    found[170]["timestamp"] = NOW + dt.timedelta(days=9)
    return [*found, *found[30:60]]


def shop(place: Path, events: list[dict[str, Any]], files: int = 2, **types: pa.DataType) -> Path:
    place.mkdir()
    items = {"item_id": [10, 20, 30, 40], "title": ["a", "b", "c", "d"], "available_from": [None, None, None, MAY]}
    pq.write_table(pa.table(items), place / "items.parquet")
    pq.write_table(pa.table({"user_id": [1, 2], "tier": ["gold", "tin"]}), place / "users.parquet")
    (place / "events").mkdir()
    kinds = dict.fromkeys(("user_id", "item_id", "query_id", "session_id"), pa.int64()) | TYPES | types
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in events[0]])
    each = -(-len(events) // files)
    for number in range(files):
        table = pa.Table.from_pylist(events[number * each :][:each], schema=schema)
        pq.write_table(table, place / "events" / f"part-{number}.parquet", row_group_size=40)
    return place


def taken_in(source: Path, place: Path) -> tuple[Lake, IngestReport]:
    lake = Lake(str(place))
    tombstones.add(lake, "user", [ERASED], NOW)
    return lake, ingest(source, lake, now=NOW)


def contents(lake: Lake) -> dict[str, list[dict[str, Any]]]:
    found = {name: lake.read(name).to_pylist() for name in ("items", "users", "events", "quarantine")}
    return {name: sorted(table, key=lambda row: sorted((k, str(v)) for k, v in row.items())) for name, table in found.items()}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_log, "AT_ONCE", 50)


def test_in_pieces_it_is_what_it_is_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shop(tmp_path / "shop", log_of(200))
    whole, said = taken_in(source, tmp_path / "whole")
    monkeypatch.setattr(long_log, "AT_ONCE", 50)
    monkeypatch.setattr(content, "AT_ONCE", 30)
    read: list[int] = []
    real = rows.typed
    monkeypatch.setattr(
        rows, "typed", lambda table, name, *more: read.append(table.num_rows * (name == "events")) or real(table, name, *more)
    )
    lake, told = taken_in(source, tmp_path / "pieces")
    assert max(read) <= 50, "rows in memory at a time"
    assert sum(read) == 230, "each row is typed once"
    assert contents(lake) == contents(whole)
    assert vars(told) == vars(said)
    assert told.refused == {"events/ item_id": 1, "events/ query_id": 1, "events/ event": 1, "events/ timestamp": 1}
    assert told.erased == {"events/ user_id": sum(e["user_id"] == ERASED for e in log_of(200))}
    again = ingest(source, lake, now=NOW + dt.timedelta(days=1))
    assert (again.events, again.items, lake.count("events")) == (0, 0, told.events)


@pytest.mark.usefixtures("few")
def test_killed_between_two_pieces_it_is_finished_by_running_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shop(tmp_path / "shop", log_of(200))
    whole, _ = taken_in(source, tmp_path / "whole")
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
    lake, _ = taken_in(source, tmp_path / "killed")
    assert contents(lake) == contents(whole)


@pytest.mark.usefixtures("few")
def test_a_file_that_is_cut_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    source = shop(tmp_path / "shop", log_of(200))
    last = source / "events" / "part-1.parquet"
    content = bytearray(last.read_bytes())
    content[4:400] = bytes(396)  # its pages; the footer is whole
    last.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"part-1\.parquet cannot be read"):
        taken_in(source, tmp_path / "lake")
    assert not Lake(str(tmp_path / "lake")).exists("items")


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("events", "types", "is_long"),
    [
        (log_of(200), {}, True),
        (log_of(200)[:50], {}, False),  # short
        ([{**row, "color": b"red" if n else b"\xff"} for n, row in enumerate(log_of(200))], {"color": pa.binary()}, False),  # no texts
        ([{**row, "color": b"red"} for row in log_of(200)], {"color": pa.binary()}, True),
    ],
)
def test_short_logs_are_read_whole_and_those_of_which_all_cells_tell_the_type(
    tmp_path: Path, events: Any, types: Any, is_long: bool
) -> None:
    assert (long_log.of(shop(tmp_path / "shop", events, **types), PLAIN, NOW) is not None) == is_long
