"""What is new in a table since a reader's mark: nothing twice, nothing forgotten, and no more read than that."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from moon_ops.lake import changes
from moon_ops.lake.lake import Lake

COLUMNS = ["id", "word"]


def rows(*ids: int) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.int64()), "word": pa.array([f"w{i}" for i in ids], pa.string())})


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(str(tmp_path))
    made.append("things", rows(1, 2))
    made.append("things", rows(3))
    return made


def test_a_new_reader_sees_everything_and_an_old_one_what_came_after(lake: Lake) -> None:
    dataset = lake.open("things")
    assert changes.newer(dataset, changes.NOTHING, COLUMNS)["id"].to_pylist() == [1, 2, 3]
    mark = changes.newest(dataset)
    assert changes.newer(dataset, mark, COLUMNS).to_pylist() == []
    assert changes.newer(dataset, mark, COLUMNS).schema == rows().schema
    lake.append("things", rows(4, 5))
    later = lake.open("things")
    assert changes.newer(later, mark, COLUMNS)["id"].to_pylist() == [4, 5]
    assert changes.newer(later, mark, COLUMNS, "id > 4")["id"].to_pylist() == [5]
    assert changes.newer(dataset, mark, COLUMNS).num_rows == 0, "the version that is open stays as it is"


def test_deleted_rows_are_not_seen_and_move_no_mark(lake: Lake) -> None:
    mark = changes.newest(lake.open("things"))
    lance.dataset(lake.address("things")).delete("id = 1")
    assert changes.newest(lake.open("things")) == mark
    assert changes.newer(lake.open("things"), changes.NOTHING, COLUMNS)["id"].to_pylist() == [2, 3]


def test_after_a_compaction_old_rows_are_looked_at_again_and_none_is_lost(lake: Lake) -> None:
    mark = changes.newest(lake.open("things"))
    lake.append("things", rows(4))
    lake.open("things").optimize.compact_files()
    assert set(changes.newer(lake.open("things"), mark, COLUMNS)["id"].to_pylist()) >= {4}


@pytest.mark.parametrize("named", [0, 2000], ids=["by a scan", "by a filter"])
def test_rows_of_ids_are_the_same_by_filter_and_by_scan(lake: Lake, monkeypatch: pytest.MonkeyPatch, named: int) -> None:
    monkeypatch.setattr(changes, "NAMED", named)
    dataset = lake.open("things")
    found = changes.rows_of(dataset, "id", pa.array([3, 1, 99]), ["word"])
    assert found.to_pylist() == [{"word": "w1"}, {"word": "w3"}]
    assert changes.rows_of(dataset, "id", pa.array([3, 1]), ["word"], "id < 2").to_pylist() == [{"word": "w1"}]
    assert changes.rows_of(dataset, "id", pa.array([], pa.int64()), ["word"]).to_pylist() == []


def test_marks_are_kept_with_the_table(lake: Lake) -> None:
    assert changes.marks(lake, "nowhere") == {}
    changes.mark(lake, "things", items=7, rate=12.5)
    changes.mark(lake, "things", items=8)
    assert changes.marks(lake, "things") == {"items": 8.0, "rate": 12.5}
    assert lake.read("things")["id"].to_pylist() == [1, 2, 3]


def test_marks_set_at_the_same_moment_are_all_set(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.append("things", rows(1))
    together = threading.Barrier(6)

    def at_once(number: int) -> None:
        together.wait(timeout=60)
        changes.mark(lake, "things", **{f"of{number}": number, "last": number})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(at_once, range(6)))
    found = changes.marks(lake, "things")
    assert {name: found[name] for name in found if name != "last"} == {f"of{n}": n for n in range(6)}
    assert found["last"] in range(6)
