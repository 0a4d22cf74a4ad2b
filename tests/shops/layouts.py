"""The tiny simulated shop as Shopify, WooCommerce, Magento and Google Merchant export it, with its log and its pictures beside the export.

These layouts say less than ours: variants of a product share title, description and category, a variant has one picture of its own and the
product's others, and nobody names sellers. :func:`goods` is the tiny shop so far.
"""

from __future__ import annotations

import csv
import html
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pyarrow.csv
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]
OPTIONS = ("color", "size")


def sku(number: int) -> str:
    return f"B-{number:03d}/x"


def product(number: int) -> str:
    return f"product-{number}"


def goods(shop: Path) -> Rows:
    """The items, each as every one of the layouts can say it."""
    rows = sorted(pq.read_table(shop / "items.parquet").to_pylist(), key=lambda row: row["item_id"])
    groups: dict[int, Rows] = {}
    for row in rows:
        groups.setdefault(row["spu_id"], []).append(row)
    made: Rows = []
    for spu, variants in groups.items():
        first = variants[0]
        extra = [picture for row in variants for picture in row["images"][1:]]
        for row in variants:
            said = dict(row["attributes"])
            made.append(
                {
                    "item_id": sku(row["item_id"]),
                    "spu_id": product(spu),
                    "title": first["title"],
                    "category": first["category"],
                    "brand": first["brand"],
                    "description": f"{first['description']} Made & sold by us.",
                    "attributes": {"color": said.get("colour", "plain"), "size": said.get("size", "one size")},
                    "price": row["price"],
                    "status": "active" if spu % 13 else "deleted",
                    "own": row["images"][0],
                    "extra": extra,
                }
            )
    return made


def log(shop: Path, place: Path) -> None:
    """Queries and events as CSV, and all pictures."""
    events = pq.read_table(shop / "events.parquet")
    names = [sku(number) for number in events["item_id"].to_pylist()]
    events = events.set_column(events.schema.get_field_index("item_id"), "item_id", [names])
    pyarrow.csv.write_csv(events, place / "events.csv")
    pyarrow.csv.write_csv(pq.read_table(shop / "queries.parquet"), place / "queries.csv")
    shutil.copytree(shop / "images", place / "images")


def table(path: Path, rows: Iterable[dict[str, Any]], delimiter: str = ",") -> None:
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def page(text: str) -> str:
    first, _, rest = text.partition(". ")
    return f'<p data-start="1">{html.escape(first)}.</p>\n<ul><li>{html.escape(rest)}</li></ul>' if rest else f"<p>{html.escape(text)}</p>"


def grouped(items: Rows) -> dict[str, Rows]:
    groups: dict[str, Rows] = {}
    for item in items:
        groups.setdefault(item["spu_id"], []).append(item)
    return groups


def shopify(items: Rows, place: Path) -> None:
    rows: Rows = []
    for handle, variants in grouped(items).items():
        first = variants[0]
        gallery = [*(v["own"] for v in variants), *first["extra"]]
        for number, variant in enumerate(variants):
            head = {
                "Title": first["title"],
                "Body (HTML)": page(first["description"]),
                "Vendor": first["brand"],
                "Product Category": first["category"],
                "Published": "true",
                "Option1 Name": "color",
                "Option2 Name": "size",
                "Status": "active" if first["status"] == "active" else "draft",
            }
            rows.append(
                {
                    "Handle": handle,
                    **{name: cell if number == 0 else "" for name, cell in head.items()},
                    "Option1 Value": variant["attributes"]["color"],
                    "Option2 Value": variant["attributes"]["size"],
                    "Variant SKU": variant["item_id"],
                    "Variant Price": f"{variant['price']:.2f}",
                    "Variant Image": variant["own"],
                    "Variant Inventory Qty": "3",
                    "Image Src": gallery[number],
                    "Image Position": str(number + 1),
                }
            )
        rows += [{"Handle": handle, "Image Src": p, "Image Position": str(n + 1)} for n, p in enumerate(gallery) if n >= len(variants)]
    table(place / "products_export_1.csv", rows)


