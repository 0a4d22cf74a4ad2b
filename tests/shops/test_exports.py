"""What each system's columns become, and what is refused, merged or left out of an export, with its place and the reason."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from moon_ops.cli.main import app
from moon_ops.errors import InputError
from moon_ops.shops.catalogues import CatalogueReport, import_catalogue
from moon_ops.shops.exports.export import Choices

Rows = dict[str, dict[str, Any]]
Import = Callable[..., tuple[CatalogueReport, Rows]]
CDN = "https://cdn.example/"


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Write an export's files, import it, and hand out the report and the items by id; every row is accounted for."""

    def run(kind: str, chosen: Choices | None = None, **files: str) -> tuple[CatalogueReport, Rows]:
        place = tmp_path / "export"
        place.mkdir(exist_ok=True)
        for name, text in files.items():
            stem, _, ending = name.rpartition("_")
            (place / f"{stem}.{ending}").write_text(text, encoding="utf-8")
        report = import_catalogue(kind, place, tmp_path / "shop", chosen or Choices())
        assert report.rows == report.items + report.merged + report.refused
        assert report.order_lines == report.purchases + sum(report.orders_left_out.values()) + report.orders_refused
        return report, {row["item_id"]: row for row in pq.read_table(tmp_path / "shop" / "items.parquet").to_pylist()}

    return run


def refused(tmp_path: Path) -> list[tuple[str, str]]:
    with (tmp_path / "shop" / "_refused.csv").open(encoding="utf-8") as file:
        return [(row["place"], row["reason"]) for row in csv.DictReader(file)]


SHOPIFY = f"""Handle,Title,Body (HTML),Vendor,Type,Tags,Published,Option1 Name,Option1 Value,Variant SKU,Variant Price,Variant Grams,\
Image Src,Image Position,Variant Image,Status
bowl,Plain bowl,"<p>A bowl.</p>",Pottery,Bowls,"new, blue",TRUE,Colour,Blue,B-1,12.50,300,{CDN}two.jpg,2,{CDN}blue.jpg,active
bowl,,,,,,,,Green,'0012,13.00,300,{CDN}one.jpg,1,{CDN}green.jpg,
bowl,,,,,,,,Red,,13.00,300,,,,
bowl,,,,,,,,,,,,{CDN}green.jpg,3,,
cup,Cup,,,,,FALSE,Title,Default Title,,8,,,,,active
old,Old,,,,,TRUE,Title,Default Title,O-1,8,,,,,archived
odd,Odd,,,,,TRUE,Title,Default Title,O-2,cheap,,,,,active
strange,Strange,,,,,TRUE,Title,Default Title,O-3,8,,,,,sleeping
ghost,,,,,,,,Blue,G-1,8,,,,,
same,Same,,,,,TRUE,Title,Default Title,S-1,8,,,,,active
same2,Same too,,,,,TRUE,Title,Default Title,S-1,8,,,,,active
"""


def test_shopify_variants_are_items_of_their_product(imported: Import, tmp_path: Path) -> None:
    report, items = imported("shopify", products_csv=SHOPIFY)
    assert (report.rows, report.items, report.merged, report.refused) == (11, 7, 1, 3)
    assert {name: row["spu_id"] for name, row in items.items()} == {
        **dict.fromkeys(("B-1", "0012", "bowl/Red"), "bowl"),
        **{"cup": "cup", "O-1": "old", "same": "same", "same2": "same2"},
    }
    assert items["B-1"] == {
        **{"item_id": "B-1", "spu_id": "bowl", "title": "Plain bowl", "category": ["Bowls"], "brand": "Pottery"},
        **{"description": "<p>A bowl.</p>", "attributes": [("Colour", "Blue")], "price": 12.5, "status": "active"},
        **{"images": [f"{CDN}blue.jpg", f"{CDN}one.jpg", f"{CDN}two.jpg"], "available_until": None, "tags": ["new", "blue"]},
    }
    assert items["0012"]["images"] == [f"{CDN}green.jpg", f"{CDN}one.jpg", f"{CDN}two.jpg"]
    assert items["bowl/Red"]["images"] == [f"{CDN}one.jpg", f"{CDN}two.jpg"], "not what shows another variant"
    assert [items[name]["status"] for name in ("cup", "O-1", "same")] == ["deleted", "deleted", "active"]
    assert items["cup"]["attributes"] == []
    assert report.columns_left_out == {"Variant Grams": 3}
    assert report.notes == ("2 variants share their SKU with another: they are called by handle and options",)
    assert refused(tmp_path) == [
        ("products.csv:8", "'sleeping' is no state that is known (moon.toml may say what it means)"),
        ("products.csv:9", "continues the product 'ghost', of which no row has a title"),
        ("products.csv:7", "price = 'cheap' is not a number"),
    ]


