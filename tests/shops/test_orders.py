"""Orders over several nights: each line is an event of its own, known when it comes again, and taken back when it was cancelled since."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moon_ops.lake import counting
from moon_ops.lake.ingest import IngestReport, ingest
from moon_ops.lake.lake import Lake

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
PRODUCTS = "Handle,Title,Variant SKU,Variant Price\nbowl,Bowl,B-1,5\ncup,Cup,C-1,4\n"
HEAD = "Name,Email,Financial Status,Created at,Lineitem quantity,Lineitem name,Lineitem sku,Cancelled at\n"
Import = Callable[..., Any]


def night(exported: Import, tmp_path: Path, lake: Lake, orders: str, *, kind: str = "shopify", products: str = PRODUCTS) -> IngestReport:
    exported(kind, products_csv=products, orders_csv=orders)
    return ingest(tmp_path / "shop", lake, now=NOW)


def standing(lake: Lake) -> list[str]:
    """The orders of the purchases that count."""
    return sorted(counting.standing(counting.read(lake, counting.PURCHASES))["order_id"].to_pylist())


@pytest.mark.parametrize(
    ("status", "cancelled", "event", "at"),
    [("refunded", "", "return", "2026-01-05"), ("paid", "2026-01-09 12:00:00", "cancel", "2026-01-09")],
)
def test_what_is_refunded_later_takes_its_purchase_back(
    exported: Import, tmp_path: Path, status: str, cancelled: str, event: str, at: str
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    line = "#1,ann@x.com,{},2026-01-05 12:00:00,1,Bowl,B-1,{}\n#2,ann@x.com,paid,2026-01-06 12:00:00,1,Bowl,B-1,\n"
    assert night(exported, tmp_path, lake, HEAD + line.format("paid", "")).events == 2
    assert standing(lake) == ["#1", "#2"]
    report = night(exported, tmp_path, lake, HEAD + line.format(status, cancelled))
    assert (report.events, report.refused) == (1, {})
    assert standing(lake) == ["#2"]
    (undoing,) = counting.read(lake, ["event", "event_timestamp", "order_id"], f"event = '{event}'").to_pylist()
    assert (undoing["order_id"], undoing["event_timestamp"].date().isoformat()) == ("#1", at)
    assert night(exported, tmp_path, lake, HEAD + line.format(status, cancelled)).events == 0


def test_a_part_of_an_order_that_comes_back_leaves_the_rest(exported: Import, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lines = "#1,ann@x.com,paid,2026-01-05 12:00:00,1,Bowl,B-1,\n#1,,,,1,Cup,C-1,\n#1,,,,{},Bowl,B-1,\n"
    assert night(exported, tmp_path, lake, HEAD + lines.format(1)).events == 3
    assert night(exported, tmp_path, lake, HEAD + lines.format(0)).events == 1
    assert standing(lake) == ["#1", "#1"]
    refund = lines.format(0) + "#1,,,,-1,Cup,C-1,\n"
    assert night(exported, tmp_path, lake, HEAD + refund).events == 1
    (left,) = counting.standing(counting.read(lake, [*counting.PURCHASES, "event_id"]))["event_id"].to_pylist()
    assert left in ("order #1/B-1/1/purchase", "order #1/B-1/2/purchase")


def test_purchases_of_the_same_moment_are_told_apart(exported: Import, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    products = "ID,Type,SKU,Name,Published,Regular price\n1,simple,B-1,Bowl,1,5\n"
    line = "{},2026-01-31,B-1,1,completed\n"
    orders = "Order Number,Order Date,SKU,Quantity,Order Status\n" + "".join(line.format(number) for number in (1, 2, 2))
    assert night(exported, tmp_path, lake, orders, kind="woocommerce", products=products).events == 3
    report = night(exported, tmp_path, lake, orders + "3,2026-01-31,B-1,1,on-hold\n", kind="woocommerce", products=products)
    assert (report.events, report.known, report.refused) == (0, 4, {})
    assert standing(lake) == ["1", "2", "2"]