def woocommerce(items: Rows, place: Path) -> None:
    rows: Rows = []
    number = 100
    for handle, variants in grouped(items).items():
        first = variants[0]
        number += 1
        named = {f"Attribute {n} name": name for n, name in enumerate(OPTIONS, 1)}
        every = {
            f"Attribute {n} value(s)": ", ".join(dict.fromkeys(v["attributes"][name] for v in variants))
            for n, name in enumerate(OPTIONS, 1)
        }
        rows.append(
            {
                "ID": number,
                "Type": "variable",
                "SKU": handle,
                "Name": html.escape(first["title"]),
                "Published": 1 if first["status"] == "active" else -1,
                "Visibility in catalog": "visible",
                "Short description": "",
                "Description": page(first["description"]).replace("\n", "\\n"),
                "Regular price": "",
                "Categories": f"Sale, {first['category']}",
                "Brands": first["brand"],
                "Images": ", ".join([variants[0]["own"], *first["extra"]]),
                "Parent": "",
                **named,
                **every,
            }
        )
        parent = number
        for variant in variants:
            number += 1
            values = {f"Attribute {n} value(s)": variant["attributes"][name] for n, name in enumerate(OPTIONS, 1)}
            own = {"ID": number, "Type": "variation", "SKU": variant["item_id"], "Published": 1, "Images": variant["own"]}
            price = {"Regular price": f"{variant['price']:.2f}".replace(".", ","), "Parent": handle if number % 2 else f"id:{parent}"}
            rows.append(own | price | named | values)
    table(place / "wc-product-export.csv", rows)


def magento(items: Rows, place: Path) -> None:
    rows: Rows = []
    for handle, variants in grouped(items).items():
        first = variants[0]
        path = first["category"].replace(" > ", "/")
        said = {
            "name": first["title"],
            "description": page(first["description"]),
            "categories": f"Default Category/{path},Default Category",
            "additional_attributes": f"manufacturer={first['brand']}",
            "product_online": "1" if first["status"] == "active" else "2",
        }
        for variant in variants:
            own = {
                "sku": variant["item_id"],
                "product_type": "simple",
                "visibility": "Not Visible Individually",
                "base_image": variant["own"],
            }
            rows.append(said | own | {"price": f"{variant['price']:.4f}", "store_view_code": ""})
        parts = []
        for variant in variants:
            chosen = ",".join(f"{name}={variant['attributes'][name]}" for name in OPTIONS)
            parts.append(f"sku={variant['item_id']},{chosen}")
        own = {"sku": handle, "product_type": "configurable", "visibility": "Catalog, Search", "base_image": first["own"]}
        more = {"configurable_variations": "|".join(parts), "additional_images": ",".join(first["extra"])}
        rows.append(said | own | more)
        rows.append({"sku": handle, "store_view_code": "de", "product_type": "configurable", "name": "Auf Deutsch"})
    table(place / "catalog_product.csv", rows)


def merchant(items: Rows) -> Rows:
    return [
        {
            "id": item["item_id"],
            "item_group_id": item["spu_id"],
            "title": item["title"],
            "description": page(item["description"]),
            "link": f"https://shop.example/{item['item_id']}",
            "image_link": item["own"],
            "additional_image_link": ",".join(item["extra"]),
            "availability": "in_stock" if item["status"] == "active" else "out_of_stock",
            "price": f"{item['price']:.2f} EUR",
            "brand": item["brand"],
            "product_type": item["category"],
            "google_product_category": "187",
            **item["attributes"],
        }
        for item in items
    ]


def merchant_text(items: Rows, place: Path) -> None:
    table(place / "feed.txt", merchant(items), "\t")


def merchant_rss(items: Rows, place: Path) -> None:
    lines = []
    for row in merchant(items):
        pictures = row.pop("additional_image_link").split(",")
        plain = "".join(f"<{name}>{escape(row.pop(name))}</{name}>" for name in ("title", "link", "description"))
        more = "".join(f"<g:additional_image_link>{escape(picture)}</g:additional_image_link>" for picture in pictures)
        lines.append(f"<item>{plain}{''.join(f'<g:{name}>{escape(cell)}</g:{name}>' for name, cell in row.items())}{more}</item>")
    head = '<?xml version="1.0"?><rss xmlns:g="http://base.google.com/ns/1.0" version="2.0"><channel><title>Shop</title>'
    (place / "feed.xml").write_text(f"{head}{''.join(lines)}</channel></rss>", encoding="utf-8")


WRITE: dict[str, tuple[str, Callable[[Rows, Path], None]]] = {
    "shopify": ("shopify", shopify),
    "woocommerce": ("woocommerce", woocommerce),
    "magento": ("magento", magento),
    "merchant_text": ("google_merchant", merchant_text),
    "merchant_rss": ("google_merchant", merchant_rss),
}
