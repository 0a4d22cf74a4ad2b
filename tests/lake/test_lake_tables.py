"""The lake's tables: atomic appends, empty tables, and which version of an item is valid when."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from moon_ops.errors import StageError
from moon_ops.lake import tables
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS, embeddings_schema
from moon_ops.lake.tables import image_bytes, items_as_of

MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


def version(item_id: int, title: str, since: dt.datetime, **more: Any) -> dict[str, Any]:
    plain = {"spu_id": item_id, "status": "active", "content_hash": title, "event_timestamp": since, "created": since}
    return {"item_id": item_id, "title": title, **plain, **more}


def items(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMAS["items"])


def titles(lake: Lake, when: dt.datetime) -> list[tuple[int, str]]:
    return [(row["item_id"], row["title"]) for row in items_as_of(lake, when, ["item_id", "title"]).to_pylist()]


def test_a_table_lies_under_the_lake(empty: Lake) -> None:
    assert Lake("s3://shop/lake/").address("embeddings/v3") == "s3://shop/lake/embeddings/v3.lance"
    empty.append("items", items(version(1, "coat", MAY)))
    assert (Path(empty.uri) / "items.lance").is_dir()


@pytest.mark.parametrize("table", sorted(SCHEMAS))
def test_a_table_not_written_yet_is_empty_with_its_schema(empty: Lake, table: str) -> None:
    assert not empty.exists(table)
    assert empty.count(table) == 0
    assert empty.read(table).schema == SCHEMAS[table]
    assert empty.read(table, ["created"]).schema.names == ["created"]
    assert empty.read(table).num_rows == 0


def test_a_table_that_a_stage_needs_names_the_command(empty: Lake) -> None:
    with pytest.raises(StageError, match="has no table 'items' yet → run `moon ingest DIRECTORY` first"):
        empty.open("items")
    with pytest.raises(StageError, match="has no table 'embeddings/v7' yet, and no items → run `moon embed --encoder 7` first"):
        empty.open("embeddings/v7", needs="moon embed --encoder 7")
    with pytest.raises(StageError, match="'embeddings/v7'"):
        empty.read("embeddings/v7")
    with pytest.raises(StageError, match="'items'"):
        items_as_of(empty, MAY)


def test_append_creates_then_adds_in_order(empty: Lake) -> None:
    assert empty.append("items", items(version(2, "hat", MAY), version(1, "coat", MAY))) == 2
    assert empty.append("items", items(version(3, "sock", MAY))) == 1
    assert empty.read("items", ["title"])["title"].to_pylist() == ["hat", "coat", "sock"]
    assert empty.read("items", ["title"], "item_id < 3 AND title != 'hat'")["title"].to_pylist() == ["coat"]
    assert empty.count("items") == 3


def test_appending_nothing_creates_a_table_once_and_changes_none(empty: Lake) -> None:
    assert empty.append("items", items()) == 0
    assert empty.exists("items")
    before = empty.open("items").version
    assert empty.append("items", items()) == 0
    assert empty.open("items").version == before


@pytest.mark.parametrize("column", ["item_id", "title", "status", "content_hash", "event_timestamp"])
def test_a_row_without_what_it_must_have_is_not_written(empty: Lake, column: str) -> None:
    empty.append("items", items(version(1, "coat", MAY)))
    with pytest.raises((ValueError, OSError)):
        empty.append("items", items({**version(2, "hat", MAY), column: None}))
    assert empty.count("items") == 1


def test_a_reader_keeps_what_it_opened(empty: Lake) -> None:
    empty.append("items", items(version(1, "coat", MAY)))
    opened = empty.open("items")
    empty.append("items", items(version(2, "hat", MAY)))
    assert (opened.count_rows(), empty.count("items")) == (1, 2)


def test_the_version_valid_at_a_time_is_picked(empty: Lake) -> None:
    empty.append("items", items(version(2, "hat", MAY), version(1, "coat", MAY)))
    empty.append("items", items(version(1, "red coat", MAY + 2 * DAY)))
    assert titles(empty, MAY - DAY) == []
    assert titles(empty, MAY) == [(1, "coat"), (2, "hat")]
    assert titles(empty, MAY + 2 * DAY - dt.timedelta(microseconds=1)) == [(1, "coat"), (2, "hat")]
    assert titles(empty, MAY + 2 * DAY) == [(1, "red coat"), (2, "hat")]


def test_the_order_of_writing_decides_only_between_equals(empty: Lake) -> None:
    late, learned = version(1, "valid later", MAY + DAY, created=MAY), version(1, "learned later", MAY, created=MAY + 3 * DAY)
    empty.append("items", items(late, learned))
    assert titles(empty, MAY + 4 * DAY) == [(1, "valid later")]
    assert titles(empty, MAY) == [(1, "learned later")]
    empty.append("items", items(version(2, "first", MAY), version(2, "second", MAY)))
    empty.append("items", items(version(3, "learned last", MAY, created=MAY + DAY), version(3, "learned first", MAY)))
    assert titles(empty, MAY) == [(1, "learned later"), (2, "second"), (3, "learned last")]


def test_a_deleted_item_is_left_out_from_its_deletion_on_and_may_come_back(empty: Lake) -> None:
    gone = version(1, "coat", MAY + DAY, status="deleted")
    empty.append("items", items(version(1, "coat", MAY), gone, version(1, "coat again", MAY + 3 * DAY)))
    assert titles(empty, MAY) == [(1, "coat")]
    assert titles(empty, MAY + DAY) == []
    assert titles(empty, MAY + 3 * DAY) == [(1, "coat again")]


def test_columns_are_the_ones_asked_for_in_order(empty: Lake) -> None:
    empty.append("items", items(version(1, "coat", MAY, price=9.5)))
    assert items_as_of(empty, MAY, ["price", "item_id"]).to_pylist() == [{"price": 9.5, "item_id": 1}]
    assert items_as_of(empty, MAY).schema.names == SCHEMAS["items"].names


def test_an_empty_catalogue_has_no_items_at_any_time(empty: Lake) -> None:
    empty.append("items", items())
    assert titles(empty, MAY) == []


@pytest.mark.parametrize("wanted", [3, 600], ids=["by filter", "by scan"])
def test_image_bytes_gives_each_wanted_picture_once(empty: Lake, wanted: int) -> None:
    rows = [{"image_id": f"{n:064x}", "bytes": bytes([n % 256, n // 256])} for n in range(700)]
    empty.append("images", pa.Table.from_pylist(rows, schema=SCHEMAS["images"]))
    names = [row["image_id"] for row in rows[::-1][:wanted]]
    found = list(image_bytes(empty, [*names, names[0], "f" * 64], batch=100))
    assert len(found) == wanted
    assert dict(found) == {row["image_id"]: row["bytes"] for row in rows[-wanted:]}


def test_of_large_pictures_few_are_read_together(empty: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"image_id": f"{n:064x}", "bytes": bytes([n]) * (1000 if n < 20 else 10)} for n in range(60)]
    for part in (rows[:30], rows[30:]):
        empty.append("images", pa.Table.from_pylist(part, schema=SCHEMAS["images"]))
    empty.open("images").delete(f"image_id = '{1:064x}'")
    taken, take = [], lance.LanceDataset.take
    monkeypatch.setattr(lance.LanceDataset, "take", lambda *a, **b: taken.append(len(a[1])) or take(*a, **b))
    monkeypatch.setattr(tables, "BYTES_AT_ONCE", 2500)
    found = dict(image_bytes(empty, [row["image_id"] for row in rows]))
    assert found == {row["image_id"]: row["bytes"] for row in rows if row != rows[1]}
    assert taken[:9] == [4, *[2] * 8], "at first four, then as many as 2,500 bytes have room for"
    assert max(taken[9:]) > 8
    assert sum(taken) == 59


def test_no_picture_wanted_needs_no_table(empty: Lake) -> None:
    assert list(image_bytes(empty, [])) == []


def test_an_embedding_has_a_fixed_length(empty: Lake) -> None:
    row = {"version_id": "1-a", "item_id": 1, "content_hash": "a", "event_timestamp": MAY, "created": MAY}
    empty.append("embeddings/v1", pa.Table.from_pylist([{**row, "embedding": [0.5, -1.0]}], schema=embeddings_schema(2)))
    assert empty.read("embeddings/v1")["embedding"].to_pylist() == [[0.5, -1.0]]
    with pytest.raises(pa.ArrowInvalid):
        pa.Table.from_pylist([{**row, "embedding": [0.5]}], schema=embeddings_schema(2))
