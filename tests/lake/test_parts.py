"""Part files of one table whose columns differ in type: they are read alike, and no row is lost."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moon_ops.errors import InputError
from moon_ops.lake import rows
from moon_ops.lake.ids import stable_id
from moon_ops.lake.layout import Refusals, words

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
STAMP = pa.array([NOON.replace(tzinfo=None)], pa.timestamp("ms"))


def written(place: Path, name: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    (place / name).mkdir()
    for n, columns in enumerate((first, second)):
        pq.write_table(pa.table(columns), place / name / f"p{n}.parquet")


@pytest.mark.parametrize(
    "other",
    [
        pa.array([int(NOON.timestamp()) * 1000]),
        pa.array(["2026-01-31 13:00:00+01:00"]),
        pa.array([NOON], pa.timestamp("us", tz="Europe/Berlin")),
        pa.array([NOON.replace(tzinfo=None)], pa.timestamp("ns")),
    ],
    ids=lambda cells: str(cells.type),
)
def test_a_time_of_several_types_is_the_same_moment(tmp_path: Path, other: pa.Array) -> None:
    for turn, (first, second) in enumerate(((STAMP, other), (other, STAMP))):
        place = tmp_path / str(turn)
        place.mkdir()
        event = {"item_id": [1], "event": ["click"]}
        written(place, "events", event | {"timestamp": first, "seen": first}, event | {"timestamp": second, "seen": second})
        table = rows.read(place, "events", Refusals())
        assert table["timestamp"].to_pylist() == [NOON, NOON]
        assert table["extra"].null_count == 0


def test_a_date_beside_a_text_is_read_in_own_columns_too(tmp_path: Path) -> None:
    day = dt.date(2026, 1, 31)
    item = {"item_id": [1], "title": ["a"]}
    written(
        tmp_path,
        "items",
        item | {"available_from": [day], "made": [day]},
        {**item, "item_id": [2], "available_from": ["2026-01-31"], "made": ["2026-01-31"]},
    )
    table = rows.read(tmp_path, "items", Refusals())
    assert table["available_from"].to_pylist() == [NOON.replace(hour=0)] * 2
    assert [json.loads(cell) for cell in table["extra"].to_pylist()] == [{"made": "2026-01-31"}] * 2


def test_decimals_bytes_maps_and_lists_beside_texts_mean_what_they_mean_alone(tmp_path: Path) -> None:
    written(
        tmp_path,
        "items",
        {
            "item_id": pa.array([b"x"]),
            "title": pa.array([b"Kr\xc3\xbcg"]),
            "price": [Decimal("19.90")],
            "category": [["A", "B"]],
            "attributes": pa.array([[("size", "L")]], pa.map_(pa.string(), pa.string())),
        },
        {"item_id": ["y"], "title": ["b"], "price": ["5"], "category": ["A > B"], "attributes": ['{"size": "M"}']},
    )
    refusals = Refusals()
    table = rows.read(tmp_path, "items", refusals)
    assert table["item_id"].to_pylist() == [stable_id("x"), stable_id("y")]
    assert (table["title"].to_pylist(), table["price"].to_pylist()) == (["Krüg", "b"], [19.9, 5.0])
    assert [words(cell, ">") for cell in table["category"].to_pylist()] == [["A", "B"], ["A", "B"]]
    assert table["attributes"].to_pylist() == ['{"size": "L"}', '{"size": "M"}']
    assert refusals.rows == []


def test_uuids_as_bytes_beside_texts_are_uuids(tmp_path: Path) -> None:
    one = UUID(int=7)
    written(
        tmp_path,
        "items",
        {"item_id": pa.array([one.bytes], pa.binary(16)), "title": ["a"]},
        {"item_id": [str(UUID(int=8))], "title": ["b"]},
    )
    assert rows.read(tmp_path, "items", Refusals())["source_id"].to_pylist() == [str(one), str(UUID(int=8))]


def test_a_whole_float_beside_a_text_is_the_number(tmp_path: Path) -> None:
    written(tmp_path, "items", {"item_id": [42.0, 2.0**60, 2.0**53], "title": ["a"] * 3}, {"item_id": ["A"], "title": ["b"]})
    refusals = Refusals()
    assert rows.read(tmp_path, "items", refusals)["item_id"].to_pylist() == [42, stable_id("A")]
    assert len(refusals.rows) == 2
    lines = tmp_path / "lines"
    lines.mkdir()
    (lines / "items.jsonl").write_text('{"item_id": 42.0, "title": "a"}\n{"item_id": "A", "title": "b"}\n{"item_id": 1e20, "title": "c"}\n')
    refusals = Refusals()
    assert rows.read(lines, "items", refusals)["source_id"].to_pylist() == ["42", "A"]
    assert [row["column"] for row in refusals.rows] == ["item_id"]


def test_directories_that_name_a_column_are_that_column(tmp_path: Path) -> None:
    for folder, lines in (
        ("status=deleted/brand=A%26B%20Co", "1,a\n"),
        ("status=active/brand=__HIVE_DEFAULT_PARTITION__", "2,b\n3\n"),
    ):
        (tmp_path / "items" / folder).mkdir(parents=True)
        (tmp_path / "items" / folder / "p.csv").write_text(f"item_id,title\n{lines}")
    refusals = Refusals()
    table = rows.read(tmp_path, "items", refusals).sort_by("item_id")
    assert table.select(["status", "brand"]).to_pylist() == [{"status": "deleted", "brand": "A&B Co"}, {"status": "active", "brand": None}]
    assert json.loads(refusals.rows[0]["row"])["status"] == "active"


def test_a_partition_that_the_file_contradicts_is_an_error(tmp_path: Path) -> None:
    place = tmp_path / "items" / "brand=ACME"
    place.mkdir(parents=True)
    pq.write_table(pa.table({"item_id": [1], "title": ["a"], "Brand": ["ACME"]}), place / "p.parquet")
    assert rows.read(tmp_path, "items", Refusals())["brand"].to_pylist() == ["ACME"]
    pq.write_table(pa.table({"item_id": [1], "title": ["a"], "brand": ["Nord"]}), place / "p.parquet")
    with pytest.raises(InputError, match="the directory says brand = ACME, and a row of the file says Nord; nothing was ingested"):
        rows.read(tmp_path, "items", Refusals())
