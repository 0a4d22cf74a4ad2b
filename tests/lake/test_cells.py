"""The ingest layout's cells: what an id, a text, a time and a number may be, in any type, and how anything else is refused."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from moon_ops.errors import InputError
from moon_ops.lake import layout, rows
from moon_ops.lake.ids import stable_id
from moon_ops.lake.layout import ROW, Refusals, pairs, words
from moon_ops.lake.naming import Names
from moon_ops.lake.reading import times

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


def table(**columns: Any) -> pa.Table:
    """A file's content with its row numbers."""
    arrays = {name: cells if isinstance(cells, pa.Array) else pa.array(cells) for name, cells in columns.items()}
    content = pa.table(arrays)
    return content.append_column(ROW, pa.array(range(1, content.num_rows + 1), pa.int64()))


def refusals_of(content: pa.Table) -> Refusals:
    refusals = Refusals()
    refusals.bring("items", Path("shop/items.csv"), content)
    return refusals


def reasons(refusals: Refusals) -> list[str]:
    return [row["reason"] for row in refusals.rows]


@pytest.mark.parametrize("value", [0, 1, 1001, 2**62, 2**63 - 1])
def test_digits_are_the_number_they_write(value: int) -> None:
    assert stable_id(str(value)) == value


@pytest.mark.parametrize("value", ["sku-1", "007", "1.5", " 1", "+1", "Ⅻ", "١", "9223372036854775808", "9" * 5000, "x" * 5000])
def test_any_other_text_becomes_63_bits_that_are_no_small_number(value: str) -> None:
    assert 10**9 < stable_id(value) < 2**63
    assert stable_id(value) == stable_id(value)


def test_the_ids_of_texts_are_the_ones_of_every_release() -> None:
    """Another value here would make every item with a text id a new item."""
    assert stable_id("sku-1") == 7409758481748834931
    assert stable_id("007") == 2636083598628110558
    assert len({stable_id(f"sku-{n}") for n in range(10_000)}) == 10_000


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([1, 2, None], pa.int32()),
        pa.array([1, 2, None], pa.uint64()),
        pa.array([1.0, 2.0, None]),  # what pandas makes of whole numbers with a gap
        pa.array(["1.0", "2.0", None]),  # and what it then writes as CSV
        pa.array(["1", " 2 ", ""]),
        pa.array(["1", "2", None]).dictionary_encode(),
        pa.array([b"1", b"2", None]),
    ],
    ids=lambda cells: str(cells.type),
)
def test_ids_in_any_type_are_the_same_number(cells: pa.Array) -> None:
    content = table(user_id=cells)
    refusals = refusals_of(content)
    read = rows.keyed(content, "user_id", refusals, "items", Names())["user_id"]
    assert read.to_pylist() == [1, 2, None]
    assert read.type == pa.int64()
    assert refusals.rows == []


def test_an_id_that_only_sometimes_ends_in_zero_is_a_text() -> None:
    content = table(item_id=["1.0", "1.1"])
    read = rows.keyed(content, "item_id", refusals_of(content), "items", Names(), required=True)
    assert read["item_id"].to_pylist() == [stable_id("1.0"), stable_id("1.1")]


def test_an_unsigned_id_too_large_for_63_bits_stays_distinct() -> None:
    content = table(item_id=pa.array([2**64 - 1, 2**64 - 2, 5], pa.uint64()))
    read = rows.keyed(content, "item_id", refusals_of(content), "items", Names(), required=True)["item_id"].to_pylist()
    assert read == [stable_id(str(2**64 - 1)), stable_id(str(2**64 - 2)), 5]


@pytest.mark.parametrize("cells", [[-5, 3, None], ["-5", "3", ""], [-5.0, 3.0, None]], ids=["numbers", "texts", "floats"])
def test_what_is_no_id_is_refused_as_it_was_written(cells: list[Any]) -> None:
    content = table(item_id=cells)
    refusals = refusals_of(content)
    assert rows.keyed(content, "item_id", refusals, "items", Names(), required=True)["item_id"].to_pylist() == [3]
    assert reasons(refusals) == [f"item_id = {cell!r} is not an id (a whole number from 0, or a text)" for cell in (cells[0], cells[2])]
    optional = refusals_of(content)
    assert rows.keyed(content, "item_id", optional, "items", Names())["item_id"].to_pylist() == [3, None]
    assert len(optional.rows) == 1


