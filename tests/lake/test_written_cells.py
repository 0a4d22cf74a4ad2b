"""Cells as people and programs write them: prices, ids that became floats, names of pictures."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from moon_ops.lake import layout, rows
from moon_ops.lake.ids import FRACTION, LARGE, ROUNDED, stable_id
from moon_ops.lake.layout import ROW, Refusals
from moon_ops.lake.naming import Names
from moon_ops.lake.reading import numbers, pictures


def refusals_of(content: pa.Table) -> Refusals:
    refusals = Refusals()
    refusals.bring("items", Path("shop/items.csv"), content)
    return refusals


def table(**columns: Any) -> pa.Table:
    """A file's content with its row numbers."""
    content = pa.table({name: cells if isinstance(cells, pa.Array) else pa.array(cells) for name, cells in columns.items()})
    return content.append_column(ROW, pa.array(range(1, content.num_rows + 1), pa.int64()))


def reasons(refusals: Refusals) -> list[str]:
    return [row["reason"] for row in refusals.rows]


@pytest.mark.parametrize(
    ("cells", "found", "said"),
    [
        (["19,99", "1.234", "1.234.567,5"], [19.99, 1234.0, 1234567.5], ["decimal comma"]),
        (["1,234.50", "1,234,567", "1'234.5"], [1234.5, 1234567.0, 1234.5], []),
        (["1.234", "12", "19.90"], [1.234, 12.0, 19.9], []),
        (["1,234", "19.99", "5.50"], [1234.0, 19.99, 5.5], []),
        (["12.990 €", "899 €", "1,50 €"], [12990.0, 899.0, 1.5], ["prices in EUR", "decimal comma"]),
        (["1.299", "1.234.567"], [1299.0, 1234567.0], ["decimal comma"]),
        (["0.125", "1.250", "1234.567"], [0.125, 1.25, 1234.567], []),
        (["1,234", "9,5"], [1.234, 9.5], ["decimal comma"]),
        (["€ 5", "6 EUR", "7", "19,- €"], [5.0, 6.0, 7.0, 19.0], ["prices in EUR"]),
        (["US$ 5", "$6.50"], [5.0, 6.5], ["prices in USD"]),
        (["1\u00a0234,50 kr", "2\u202f000,00 kr"], [1234.5, 2000.0], ["prices in kr", "decimal comma"]),
    ],
)
def test_prices_are_read_as_people_write_them(cells: list[str], found: list[float], said: list[str]) -> None:
    parsed = numbers.parsed(pa.array(cells))
    assert (parsed.values.to_pylist(), parsed.reasons, parsed.said) == (found, {}, said)


def test_a_price_that_may_mean_two_things_or_another_currency_is_refused_with_that_reason() -> None:
    content = table(price=["1,234", "5 EUR", "6 EUR", "7 USD"])
    refusals = refusals_of(content)
    assert layout.numbers(content, "price", refusals, "items")["price"].to_pylist() == [5.0, 6.0]
    assert sorted(reasons(refusals)) == [
        "price = '1,234' may be 1.234 or 1234: no other cell tells which",
        "price = '7 USD' is in USD, and most others are in EUR",
    ]


def test_points_before_three_digits_are_refused_where_nothing_tells(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id;title;price\n1;a;12.990 €\n2;b;899 €\n3;c;1.299 €\n")
    refusals = Refusals()
    assert rows.read(tmp_path, "items", refusals)["price"].to_pylist() == [899.0]
    assert sorted(reasons(refusals)) == [
        "price = '1.299 €' may be 1.299 or 1299: no other cell tells which",
        "price = '12.990 €' may be 12.990 or 12990: no other cell tells which",
    ]


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (pa.array([7012345678901.0, None]), [7012345678901, None]),
        (pa.array([2.0**53 - 1, 1.0]), [2**53 - 1, 1]),
        (pa.array([Decimal("3.00"), Decimal(2**60)], pa.decimal128(22, 2)), [3, 2**60]),
        (pa.array(["1E5", "7"]), [stable_id("1E5"), 7]),
    ],
    ids=str,
)
def test_whole_floats_are_the_integer_that_they_were(cells: pa.Array, found: list[Any]) -> None:
    content = table(item_id=cells)
    refusals = refusals_of(content)
    assert rows.keyed(content, "item_id", refusals, "items", Names())["item_id"].to_pylist() == found
    assert refusals.rows == []


@pytest.mark.parametrize(("cell", "why"), [(2.0**53, LARGE), (1.5, FRACTION), ("7.01E+12", ROUNDED)])
def test_an_id_that_was_rounded_is_refused_with_that_reason(cell: Any, why: str) -> None:
    content = table(item_id=[cell, type(cell)(5)])
    refusals = refusals_of(content)
    assert rows.keyed(content, "item_id", refusals, "items", Names())["item_id"].to_pylist() == [5]
    assert reasons(refusals) == [f"item_id = {cell!r} {why}"]


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("a.jpg|b c.png||", ["a.jpg", "b c.png"]),
        ("a.jpg, b.jpg", ["a.jpg", "b.jpg"]),
        ("a.jpg b.PNG", ["a.jpg", "b.PNG"]),
        ("two words.jpg;c.webp", ["two words.jpg", "c.webp"]),
        ('["a.jpg", "b, c.jpg"]', ["a.jpg", "b, c.jpg"]),
        ("['a.jpg', 'b.jpg']", ["a.jpg", "b.jpg"]),
        ("https://x/w_300,h_200/a.jpg?v=1,https://x/b", ["https://x/w_300,h_200/a.jpg?v=1", "https://x/b"]),
        ("//cdn.shop.example/a.jpg", ["https://cdn.shop.example/a.jpg"]),
        (["a, b.jpg", None], ["a, b.jpg"]),
        ("", []),
        (None, []),
    ],
)
def test_pictures_of_a_cell(cell: Any, found: list[str]) -> None:
    assert pictures.references(cell) == found


@pytest.mark.parametrize("name", ["pics\\c.jpg", "pics/c.jpg?v=17", "pics%2Fc.jpg", "/pics/c.jpg", "./pics/c.jpg#1"])
def test_a_picture_is_found_however_it_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "c.jpg").touch()
    assert pictures.place(tmp_path.resolve(), name) == (tmp_path / "pics" / "c.jpg").resolve()