@pytest.mark.parametrize(("delimiter", "encoding"), [(";", "cp1252"), ("\t", "utf-16"), (",", "utf-8-sig")])
def test_a_spreadsheet_may_have_saved_the_export(imported: Import, tmp_path: Path, delimiter: str, encoding: str) -> None:
    text = SHOPIFY.replace("A bowl", "Schüssel für Müsli")
    _, plain = imported("shopify", products_csv=text)
    with (tmp_path / "export" / "products.csv").open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\r\n").writerows(csv.reader(text.splitlines()))
    report, saved = imported("shopify")
    assert saved == plain
    assert (report.rows, report.refused) == (11, 3)


def test_shopify_since_2024_and_columns_to_keep(imported: Import) -> None:
    text = f"""Title,URL handle,Description,Vendor,Product category,Type,Published on online store,Status,SKU,\
Option1 name,Option1 value,Price,\
Product image URL,Image position,Variant image URL,Weight value (grams)
Bowl,bowl,<b>A</b> bowl,Pottery,Home & Garden > Bowls,Bowl,TRUE,Active,B-1,Colour,Blue,12.50,{CDN}one.jpg,1,,300
,bowl,,,,,,,B-2,,Green,12.50,,,,400
"""
    report, items = imported("shopify", Choices(keep=("Weight value (grams)",)), products_csv=text)
    assert (report.items, report.columns_left_out) == (2, {})
    assert items["B-2"]["category"] == ["Home & Garden", "Bowls"]
    assert items["B-2"]["attributes"] == [("Colour", "Green"), ("type", "Bowl")]
    assert [row["Weight value (grams)"] for row in items.values()] == ["300", "400"]


ORDERS = """Name,Email,Financial Status,Created at,Lineitem quantity,Lineitem name,Lineitem sku,Cancelled at,Billing Name
#1,Jane@Example.com,paid,2026-01-05 10:00:00 +0100,1,Plain bowl - Blue,B-1,,Jane
#1,,,,2,Plain bowl - Red,,,
#2,jane@example.com ,refunded,2026-01-06 10:00:00 +0100,1,x,B-1,,Jane
#3,joe@example.com,paid,2026-01-07 10:00:00 +0100,1,x,B-1,2026-01-08 10:00:00 +0100,Joe
#4,joe@example.com,paid,yesterday,1,x,B-1,,Joe
#5,,paid,2026-01-07 10:00:00 +0100,1,Gift card,,,
"""


def test_orders_become_purchases_without_addresses(imported: Import, tmp_path: Path) -> None:
    report, _ = imported("shopify", products_csv=SHOPIFY, orders_csv=ORDERS)
    assert (report.order_lines, report.purchases, report.orders_left_out) == (6, 2, {"returned": 1, "cancelled": 1})
    assert (report.orders_refused, report.order_columns_left_out) == (2, {"Billing Name": 4})
    assert refused(tmp_path)[-2:] == [
        ("orders.csv:5", "'yesterday' is not a time (e.g. 2026-01-31T12:00:00Z, 2026-01-31 12:00:00+01:00, or seconds since 1970)"),
        ("orders.csv:6", "'Gift card' is no item of the catalogue"),
    ]
    written = tmp_path / "shop" / "events" / "orders.parquet"
    rows = pq.read_table(written).to_pylist()
    assert [(r["timestamp"], r["item_id"], r["event"]) for r in rows] == [
        ("2026-01-05T09:00:00+00:00", "B-1", "purchase"),
        ("2026-01-05T09:00:00+00:00", "bowl/Red", "purchase"),
    ]
    assert {r["user_id"] for r in rows} == {"8c87b489ce35cf2e2f39f80e282cb2e8"}, "SHA-256 of the address, letter case aside"
    assert not any(b"example.com" in path.read_bytes().lower() for path in (tmp_path / "shop").rglob("*") if path.is_file())


