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
from moon_ops.shops.exports import orders
from moon_ops.shops.exports.export import Choices

Rows = dict[str, dict[str, Any]]
Refused = Callable[[], list[tuple[str, str]]]
Import = Callable[..., tuple[CatalogueReport, Rows]]
CDN = "https://cdn.example/"


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


def test_shopify_variants_are_items_of_their_product(exported: Import, refused: Refused) -> None:
    report, items = exported("shopify", products_csv=SHOPIFY)
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
    assert refused() == [
        ("products.csv:8", "'sleeping' is no state that is known (moon.toml may say what it means)"),
        ("products.csv:9", "continues the product 'ghost', of which no row has a title"),
        ("products.csv:7", "price = 'cheap' is not a number"),
    ]


@pytest.mark.parametrize(("delimiter", "encoding"), [(";", "cp1252"), ("\t", "utf-16"), (",", "utf-8-sig")])
def test_a_spreadsheet_may_have_saved_the_export(exported: Import, tmp_path: Path, delimiter: str, encoding: str) -> None:
    text = SHOPIFY.replace("A bowl", "Schüssel für Müsli")
    _, plain = exported("shopify", products_csv=text)
    with (tmp_path / "export" / "products.csv").open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\r\n").writerows(csv.reader(text.splitlines()))
    report, saved = exported("shopify")
    assert saved == plain
    assert (report.rows, report.refused) == (11, 3)


def test_shopify_since_2024_and_columns_to_keep(exported: Import) -> None:
    text = f"""Title,URL handle,Description,Vendor,Product category,Type,Published on online store,Status,SKU,\
Option1 name,Option1 value,Price,\
Product image URL,Image position,Variant image URL,Weight value (grams)
Bowl,bowl,<b>A</b> bowl,Pottery,Home & Garden > Bowls,Bowl,TRUE,Active,B-1,Colour,Blue,12.50,{CDN}one.jpg,1,,300
,bowl,,,,,,,B-2,,Green,12.50,,,,400
"""
    report, items = exported("shopify", Choices(keep=("Weight value (grams)",)), products_csv=text)
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


def test_orders_become_purchases_without_addresses(exported: Import, refused: Refused, tmp_path: Path) -> None:
    report, _ = exported("shopify", products_csv=SHOPIFY, orders_csv=ORDERS)
    assert (report.order_lines, report.purchases, report.orders_left_out) == (6, 2, {"returned": 1, "cancelled": 1})
    assert (report.orders_refused, report.order_columns_left_out) == (2, {"Billing Name": 4})
    assert refused()[-2:] == [
        ("orders.csv:5", "'yesterday' is not a time (e.g. 2026-01-31T12:00:00Z, 2026-01-31 12:00:00+01:00, or seconds since 1970)"),
        ("orders.csv:6", "'Gift card' is no item of the catalogue"),
    ]
    written = tmp_path / "shop" / "events" / "orders.parquet"
    rows = pq.read_table(written).to_pylist()
    assert [(r["timestamp"], r["item_id"], r["event"], r["order_id"]) for r in rows] == [
        ("2026-01-05T09:00:00+00:00", "B-1", "purchase", "#1"),
        ("2026-01-05T09:00:00+00:00", "bowl/Red", "purchase", "#1"),
        ("2026-01-06T09:00:00+00:00", "B-1", "purchase", "#2"),
        ("2026-01-06T09:00:00+00:00", "B-1", "return", "#2"),
        ("2026-01-07T09:00:00+00:00", "B-1", "purchase", "#3"),
        ("2026-01-08T09:00:00+00:00", "B-1", "cancel", "#3"),
    ]
    assert {r["user_id"] for r in rows[:4]} == {"8c87b489ce35cf2e2f39f80e282cb2e8"}, "SHA-256 of the address, letter case aside"
    assert not any(b"example.com" in path.read_bytes().lower() for path in (tmp_path / "shop").rglob("*") if path.is_file())