@pytest.mark.parametrize("cells", [[["a"]], [{"a": 1}], pa.array([b"\xff"])], ids=["list", "object", "bytes"])
def test_a_column_that_cannot_be_text_is_named(cells: Any) -> None:
    content = table(title=cells)
    kind = str(content["title"].type).replace("<", ".")
    with pytest.raises(
        InputError, match=rf"items\.csv: column 'title' holds {kind[:6]}.*, not texts; nothing was ingested → write title as"
    ):
        layout.texts(content, "title", refusals_of(content), "items")


def test_texts_lose_the_space_around_them_and_blanks_are_nothing() -> None:
    content = table(brand=["  Nord ", "", " \t", None, "a  b"])
    assert layout.texts(content, "brand", refusals_of(content), "items")["brand"].to_pylist() == ["Nord", None, None, None, "a  b"]
    content = table(brand=[361, None])
    assert layout.texts(content, "brand", refusals_of(content), "items")["brand"].to_pylist() == ["361", None]


@pytest.mark.parametrize(
    "cells",
    [
        ["2026-01-31T12:00:00Z", None],
        ["2026-01-31 12:00", None],
        ["2026-01-31T14:00:00.000000+02:00", None],
        ["2026-01-31T12:00:00.000000999Z", None],  # nanoseconds are cut
        ["2026-01-31 12:00:00 UTC", None],
        ["2026-01-31 13:00:00,000 +0100", None],
        ["2026-01-31T07:00:00-0500", None],
        ["2026/1/31 13:00 Europe/Berlin", None],
        ["20260131T120000Z", None],
        ["31/Jan/2026:13:00:00 +0100", None],
        ["Sat, 31 Jan 2026 12:00:00 GMT", None],
        ["1769860800", None],
        ["1769860800000", None],
        ["1769860800000000999", None],
        [1769860800, None],
        [1769860800000000, None],
        [1769860800.0, None],
        pa.array([NOON.replace(tzinfo=None), None], pa.timestamp("s")),
        pa.array([NOON, None], pa.timestamp("ms", tz="Europe/Berlin")),
        pa.array([1769860800_000000_999, None], pa.timestamp("ns")),
        pa.array([1769860800_000000_999, None], pa.timestamp("ns", tz="America/New_York")),
    ],
    ids=str,
)
def test_times_in_any_form_are_the_same_moment(cells: Any) -> None:
    content = table(timestamp=cells)
    refusals = refusals_of(content)
    read = layout.stamps(content, "timestamp", refusals, "items", required=False)["timestamp"]
    assert read.to_pylist() == [NOON, None]
    assert read.type == pa.timestamp("us", tz="UTC")
    assert refusals.rows == []
    layout.stamps(content, "timestamp", refusals, "items", required=True)
    assert reasons(refusals) == [f"timestamp = None is not a time ({times.FORMS})"]


@pytest.mark.parametrize("digits", ["253402300799", "253402300799000", "253402300799000000"])
def test_the_end_of_all_years_is_no_time_of_the_past(digits: str) -> None:
    for cell in (digits, int(digits)):
        content = table(available_until=[cell])
        read = layout.stamps(content, "available_until", refusals_of(content), "items", required=False)
        assert read["available_until"].to_pylist() == [dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)]
    assert (
        times.parsed(pa.array(["32503680000", "999999999999"])).to_pylist()
        == times.parsed(pa.array([32503680000, 999999999999])).to_pylist()
    )
    assert times.parsed(pa.array(["32503680000"]))[0].as_py().year == 3000


def test_a_date_is_its_midnight() -> None:
    content = table(timestamp=pa.array([NOON.date()]))
    read = layout.stamps(content, "timestamp", refusals_of(content), "items", required=True)
    assert read["timestamp"].to_pylist() == [NOON.replace(hour=0)]


@pytest.mark.parametrize(
    "cell",
    [
        "yesterday",
        "now",
        "epoch",
        "infinity",
        "31.01.2026",
        "01/02/2026",
        "2026-01-31 12:00 EST",
        "Jan 31, 2026 11:00 PM",
        "2026-02-30",
        "2026-01-31T12:00:00+25:00",
        "2026-01-31T12:00:00+01:75",
        "12345",
        12345,
        1.5,
        True,
    ],
)
def test_what_is_no_time_is_refused_and_the_others_keep_theirs(cell: Any) -> None:
    content = table(timestamp=[cell]) if not isinstance(cell, str) else table(timestamp=["2026-01-30", cell, "2026-01-31T12:00"])
    for required in (True, False):
        refusals = refusals_of(content)
        read = layout.stamps(content, "timestamp", refusals, "items", required=required)
        assert read["timestamp"].to_pylist()[1:] == ([NOON] if isinstance(cell, str) else [])
        assert reasons(refusals) == [f"timestamp = {cell!r} is not a time ({times.FORMS})"]


