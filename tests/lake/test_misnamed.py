"""Files whose names say something else than what they are, and directories in which the items file is called otherwise."""

from __future__ import annotations

import datetime as dt
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moon_ops.errors import InputError
from moon_ops.lake import meanings, rows
from moon_ops.lake.layout import Refusals

CSV = b"item_id,title\n1,lamp\n2,cup\n"


def read(place: Path) -> Refusals:
    """What was said of two items, which came in."""
    refusals = Refusals()
    assert rows.read(place, "items", refusals, meanings.of(place))["title"].to_pylist() == ["lamp", "cup"]
    assert refusals.rows == []
    return refusals


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("items.xlsx", "save it as items.csv"),
        ("items.zip", "unpack it"),
        ("items.csv.zip", "unpack it"),
        ("items (1).csv", "if it holds them, call it items.csv"),
        ("products.csv.gz", "if it holds them, call it items.csv.gz"),
    ],
)
def test_what_lies_there_instead_of_items_is_named(tmp_path: Path, name: str, action: str) -> None:
    (tmp_path / "events.csv").write_bytes(CSV)
    (tmp_path / name).write_bytes(CSV)
    with pytest.raises(InputError) as error:
        rows.read(tmp_path, "items", Refusals())
    assert f"(there is {name}, which is not read): nothing to ingest → {action}" in str(error.value)


def test_the_first_bytes_say_what_a_file_is(tmp_path: Path) -> None:
    items = tmp_path / "items.csv"
    items.write_bytes(gzip.compress(CSV))
    assert read(tmp_path).contents["items"].said == ["CSV, comma between cells, UTF-8"]
    items.write_text("".join(json.dumps({"item_id": n, "title": title}) + "\n" for n, title in ((1, "lamp"), (2, "cup"))))
    assert read(tmp_path).contents["items"].said == ["JSON lines, UTF-8, though its name says CSV"]
    pq.write_table(pa.table({"item_id": [1, 2], "title": ["lamp", "cup"]}), items)
    assert read(tmp_path).contents["items"].said == ["Parquet, though its name says CSV"]
    items.rename(tmp_path / "items.csv.gz")
    (tmp_path / "items.csv.gz").write_bytes(CSV)
    read(tmp_path)
    (tmp_path / "items.csv.gz").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(InputError, match="is a spreadsheet or an archive, whatever its name says; nothing was ingested → save it as CSV"):
        read(tmp_path)


def test_columns_without_a_name_and_content_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title,,\n1,lamp,,\n2,cup,,\n")
    assert read(tmp_path).contents["items"].notes == ["items.csv: 2 columns without a name and without content were left out"]


def test_a_file_that_only_withdraws_needs_no_titles(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,status\n1,deleted\n2,archived\n")
    assert rows.read(tmp_path, "items", Refusals())["status"].to_pylist() == ["deleted", "deleted"]
    for text in ("item_id,status\n1,deleted\n2,active\n", "item_id,status\n1,deleted\n2,\n", "item_id,price\n1,5\n"):
        (tmp_path / "items.csv").write_text(text)
        with pytest.raises(
            InputError, match=r"items\.csv has no column 'title' \(it has item_id, .*nothing was ingested → add the column title"
        ):
            rows.read(tmp_path, "items", Refusals())


def test_what_moon_toml_says_of_columns_and_nothing_has_is_noted(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("SKU,title,farbe\n1,lamp,red\n2,cup,blue\n")
    (tmp_path / "moon.toml").write_text('[columns]\nsku = "item_id"\nmarke = "brand"\nfarbe = "colour"\n')
    refusals = Refusals()
    table = rows.read_all(tmp_path, refusals, meanings.of(tmp_path), now=dt.datetime(2026, 6, 1, tzinfo=dt.UTC))["items"]
    assert table["extra"].to_pylist() == ['{"colour": "red"}', '{"colour": "blue"}']
    assert refusals.contents["items"].notes == [
        "items.csv: moon.toml names the column 'marke', which no file has",
        "items.csv: moon.toml calls the column 'farbe' 'colour', which means nothing here: it is kept as one of your own",
    ]
