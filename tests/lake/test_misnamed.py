"""Files whose names say something else than what they are, and directories in which the items file is called otherwise."""

from __future__ import annotations

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
