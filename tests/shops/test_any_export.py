"""Exports with anything in their cells: every row is an item, merged or refused, and what comes out can be ingested."""

from __future__ import annotations

import csv
import datetime as dt
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moon_ops.errors import InputError
from moon_ops.lake import rows
from moon_ops.lake.layout import Refusals
from moon_ops.shops.catalogues import KINDS, import_catalogue
from moon_ops.shops.exports.orders import NAMES

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
SEEDED = settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
NEEDED = {
    "shopify": ("handle", "title", "variant_sku", "option1_value", "image_src"),
    "woocommerce": ("id", "type", "sku", "name", "published", "parent"),
    "magento": ("sku", "product_type", "name", "configurable_variations", "store_view_code"),
    "google_merchant": ("id", "title", "item_group_id", "availability", "price"),
}
WORDS = ("", "a", "b", "A", "1", "id:1", "variation", "variable", "simple", "true", "active", "draft", "0", "12,50 EUR", "'1", "NULL")
LISTS = ("<p>x</p>", "in stock", "x.jpg, y.jpg", "/a/b.jpg|https://x.example/a", "Default/A/B,Default", "A > B, C")
PARTS = ("sku=a,c=d|sku=b", "2026-01-01")
CELLS = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(LISTS + PARTS),
    st.text(st.sampled_from(list("aé,;|\\/\"' =:\n€<>&")), max_size=8),
)


def text(names: list[str], lines: list[list[str]]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows([names, *lines])
    return out.getvalue()


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_row_of_any_export_is_accounted_for(kind: str) -> None:
    others = sorted(KINDS[kind].used - {*NEEDED[kind]})

    @SEEDED
    @given(
        more=st.lists(st.sampled_from(others), max_size=5, unique=True),
        cells=st.lists(st.lists(CELLS, min_size=12, max_size=12), min_size=1, max_size=8),
        orders=st.lists(st.lists(CELLS, min_size=len(NAMES), max_size=len(NAMES)), max_size=3),
    )
    def holds(more: list[str], cells: list[list[str]], orders: list[list[str]]) -> None:
        names = [*NEEDED[kind], *more]
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "export"
            place.mkdir()
            (place / "products.csv").write_text(text(names, [row[: len(names)] for row in cells]), encoding="utf-8")
            (place / "orders.csv").write_text(text([*sorted(NAMES), "lineitem_price"], [[*row, "1"] for row in orders]), encoding="utf-8")
            try:
                report = import_catalogue(kind, place, Path(folder) / "shop")
            except InputError as refused:
                if "no item could be made" in str(refused):
                    return
                raise
            assert report.rows == report.items + report.merged + report.refused == len(cells)
            assert report.order_lines == report.purchases + sum(report.orders_left_out.values()) + report.orders_refused == len(orders)
            refusals = Refusals()
            raw = rows.read_all(Path(folder) / "shop", refusals, now=NOW)
            assert raw["items"].num_rows + len(refusals.rows) >= report.items
            for one in refusals.rows:
                assert one["column"] in ("item_id", "spu_id", "timestamp"), one

    holds()