@pytest.mark.parametrize(
    "cells",
    [[9.5, 10.0, None], ["9.5", "1e1", None], [Decimal("9.5"), Decimal("10.0"), None], pa.array([9.5, 10, None], pa.float32())],
    ids=["floats", "texts", "decimals", "float32"],
)
def test_numbers_in_any_type_are_the_same(cells: Any) -> None:
    content = table(price=cells)
    refusals = refusals_of(content)
    assert layout.numbers(content, "price", refusals, "items")["price"].to_pylist() == [9.5, 10.0, None]
    assert refusals.rows == []


@pytest.mark.parametrize("cell", ["cheap", "9,50,1", "nan", "inf", "1e400", "9 or 10", float("inf")])
def test_what_is_no_number_is_refused_and_the_others_keep_theirs(cell: Any) -> None:
    content = table(price=["1", cell, "3"] if isinstance(cell, str) else [1.0, cell, 3.0])
    refusals = refusals_of(content)
    assert layout.numbers(content, "price", refusals, "items")["price"].to_pylist() == [1.0, 3.0]
    assert reasons(refusals) == [f"price = {cell!r} is not a number"]


def test_whole_numbers_are_not_cut_or_wrapped() -> None:
    content = table(position=[1.0, 1.5, 2.0**31, None, 3.0])
    refusals = refusals_of(content)
    read = layout.numbers(content, "position", refusals, "items", whole=True)["position"]
    assert read.to_pylist() == [1, None, 3]
    assert read.type == pa.int32()
    assert reasons(refusals) == ["position = 1.5 is not a whole number", "position = 2147483648.0 is not a whole number"]


def test_of_equal_ids_the_first_row_counts() -> None:
    content = table(item_id=[5, 6, 5, 5], title=["a", "b", "c", "d"])
    refusals = refusals_of(content)
    assert layout.unique(content, "item_id", refusals, "items")["title"].to_pylist() == ["a", "b"]
    assert [row["source"] for row in refusals.rows] == ["items.csv:3", "items.csv:4"]
    assert reasons(refusals) == ["item_id = 5 is there twice: the first row counts"] * 2


def test_a_refusal_quotes_the_row_of_the_file_and_not_what_became_of_it() -> None:
    content = table(item_id=["sku-1", "sku-2"], tags=[["a"], ["b"]])
    refusals = refusals_of(content)
    typed = rows.keyed(content, "item_id", refusals, "items", Names(), required=True)
    left = refusals.split(typed, pa.array([False, None]), "items", "item_id", "is odd")
    assert left["item_id"].to_pylist() == [stable_id("sku-1")]
    assert refusals.rows == [
        {"source": "items.csv:2", "row": '{"item_id": "sku-2", "tags": ["b"]}', "column": "item_id", "reason": "item_id = 'sku-2' is odd"}
    ]
    refusals.add("items", 1, "tags", "tags = a: no such tag")
    refusals.add("items", 2, "tags", "tags = b: no such tag")
    assert refusals.summary() == {"items.csv item_id": 1, "items.csv tags": 2}


@pytest.mark.parametrize(
    ("value", "separator", "found"),
    [
        ("A > B >  C ", ">", ["A", "B", "C"]),
        ("a.png|b c.png||", "|", ["a.png", "b c.png"]),
        (["A", " B ", "", None], ">", ["A", "B"]),
        (["Men > Women"], ">", ["Men > Women"]),
        (12, ">", ["12"]),
        ("", "|", []),
        (None, "|", []),
    ],
)
def test_words(value: Any, separator: str, found: list[str]) -> None:
    assert words(value, separator) == found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"size": "L", "colour": "red", "fit": None}, [("colour", "red"), ("size", "L")]),
        ('{"size": 42, "colour": "red"}', [("colour", "red"), ("size", "42")]),
        ([("size", "L"), ("colour", "red")], [("colour", "red"), ("size", "L")]),  # an Arrow map
        ({}, []),
        ("", []),
        (None, []),
    ],
)
def test_pairs(value: Any, found: list[tuple[str, str]]) -> None:
    assert pairs(value) == found


@pytest.mark.parametrize("value", ["red", "[1, 2]", '["ab", "cd"]', "5", '"red"', ["ab", "cd"], [1], 5, True])
def test_attributes_that_are_no_object_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"not an object|Expecting value"):
        pairs(value)
