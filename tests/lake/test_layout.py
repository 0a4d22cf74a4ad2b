"""The ingest layout's files: the same rows in three formats, and what is no file of it."""

from __future__ import annotations

import csv
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moon_ops.errors import InputError
from moon_ops.lake import rows
from moon_ops.lake.layout import ROW, Refusals, pairs, words
from moon_ops.lake.reading import content, files

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


def read_file(path: Path, required: tuple[str, ...]) -> pa.Table:
    """The rows of the table that the file is named after."""
    found = files.find(path.parent, path.name.split(".")[0])
    assert found is not None
    return content.read(found, required, required).table


def test_find_takes_the_one_file_there_is(tmp_path: Path) -> None:
    assert files.find(tmp_path, "items") is None
    (tmp_path / "items.csv").write_text("item_id,title\n")
    found = files.find(tmp_path, "items")
    assert found is not None
    assert found.paths == (tmp_path / "items.csv",)
    (tmp_path / "items.jsonl").write_text("")
    with pytest.raises(InputError, match=r"holds items\.csv and items\.jsonl: it is not clear which one counts; .* → remove all but one"):
        files.find(tmp_path, "items")


def test_a_missing_column_is_named_with_the_ones_there_are(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,name\n1,coat\n")
    with pytest.raises(
        InputError, match=r"no column 'title' \(it has item_id, name; it was read as CSV, .*\); nothing was ingested → add the column title"
    ):
        read_file(tmp_path / "items.csv", ("item_id", "title"))


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title,title\n1,coat,hat\n")
    with pytest.raises(InputError, match=r"has the column 'title' twice; nothing was ingested → keep one of them"):
        read_file(tmp_path / "items.csv", ("item_id", "title"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("items.parquet", b"not parquet", "Parquet"),
        ("items.jsonl", b'{"item_id": 1}\n{"item_id": \n', "line 2 is not JSON"),
        ("items.jsonl", b'{"item_id": 1}\n[2]\n', "line 2 is not a JSON object"),
        ("items.csv", b'item_id,title\n1,a\n2,"b\n', "row 2, which begins in line 3: a quote that opens there is not closed"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        InputError, match=rf"{name} cannot be read \((?s:.*)({reason})(?s:.*)\); nothing was ingested → write the file again"
    ):
        read_file(tmp_path / name, ("item_id", "title"))


@pytest.mark.parametrize(("name", "content"), [("events.csv", ""), ("events.jsonl", ""), ("events.jsonl", "\n\n")])
def test_a_file_without_content_has_no_rows(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    read = read_file(tmp_path / name, ("timestamp", "event"))
    assert read.num_rows == 0
    assert read.column_names == ["timestamp", "event", ROW]


def test_csv_cells_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text('item_id,title,brand\n007,"a ""red"" coat,\nwith lining",NA\n8,2024,\n')
    assert read_file(tmp_path / "items.csv", ("item_id",)).to_pylist() == [
        {"item_id": "007", "title": 'a "red" coat,\nwith lining', "brand": "NA", ROW: 1},
        {"item_id": "8", "title": "2024", "brand": None, ROW: 2},
    ]


def test_a_csv_cell_of_many_lines_may_lie_anywhere_in_a_large_file(tmp_path: Path) -> None:
    lines = "\n".join(f"line {n}" for n in range(100))
    (tmp_path / "items.csv").write_text("item_id,description\n" + "".join(f'{n},"{lines}"\n' for n in range(3000)))
    assert (tmp_path / "items.csv").stat().st_size > 2**21  # more than the reader takes at once
    read = read_file(tmp_path / "items.csv", ("item_id",))
    assert read["item_id"].to_pylist() == [str(n) for n in range(3000)]
    assert set(read["description"].to_pylist()) == {lines}


def test_a_json_column_of_different_types_is_read_as_text(tmp_path: Path) -> None:
    lines = [{"price": 1.5, "size": {"eu": 42}}, {"price": "cheap", "size": {"eu": "L"}}, {"price": None, "other": [1]}]
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert read_file(tmp_path / "items.jsonl", ("price",)).to_pylist() == [
        {"price": "1.5", "size": '{"eu": 42}', "other": None, ROW: 1},
        {"price": "cheap", "size": '{"eu": "L"}', "other": None, ROW: 2},
        {"price": None, "size": None, "other": [1], ROW: 3},
    ]


def test_json_texts_that_look_like_times_stay_texts(tmp_path: Path) -> None:
    line = {"item_id": "2026-01-31", "attributes": {"made": "2026-01-31"}, "tags": ["2026-01-31"], "available_from": "2026-01-31T12:00:00Z"}
    (tmp_path / "items.jsonl").write_text(json.dumps(line))
    assert read_file(tmp_path / "items.jsonl", ("item_id",)).to_pylist() == [{**line, ROW: 1}]


ITEMS = [
    {
        "item_id": 1001,
        "title": " Wool coat ",
        "spu_id": 7,
        "category": "Clothes > Coats",
        "brand": "361",
        "description": 'red, "warm"\nlined',
        "attributes": {"size": "L", "colour": "red"},
        "seller_id": 5,
        "price": 99.5,
        "status": "active",
        "images": "a.png|b.png",
        "available_from": "2026-01-31T12:00:00",
    },
    {"item_id": 1002, "title": "Hat", "price": 10, "brand": "", "available_from": "2026-02-01T14:00:00+02:00"},
    {"item_id": 1003, "title": "2024", "status": "deleted"},
]
EVENTS = [
    {"timestamp": "2026-01-31T12:00:00.25", "item_id": 1001, "event": "click", "user_id": 7, "query_id": 9, "session_id": 4, "position": 2},
    {"timestamp": "2026-01-31", "item_id": 1002, "event": "impression"},
]


def write(path: Path, records: list[dict[str, Any]]) -> None:
    """The records in the format of the path's ending."""
    names = list(dict.fromkeys(name for record in records for name in record))
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".csv":
        flat = [{k: json.dumps(v) if isinstance(v, dict) else v for k, v in record.items()} for record in records]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(flat)
    else:
        columns = {name: [record.get(name) for record in records] for name in names}
        if "attributes" in columns:
            kind = pa.map_(pa.string(), pa.string())
            cells = [None if cell is None else list(cell.items()) for cell in columns["attributes"]]
            pq.write_table(pa.table({**columns, "attributes": pa.array(cells, kind)}), path)
        else:
            pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_three_formats_mean_the_same(tmp_path: Path, ending: str) -> None:
    write(tmp_path / f"items.{ending}", ITEMS)
    write(tmp_path / f"events.{ending}", EVENTS)
    refusals = Refusals()
    items = rows.read(tmp_path, "items", refusals).to_pylist()
    assert refusals.rows == []
    for row in items:
        row["attributes"] = pairs(row["attributes"])
        row["category"] = words(row["category"], ">")
    optional = ("spu_id", "brand", "description", "seller_id", "price", "images", "available_from", "available_until", "extra")
    gaps = dict.fromkeys(optional)
    bare = {**gaps, "status": "active", "attributes": [], "category": []}
    noon = dt.timedelta(days=1) + NOON
    assert items == [
        {
            **{"item_id": 1001, "source_id": "1001", "title": "Wool coat", "spu_id": 7, "category": ["Clothes", "Coats"]},
            **{"brand": "361", "description": 'red, "warm"\nlined', "attributes": [("colour", "red"), ("size", "L")]},
            **{"seller_id": 5, "price": 99.5, "status": "active", "images": "a.png|b.png", "available_from": NOON, "extra": None, ROW: 1},
            "available_until": None,
        },
        {**bare, "item_id": 1002, "source_id": "1002", "title": "Hat", "price": 10.0, "available_from": noon, ROW: 2},
        {**bare, "item_id": 1003, "source_id": "1003", "title": "2024", "status": "deleted", ROW: 3},
    ]
    quarter = dt.timedelta(milliseconds=250)
    assert rows.read(tmp_path, "events", refusals).to_pylist() == [
        {
            **{"timestamp": NOON + quarter, "item_id": 1001, "event": "click"},
            **{"user_id": 7, "query_id": 9, "session_id": 4, "position": 2, "extra": None, ROW: 1},
            **{"event_id": None, "order_id": None},
        },
        {
            **{"timestamp": dt.datetime(2026, 1, 31, tzinfo=dt.UTC), "item_id": 1002, "event": "impression"},
            **{"user_id": None, "query_id": None, "session_id": None, "position": None, "extra": None, ROW: 2},
            **{"event_id": None, "order_id": None},
        },
    ]
    assert refusals.rows == []


def test_columns_of_the_shops_own_are_kept_together_and_in_what_is_refused(tmp_path: Path) -> None:
    strange = {"_row": 9, "source_id": "x", "image_id": "y", "created": "z", "event_timestamp": "w"}
    write(tmp_path / "items.jsonl", [{"item_id": 1, "title": "Hat", **strange}, {"item_id": 2, "title": "", **strange}])
    refusals = Refusals()
    read = rows.read(tmp_path, "items", refusals)
    assert len(read.column_names) == len(set(read.column_names)) == 16
    kept = {k: v for k, v in strange.items() if k != "_row"}
    extra = json.dumps(kept, sort_keys=True)
    assert read.select(["item_id", "source_id", "extra", ROW]).to_pylist() == [{"item_id": 1, "source_id": "1", "extra": extra, ROW: 1}]
    assert [json.loads(row["row"]) for row in refusals.rows] == [{"item_id": 2, "title": "", **kept}]
