"""Magento: what the columns of its export become."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from moon_ops.shops.catalogues import CatalogueReport
from moon_ops.shops.exports.export import Choices

Import = Callable[..., tuple[CatalogueReport, dict[str, dict[str, Any]]]]
Refused = Callable[[], list[tuple[str, str]]]


MAGENTO = """sku,store_view_code,product_type,categories,name,description,product_online,visibility,price,special_price,base_image,\
additional_images,additional_attributes,configurable_variations,configurable_variation_labels,qty
B-blue,,simple,,Bowl Blue,,1,Not Visible Individually,20,18.5,/b/l/blue.jpg,,"color=Blue,material=Clay, fired",,,3
B-red,,simple,,Bowl Red,Red.,2,Not Visible Individually,20,,no_selection,,,,,3
BOWL,,configurable,"Default Category/Home/Bowls, deep,Default Category/Sale",Bowl,<p>A bowl.</p>,1,"Catalog, Search",,,/b/o/bowl.jpg,\
"/b/l/blue.jpg,/b/o/two.jpg","brand=Pottery,form=Round","sku=B-blue,color=Blue|sku=B-red,color=Red|sku=B-gone,color=Grey",color=Colour,
BOWL,de,configurable,,Schale,Eine Schale.,,,,,,,,,,
B-blue,de,simple,,Schale blau,,,,,,,,,,,
PLATE,,simple,Default Category,Plate,,1,"Catalog, Search",5,,,,,,,1
plate,,simple,Default Category,Plate,,1,"Catalog, Search",5,,,,,,,1
PART,,simple,,Part,,1,Not Visible Individually,5,,,,,,,
LOST,de,simple,,Verloren,,,,,,,,,,,
"""


def test_magento_variations_and_store_views(exported: Import, refused: Refused) -> None:
    report, items = exported("magento", Choices(media="https://shop.example/media/catalog/product/"), catalog_csv=MAGENTO)
    assert (report.rows, report.items, report.merged, report.refused) == (9, 4, 3, 2)
    blue, red = items["B-blue"], items["B-red"]
    assert (blue["spu_id"], blue["title"], blue["description"], blue["brand"]) == ("BOWL", "Bowl Blue", "<p>A bowl.</p>", "Pottery")
    assert blue["category"] == ["Home", "Bowls, deep"]
    assert dict(blue["attributes"]) == {"form": "Round", "color": "Blue", "material": "Clay, fired", "Colour": "Blue"}
    media = "https://shop.example/media/catalog/product/b"
    assert blue["images"] == [f"{media}/l/blue.jpg", f"{media}/o/bowl.jpg", f"{media}/o/two.jpg"]
    assert red["images"] == [f"{media}/o/bowl.jpg", f"{media}/o/two.jpg"]
    assert [(row["status"], row["price"]) for row in items.values()] == [("active", 18.5), ("deleted", 20), ("active", 5), ("deleted", 5)]
    assert items["PLATE"]["category"] == []
    assert report.columns_left_out == {"qty": 4}
    assert report.notes == (
        "2 rows of store views that were not asked for (--store) are left out",
        "1 variations that configurable products name are not in the export",
    )
    assert [place for place, _ in refused()] == ["catalog.csv:7", "catalog.csv:9"]


def test_magento_in_the_language_of_a_store_view(exported: Import) -> None:
    report, items = exported("magento", Choices(store="de"), catalog_csv=MAGENTO)
    assert [items[name]["title"] for name in ("B-blue", "B-red", "PLATE")] == ["Schale blau", "Bowl Red", "Plate"]
    assert items["B-blue"]["description"] == "Eine Schale."
    assert report.pictures_missing == 3
    assert not any("store views" in note for note in report.notes)
    report, _ = exported("magento", Choices(store="fr"), catalog_csv=MAGENTO)
    assert report.notes[0] == "no row is of the store view 'fr'"


def test_magento_orders(exported: Import) -> None:
    text = """increment_id,created_at,status,customer_email,sku,name,qty_ordered
000000001,2026-01-05 10:00:00,complete,a@example.com,B-blue,Bowl Blue,1
000000002,2026-01-05 11:00:00,canceled,a@example.com,B-blue,Bowl Blue,1
000000003,2026-01-05 11:00:00,closed,a@example.com,B-blue,Bowl Blue,1
"""
    report, _ = exported("magento", catalog_csv=MAGENTO, orders_csv=text)
    assert (report.purchases, report.orders_left_out) == (1, {"cancelled": 1, "returned": 1})


def test_a_special_price_counts_from_its_first_day_on(exported: Import) -> None:
    days = {"A": "", "B": "2/27/26", "C": "3/1/26", "D": "2026-02-28 00:00:00", "E": "2026-03-02", "F": "soon", "G": "2/27/2026, 12:00 AM"}
    lines = "".join(f'{sku},simple,{sku},1,"Catalog, Search",20,15,"{day}",\n' for sku, day in days.items())
    lines += 'H,simple,H,1,"Catalog, Search",20,15,2/1/26,2/20/26\n'
    header = "sku,product_type,name,product_online,visibility,price,special_price,special_price_from_date,special_price_to_date\n"
    now = dt.datetime(2026, 2, 28, 12, tzinfo=dt.UTC)
    report, items = exported("magento", Choices(now=now), catalog_csv=header + lines)
    assert {sku: row["price"] for sku, row in items.items()} == {"A": 15, "B": 15, "C": 20, "D": 15, "E": 20, "F": 20, "G": 15, "H": 20}
    assert report.columns_left_out == {}
