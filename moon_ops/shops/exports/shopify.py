"""Shopify: the products' CSV export, with the columns' names of before 2024 and since.

A product is the rows of one handle. A row with a SKU, a price or an option's value is a variant, and so an item with the handle as its
``spu_id``; the other rows bring pictures. An item is called by its SKU. Where a variant has none, or shares it, it is called by the handle
and its options: ``bowl/Blue/L``.
"""

from __future__ import annotations

import re
from collections import Counter

from moon_ops.lake.reading import pictures
from moon_ops.shops.exports.export import Export, Item, alone, listed
from moon_ops.shops.exports.sheets import Line

HANDLE, SKU, PRICE = ("handle", "url_handle"), ("variant_sku", "sku"), ("variant_price", "price")
BODY, IMAGE, OWN = ("body_(html)", "description"), ("image_src", "product_image_url"), ("variant_image", "variant_image_url")
POSITION, PUBLISHED = ("image_position",), ("published", "published_on_online_store")
OPTIONS = (1, 2, 3)
USED = {
    *(*HANDLE, *SKU, *PRICE, *BODY, *IMAGE, *OWN, *POSITION, *PUBLISHED),
    *("title", "vendor", "type", "product_category", "tags", "status"),
    *(f"option{n}_{what}" for n in OPTIONS for what in ("name", "value")),
}
DEFAULT = "Default Title"  # the only option of a product without variants
HIDDEN = ("false", "0", "no")


def is_catalogue(names: set[str]) -> bool:
    """Whether a file with these columns holds products."""
    return bool(names & {*HANDLE}) and "title" in names and bool(names & {*SKU, *PRICE, *IMAGE})


def load(lines: list[Line], export: Export) -> None:
    """Make items of the rows."""
    products: dict[str, list[Line]] = {}
    for line in lines:
        if handle := line.get(*HANDLE):
            products.setdefault(handle, []).append(line)
        else:
            export.refuse(line, "has no handle: it is not known which product it belongs to")
    skus = Counter(_sku(line) for line in lines if line.get(*HANDLE))
    for handle, rows in products.items():
        _product(handle, rows, skus, export)
    if shared := sum(count for sku, count in skus.items() if sku and count > 1):
        export.notes.append(f"{shared} variants share their SKU with another: they are called by handle and options")


def _product(handle: str, rows: list[Line], skus: Counter[str], export: Export) -> None:
    head = next((line for line in rows if "title" in line.cells), None)
    if head is None:
        for line in rows:
            export.refuse(line, f"continues the product {handle!r}, of which no row has a title")
        return
    status = _status(head, export)
    if status is None:
        for line in rows:
            if line is not head:
                export.refuse(line, f"its product {handle!r} is refused ({head.place})")
        return
    variants = [line for line in rows if line.get(*SKU, *PRICE, "option1_value", *OWN)] or [head]
    export.merged += len(rows) - len(variants)
    options = [head.get(f"option{n}_name") for n in OPTIONS]
    gallery = _gallery(rows)
    taken = {picture for line in variants for picture in pictures.references(line.get(*OWN))}
    for line in variants:
        values = [value for n in OPTIONS if (value := line.get(f"option{n}_value")) and value != DEFAULT]
        sku = _sku(line)
        export.items.append(
            Item(
                line,
                product=head,
                item_id=sku if sku and skus[sku] == 1 else "/".join([handle, *values]),
                spu_id=handle,
                title=head.get("title"),
                category=listed(head.get("product_category") or head.get("type"), ">"),
                brand=head.get("vendor"),
                description=head.get(*BODY),
                attributes=_attributes(head, options, values),
                price=line.get(*PRICE),
                status=status,
                images=alone(pictures.references(line.get(*OWN)), gallery, taken),
                tags=listed(head.get("tags")),
                sku=sku,
                names=[" - ".join([head.get("title"), *([" / ".join(values)] if values else [])])],
            )
        )


def _sku(line: Line) -> str:
    """The SKU without the mark that keeps a spreadsheet from making a number of it."""
    return re.sub(r"^'(?=\d)", "", line.get(*SKU))


def _status(head: Line, export: Export) -> str | None:
    word = export.status(head.get("status"), head)
    return "deleted" if word and head.get(*PUBLISHED).lower() in HIDDEN else word


def _attributes(head: Line, options: list[str], values: list[str]) -> dict[str, str]:
    """The options, and the type where the category says something else."""
    named = {name or f"option {n}": value for n, (name, value) in enumerate(zip(options, values, strict=False), 1)}
    return named | ({"type": head.get("type")} if head.get("product_category") and head.get("type") else {})


def _gallery(rows: list[Line]) -> list[str]:
    """The product's pictures by their position."""
    found = [(line.get(*POSITION), picture) for line in rows for picture in pictures.references(line.get(*IMAGE))]
    found.sort(key=lambda pair: int(pair[0]) if pair[0].isdecimal() else len(found))
    return list(dict.fromkeys(picture for _, picture in found))