def test_a_key_makes_other_users(imported: Import, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("long and random\n")
    imported("shopify", products_csv=SHOPIFY, orders_csv=ORDERS)
    told = CliRunner().invoke(app, ["import", "shopify", str(tmp_path / "export"), str(tmp_path / "shop"), "--user-key", str(key)])
    assert told.exit_code == 0, told.output
    users = set(pq.read_table(tmp_path / "shop" / "events" / "orders.parquet")["user_id"].to_pylist())
    assert users == {"ab28638706f8f31fb9333eba9b8c72b7"}
    assert "purchases: 2" in told.output


def test_a_log_beside_the_export_is_taken_along(imported: Import, tmp_path: Path) -> None:
    log = "timestamp,item_id,event,user_id\n2026-01-05,B-1,view_item,Jane@example.com\n2026-01-05,B-1,view_item,\n"
    report, _ = imported("shopify", products_csv=SHOPIFY, orders_csv=ORDERS, events_csv=log, moon_toml='[status]\nsleeping = "deleted"\n')
    assert (report.refused, report.taken_along) == (2, ("events/events.parquet",))
    rows = pq.read_table(tmp_path / "shop" / "events" / "events.parquet").to_pylist()
    assert [row["user_id"] for row in rows] == ["8c87b489ce35cf2e2f39f80e282cb2e8", None]
    (tmp_path / "export" / "events.csv").unlink()
    (tmp_path / "export" / "orders.csv").unlink()
    report, _ = imported("shopify", products_csv=SHOPIFY)
    assert not [path for path in (tmp_path / "shop" / "events").rglob("*") if path.is_file()], "an import replaces the one before"


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


def test_woocommerce_variations_have_what_their_product_says(imported: Import, tmp_path: Path) -> None:
    report, items = imported("woocommerce", products_csv=WOO)
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
    assert refused(tmp_path) == [
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
def test_woocommerce_orders_by_line_and_packed(imported: Import, tmp_path: Path, text: str) -> None:
    report, _ = imported("woocommerce", products_csv=WOO, orders_csv=text)
    assert (report.order_lines, report.purchases, report.orders_refused) == (4, 2, 0)
    assert report.orders_left_out == {"cancelled": 1, "returned": 1}
    rows = pq.read_table(tmp_path / "shop" / "events" / "orders.parquet").to_pylist()
    assert [row["item_id"] for row in rows] == ["B-1", "10"]
    assert len({row["user_id"] for row in rows}) == 1


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


def test_magento_variations_and_store_views(imported: Import, tmp_path: Path) -> None:
    report, items = imported("magento", Choices(media="https://shop.example/media/catalog/product/"), catalog_csv=MAGENTO)
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
    assert [place for place, _ in refused(tmp_path)] == ["catalog.csv:7", "catalog.csv:9"]


def test_magento_in_the_language_of_a_store_view(imported: Import) -> None:
    report, items = imported("magento", Choices(store="de"), catalog_csv=MAGENTO)
    assert [items[name]["title"] for name in ("B-blue", "B-red", "PLATE")] == ["Schale blau", "Bowl Red", "Plate"]
    assert items["B-blue"]["description"] == "Eine Schale."
    assert report.pictures_missing == 3
    assert not any("store views" in note for note in report.notes)
    report, _ = imported("magento", Choices(store="fr"), catalog_csv=MAGENTO)
    assert report.notes[0] == "no row is of the store view 'fr'"


def test_magento_orders(imported: Import, tmp_path: Path) -> None:
    text = """increment_id,created_at,status,customer_email,sku,name,qty_ordered
000000001,2026-01-05 10:00:00,complete,a@example.com,B-blue,Bowl Blue,1
000000002,2026-01-05 11:00:00,canceled,a@example.com,B-blue,Bowl Blue,1
000000003,2026-01-05 11:00:00,closed,a@example.com,B-blue,Bowl Blue,1
"""
    report, _ = imported("magento", catalog_csv=MAGENTO, orders_csv=text)
    assert (report.purchases, report.orders_left_out) == (1, {"cancelled": 1, "returned": 1})


def test_a_directory_without_products_says_what_it_holds(tmp_path: Path, imported: Import) -> None:
    with pytest.raises(InputError) as wrong:
        imported("woocommerce", artikel_csv="ID,Typ,Artikelnummer,Name,Veröffentlicht\n1,simple,A,Tasse,1\n")
    assert "artikel.csv was not used: it holds neither products nor orders (id, Typ, Artikelnummer, name, Veröffentlicht" in str(
        wrong.value
    )
    assert not (tmp_path / "shop").exists()
    names = '[columns]\nTyp = "type"\nArtikelnummer = "sku"\n"Veröffentlicht" = "published"\n'
    report, items = imported("woocommerce", moon_toml=names)
    assert (report.items, items["A"]["title"]) == (1, "Tasse")


def test_an_unknown_kind_names_those_that_there_are(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["import", "prestashop", str(tmp_path), str(tmp_path / "shop")])
    assert told.exit_code == 1
    assert "shopify, woocommerce, magento, google_merchant, taobao_mm" in str(told.exception or told.output)


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("shopify", ["--keep", "Variant Weight"], "--keep 'Variant Weight': no such column; nothing was imported"),
        ("shopify", ["--keep", "Vendor"], "--keep 'Vendor': this column has a meaning already"),
        ("shopify", ["--users", "5"], "--users means nothing for shopify"),
        ("hm", ["--store", "de"], "--store means nothing for hm"),
        ("shopify", ["--user-key", "nowhere"], "nowhere holds no key"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(imported: Import, tmp_path: Path, kind: str, options: list[str], reason: str) -> None:
    imported("shopify", products_csv=SHOPIFY)
    told = CliRunner().invoke(app, ["import", kind, str(tmp_path / "export"), str(tmp_path / "other"), *options])
    assert told.exit_code == 1
    assert reason in str(told.exception or told.output)
    assert not (tmp_path / "other").exists()


def test_the_report_is_json(imported: Import, tmp_path: Path) -> None:
    imported("shopify", products_csv=SHOPIFY)
    told = CliRunner().invoke(app, ["import", "shopify", str(tmp_path / "export"), str(tmp_path / "shop"), "--json"])
    assert json.loads(told.output)["read"] == {"products.csv": "products, CSV, comma between cells, UTF-8"}