def test_a_key_makes_other_users(exported: Import, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("long and random\n")
    exported("shopify", products_csv=SHOPIFY, orders_csv=ORDERS)
    told = CliRunner().invoke(
        app, ["import", "shopify", str(tmp_path / "export"), str(tmp_path / "shop"), "--user-key", str(key), "--allow-quarantine"]
    )
    assert told.exit_code == 0, told.output
    users = set(pq.read_table(tmp_path / "shop" / "events" / "orders.parquet")["user_id"].to_pylist())
    assert users == {"ab28638706f8f31fb9333eba9b8c72b7", "17127d8a92c10eeaf89a07b880eed8ff"}
    assert "purchases: 2" in told.output


def test_a_log_beside_the_export_is_taken_along(exported: Import, tmp_path: Path) -> None:
    log = "timestamp,item_id,event,user_id\n2026-01-05,B-1,view_item,Jane@example.com\n2026-01-05,B-1,view_item,\n"
    report, _ = exported("shopify", products_csv=SHOPIFY, orders_csv=ORDERS, events_csv=log, moon_toml='[status]\nsleeping = "deleted"\n')
    assert (report.refused, report.taken_along) == (2, ("events/events.parquet",))
    rows = pq.read_table(tmp_path / "shop" / "events" / "events.parquet").to_pylist()
    assert [row["user_id"] for row in rows] == ["8c87b489ce35cf2e2f39f80e282cb2e8", None]
    (tmp_path / "export" / "events.csv").unlink()
    (tmp_path / "export" / "orders.csv").unlink()
    report, _ = exported("shopify", products_csv=SHOPIFY)
    assert not [path for path in (tmp_path / "shop" / "events").rglob("*") if path.is_file()], "an import replaces the one before"


def test_no_address_of_a_log_gets_into_the_shop(exported: Import, refused: Refused, tmp_path: Path) -> None:
    events = (
        "timestamp,item_id,event,user_id,session_id,customer_email,query_id,device\n"
        "2026-01-05,B-1,view_item,7,Ann@x.com,ann@x.com,1,phone\n2026-01-05,B-1,view_item,ann@x.com,s2,,1,web\n2026-01-05,B-1,ann@x.com\n"
    )
    queries = "query_id,timestamp,text\n1,2026-01-05,bowl of ann@x.com\n"
    report, _ = exported("shopify", products_csv=SHOPIFY, events_csv=events, users_csv="user_id,email\n7,ann@x.com\n", queries_csv=queries)
    assert not any(b"@x.com" in path.read_bytes().lower() for path in (tmp_path / "shop").rglob("*") if path.is_file())
    ann = orders.hidden("ann@x.com", b"")
    rows = pq.read_table(tmp_path / "shop" / "events" / "events.parquet").to_pylist()
    assert [(row["user_id"], row["session_id"], row["device"]) for row in rows] == [("7", ann, "phone"), (ann, "s2", "web")]
    assert pq.read_table(tmp_path / "shop" / "queries" / "queries.parquet")["text"].to_pylist() == ["bowl of"]
    assert pq.read_table(tmp_path / "shop" / "users" / "users.parquet").column_names == ["user_id"]
    assert {n: c for n, c in report.columns_left_out.items() if "csv" in n} == {"events.csv customer_email": 1, "users.csv email": 1}
    assert (report.log_refused, refused()[-1]) == (1, ("events.csv:3", "has 3 cells, and the header has 8"))


def test_a_directory_without_products_says_what_it_holds(tmp_path: Path, exported: Import) -> None:
    with pytest.raises(InputError) as wrong:
        exported("woocommerce", artikel_csv="ID,Typ,Artikelnummer,Name,Veröffentlicht\n1,simple,A,Tasse,1\n")
    assert "artikel.csv was not used: it holds neither products nor orders (id, Typ, Artikelnummer, name, Veröffentlicht" in str(
        wrong.value
    )
    assert not (tmp_path / "shop").exists()
    names = '[columns]\nTyp = "type"\nArtikelnummer = "sku"\n"Veröffentlicht" = "published"\n'
    report, items = exported("woocommerce", moon_toml=names)
    assert (report.items, items["A"]["title"]) == (1, "Tasse")


def test_an_unknown_kind_names_those_that_there_are(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["import", "prestashop", str(tmp_path), str(tmp_path / "shop")])
    assert told.exit_code == 1
    assert "shopify, woocommerce, magento, google_merchant, taobao_mm" in str(told.exception or told.output)


def test_the_next_export_replaces_the_one_before(exported: Import, tmp_path: Path) -> None:
    feed = "id\ttitle\timage_link\tprice\n1\tCup\t/media/cup.jpg\t5 EUR\n2\tBowl\tgone.jpg\t5 EUR\n"
    picture = tmp_path / "export" / "media" / "cup.jpg"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"first")
    report, items = exported("google_merchant", feed_txt=feed, moon_toml="[events]\nwish = 'cart'\n")
    assert (report.pictures, report.pictures_missing, items["1"]["images"]) == (1, 1, ["media/cup.jpg"])
    picture.unlink()
    picture.write_bytes(b"second")
    (tmp_path / "export" / "moon.toml").unlink()
    _, items = exported("google_merchant", feed_txt=feed.replace("5 EUR", "6 EUR"))
    assert (tmp_path / "shop" / "media" / "cup.jpg").read_bytes() == b"second"
    assert (items["1"]["price"], (tmp_path / "shop" / "moon.toml").exists()) == (6, False)
    with pytest.raises(InputError, match="holds something else"):
        import_catalogue("shopify", tmp_path / "export", tmp_path / "shop")


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
def test_an_option_that_would_do_nothing_is_refused(exported: Import, tmp_path: Path, kind: str, options: list[str], reason: str) -> None:
    exported("shopify", products_csv=SHOPIFY)
    told = CliRunner().invoke(app, ["import", kind, str(tmp_path / "export"), str(tmp_path / "other"), *options])
    assert told.exit_code == 1
    assert reason in str(told.exception or told.output)
    assert not (tmp_path / "other").exists()


def test_an_import_that_refuses_rows_ends_with_one(exported: Import, tmp_path: Path) -> None:
    exported("shopify", products_csv=SHOPIFY)
    command = ["import", "shopify", str(tmp_path / "export"), str(tmp_path / "shop")]
    told = CliRunner().invoke(app, command)
    assert (told.exit_code, "3 rows were refused; the first: products.csv:8" in str(told.exception or told.output)) == (1, True)
    assert CliRunner().invoke(app, [*command, "--allow-quarantine"]).exit_code == 0
    exported("shopify", products_csv="Handle,Title,Variant SKU,Variant Price\nbowl,Bowl,B-1,5\ncup,Cup,C-1,cheap\n")
    told = CliRunner().invoke(app, command)
    assert "1 row was refused; the first: products.csv:2" in str(told.exception or told.output)
    exported("shopify", products_csv="Handle,Title,Variant SKU,Variant Price\nbowl,Bowl,B-1,5\n")
    assert CliRunner().invoke(app, command).exit_code == 0


def test_the_report_is_json(exported: Import, tmp_path: Path) -> None:
    exported("shopify", products_csv=SHOPIFY)
    told = CliRunner().invoke(app, ["import", "shopify", str(tmp_path / "export"), str(tmp_path / "shop"), "--json"])
    assert json.loads(told.output)["read"] == {"products.csv": "products, CSV, comma between cells, UTF-8"}
