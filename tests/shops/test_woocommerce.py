"""WooCommerce: what the columns of its export become, and those of its extensions' orders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from moon_ops.shops.catalogues import CatalogueReport

Import = Callable[..., tuple[CatalogueReport, dict[str, dict[str, Any]]]]
Refused = Callable[[], list[tuple[str, str]]]


WOO = """ID,Type,SKU,Name,Published,Visibility in catalog,Short description,Description,In stock?,Sale price,Regular price,Categories,Tags,\
Images,Parent,Attribute 1 name,Attribute 1 value(s),Attribute 2 name,Attribute 2 value(s),Meta: _note
10,simple,,Cup,1,visible,Short.,"<p>A</p>\\n<p>cup.</p>",1,"9,90","12,90","Home &amp; Living > Cups, Sale",\
"a, b\\, c","https://cdn.example/a.jpg, https://cdn.example/b.jpg",,Material,Clay,,,x
11,variable,BOWL,Bowl,1,visible,,A bowl.,1,,,Bowls,,"https://cdn.example/p.jpg, https://cdn.example/blue.jpg",,Colour,"Blue, Green",\
Form,Round,
12,variation,B-1,Bowl - Blue,1,visible,,,1,,"20,00",,,https://cdn.example/blue.jpg,id:11,Colour,Blue,,,
13,variation,BOWL,Bowl - Green,1,visible,,,1,,"21,00",,,,BOWL,Colour,Green,,,
14,variation,B-9,Lost,1,visible,,,1,,"21,00",,,,id:99,Colour,Green,,,
15,"simple, virtual",V-1,Card,-1,visible,,,1,,"5,00",,,,,,,,,
16,simple,V-2,Hidden,1,hidden,,,1,,"5,00",,,,,,,,,
17,simple,V-3,Odd,7,visible,,,1,,"5,00",,,,,,,,,
18,grouped,,,1,visible,,,1,,,,,,,,,,,
"""


def test_woocommerce_variations_have_what_their_product_says(exported: Import, refused: Refused) -> None:
    report, items = exported("woocommerce", products_csv=WOO)
    assert (report.rows, report.items, report.merged, report.refused) == (9, 5, 1, 3)
    assert set(items) == {"10", "B-1", "13", "V-1", "V-2"}
    assert items["10"]["category"] == ["Home &amp; Living", "Cups"], "the ingest reads the text of it"
    assert (items["10"]["price"], items["10"]["tags"]) == (9.9, ["a", "b, c"])
    assert items["10"]["description"] == "Short.\n<p>A</p>\n<p>cup.</p>"
    assert (items["B-1"]["title"], items["B-1"]["spu_id"], items["13"]["spu_id"]) == ("Bowl - Blue", "BOWL", "BOWL")
    assert items["B-1"]["attributes"] == [("Colour", "Blue"), ("Form", "Round")]
    assert items["B-1"]["images"] == ["https://cdn.example/blue.jpg", "https://cdn.example/p.jpg"]
    assert items["13"]["images"] == ["https://cdn.example/p.jpg"]
    assert (items["13"]["category"], items["13"]["description"]) == (["Bowls"], "A bowl.")
    assert [items[name]["status"] for name in ("B-1", "V-1", "V-2")] == ["active", "deleted", "deleted"]
    assert report.columns_left_out == {"In stock?": 9, "Meta: _note": 1}
    assert refused() == [
        ("products.csv:5", "is a variation, and its product 'id:99' is not in the export"),
        ("products.csv:8", "published = '7' is none of 1, 0 and -1"),
        ("products.csv:9", "has no title, and no row that it continues has one"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        """Order Number,Order Status,Order Date,Customer User ID,Email (Billing),SKU,Item Name,Quantity (- Refund)
1,wc-completed,2026-01-05 10:00,0,a@example.com,B-1,Bowl - Blue,1
1,wc-completed,2026-01-05 10:00,0,a@example.com,,Cup,1
2,wc-cancelled,2026-01-05 10:00,0,a@example.com,B-1,Bowl - Blue,1
3,wc-completed,2026-01-05 10:00,0,a@example.com,B-1,Bowl - Blue,0
""",
        """order_id,order_date,status,customer_email,line_item_1,line_item_2
1,2026-01-05 10:00:00,completed,a@example.com,name:Bowl - Blue|product_id:11|sku:B-1|quantity:1|total:20,\
name:Cup|product_id:10|sku:|quantity:1
2,2026-01-05 10:00:00,cancelled,a@example.com,name:Bowl - Blue|product_id:11|sku:B-1|quantity:1|total:20,
3,2026-01-05 10:00:00,refunded,a@example.com,name:Bowl - Blue|product_id:11|sku:B-1|quantity:1|total:20,
""",
    ],
)
def test_woocommerce_orders_by_line_and_packed(exported: Import, tmp_path: Path, text: str) -> None:
    report, _ = exported("woocommerce", products_csv=WOO, orders_csv=text)
    assert (report.order_lines, report.purchases, report.orders_refused) == (4, 2, 0)
    assert report.orders_left_out == {"cancelled": 1, "returned": 1}
    rows = pq.read_table(tmp_path / "shop" / "events" / "orders.parquet").to_pylist()
    assert [row["item_id"] for row in rows if row["order_id"] == "1"] == ["B-1", "10"]
    assert [(row["order_id"], row["event"]) for row in rows[2:]] == [("2", "purchase"), ("2", "cancel"), ("3", "purchase"), ("3", "return")]
    assert len({row["user_id"] for row in rows}) == 1
